// Backpropagation through time for one direction of a layer.
//
// Floor per step and row: 2 G H P flops for the state, then 2 G H I for the gradient of x and 2 G H (I + P) for those
// of the weights. Step by step, last to first: the gradient of h from the gate gradients of the step behind it, and at
// once the gates' math on it while it is in L1. After a block of steps its gate gradients are multiplied into the
// gradients of x and of the weights. Every number has one thread that computes it, in an order that does not depend on
// how many there are.
#pragma once

#include "step_blocks-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S, class A, class Cell>
struct BackwardScan {
  // The standard library's would be a function shared by all instruction sets.
  static void* operator new(size_t, void* place) { return place; }

  using Number = S;
  using Unit = Cell;
  static constexpr bool kIsBackward = true;
  using W = Wide<S>;
  using StepBlocks = FASTRNN_NAMESPACE::StepBlocks<S, A, Cell>;
  static constexpr bool kRounds = StepBlocks::kRounds;
  static constexpr int L = kLanes<S>;
  static constexpr int G = Cell::kGates;
  static constexpr int kSlots = Cell::kSlots;

  const Backward<S, A>& args;
  const Sizes& z;
  const Parameters<const S, const A>& weights;
  const int64_t direction;
  const TeamPlan team_plan;
  const Barriers barriers;
  const StepBlocks blocks;
  const Steps& steps;
  const int64_t ld;  // from row to row of the gate gradients
  const bool projected;
  const Wavefront wavefront;
  const int64_t piece;                           // steps whose gradients of x are computed at once
  const bool carried;                            // whether any gradient of h flows from a step to the one before
  const Panels<S> shared_outputs, shared_units;  // columns of h and the units, as the threads share them
  const A *h0, *gates, *hidden;
  const W *c0, *cells;

  S *w_hh, *w_hr;  // packed: (G*H, P), (P, H)
  W* carry;        // (B, H); for the LSTM the gradient of c, which ends as that of c0
  W* results;      // per thread
  int64_t results_size;

  BackwardScan(const Backward<S, A>& a, int d, const int64_t* offsets, TeamPlan c, Barriers b, Scratch& scratch,
               Wavefront w = {})
      : args(a), z(a.sizes), weights(a.weights[d]), direction(d), team_plan(c), barriers(b),
        blocks(a, d, offsets, c, scratch), steps(blocks.steps), ld(blocks.ld), projected(blocks.projected),
        wavefront(w), piece(wavefront.done ? larger<int64_t>(1, wavefront_rows(z) / z.batch) : blocks.chunk),
        carried(z.steps > 1 || a.grad_h0), shared_outputs(z.outputs, team_plan.members()),
        shared_units(z.hidden, team_plan.members()), h0(blocks.h0),
        gates(Cell::kSaved ? a.saved.gates + d * z.rows * Cell::kSaved * z.hidden : nullptr), hidden(blocks.hidden),
        cells(Cell::kHasCell || (projected && !Cell::kSaved) ? a.saved.cells + d * z.rows * z.hidden : nullptr) {
    w_hh = carried ? scratch.take<S>(shared_outputs.size(G * z.hidden)) : nullptr;
    w_hr = projected ? scratch.take<S>(shared_units.size(z.outputs)) : nullptr;
    const auto wide = [&](auto* values) {
      if constexpr (kRounds)
        return values ? scratch.take<W>(z.batch * z.hidden) : nullptr;
      else
        return values;
    };
    c0 = Cell::kHasCell ? wide(a.c0 + d * z.batch * z.hidden) : nullptr;
    carry = Cell::kHasCell && args.grad_c0 ? wide(args.grad_c0 + d * z.batch * z.hidden)
            : Cell::kHasCarry              ? scratch.take<W>(z.batch * z.hidden)
                                           : nullptr;
    results_size = larger(blocks.results_size(), z.batch * kPanel<S, kPlain>);
    results = scratch.take<W>(team_plan.threads * results_size);
  }

  static int64_t shared_panels(const Sizes& z) { return ceil_div(z.outputs, kLanes<S>); }

  void run(int thread) const {
    TeamPlan left = team_plan;
    Place place(team_plan, thread);
    Seat seat = place.all;
    W* sums = results + thread * results_size;
    // All; false if this thread is to leave, as all below.
    const auto count_those_left = [&](bool stays) {
      if (seat.threads != left.threads) place.move(left = team_plan.left(seat.threads));
      return stays;
    };
    const auto meet_after = [&](const auto& work) { return count_those_left(barriers.meet_after(seat, work)); };
    // Those that share units. If they are not all, nobody leaves before all meet, who then see whether one is late.
    const auto meet_in_group_after = [&](const auto& work) {
      if (left.groups == 1) return meet_after([&](const Seat& share) { work(share, Part{0, z.batch}); });
      const Part rows = part(z.batch, place.group, left.groups);
      return barriers.meet_after(place.own, place.group, [&](const Seat& share) { work(share, rows); });
    };
    const auto back = [&](int64_t s) {
      const auto outputs = [&](const Seat& share, Part rows) {
        const Part own = part(shared_outputs.count, share);
        for (int64_t p = own.begin; p < own.end; ++p) step(s, p, rows, sums);
      };
      const auto units = [&](const Seat& share, Part rows) {
        const Part own = part(shared_units.count, share);
        for (int64_t p = own.begin; p < own.end; ++p) unproject(s, p, rows, sums);
      };
      return meet_in_group_after(outputs) && (s < 0 || !projected || meet_in_group_after(units));
    };
    if (!meet_after([&](const Seat& share) { prepare(share); })) return;
    const int64_t chunk = blocks.chunk;
    const bool wants_weights = blocks.grads.w_ih;
    for (int64_t begin = (z.steps - 1) / chunk * chunk; begin >= 0; begin -= chunk) {
      const int64_t end = smaller(begin + chunk, z.steps);
      for (int64_t last = end; last > begin; last -= piece) {
        const int64_t first = larger(begin, last - piece);
        if (wavefront.before) wavefront.before->wait_until(z.steps - first);
        for (int64_t s = last - 1; s >= first; --s)
          if (!back(s)) return;
        if (left.groups > 1 && !count_those_left(barriers.meet(seat))) return;
        const auto work = [&](const Seat& share) {
          blocks.multiply_inputs(first, last, share, sums);
          if (wavefront.done) wavefront.done->publish(z.steps - first);
          if (wants_weights && first == begin) blocks.pack_block(begin, end, share, thread);
        };
        if (!meet_after(work)) return;
      }
      const auto work = [&](const Seat& share) { blocks.multiply_weights(begin, end, share, sums); };
      if (wants_weights && !meet_after(work)) return;
    }
    if (args.grad_h0 && !back(-1)) return;
    if constexpr (kRounds) static_cast<void>(meet_after([&](const Seat& share) { finish_sums(share); }));
  }

  // When all is summed up.
  void finish_sums(const Seat& share) const {
    blocks.narrow(share);
    if (!Cell::kHasCell || !args.grad_c0) return;
    const Part rows = part(z.batch, share);
    convert(args.grad_c0 + (direction * z.batch + rows.begin) * z.hidden, carry + rows.begin * z.hidden,
            (rows.end - rows.begin) * z.hidden);
  }

  // What is left of the second direction when both are done.
  void join() const {
    if (args.grad_x) add_to(args.grad_x, blocks.grad_x, z.rows * z.inputs);
  }

  void prepare(const Seat& seat) const {
    blocks.prepare(seat);
    if (carried)
      blocks.pack_share(
          shared_outputs, [&](int64_t k) { return weights.w_hh + Cell::row_hh(k, z.hidden) * z.outputs; }, G * z.hidden,
          w_hh, seat);
    if (projected)
      blocks.pack_share(shared_units, [&](int64_t k) { return weights.w_hr + k * z.hidden; }, z.outputs, w_hr, seat);
    const Part rows = part(z.batch, seat);
    const int64_t from = rows.begin * z.hidden, count = (rows.end - rows.begin) * z.hidden;
    if (Cell::kHasCell && args.grad_cn)
      convert(carry + from, args.grad_cn + direction * z.batch * z.hidden + from, count);
    else if (Cell::kHasCarry)
      clear(carry + from, count);
    if constexpr (kRounds)
      if (Cell::kHasCell) convert(const_cast<W*>(c0) + from, args.c0 + direction * z.batch * z.hidden + from, count);
  }

  // The gradient of h at step s, for the outputs of panel p; without a projection the gates' math as well. Rows that
  // begin at step s + 1 give the gradient of h0 instead, as all rows do for s = -1.
  void step(int64_t s, int64_t p, Part own, W* sums) const {
    const int64_t later = steps.rows(s + 1), now = steps.rows(s);
    const Part behind{own.begin, smaller(own.end, later)};
    const int64_t first = shared_outputs.begin(p), columns = shared_outputs.end(p) - first;
    const int64_t width = shared_outputs.width(p);
    const int64_t depth = G * z.hidden;
    if (behind.begin < behind.end)
      multiply_plain<S>(width, blocks.gates_at(s + 1, behind.begin), ld, behind.end - behind.begin, depth,
                        w_hh + shared_outputs.offset(p, depth), nullptr, sums,
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
          grad = load(sums + (r - own.begin) * width + c);
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
            grad = activation_gradient<W>(args.activation, load_part(h, lanes), grad);
          }
          store_part(blocks.outputs_at(s, r) + column, grad, lanes);
        } else {
          finish(s, r, column, grad, lanes);
        }
      }
    }
  }

  // With a projection: the gradient of h before it, for the units of panel p, and the gates' math.
  void unproject(int64_t s, int64_t p, Part own, W* sums) const {
    const Part rows{own.begin, smaller(own.end, steps.rows(s))};
    if (rows.begin >= rows.end) return;
    const int64_t first = shared_units.begin(p), width = shared_units.width(p);
    multiply_plain<S>(width, blocks.outputs_at(s, rows.begin), blocks.ld_outputs, rows.end - rows.begin, z.outputs,
                      w_hr + shared_units.offset(p, z.outputs), nullptr, sums);
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t unit = first; unit < shared_units.end(p); unit += L) {
        const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - unit));
        finish(s, r, unit, load(sums + (r - rows.begin) * width + unit - first), lanes);
        const int64_t n = steps.offset(s) + r;
        Vec<S> u = load_part(cells + n * z.hidden + unit, lanes);
        if (Cell::kHasCell)  // the LSTM's was not saved: o tanh(c)
          u = load_part(gates + (n * Cell::kSaved + Cell::kSaved - 1) * z.hidden + unit, lanes) * tanh<W>(u);
        store_part(blocks.unprojected_at(s, r) + unit, u, lanes);
      }
  }

  // Fetches what `finish` will meet.
  FASTRNN_INLINE void expect(int64_t s, int64_t r, int64_t unit, int64_t count) const {
    const int64_t n = steps.offset(s) + r;
    if (args.grad_y) fetch(args.grad_y + (n * z.directions + direction) * z.outputs + unit, count);
    if (projected) return;
    for (int i = 0; i < Cell::kSaved; ++i) fetch(gates + (n * Cell::kSaved + i) * z.hidden + unit, count);
    if (Cell::kHasCell) fetch(blocks.state_before(s, r, cells, c0, z.hidden) + unit, count);
    if (Cell::kReadsState) fetch(blocks.state_before(s, r, hidden, h0, z.outputs) + unit, count);
    if (!Cell::kSaved) fetch(hidden + n * z.outputs + unit, count);
    S* to = blocks.gates_at(s, r) + unit;
    for (int i = 0; i < kSlots; ++i) fetch(to + i * z.hidden, count);
  }

  // The pointwise half of a step: L units of row r.
  FASTRNN_INLINE void finish(int64_t s, int64_t r, int64_t unit, Vec<S> grad_h, int lanes) const {
    using V = Vec<S>;
    const int64_t n = steps.offset(s) + r;
    V saved_values[Cell::kSaved + 1], grad[kSlots], h{}, h_before{}, c{}, c_before{}, flow{};
    for (int i = 0; i < Cell::kSaved; ++i)
      saved_values[i] = load_part(gates + (n * Cell::kSaved + i) * z.hidden + unit, lanes);
    if (Cell::kHasCell) {
      c = load_part(cells + n * z.hidden + unit, lanes);
      c_before = load_part(blocks.state_before(s, r, cells, c0, z.hidden) + unit, lanes);
    }
    if (Cell::kReadsState) h_before = load_part(blocks.state_before(s, r, hidden, h0, z.outputs) + unit, lanes);
    if (!Cell::kSaved)
      h = projected ? load_part(cells + n * z.hidden + unit, lanes) : load_part(hidden + n * z.outputs + unit, lanes);
    if (Cell::kHasCarry) flow = load_part(carry + r * z.hidden + unit, lanes);
    if (Cell::kHasCell && args.grad_cells)
      flow += load_part(args.grad_cells + (direction * z.rows + n) * z.hidden + unit, lanes);
    Cell::backward(saved_values, h, h_before, c, c_before, grad_h, flow, grad);
    if (Cell::kHasCarry) store_part(carry + r * z.hidden + unit, flow, lanes);
    S* to = blocks.gates_at(s, r) + unit;
    for (int i = 0; i < kSlots; ++i) store_part(to + i * z.hidden, grad[i], lanes);
  }
};

}  // namespace fastrnn::FASTRNN_NAMESPACE
