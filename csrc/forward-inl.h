// The forward scan of one direction of a layer.
//
// Floor per step and row: 2 G H (I + P) flops; the packed weights are read once for every tile of rows.
// A thread's way through it: pack a share of the weights; then, for a block of steps small enough to stay in
// cache, the product of the inputs; then, step by step, the product of the state with the gates' math behind each panel
// while its results are in L1. Threads meet once a step (twice with a projection) to exchange h.
#pragma once

#include "cells-inl.h"
#include "weights-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S, class A, class Cell>
struct ForwardScan {
  // The standard library's would be a function shared by all instruction sets.
  static void* operator new(size_t, void* place) { return place; }

  using Number = S;
  using Unit = Cell;
  static constexpr bool kIsBackward = false;
  using W = Wide<S>;
  // Whether hn holds h of the step before, whose rounding to S is for the products alone.
  static constexpr bool kKeepsState = Cell::kReadsState && sizeof(A) > sizeof(S);
  static constexpr int L = kLanes<S>;
  static constexpr int G = Cell::kGates;
  using Weights = ForwardWeights<S, A, Cell>;
  static constexpr int64_t kWidth = Weights::kWidth;
  static constexpr int64_t kResultsWidth = kPanel<S, kPlain>;
  static constexpr int64_t kChunkRows = 120;

  const Forward<S, A>& args;
  const Sizes& z;
  const int64_t direction;
  const Steps steps;
  const TeamPlan team_plan;
  const Barriers barriers;
  const Weights weights;
  const bool projected;
  const Wavefront wavefront;
  const int64_t panels;
  const int64_t chunk;                               // steps whose inputs are multiplied at once
  const int64_t &ld_inputs, &ld_outputs, &ld_units;  // rows of x, h and the units, as rows of products
  const S* x;

  S *state, *next;  // h before and after the step, (B, P)
  W* cell_state;    // c, (B, H); in the place of cn unless that is narrow
  S* unprojected;   // (B, H), with a projection
  W* products;      // the inputs' share of the gates: per panel, (rows of a chunk, kWidth)
  W* results;       // per thread, results_size()

  ForwardScan(const Forward<S, A>& a, int d, const int64_t* offsets, TeamPlan c, Barriers b, Scratch& scratch,
              Wavefront w = {})
      : args(a), z(a.sizes), direction(d), steps{z.steps, z.batch, z.batch_sizes, offsets, d == 1}, team_plan(c),
        barriers(b), weights(a, d, c.members(), scratch), projected(weights.projected), wavefront(w),
        panels(weights.panels), chunk(chunk_of(z, wavefront.done != nullptr)), ld_inputs(weights.ld_inputs),
        ld_outputs(weights.ld_outputs), ld_units(weights.ld_units), x(args.x) {
    if (x && ld_inputs != z.inputs) x = scratch.take<S>(z.rows * ld_inputs);
    state = scratch.take<S>(z.batch * ld_outputs);
    next = scratch.take<S>(z.batch * ld_outputs);
    cell_state = Cell::kHasCell ? wide_or_scratch(args.cn + direction * z.batch * z.hidden, scratch) : nullptr;
    unprojected = projected ? scratch.take<S>(z.batch * ld_units) : nullptr;
    products = scratch.take<W>(panels * kWidth * chunk * z.batch);
    results = scratch.take<W>(team_plan.threads * results_size());
  }

  // Of one thread: one panel of all rows, or all panels of the rows that come together.
  int64_t results_size() const {
    return weights.packed ? larger(z.batch, panels) * kResultsWidth : z.batch * panels * kWidth;
  }

  static int64_t chunk_of(const Sizes& z, bool in_wavefront) {
    const int64_t rows = in_wavefront ? smaller(kChunkRows, wavefront_rows(z)) : kChunkRows;
    return ceil_div(z.steps, ceil_div(z.steps, larger<int64_t>(1, rows / z.batch)));  // all about equally long
  }

  W* wide_or_scratch(A* cn, Scratch& scratch) const {
    if constexpr (sizeof(A) == sizeof(W))
      return cn;
    else
      return scratch.take<W>(z.batch * z.hidden);
  }

  static int64_t shared_panels(const Sizes& z) { return Weights::panel_count(z); }

  void run(int thread) const {
    const Place place(team_plan, thread);
    const int group = place.group;
    Seat seat = place.own;
    const Part own_rows = part(z.batch, group, team_plan.groups);
    const auto panels_of = [&](const Seat& share) {
      return share.threads == 1 ? Part{0, panels} : part(panels, share);
    };
    W* sums = results + thread * results_size();
    S *before = state, *after = next;
    if (team_plan.groups > 1) {
      prepare(place.all);
      barriers.wait(place.all);
    } else if (!barriers.meet_after(seat, group, [&](const Seat& share) { prepare(share); })) {
      return;
    }
    for (int64_t s = 0; s < z.steps; ++s) {
      const bool begins = s % chunk == 0;
      const int64_t end = smaller(s + chunk, z.steps);
      if (begins && wavefront.before) wavefront.before->wait_until(end);
      const Part rows{own_rows.begin, smaller(own_rows.end, steps.rows(s))};
      const auto work = [&](const Seat& share) {
        const Part own = panels_of(share);
        if (begins) multiply_inputs(s, end, own, own_rows);
        if (weights.streams(rows.end - rows.begin))
          step_streaming(s, own, rows, before, after, sums);
        else
          for (int64_t p = own.begin; p < own.end; ++p) step(s, p, rows, before, after, sums);
      };
      if (!barriers.meet_after(seat, group, work)) return;
      const auto outputs = [&](const Seat& share) {
        const Part own = part(weights.outputs.count, share);
        for (int64_t p = own.begin; p < own.end; ++p) project(s, p, rows, after, sums);
      };
      if (projected && !barriers.meet_after(seat, group, outputs)) return;
      if (wavefront.done) wavefront.done->publish(s + 1);
      S* swap = before;
      before = after;
      after = swap;
    }
  }

  void join() const {}  // what is left when both directions are done

  // This thread's share of the weights and of the initial states.
  void prepare(const Seat& seat) const {
    weights.pack(seat);
    const Part rows = part(z.batch, seat);
    const A* h0 = args.h0 + direction * z.batch * z.outputs;
    for (S* to : {state, next}) copy_rows(to, ld_outputs, h0, z.outputs, rows);
    if (kKeepsState) copy_rows(args.hn + direction * z.batch * z.outputs, z.outputs, h0, z.outputs, rows);
    if (unprojected && ld_units != z.hidden)
      clear(unprojected + rows.begin * ld_units, (rows.end - rows.begin) * ld_units);
    if (Cell::kHasCell) {
      const int64_t from = rows.begin * z.hidden;
      convert(cell_state + from, args.c0 + direction * z.batch * z.hidden + from, (rows.end - rows.begin) * z.hidden);
    }
    if (x != args.x) copy_rows(const_cast<S*>(x), ld_inputs, args.x, z.inputs, part(z.rows, seat));
  }

  template <class To, class From>
  static void copy_rows(To* to, int64_t ld, const From* from, int64_t width, Part rows) {
    if (ld == width) return convert(to + rows.begin * ld, from + rows.begin * ld, (rows.end - rows.begin) * ld);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      convert(to + r * ld, from + r * width, width);
      to[r * ld + width] = To{};
    }
  }

  W* product_at(int64_t p, int64_t row_in_chunk) const {
    return products + p * chunk * z.batch * kWidth + row_in_chunk * weights.width(p);
  }

  void multiply_inputs(int64_t s, int64_t end, Part own_panels, Part own_rows) const {
    const int64_t first = steps.first_row(s, end), last = first + steps.rows_between(s, end);
    const auto rows = [&](Part own, int64_t from, int64_t to) {
      const auto place = [&](int64_t p) { return product_at(p, from - first); };
      if (!args.tokens) return weights.times_inputs(x + from * ld_inputs, to - from, own, place);
      for (int64_t p = own.begin; p < own.end; ++p) weights.gather(args.tokens + from, to - from, p, place(p));
    };
    if (team_plan.groups == 1) return rows(own_panels, first, last);
    for (int64_t p = own_panels.begin; p < own_panels.end; ++p)  // which stays in cache from step to step
      for (int64_t i = s; i < end; ++i)
        rows({p, p + 1}, steps.offset(i) + own_rows.begin, steps.offset(i) + own_rows.end);
  }

  // One step of the units of panel p: gates, c and h of some rows.
  void step(int64_t s, int64_t p, Part rows, const S* before, S* after, W* sums) const {
    if (rows.begin >= rows.end) return;
    const bool saves = args.saved.hidden != nullptr;
    weights.times_states(before + rows.begin * ld_outputs, rows.end - rows.begin, p, sums,
                         [&](int64_t top, int64_t bottom) __attribute__((always_inline)) {
                           for (int64_t r = rows.begin + top; saves && r < rows.begin + bottom; ++r)
                             expect(steps.offset(s) + r, p);
                         });
    open(s, p, rows, sums);
    close(s, p, rows, sums, before, after);
  }

  // One step of few rows: first all that streams weights, then the gates' math of all units.
  void step_streaming(int64_t s, Part own, Part rows, const S* before, S* after, W* sums) const {
    const int64_t count = rows.end - rows.begin;
    if (count <= 0) return;
    for (int64_t p = own.begin; p < own.end; ++p) {
      const char* inputs = reinterpret_cast<const char*>(inputs_of(s, p, rows.begin));
      for (int64_t byte = 0; byte < kWidth * int64_t(sizeof(W)); byte += 64) __builtin_prefetch(inputs + byte);
    }
    weights.times_all(before + rows.begin * ld_outputs, count, own, sums);
    const auto results = [&](int64_t p) { return sums + (p - own.begin) * count * kWidth; };
    for (int64_t p = own.begin; p < own.end; ++p) open(s, p, rows, results(p));
    for (int64_t p = own.begin; p < own.end; ++p) close(s, p, rows, results(p), before, after);
  }

  // The inputs' share of the gates at step s, for panel p, from row r on.
  const W* inputs_of(int64_t s, int64_t p, int64_t r) const {
    const int64_t block_start = s / chunk * chunk;
    return product_at(p, steps.offset(s) + r - steps.first_row(block_start, smaller(block_start + chunk, z.steps)));
  }

  // Fetches what `finish` will meet for row n of x.
  FASTRNN_INLINE void expect(int64_t n, int64_t p) const {
    const int64_t unit = weights.begin(p) * L, count = weights.width(p) / G, in_saved = direction * z.rows + n;
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
    static_assert(G == 1 || Weights::kBlocks == 1, "rows of a panel lie one behind the other");
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
    const int64_t offset = steps.offset(s), ending = steps.rows(s + 1), end = weights.begin(p + 1) * L;
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t unit = weights.begin(p) * L; unit < end; unit += L, from_input += G * L, from_state += G * L)
        finish(offset, r, unit, static_cast<int>(smaller<int64_t>(L, z.hidden - unit)), from_input, from_state, before,
               after, r >= ending);
  }

  // L units of row r, whose place in x is offset + r.
  FASTRNN_INLINE void finish(int64_t offset, int64_t r, int64_t unit, int lanes, const W* from_input,
                             const W* from_state, const S* before, S* after, bool ending) const {
    using V = Vec<S>;
    V a[G], b[G], saved_values[Cell::kSaved + 1], c{}, h{};
    for (int gate = 0; gate < G; ++gate) {
      a[gate] = load(from_input + gate * L);
      b[gate] = load(from_state + gate * L);
    }
    if (kKeepsState)
      h = load_part(args.hn + (direction * z.batch + r) * z.outputs + unit, lanes);
    else if (Cell::kReadsState)
      h = load_part(before + r * ld_outputs + unit, lanes);
    if (Cell::kHasCell) c = load_part(cell_state + r * z.hidden + unit, lanes);
    h = Cell::close(a, b, h, c, saved_values);
    const int64_t n = direction * z.rows + offset + r;
    if (Cell::kHasCell) {
      store_part(cell_state + r * z.hidden + unit, c, lanes);
      if (args.saved.cells) store_part(args.saved.cells + n * z.hidden + unit, c, lanes);
      if (sizeof(A) < sizeof(W) && ending) store_part(args.cn + (direction * z.batch + r) * z.hidden + unit, c, lanes);
    }
    if (Cell::kSaved && args.saved.gates)
      for (int i = 0; i < Cell::kSaved; ++i)
        store_part(args.saved.gates + (n * Cell::kSaved + i) * z.hidden + unit, saved_values[i], lanes);
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

  void project(int64_t s, int64_t p, Part rows, S* after, W* sums) const {
    if (rows.begin >= rows.end) return;
    const int64_t count = rows.end - rows.begin, ending = steps.rows(s + 1);
    const Panels<S>& outputs = weights.outputs;
    const int64_t first = outputs.begin(p), width = outputs.width(p);
    weights.project(unprojected + rows.begin * ld_units, count, p, sums);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t column = first; column < outputs.end(p); column += L) {
        const Vec<S> h = activate<W>(args.activation, load(sums + i * width + column - first));
        emit(steps.offset(s), rows.begin + i, column, h, static_cast<int>(smaller<int64_t>(L, z.outputs - column)),
             after, rows.begin + i >= ending);
      }
  }
};

}  // namespace fastrnn::FASTRNN_NAMESPACE
