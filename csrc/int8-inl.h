// The forward scan of one direction of a layer whose weights are int8, with a scale a row.
//
// Floor per step of one row: G H (I + P) bytes of weights. So they are read as they lie, once a step. Those of the
// inputs may be floats (scan.h).
#pragma once

#include "cells-inl.h"
#include "int8_product-inl.h"
#include "layer-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// What matrices of a layer a scan multiplies with: as they lie, or packed.
template <class Matrix>
Matrix int8_matrix(const int8_t* w, const float* s, const float* b, int64_t gates, int64_t units, int64_t depth,
                   Scratch& scratch) {
  if constexpr (std::is_same_v<Matrix, Int8Matrix>)
    return Int8Matrix(w, s, b, gates * units, depth, scratch);
  else
    return Matrix(w, s, b, gates, units, depth, scratch);
}

template <class Cell, class Matrix = Int8Matrix>
struct Int8Scan {
  static constexpr int L = kLanes<float>;
  static constexpr int G = Cell::kGates;
  static constexpr int64_t kChunkRows = 32;

  const Int8Forward& args;
  const Sizes& z;
  const int64_t direction;
  const Steps steps;
  const int threads;
  const Barriers barriers;
  const bool projected, float_inputs;
  FloatMatrix f_ih;
  const Matrix w_ih, w_hh, w_hr;
  const int64_t chunk;  // steps whose inputs are multiplied at once
  const Int8Rows inputs, states, units;
  float *state, *next, *unprojected, *products, *cell_state;

  Int8Scan(const Int8Forward& a, int d, const int64_t* offsets, int team, Barriers b, Scratch& scratch)
      : args(a), z(a.sizes), direction(d), steps{z.steps, z.batch, z.batch_sizes, offsets, d == 1}, threads(team),
        barriers(b), projected(a.weights[d].w_hr != nullptr), float_inputs(a.weights[d].f_ih != nullptr),
        f_ih{a.weights[d].f_ih, a.weights[d].b_ih, z.inputs},
        w_ih(int8_matrix<Matrix>(float_inputs ? a.weights[d].w_hh : a.weights[d].w_ih,
                                 float_inputs ? a.weights[d].s_hh : a.weights[d].s_ih,
                                 float_inputs ? nullptr : a.weights[d].b_ih, float_inputs ? 1 : G,
                                 float_inputs ? 1 : z.hidden, float_inputs ? 1 : z.inputs, scratch)),
        w_hh(int8_matrix<Matrix>(a.weights[d].w_hh, a.weights[d].s_hh, a.weights[d].b_hh, G, z.hidden, z.outputs,
                                 scratch)),
        w_hr(int8_matrix<Matrix>(projected ? a.weights[d].w_hr : a.weights[d].w_hh,
                                 projected ? a.weights[d].s_hr : a.weights[d].s_hh, nullptr, 1,
                                 projected ? z.outputs : 1, projected ? z.hidden : 1, scratch)),
        chunk(smaller(z.steps, larger<int64_t>(1, kChunkRows / z.batch))),
        inputs(float_inputs ? 0 : chunk * z.batch, 1, z.inputs, team, scratch),
        states(z.batch, 1, z.outputs, team, scratch), units(projected ? z.batch : 0, 1, z.hidden, team, scratch) {
    if (!std::is_same_v<Matrix, Int8Matrix> && float_inputs) f_ih.keep(G * z.hidden, scratch);
    state = scratch.take<float>(z.batch * z.outputs);
    next = scratch.take<float>(z.batch * z.outputs);
    unprojected = scratch.take<float>(projected ? z.batch * z.hidden : 0);
    products = scratch.take<float>(ceil_div(z.hidden, L) * G * L * chunk * z.batch);
    cell_state = Cell::kHasCell ? args.cn + direction * z.batch * z.hidden : nullptr;
  }

  void run(int thread) const {
    Seat seat{thread, threads};
    const Int8Rows x = inputs.of(thread), h = states.of(thread), u = units.of(thread);
    float *before = state, *after = next;
    const auto prepare = [&](const Seat& share) {
      if (share.thread > 0) return;
      const int64_t size = z.batch * z.outputs, cells = z.batch * z.hidden;
      for (float* to : {state, next}) copy(to, args.h0 + direction * size, size);
      if (Cell::kHasCell) copy(cell_state, args.c0 + direction * cells, cells);
    };
    if (!barriers.meet_after(seat, prepare)) return;
    for (int64_t s = 0; s < z.steps; ++s) {
      const int64_t rows = steps.rows(s);
      const auto work = [&](const Seat& share) {
        const Part own = part(ceil_div(z.hidden, L), share);
        if (s % chunk == 0) multiply_inputs(s, smaller(s + chunk, z.steps), own, x);
        h.fill(before, z.outputs, rows);
        for (int64_t block = own.begin; block < own.end; ++block) step(s, block, rows, h, before, after);
      };
      if (!barriers.meet_after(seat, work)) return;
      const auto outputs = [&](const Seat& share) {
        const Part own = part(ceil_div(z.outputs, L), share);
        u.fill(unprojected, z.hidden, rows);
        for (int64_t block = own.begin; block < own.end; ++block) project(s, block, rows, u, after);
      };
      if (projected && !barriers.meet_after(seat, outputs)) return;
      float* swap = before;
      before = after;
      after = swap;
    }
  }

  float* product_at(int64_t block, int64_t row_in_chunk) const {
    return products + (block * chunk * z.batch + row_in_chunk) * G * L;
  }

  void multiply_inputs(int64_t s, int64_t end, Part own, const Int8Rows& x) const {
    const int64_t first = steps.first_row(s, end), rows = steps.rows_between(s, end);
    const float* from = args.x + first * z.inputs;
    if (!float_inputs) x.fill(from, z.inputs, rows);
    for (int64_t block = own.begin; block < own.end; ++block) multiply_inputs(block, rows, from, x);
  }

  // Those of L units: of rows from `from` on, which `x` holds rounded.
  void multiply_inputs(int64_t block, int64_t rows, const float* from, const Int8Rows& x) const {
    const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - block * L));
    if (float_inputs) {
      for (int64_t r = 0; r < rows; ++r)
        for (int gate = 0; gate < G; ++gate)
          store(product_at(block, r) + gate * L, f_ih.times(gate * z.hidden + block * L, lanes, from + r * z.inputs));
      return;
    }
    in_int8_tiles(rows, [&](int64_t first, int64_t count) {
      for (int gate = 0; gate < G; ++gate) {
        Vec<float> sums[kInt8Rows];
        x.times(w_ih, w_ih.row_of(gate, block * L, z.hidden), lanes, first, count, sums);
        for (int64_t r = 0; r < count; ++r) store(product_at(block, first + r) + gate * L, sums[r]);
      }
    });
  }

  // One step of L units: gates, c and h of all rows.
  void step(int64_t s, int64_t block, int64_t rows, const Int8Rows& state, const float* before, float* after) const {
    const int64_t block_start = s / chunk * chunk, unit = block * L;
    const int64_t first = steps.offset(s) - steps.first_row(block_start, smaller(block_start + chunk, z.steps));
    const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - unit));
    in_int8_tiles(rows, [&](int64_t top, int64_t count) {
      Vec<float> sums[G][kInt8Rows];
      for (int gate = 0; gate < G; ++gate)
        state.times(w_hh, w_hh.row_of(gate, unit, z.hidden), lanes, top, count, sums[gate]);
      for (int64_t r = top; r < top + count; ++r) {
        Vec<float> a[G], b[G], saved_values[Cell::kSaved + 1], c{}, h{};
        for (int gate = 0; gate < G; ++gate) {
          a[gate] = load(product_at(block, first + r) + gate * L);
          b[gate] = sums[gate][r - top];
        }
        if (Cell::kReadsState) h = load_part(before + r * z.outputs + unit, lanes);
        if (Cell::kHasCell) c = load_part(cell_state + r * z.hidden + unit, lanes);
        Cell::open(a, b);
        h = Cell::close(a, b, h, c, saved_values);
        if (Cell::kHasCell) store_part(cell_state + r * z.hidden + unit, c, lanes);
        if (projected)
          store_part(unprojected + r * z.hidden + unit, h, lanes);
        else
          emit(s, r, unit, h, lanes, after);
      }
    });
  }

  // L outputs of the projection, of all rows.
  void project(int64_t s, int64_t block, int64_t rows, const Int8Rows& units, float* after) const {
    const int lanes = static_cast<int>(smaller<int64_t>(L, z.outputs - block * L));
    in_int8_tiles(rows, [&](int64_t first, int64_t count) {
      Vec<float> h[kInt8Rows];
      units.times(w_hr, block * L, lanes, first, count, h);
      for (int64_t r = 0; r < count; ++r) emit(s, first + r, block * L, h[r], lanes, after);
    });
  }

  // h of some outputs of row r, to all that want it.
  FASTRNN_INLINE void emit(int64_t s, int64_t r, int64_t column, Vec<float> h, int lanes, float* after) const {
    store_part(after + r * z.outputs + column, h, lanes);
    store_part(args.y + ((steps.offset(s) + r) * z.directions + direction) * z.outputs + column, h, lanes);
    if (r >= steps.rows(s + 1)) store_part(args.hn + (direction * z.batch + r) * z.outputs + column, h, lanes);
  }
};

template <class Cell>
TeamPlan plan_int8(const Int8Forward& args, const Team& team) {
  constexpr double kSize = 0.25;  // a multiply-add is worth so many of floats
  const Sizes& z = args.sizes;
  const double state = kSize * Cell::kGates * z.hidden * z.outputs,
               inputs = (args.weights[0].f_ih ? 1 : kSize) * Cell::kGates * z.hidden * z.inputs;
  TeamWork work{};
  work.recurrent = state, work.ahead = inputs;
  work.weight_bytes = state / kSize;
  work.steps = z.steps, work.rows = z.rows;
  work.panels = ceil_div(z.hidden, kLanes<float>);
  work.directions = z.directions;
  work.meet_by_units = true;
  return plan_team(work, team);
}

template <class Cell>
bool run_int8(const Int8Forward& args, Team& team) {
  const Sizes& z = args.sizes;
  Scratch scratch;
  const TeamPlan team_plan = plan_int8<Cell>(args, team);
  const int own = team_plan.threads;
  const int64_t* offsets = make_offsets(z, scratch);
  Int8Scan<Cell> first(args, 0, offsets, own, make_barriers(team_plan, scratch), scratch);
  if (z.directions == 1) return run_scans<Int8Scan<Cell>>(team, &first, nullptr, team_plan);
  Int8Scan<Cell> second(args, 1, offsets, own, make_barriers(team_plan, scratch), scratch);
  return run_scans(team, &first, &second, team_plan);
}

template <class Cell>
void forward_int8_cell(const Int8Forward& args) {
  Team team(args.threads);
  while (!run_int8<Cell>(args, team)) {
  }
}

inline void forward_int8(const Int8Forward& args) {
  with_cell<float>(args.mode, [&](auto cell) { forward_int8_cell<decltype(cell)>(args); });
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
