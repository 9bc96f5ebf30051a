// The forward scan of one direction of a layer.
//
// Floor per step and row: 2 G H (I + P) flops; the packed weights are read once for every tile of rows.
// A thread's way through it: pack a share of the weights; then, for a stretch of steps small enough to stay in cache,
// the product of the inputs; then, step by step, the product of the state with the gates' math behind each panel while
// its results are in L1. Threads meet once a step (twice with a projection) to exchange h.

template <class S, class A, class Cell>
struct ForwardScan {
  // The standard library's would be a function shared by all instruction sets.
  static void* operator new(size_t, void* place) { return place; }

  using W = Wide<S>;
  // Whether hn holds h of the step before, whose rounding to S is for the products alone.
  static constexpr bool kKeepsState = Cell::kReadsState && sizeof(A) > sizeof(S);
  static constexpr int L = kLanes<S>;
  static constexpr int G = Cell::kGates;
  static constexpr int kBlocks = Cell::kVectors / G;  // blocks of L units in a panel
  static constexpr int64_t kWidth = kPanel<S, Cell::kVectors>;
  static constexpr int64_t kResultsWidth = kPanel<S, kPlain>;
  static constexpr int64_t kChunkRows = 120;

  const Forward<S, A>& args;
  const Sizes& z;
  const Parameters<const S, const A>& weights;
  const int64_t direction;
  const Steps steps;
  const Crew crew;
  Barrier& barrier;
  const bool projected;
  // Whether weights are packed, or read as they lie because so few rows would not repay it.
  const bool packed, packed_inputs;
  // In a wavefront: the steps that the layer below has done, and those that this one has.
  const int64_t* const below;
  int64_t* const done;
  const int64_t panels;
  const Panels<S> outputs;  // of the projection
  const int64_t chunk;      // steps whose inputs are multiplied at once
  // Rows of x, h and the units, as rows of products: whole groups, with zeros behind.
  const int64_t ld_inputs, ld_outputs, ld_units;
  const S* x;

  S *w_ih, *w_hh, *w_hr;           // packed weights
  W *init_ih, *init_hh, *init_hr;  // biases, as one row of every panel
  S *state, *next;                 // h before and after the step, (B, P)
  W* cell_state;                   // c, (B, H); in the place of cn unless that is narrow
  S* unprojected;                  // (B, H), with a projection
  W* products;                     // the inputs' share of the gates: per panel, (rows of a chunk, kWidth)
  W* results;                      // per thread, results_size()
  Mark* marks;                     // of the packed weights that are kept: panels of w_ih, of w_hh, then of w_hr

  static int64_t panel_count(const Sizes& z) { return ceil_div(z.hidden, kBlocks * L); }

  ForwardScan(const Forward<S, A>& a, int d, const int64_t* offsets, Crew c, Barrier& b, Scratch& scratch,
              const int64_t* steps_below = nullptr, int64_t* steps_done = nullptr)
      : args(a), z(a.sizes), weights(a.weights[d]), direction(d),
        steps{z.steps, z.batch, z.batch_sizes, offsets, d == 1}, crew(c), barrier(b),
        projected(weights.w_hr != nullptr), packed(z.rows >= larger<int64_t>(kKeptRows, (z.inputs + z.outputs) / 16)),
        packed_inputs(args.tokens ? z.rows >= z.inputs / 4 : packed), below(steps_below), done(steps_done),
        panels(panel_count(z)), outputs(z.outputs, crew.by_rows ? 1 : crew.threads),
        chunk(chunk_of(z, steps_done != nullptr)), ld_inputs(grouped<S>(z.inputs)), ld_outputs(grouped<S>(z.outputs)),
        ld_units(grouped<S>(z.hidden)), x(args.x) {
    if (x && ld_inputs != z.inputs) x = scratch.take<S>(z.rows * ld_inputs);
    const int64_t size_ih = packed_inputs ? panels * kWidth * ld_inputs : 0;
    const int64_t size_hh = packed ? panels * kWidth * ld_outputs : 0;
    const int64_t size_hr = projected ? outputs.size(z.hidden) : 0;
    Room room{packed ? args.kept[d] : nullptr, scratch};
    room.open(Room::bytes_of<S>(size_ih) + Room::bytes_of<S>(size_hh) + Room::bytes_of<S>(size_hr),
              2 * panels + outputs.count,
              {int64_t(args.mode), int64_t(sizeof(S)), z.inputs, z.hidden, z.outputs, size_ih, outputs.count, kWidth});
    w_ih = size_ih ? room.take<S>(size_ih) : nullptr;
    w_hh = size_hh ? room.take<S>(size_hh) : nullptr;
    w_hr = size_hr ? room.take<S>(size_hr) : nullptr;
    marks = room.marks;
    init_ih = scratch.take<W>(panels * kWidth);
    init_hh = scratch.take<W>(panels * kWidth);
    init_hr = projected ? scratch.take<W>(outputs.begin(outputs.count)) : nullptr;
    state = scratch.take<S>(z.batch * ld_outputs);
    next = scratch.take<S>(z.batch * ld_outputs);
    cell_state = Cell::kHasCell ? wide_or_scratch(args.cn + direction * z.batch * z.hidden, scratch) : nullptr;
    unprojected = projected ? scratch.take<S>(z.batch * ld_units) : nullptr;
    products = scratch.take<W>(panels * kWidth * chunk * z.batch);
    results = scratch.take<W>(crew.threads * results_size());
  }

  // The first block of L units of panel p, and the panel's columns: about as many in all, and zeros over the edge.
  int64_t begin(int64_t p) const { return kBlocks == 1 ? p : ceil_div(z.hidden, L) * p / panels; }
  int64_t width(int64_t p) const { return kBlocks == 1 ? kWidth : (begin(p + 1) - begin(p)) * G * L; }

  // Of one thread: one panel of all rows, or all panels of one row.
  int64_t results_size() const { return larger(z.batch, panels) * kResultsWidth; }

  // In a wavefront short enough for the layer above to begin soon.
  static int64_t chunk_of(const Sizes& z, bool wave) {
    const int64_t rows = wave ? smaller(kChunkRows, larger<int64_t>(12, z.rows / 8)) : kChunkRows;
    return ceil_div(z.steps, ceil_div(z.steps, larger<int64_t>(1, rows / z.batch)));  // all about equally long
  }

  W* wide_or_scratch(A* cn, Scratch& scratch) const {
    if constexpr (sizeof(A) == sizeof(W))
      return cn;
    else
      return scratch.take<W>(z.batch * z.hidden);
  }

  void run(int thread) const {
    const Part own_panels = crew.by_rows ? Part{0, panels} : part(panels, thread, crew.threads);
    const Part own_outputs = crew.by_rows ? Part{0, outputs.count} : part(outputs.count, thread, crew.threads);
    const Part own_rows = crew.by_rows ? part(z.batch, thread, crew.threads) : Part{0, z.batch};
    W* mine = results + thread * results_size();
    S *before = state, *after = next;
    prepare(thread);
    barrier.wait(crew.threads);
    for (int64_t s = 0; s < z.steps; ++s) {
      if (s % chunk == 0) {
        const int64_t end = smaller(s + chunk, z.steps);
        if (below) wait_until(below, end);
        multiply_inputs(s, end, own_panels, own_rows);
      }
      const Part rows{own_rows.begin, smaller(own_rows.end, steps.rows(s))};
      if (packed && rows.end - rows.begin == 1)
        step_row(s, own_panels, rows, before, after, mine);
      else
        for (int64_t p = own_panels.begin; p < own_panels.end; ++p) step(s, p, rows, before, after, mine);
      if (!crew.by_rows) barrier.wait(crew.threads);
      if (projected) {
        for (int64_t p = own_outputs.begin; p < own_outputs.end; ++p) project(s, p, rows, after, mine);
        if (!crew.by_rows) barrier.wait(crew.threads);
      }
      if (done) __atomic_store_n(done, s + 1, __ATOMIC_RELEASE);
      S* swap = before;
      before = after;
      after = swap;
    }
  }

  // Packs this thread's share of the weights and of the initial states.
  void prepare(int thread) const {
    const Part own = part(panels, thread, crew.threads);
    for (int64_t p = own.begin; p < own.end; ++p) {
      if (packed_inputs) pack_panel(p, weights.w_ih, z.inputs, w_ih + p * kWidth * ld_inputs, p);
      if (packed) pack_panel(p, weights.w_hh, z.outputs, w_hh + p * kWidth * ld_outputs, panels + p);
      pack_bias(p);
    }
    if (projected) {
      const Part own_outputs = part(outputs.count, thread, crew.threads);
      for (int64_t p = own_outputs.begin; p < own_outputs.end; ++p) {
        const int64_t first = outputs.begin(p), count = outputs.end(p) - first, width = outputs.width(p);
        const S* from = weights.w_hr + first * z.hidden;
        const auto sum = [&](Mark& mark) { mark.add(from, count * z.hidden * sizeof(S)); };
        if (changed(2 * panels + p, sum)) {
          S* to = w_hr + outputs.offset(p, z.hidden);
          if (count < width) clear(to, width * ld_units);
          transpose(from, z.hidden, count, z.hidden, to, width);
        }
        clear(init_hr + first, width);
        if (weights.b_hr) convert(init_hr + first, weights.b_hr + first, count);
      }
    }
    const Part rows = part(z.batch, thread, crew.threads);
    const A* h0 = args.h0 + direction * z.batch * z.outputs;
    for (S* to : {state, next}) copy_rows(to, ld_outputs, h0, z.outputs, rows);
    if (kKeepsState) copy_rows(args.hn + direction * z.batch * z.outputs, z.outputs, h0, z.outputs, rows);
    if (unprojected && ld_units != z.hidden)
      clear(unprojected + rows.begin * ld_units, (rows.end - rows.begin) * ld_units);
    if (Cell::kHasCell) {
      const int64_t from = rows.begin * z.hidden;
      convert(cell_state + from, args.c0 + direction * z.batch * z.hidden + from, (rows.end - rows.begin) * z.hidden);
    }
    if (x != args.x) copy_rows(const_cast<S*>(x), ld_inputs, args.x, z.inputs, part(z.rows, thread, crew.threads));
  }

  template <class To, class From>
  static void copy_rows(To* to, int64_t ld, const From* from, int64_t width, Part rows) {
    if (ld == width) return convert(to + rows.begin * ld, from + rows.begin * ld, (rows.end - rows.begin) * ld);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      convert(to + r * ld, from + r * width, width);
      to[r * ld + width] = To{};
    }
  }

  // Whether the weights of which `sum` tells are others than those packed under this mark.
  template <class Sum>
  bool changed(int64_t mark, const Sum& sum) const {
    if (!marks) return true;
    Mark now{};
    now.known = true;
    sum(now);
    if (now == marks[mark]) return false;
    marks[mark] = now;
    return true;
  }

  // The gates of L units side by side, block after block, for each k.
  void pack_panel(int64_t p, const S* w, int64_t depth, S* to, int64_t mark) const {
    const int64_t first = begin(p) * L, end = smaller(begin(p + 1) * L, z.hidden);
    const auto sum = [&](Mark& now) {
      for (int gate = 0; gate < G; ++gate)
        now.add(w + (gate * z.hidden + first) * depth, (end - first) * depth * static_cast<int64_t>(sizeof(S)));
    };
    if (!changed(mark, sum)) return;
    if (end < begin(p + 1) * L) clear(to, grouped<S>(depth) * width(p));
    for (int64_t unit = first; unit < end; unit += L, to += G * L * kGroup<S>)
      for (int gate = 0; gate < G; ++gate)
        transpose(w + (gate * z.hidden + unit) * depth, depth, smaller<int64_t>(L, end - unit), depth,
                  to + gate * L * kGroup<S>, width(p));
  }

  void pack_bias(int64_t p) const {
    W *of_input = init_ih + p * kWidth, *of_state = init_hh + p * kWidth;
    for (int64_t unit = begin(p) * L; unit < begin(p + 1) * L; unit += L)
      for (int gate = 0; gate < G; ++gate, of_input += L, of_state += L) {
        const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - unit));
        const auto bias = [&](const A* b) { return b ? load_part(b + gate * z.hidden + unit, lanes) : Vec<S>{}; };
        store(of_input, bias(weights.b_ih));
        store(of_state, bias(weights.b_hh));
      }
  }

  // Some rows of the input or of the state times the weights of panel p, with their bias, to c (rows, width(p)).
  template <class Expect = Nothing>
  void product(const S* a, int64_t rows, int64_t depth, int64_t p, const S* panels, const S* raw, const W* init, W* c,
               const Expect& expect = {}) const {
    const int64_t ld = grouped<S>(depth);
    init += p * kWidth;
    const S* panel = panels + p * kWidth * ld;
    if (packed && width(p) < kWidth) return multiply_plain<S>(width(p), a, ld, rows, depth, panel, init, c, expect);
    if (packed) return multiply<S, Cell::kVectors>(a, ld, rows, depth, panel, init, 0, c, expect);
    const int64_t end = smaller(begin(p + 1) * L, z.hidden);
    for (int64_t unit = begin(p) * L; unit < end; unit += L)
      for (int gate = 0; gate < G; ++gate, init += L, c += L)
        multiply_raw(a, ld, rows, depth, raw + (gate * z.hidden + unit) * depth, smaller<int64_t>(L, end - unit), init,
                     c, width(p));
  }

  W* product_at(int64_t p, int64_t row_in_chunk) const {
    return products + p * chunk * z.batch * kWidth + row_in_chunk * width(p);
  }

  void multiply_inputs(int64_t s, int64_t end, Part own_panels, Part own_rows) const {
    const int64_t first = steps.first_row(s, end), last = first + steps.rows_between(s, end);
    for (int64_t p = own_panels.begin; p < own_panels.end; ++p) {
      const auto rows = [&](int64_t from, int64_t to) {
        if (args.tokens) return gather(args.tokens + from, to - from, p, product_at(p, from - first));
        product(x + from * ld_inputs, to - from, z.inputs, p, w_ih, weights.w_ih, init_ih, product_at(p, from - first));
      };
      if (!crew.by_rows)
        rows(first, last);
      else
        for (int64_t i = s; i < end; ++i) rows(steps.offset(i) + own_rows.begin, steps.offset(i) + own_rows.end);
    }
  }

  // The product of one-hot rows with the weights of panel p, with their bias, to c (rows, width(p)): a column of w_ih
  // each.
  void gather(const int64_t* tokens, int64_t rows, int64_t p, W* c) const {
    const W* init = init_ih + p * kWidth;
    const int64_t count = width(p);
    for (int64_t row = 0; row < rows; ++row, c += count) {
      if (packed_inputs) {
        const int64_t group = tokens[row] / kGroup<S> * kGroup<S>;
        const S* from = w_ih + p * ld_inputs * kWidth + group * count;
        for (int64_t i = 0; i < count; i += L)
          store(c + i, of_group(from + i * kGroup<S>, tokens[row] - group) + load(init + i));
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t unit = (begin(p) + i / (G * L)) * L + i % L, gate = i / L % G;
        const bool there = unit < z.hidden;
        c[i] = there ? widen(weights.w_ih[(gate * z.hidden + unit) * z.inputs + tokens[row]]) + init[i] : W(0);
      }
    }
  }

  // One step of the units of panel p: gates, c and h of some rows.
  void step(int64_t s, int64_t p, Part rows, const S* before, S* after, W* mine) const {
    if (rows.begin >= rows.end) return;
    const bool saves = args.saved.hidden != nullptr;
    product(before + rows.begin * ld_outputs, rows.end - rows.begin, z.outputs, p, w_hh, weights.w_hh, init_hh, mine,
            [&](int64_t top, int64_t bottom) __attribute__((always_inline)) {
              for (int64_t r = rows.begin + top; saves && r < rows.begin + bottom; ++r) expect(steps.offset(s) + r, p);
            });
    open(s, p, rows, mine);
    close(s, p, rows, mine, before, after);
  }

  // One step of one row: first all that streams weights, then the gates' math of all units.
  void step_row(int64_t s, Part own, Part row, const S* before, S* after, W* mine) const {
    for (int64_t p = own.begin; p < own.end; ++p) {
      const char* inputs = reinterpret_cast<const char*>(inputs_of(s, p, row.begin));
      for (int64_t byte = 0; byte < kWidth * int64_t(sizeof(W)); byte += 64) __builtin_prefetch(inputs + byte);
    }
    const S* h = before + row.begin * ld_outputs;
    const auto results = [&](int64_t p) { return mine + (p - own.begin) * kWidth; };
    for (int64_t p = own.begin, next; p < own.end; p = next) {
      for (next = p; next < own.end && width(next) == kWidth;) ++next;
      const int64_t at = p * kWidth;
      if (next > p)
        multiply_row<S, Cell::kVectors>(h, z.outputs, w_hh + at * ld_outputs, next - p, init_hh + at, results(p));
      else
        product(h, 1, z.outputs, next++, w_hh, weights.w_hh, init_hh, results(p));
    }
    for (int64_t p = own.begin; p < own.end; ++p) open(s, p, row, results(p));
    for (int64_t p = own.begin; p < own.end; ++p) close(s, p, row, results(p), before, after);
  }

  // The inputs' share of the gates at step s, for panel p, from row r on.
  const W* inputs_of(int64_t s, int64_t p, int64_t r) const {
    const int64_t stretch = s / chunk * chunk;
    return product_at(p, steps.offset(s) + r - steps.first_row(stretch, smaller(stretch + chunk, z.steps)));
  }

  // Fetches what `finish` will meet for row n of x.
  FASTRNN_INLINE void expect(int64_t n, int64_t p) const {
    const int64_t unit = begin(p) * L, count = width(p) / G, in_saved = direction * z.rows + n;
    if (args.saved.cells) fetch(args.saved.cells + in_saved * z.hidden + unit, count);
    for (int i = 0; Cell::kSaved && args.saved.gates && i < Cell::kSaved; ++i)
      fetch(args.saved.gates + (in_saved * Cell::kSaved + i) * z.hidden + unit, count);
    if (projected) return;
    fetch(args.y + (n * z.directions + direction) * z.outputs + unit, count);
    if (args.saved.hidden) fetch(args.saved.hidden + in_saved * z.outputs + unit, count);
  }

  // The pointwise half of a step, for panel p: what does not wait for other gates, in the place of the state's share.
  void open(int64_t s, int64_t p, Part rows, W* from_state) const {
    if (G == 1) return;
    static_assert(G == 1 || kBlocks == 1, "rows of a panel lie one behind the other");
    const W* from_input = inputs_of(s, p, rows.begin);
    for (int64_t i = rows.begin; i < rows.end; ++i, from_input += kWidth, from_state += kWidth) {
      Vec<S> a[G], b[G];
      for (int gate = 0; gate < G; ++gate) a[gate] = load(from_input + gate * L), b[gate] = load(from_state + gate * L);
      Cell::open(a, b);
      for (int gate = 0; gate < G; ++gate) store(from_state + gate * L, b[gate]);
    }
  }

  // And the rest.
  void close(int64_t s, int64_t p, Part rows, const W* from_state, const S* before, S* after) const {
    const W* from_input = inputs_of(s, p, rows.begin);
    const int64_t offset = steps.offset(s), ending = steps.rows(s + 1), end = begin(p + 1) * L;
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t unit = begin(p) * L; unit < end; unit += L, from_input += G * L, from_state += G * L)
        finish(offset, r, unit, static_cast<int>(smaller<int64_t>(L, z.hidden - unit)), from_input, from_state, before,
               after, r >= ending);
  }

  // L units of row r, whose place in x is offset + r.
  FASTRNN_INLINE void finish(int64_t offset, int64_t r, int64_t unit, int lanes, const W* from_input,
                             const W* from_state, const S* before, S* after, bool ending) const {
    using V = Vec<S>;
    V a[G], b[G], kept[Cell::kSaved + 1], c{}, h{};
    for (int gate = 0; gate < G; ++gate) {
      a[gate] = load(from_input + gate * L);
      b[gate] = load(from_state + gate * L);
    }
    if (kKeepsState)
      h = load_part(args.hn + (direction * z.batch + r) * z.outputs + unit, lanes);
    else if (Cell::kReadsState)
      h = load_part(before + r * ld_outputs + unit, lanes);
    if (Cell::kHasCell) c = load_part(cell_state + r * z.hidden + unit, lanes);
    h = Cell::close(a, b, h, c, kept);
    const int64_t n = direction * z.rows + offset + r;
    if (Cell::kHasCell) {
      store_part(cell_state + r * z.hidden + unit, c, lanes);
      if (args.saved.cells) store_part(args.saved.cells + n * z.hidden + unit, c, lanes);
      if (sizeof(A) < sizeof(W) && ending) store_part(args.cn + (direction * z.batch + r) * z.hidden + unit, c, lanes);
    }
    if (Cell::kSaved && args.saved.gates)
      for (int i = 0; i < Cell::kSaved; ++i)
        store_part(args.saved.gates + (n * Cell::kSaved + i) * z.hidden + unit, kept[i], lanes);
    if (projected) {
      store_part(unprojected + r * ld_units + unit, h, lanes);
      if (!Cell::kHasCell && args.saved.cells) store_part(args.saved.cells + n * z.hidden + unit, h, lanes);
    } else {
      emit(offset, r, unit, h, lanes, after, ending);
    }
  }

  // h of some outputs of row r, to all that want it.
  FASTRNN_INLINE void emit(int64_t offset, int64_t r, int64_t column, Vec<S> h, int lanes, S* after,
                           bool ending) const {
    const int64_t P = z.outputs;
    store_part(after + r * ld_outputs + column, h, lanes);
    store_part(args.y + ((offset + r) * z.directions + direction) * P + column, h, lanes);
    if (args.saved.hidden) store_part(args.saved.hidden + (direction * z.rows + offset + r) * P + column, h, lanes);
    if (ending || kKeepsState) store_part(args.hn + (direction * z.batch + r) * P + column, h, lanes);
  }

  void project(int64_t s, int64_t p, Part rows, S* after, W* mine) const {
    if (rows.begin >= rows.end) return;
    const int64_t count = rows.end - rows.begin, ending = steps.rows(s + 1);
    const int64_t first = outputs.begin(p), width = outputs.width(p);
    multiply_plain<S>(width, unprojected + rows.begin * ld_units, ld_units, count, z.hidden,
                      w_hr + outputs.offset(p, z.hidden), init_hr + first, mine);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t column = first; column < outputs.end(p); column += L) {
        const Vec<S> h = activate<W>(args.activation, load(mine + i * width + column - first));
        emit(steps.offset(s), rows.begin + i, column, h, static_cast<int>(smaller<int64_t>(L, z.outputs - column)),
             after, rows.begin + i >= ending);
      }
  }
};
