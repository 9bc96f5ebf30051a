// Backpropagation through time for one direction of a layer.
//
// Floor per step and row: 2 G H P flops for the state, then 2 G H I for the gradient of x and 2 G H (I + P) for those
// of the weights. Step by step, last to first: the gradient of h from the gate gradients of the step behind it, and at
// once the gates' math on it while it is in L1. After a stretch of steps that fits the caches, its gate gradients are
// multiplied into the gradients of x and of the weights: stretch by stretch, so that long sums are blocked and keep
// their digits. Every number has one thread that computes it, in an order that does not depend on how many there are.

template <class S, class A, class Cell>
struct BackwardScan {
  using W = Wide<S>;
  static constexpr bool kNarrow = kGroup<S> > 1, kRounds = sizeof(A) < sizeof(W);  // products; results
  static constexpr int L = kLanes<S>;
  static constexpr int G = Cell::kGates;
  static constexpr int kSides = Cell::kSides;
  static constexpr int64_t kChunkRows = 512;
  static constexpr int64_t kBlockRows = 48;  // rows of a large product whose results wait in L1

  const Backward<S, A>& args;
  const Sizes& z;
  const Parameters<const S, const A>& weights;
  const Parameters<A>& grads;
  Parameters<W> totals;  // what the gradients of the parameters are summed up in: themselves unless they are narrow
  const int64_t direction;
  const Steps steps;
  const Crew crew;
  Barrier& barrier;
  const bool projected;
  const bool carried;  // whether any gradient of h flows from a step to the one before
  // Columns of x, h and the units: whole, for products over rows that threads share, and shared by the threads.
  const Panels<S> inputs, outputs, units, shared_outputs, shared_units;
  const int64_t chunk, chunk_rows;
  const int64_t ld, ld_outputs, ld_rows;  // columns of the gate gradients, of P and of rows: whole groups
  const A *h0, *gates, *hidden;
  const W *c0, *cells;
  A* grad_x;

  S *w_ih, *w_hh, *w_hr;                   // packed: (G*H, I), (G*H, P), (P, H)
  S* grad_gates[2];                        // of a stretch and of the one behind it: (chunk_rows, kSides * H)
  S* grad_outputs[2];                      // gradient of the projected h, with a projection: (chunk_rows, P)
  S* unprojected;                          // h before the projection: (chunk_rows, H)
  W* carry;                                // (B, H); for the LSTM the gradient of c, which ends as that of c0
  S *gates_by_column, *outputs_by_column;  // transposed stretches
  S *inputs_packed, *states_packed, *unprojected_packed;  // panels of x, of h before each step, and of `unprojected`
  W* by_token;                                            // with tokens, the gradient of w_ih transposed: (I, G*H)
  const A** before;                                       // per thread: h before each row of a stretch
  W* results;                                             // per thread
  int64_t results_size;

  BackwardScan(const Backward<S, A>& a, int d, const int64_t* offsets, Crew c, Barrier& b, A* x_out, Scratch& scratch)
      : args(a), z(a.sizes), weights(a.weights[d]), grads(a.grad_weights[d]), direction(d),
        steps{z.steps, z.batch, z.batch_sizes, offsets, d == 1}, crew(c), barrier(b),
        projected(weights.w_hr != nullptr), carried(z.steps > 1 || a.grad_h0), inputs(z.inputs), outputs(z.outputs),
        units(z.hidden), shared_outputs(z.outputs, crew.by_rows ? 1 : crew.threads),
        shared_units(z.hidden, crew.by_rows ? 1 : crew.threads),
        chunk(smaller(z.steps, larger<int64_t>(1, kChunkRows / z.batch))), chunk_rows(chunk * z.batch),
        ld(kSides * z.hidden + z.hidden % kGroup<S>), ld_outputs(grouped<S>(z.outputs)),
        ld_rows(grouped<S>(chunk_rows)), h0(a.h0 + d * z.batch * z.outputs),
        gates(Cell::kSaved ? a.saved.gates + d * z.rows * Cell::kSaved * z.hidden : nullptr),
        hidden(a.saved.hidden + d * z.rows * z.outputs),
        cells(Cell::kHasCell || (projected && !Cell::kSaved) ? a.saved.cells + d * z.rows * z.hidden : nullptr),
        grad_x(x_out) {
    const int64_t depth = G * z.hidden;
    const bool wanted = grads.w_ih != nullptr;
    w_hh = carried ? scratch.take<S>(shared_outputs.size(depth)) : nullptr;
    w_ih = grad_x ? scratch.take<S>(inputs.size(depth)) : nullptr;
    w_hr = projected ? scratch.take<S>(shared_units.size(z.outputs)) : nullptr;
    for (int i = 0; i < 2; ++i) {
      grad_gates[i] = scratch.take<S>(chunk_rows * ld);
      grad_outputs[i] = projected ? scratch.take<S>(chunk_rows * ld_outputs) : nullptr;
    }
    unprojected = projected ? scratch.take<S>(chunk_rows * z.hidden) : nullptr;
    const auto wide = [&](auto* values, int64_t count) {
      if constexpr (kRounds)
        return values ? scratch.take<W>(count) : nullptr;
      else
        return values;
    };
    c0 = Cell::kHasCell ? wide(a.c0 + d * z.batch * z.hidden, z.batch * z.hidden) : nullptr;
    carry = Cell::kHasCell && args.grad_c0 ? wide(args.grad_c0 + d * z.batch * z.hidden, z.batch * z.hidden)
            : Cell::kHasCarry              ? scratch.take<W>(z.batch * z.hidden)
                                           : nullptr;
    totals = {wide(grads.w_ih, depth * z.inputs),
              wide(grads.w_hh, depth * z.outputs),
              wide(grads.b_ih, depth),
              wide(grads.b_hh, depth),
              wide(grads.w_hr, z.outputs * z.hidden),
              wide(grads.b_hr, z.outputs)};
    gates_by_column = wanted ? scratch.take<S>(ld * ld_rows) : nullptr;
    outputs_by_column = wanted && projected ? scratch.take<S>(z.outputs * ld_rows) : nullptr;
    inputs_packed = wanted && args.x ? scratch.take<S>(inputs.size(chunk_rows)) : nullptr;
    by_token = wanted && args.tokens ? scratch.take<W>(z.inputs * depth) : nullptr;
    states_packed = wanted ? scratch.take<S>(outputs.size(chunk_rows)) : nullptr;
    unprojected_packed = wanted && projected ? scratch.take<S>(units.size(chunk_rows)) : nullptr;
    before = scratch.take<const A*>(crew.threads * chunk_rows);
    results_size = larger(z.batch, kBlockRows) * kPanel<S, kPlain>;
    results = scratch.take<W>(crew.threads * results_size);
  }

  void run(int thread) const {
    const auto share = [&](int64_t count) { return crew.by_rows ? Part{0, count} : part(count, thread, crew.threads); };
    const Part own_outputs = share(shared_outputs.count), own_units = share(shared_units.count);
    const Part own_rows = crew.by_rows ? part(z.batch, thread, crew.threads) : Part{0, z.batch};
    W* mine = results + thread * results_size;
    prepare(thread);
    barrier.wait(crew.threads);
    for (int64_t s = z.steps - 1; s >= (args.grad_h0 ? -1 : 0); --s) {
      for (int64_t p = own_outputs.begin; p < own_outputs.end; ++p) step(s, p, own_rows, mine);
      if (!crew.by_rows) barrier.wait(crew.threads);
      if (s < 0) break;
      if (projected) {
        for (int64_t p = own_units.begin; p < own_units.end; ++p) unproject(s, p, own_rows, mine);
        if (!crew.by_rows) barrier.wait(crew.threads);
      }
      if (s % chunk == 0) {
        if (crew.by_rows) barrier.wait(crew.threads);
        multiply_stretch(s, smaller(s + chunk, z.steps), thread, mine);
      }
    }
    if (by_token) {
      const Part own = part(G * z.hidden, thread, crew.threads);
      transpose(by_token + own.begin, G * z.hidden, z.inputs, own.end - own.begin, totals.w_ih + own.begin * z.inputs,
                z.inputs);
    }
    if constexpr (kRounds) narrow(thread);
  }

  // What was summed up wide, by this very thread.
  void narrow(int thread) const {
    if (Cell::kHasCell && args.grad_c0) {
      const Part rows = part(z.batch, thread, crew.threads);
      convert(args.grad_c0 + (direction * z.batch + rows.begin) * z.hidden, carry + rows.begin * z.hidden,
              (rows.end - rows.begin) * z.hidden);
    }
    if (!grads.w_ih) return;
    const Part own = part(G * z.hidden, thread, crew.threads), of_h = part(z.outputs, thread, crew.threads);
    for (int64_t k = own.begin; k < own.end; ++k) {
      const int64_t row = Cell::row_hh(k, z.hidden);
      convert(grads.w_ih + k * z.inputs, totals.w_ih + k * z.inputs, z.inputs);
      convert(grads.w_hh + row * z.outputs, totals.w_hh + row * z.outputs, z.outputs);
      if (grads.b_ih) convert(grads.b_ih + k, totals.b_ih + k, 1), convert(grads.b_hh + row, totals.b_hh + row, 1);
    }
    if (!projected) return;
    convert(grads.w_hr + of_h.begin * z.hidden, totals.w_hr + of_h.begin * z.hidden,
            (of_h.end - of_h.begin) * z.hidden);
    if (grads.b_hr) convert(grads.b_hr + of_h.begin, totals.b_hr + of_h.begin, of_h.end - of_h.begin);
  }

  void prepare(int thread) const {
    const auto share = [&](int64_t count) { return part(count, thread, crew.threads); };
    const int64_t depth = G * z.hidden;
    const auto pack = [&](const Panels<S>& panels, auto source, int64_t rows, S* to) {
      const Part own = whole_groups(share(ceil_div(rows, kGroup<S>)), rows);
      pack_rows(panels, source, rows, own.begin, own.end, to);
    };
    if (carried)
      pack(
          shared_outputs, [&](int64_t k) { return weights.w_hh + Cell::row_hh(k, z.hidden) * z.outputs; }, depth, w_hh);
    if (grad_x) pack(inputs, [&](int64_t k) { return weights.w_ih + k * z.inputs; }, depth, w_ih);
    if (projected) pack(shared_units, [&](int64_t k) { return weights.w_hr + k * z.hidden; }, z.outputs, w_hr);
    const Part rows = share(z.batch);
    const int64_t from = rows.begin * z.hidden, count = (rows.end - rows.begin) * z.hidden;
    if (Cell::kHasCell && args.grad_cn)
      convert(carry + from, args.grad_cn + direction * z.batch * z.hidden + from, count);
    else if (Cell::kHasCarry)
      clear(carry + from, count);
    if constexpr (kRounds)
      if (Cell::kHasCell) convert(const_cast<W*>(c0) + from, args.c0 + direction * z.batch * z.hidden + from, count);
    if constexpr (kNarrow) {
      // What stands behind a row that is no whole number of groups.
      const Part of_chunk = share(chunk_rows);
      for (int i = 0; i < 2; ++i) {
        for (int64_t r = of_chunk.begin; r < of_chunk.end; ++r) {
          if (ld != kSides * z.hidden) grad_gates[i][r * ld + ld - 1] = S{};
          if (projected && ld_outputs != z.outputs) grad_outputs[i][r * ld_outputs + z.outputs] = S{};
        }
      }
    }
  }

  static Part whole_groups(Part groups, int64_t rows) {
    return {groups.begin * kGroup<S>, smaller(groups.end * kGroup<S>, rows)};
  }

  int64_t stretch_of(int64_t s) const { return s / chunk; }
  int64_t first_row(int64_t stretch) const {
    return steps.first_row(stretch * chunk, smaller((stretch + 1) * chunk, z.steps));
  }
  // Row 0 of step s in a buffer of a stretch whose rows are `width` long.
  S* at_step(S* const* buffers, int64_t s, int64_t width) const {
    const int64_t stretch = stretch_of(s);
    return buffers[stretch % 2] + (steps.offset(s) - first_row(stretch)) * width;
  }
  // h or c before row r of step s.
  template <class N>
  const N* state_before(int64_t s, int64_t r, const N* saved, const N* initial, int64_t width) const {
    return r < steps.rows(s - 1) ? saved + (steps.offset(s - 1) + r) * width : initial + r * width;
  }

  // The gradient of h at step s, for the outputs of panel p; without a projection the gates' math as well. Rows that
  // begin at step s + 1 give the gradient of h0 instead, as all rows do for s = -1.
  void step(int64_t s, int64_t p, Part own, W* mine) const {
    const int64_t later = steps.rows(s + 1), now = steps.rows(s);
    const Part behind{own.begin, smaller(own.end, later)};
    const int64_t first = shared_outputs.begin(p), columns = shared_outputs.end(p) - first;
    const int64_t width = shared_outputs.width(p);
    const int64_t depth = G * z.hidden;
    if (behind.begin < behind.end)
      multiply_plain<S>(width, at_step(grad_gates, s + 1, ld) + behind.begin * ld, ld, behind.end - behind.begin, depth,
                        w_hh + shared_outputs.offset(p, depth), nullptr, mine,
                        [&](int64_t top, int64_t bottom) __attribute__((always_inline)) {
                          for (int64_t r = behind.begin + top; s >= 0 && r < behind.begin + bottom; ++r)
                            expect(s, r, first, columns);
                        });
    for (int64_t c = 0; c < columns; c += L) {
      const int lanes = static_cast<int>(smaller<int64_t>(L, columns - c));
      const int64_t column = first + c;
      for (int64_t r = own.begin; r < smaller(own.end, larger(now, later)); ++r) {
        Vec<S> grad{};
        if (r < later)
          grad = load(mine + (r - own.begin) * width + c);
        else if (args.grad_hn)
          grad = load_part(args.grad_hn + (direction * z.batch + r) * z.outputs + column, lanes);
        if (r >= now) {
          if (Cell::kHasCarry && !Cell::kHasCell) grad += load_part(carry + r * z.hidden + column, lanes);
          if (args.grad_h0) store_part(args.grad_h0 + (direction * z.batch + r) * z.outputs + column, grad, lanes);
          continue;
        }
        if (args.grad_y) {
          const int64_t row = (steps.offset(s) + r) * z.directions + direction;
          grad += load_part(args.grad_y + row * z.outputs + column, lanes);
        }
        if (projected) {
          if (args.activation != Activation::none) {
            const A* h = hidden + (steps.offset(s) + r) * z.outputs + column;
            grad *= activation_slope<W>(args.activation, load_part(h, lanes));
          }
          store_part(at_step(grad_outputs, s, ld_outputs) + r * ld_outputs + column, grad, lanes);
        } else {
          finish(s, r, column, grad, lanes);
        }
      }
    }
  }

  // With a projection: the gradient of h before it, for the units of panel p, and the gates' math.
  void unproject(int64_t s, int64_t p, Part own, W* mine) const {
    const Part rows{own.begin, smaller(own.end, steps.rows(s))};
    if (rows.begin >= rows.end) return;
    const int64_t first = shared_units.begin(p), width = shared_units.width(p);
    multiply_plain<S>(width, at_step(grad_outputs, s, ld_outputs) + rows.begin * ld_outputs, ld_outputs,
                      rows.end - rows.begin, z.outputs, w_hr + shared_units.offset(p, z.outputs), nullptr, mine);
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t unit = first; unit < shared_units.end(p); unit += L) {
        const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - unit));
        finish(s, r, unit, load(mine + (r - rows.begin) * width + unit - first), lanes);
        const int64_t n = steps.offset(s) + r;
        Vec<S> u = load_part(cells + n * z.hidden + unit, lanes);
        if (Cell::kHasCell)  // the LSTM's was not saved: o tanh(c)
          u = load_part(gates + (n * Cell::kSaved + Cell::kSaved - 1) * z.hidden + unit, lanes) * tanh<W>(u);
        const int64_t row = n - first_row(stretch_of(s));
        store_part(unprojected + row * z.hidden + unit, u, lanes);
      }
  }

  // Fetches what `finish` will meet.
  FASTRNN_INLINE void expect(int64_t s, int64_t r, int64_t unit, int64_t count) const {
    const int64_t n = steps.offset(s) + r;
    if (args.grad_y) fetch(args.grad_y + (n * z.directions + direction) * z.outputs + unit, count);
    if (projected) return;
    for (int i = 0; i < Cell::kSaved; ++i) fetch(gates + (n * Cell::kSaved + i) * z.hidden + unit, count);
    if (Cell::kHasCell) fetch(state_before(s, r, cells, c0, z.hidden) + unit, count);
    if (Cell::kReadsState) fetch(state_before(s, r, hidden, h0, z.outputs) + unit, count);
    if (!Cell::kSaved) fetch(hidden + n * z.outputs + unit, count);
    S* to = at_step(grad_gates, s, ld) + r * ld + unit;
    for (int i = 0; i < kSides; ++i) fetch(to + i * z.hidden, count);
  }

  // The pointwise half of a step: L units of row r.
  FASTRNN_INLINE void finish(int64_t s, int64_t r, int64_t unit, Vec<S> grad_h, int lanes) const {
    using V = Vec<S>;
    const int64_t n = steps.offset(s) + r;
    V kept[Cell::kSaved + 1], grad[kSides], h{}, h_before{}, c{}, c_before{}, flow{};
    for (int i = 0; i < Cell::kSaved; ++i) kept[i] = load_part(gates + (n * Cell::kSaved + i) * z.hidden + unit, lanes);
    if (Cell::kHasCell) {
      c = load_part(cells + n * z.hidden + unit, lanes);
      c_before = load_part(state_before(s, r, cells, c0, z.hidden) + unit, lanes);
    }
    if (Cell::kReadsState) h_before = load_part(state_before(s, r, hidden, h0, z.outputs) + unit, lanes);
    if (!Cell::kSaved)
      h = projected ? load_part(cells + n * z.hidden + unit, lanes) : load_part(hidden + n * z.outputs + unit, lanes);
    if (Cell::kHasCarry) flow = load_part(carry + r * z.hidden + unit, lanes);
    if (Cell::kHasCell && args.grad_cells)
      flow += load_part(args.grad_cells + (direction * z.rows + n) * z.hidden + unit, lanes);
    Cell::backward(kept, h, h_before, c, c_before, grad_h, flow, grad);
    if (Cell::kHasCarry) store_part(carry + r * z.hidden + unit, flow, lanes);
    S* to = at_step(grad_gates, s, ld) + r * ld + unit;
    for (int i = 0; i < kSides; ++i) store_part(to + i * z.hidden, grad[i], lanes);
  }

  // Steps [s, end): their share of the gradients of x and of the parameters.
  void multiply_stretch(int64_t s, int64_t end, int thread, W* mine) const {
    const int64_t first = steps.first_row(s, end), rows = steps.rows_between(s, end);
    const S* grad = grad_gates[stretch_of(s) % 2];
    if (grad_x)
      for_own_rows(s, end, first, rows, thread, [&](Part own) {
        product(
            grad + (kSides - G) * z.hidden, ld, own, G * z.hidden, w_ih, inputs, false,
            [&](int64_t row) { return grad_x + (first + row) * z.inputs; }, mine);
      });
    if (!grads.w_ih) return;
    const bool add = end < z.steps;
    pack_stretch(s, end, first, rows, grad, thread);
    barrier.wait(crew.threads);
    const Part own = part(G * z.hidden, thread, crew.threads);
    const S *of_state = gates_by_column, *of_input = gates_by_column + (kSides - G) * z.hidden * ld_rows;
    if (by_token)
      add_by_token(grad + (kSides - G) * z.hidden, args.tokens + first, rows, own, add);
    else
      product(
          of_input, ld_rows, own, rows, inputs_packed, inputs, add,
          [&](int64_t k) { return totals.w_ih + k * z.inputs; }, mine);
    product(
        of_state, ld_rows, own, rows, states_packed, outputs, add,
        [&](int64_t k) { return totals.w_hh + Cell::row_hh(k, z.hidden) * z.outputs; }, mine);
    if (grads.b_ih)
      for (int64_t k = own.begin; k < own.end; ++k) {
        const W a = sum(of_input + k * ld_rows, rows), b = sum(of_state + k * ld_rows, rows);
        W &to_a = totals.b_ih[k], &to_b = totals.b_hh[Cell::row_hh(k, z.hidden)];
        to_a = add ? to_a + a : a;
        to_b = add ? to_b + b : b;
      }
    if (!projected) return;
    const Part of_h = part(z.outputs, thread, crew.threads);
    product(
        outputs_by_column, ld_rows, of_h, rows, unprojected_packed, units, add,
        [&](int64_t k) { return totals.w_hr + k * z.hidden; }, mine);
    if (grads.b_hr)
      for (int64_t k = of_h.begin; k < of_h.end; ++k) {
        const W total = sum(outputs_by_column + k * ld_rows, rows);
        totals.b_hr[k] = add ? totals.b_hr[k] + total : total;
      }
  }

  // The product with one-hot rows: each row of the gate gradients goes to the row of its token.
  void add_by_token(const S* grad, const int64_t* tokens, int64_t rows, Part own, bool add) const {
    const int64_t width = G * z.hidden, count = own.end - own.begin;
    if (!add)
      for (int64_t token = 0; token < z.inputs; ++token) clear(by_token + token * width + own.begin, count);
    for (int64_t row = 0; row < rows; ++row) {
      const S* from = grad + row * ld + own.begin;
      W* to = by_token + tokens[row] * width + own.begin;
      for (int64_t k = 0; k < count; ++k) to[k] += widen(from[k]);
    }
  }

  // Calls `each` with this thread's share of the rows of a stretch: those that it has computed itself and that its own
  // caches hold, unless that is a handful a step, which would make poor tiles.
  template <class Each>
  void for_own_rows(int64_t s, int64_t end, int64_t first, int64_t rows, int thread, Each each) const {
    if (kNarrow || !crew.by_rows || z.batch < 24 * crew.threads)
      return each(whole_groups(part(ceil_div(rows, kGroup<S>), thread, crew.threads), rows));
    const Part own = part(z.batch, thread, crew.threads);
    for (int64_t i = s; i < end; ++i)
      each(Part{steps.offset(i) - first + own.begin, steps.offset(i) - first + own.end});
  }

  // This thread's share of a stretch, laid out for the products over its rows.
  void pack_stretch(int64_t s, int64_t end, int64_t first, int64_t rows, const S* grad, int thread) const {
    const A** source = before + thread * chunk_rows;
    for (int64_t i = s; i < end; ++i)
      for (int64_t r = 0; r < steps.rows(i); ++r)
        source[steps.offset(i) + r - first] = state_before(i, r, hidden, h0, z.outputs);
    const auto pack = [&](const Panels<S>& panels, auto row, S* to) {
      for_own_rows(s, end, first, rows, thread,
                   [&](Part own) { pack_rows(panels, row, rows, own.begin, own.end, to); });
    };
    const auto turn = [&](const S* from, int64_t ld_from, int64_t width, S* to) {
      for_own_rows(s, end, first, rows, thread, [&](Part own) {
        transpose_numbers(from + own.begin * ld_from, ld_from, own.end - own.begin, width, to + own.begin, ld_rows);
      });
    };
    turn(grad, ld, kSides * z.hidden, gates_by_column);
    if (args.x) pack(inputs, [&](int64_t k) { return args.x + (first + k) * z.inputs; }, inputs_packed);
    pack(outputs, [&](int64_t k) { return source[k]; }, states_packed);
    if (!projected) return;
    turn(grad_outputs[stretch_of(s) % 2], ld_outputs, z.outputs, outputs_by_column);
    pack(units, [&](int64_t k) { return unprojected + k * z.hidden; }, unprojected_packed);
  }

  // Rows `own` of a (.., depth) times packed panels, stored or added to the rows that `target` names.
  template <class Target>
  void product(const S* a, int64_t lda, Part own, int64_t depth, const S* packed, const Panels<S>& panels, bool add,
               Target target, W* mine) const {
    // Block by block of rows: their targets lie on few pages, and the panels come in the order in which they lie.
    for (int64_t top = own.begin; top < own.end; top += kBlockRows)
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = panels.begin(p), width = panels.width(p), bottom = smaller(top + kBlockRows, own.end);
        multiply_plain<S>(width, a + top * lda, lda, bottom - top, depth, packed + panels.offset(p, depth), nullptr,
                          mine, [&](int64_t from, int64_t to) __attribute__((always_inline)) {
                            for (int64_t row = top + from; row < top + to; ++row) fetch(target(row) + first, width);
                          });
        for (int64_t row = top; row < bottom; ++row)
          for (int64_t column = first; column < panels.end(p); column += L) {
            const int lanes = static_cast<int>(smaller<int64_t>(L, panels.columns - column));
            Vec<S> v = load(mine + (row - top) * width + column - first);
            auto* to = target(row) + column;
            if (add) v += load_part(to, lanes);
            store_part(to, v, lanes);
          }
      }
  }

  // In several short chains, which round less than a long one.
  static W sum(const S* from, int64_t count) {
    Vec<S> totals[4] = {};
    int64_t i = 0;
    for (; i + 4 * L <= count; i += 4 * L)
      for (int chain = 0; chain < 4; ++chain) totals[chain] += load(from + i + chain * L);
    for (int chain = 0; i < count; i += L, ++chain)
      totals[chain] += load_part(from + i, static_cast<int>(smaller<int64_t>(L, count - i)));
    Vec<S> total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
    return sums_of_lanes<1>(&total)[0];
  }
};
