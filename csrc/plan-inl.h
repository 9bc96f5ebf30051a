// What forward and backward share: the order of the steps, and who does what.
#pragma once

#include "gemm-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// One direction's steps, s = 0 .. T-1 in the order in which its forward pass takes them.
struct Steps {
  int64_t count, batch;
  const int64_t* sizes;    // null: every step has `batch` rows
  const int64_t* offsets;  // (T + 1), with sizes
  bool reverse;

  int64_t time(int64_t s) const { return reverse ? count - 1 - s : s; }
  // Rows of a step; none before the first and after the last.
  int64_t rows(int64_t s) const {
    if (s < 0 || s >= count) return 0;
    return sizes ? sizes[time(s)] : batch;
  }
  int64_t offset(int64_t s) const { return offset_at(time(s)); }
  // First row of steps [s, end) in the order of x, which is one block of rows in either direction.
  int64_t first_row(int64_t s, int64_t end) const { return offset_at(reverse ? count - end : s); }
  int64_t rows_between(int64_t s, int64_t end) const {
    const int64_t first = reverse ? count - end : s;
    return offset_at(first + end - s) - offset_at(first);
  }
  int64_t offset_at(int64_t t) const { return sizes ? offsets[t] : t * batch; }
};

inline const int64_t* make_offsets(const Sizes& sizes, Scratch& scratch) {
  if (!sizes.batch_sizes) return nullptr;
  int64_t* offsets = scratch.take<int64_t>(sizes.steps + 1);
  offsets[0] = 0;
  for (int64_t t = 0; t < sizes.steps; ++t) offsets[t + 1] = offsets[t] + sizes.batch_sizes[t];
  return offsets;
}

// Part `index` of `count` near-equal parts of [0, size).
struct Part {
  int64_t begin, end;
};
FASTRNN_INLINE Part part(int64_t size, int64_t index, int64_t count) {
  return {size * index / count, size * (index + 1) / count};
}

// How the threads of a team share one layer. Directions run side by side when the threads are even in number; within
// one, threads share either rows (each takes its own sequences to the end, alone) or panels of hidden units (a barrier
// a step).
struct TeamPlan {
  int threads;  // of one direction
  bool side_by_side;
  bool by_rows;
};

// Multiply-adds of the whole call, and of one step, below which a second thread costs more than it brings.
constexpr double kCallWork = 1e6, kStepWork = 3e4;
// Recurrent weights that each thread's L2 cache can hold for itself.
constexpr double kSharedBytes = 768 * 1024;

template <class S, class Cell, class A>
TeamPlan plan_team(const Inputs<S, A>& args, int64_t panels, int team) {
  const Sizes& z = args.sizes;
  const double state = double(Cell::kGates) * z.hidden * z.outputs;
  const double inputs = double(Cell::kGates) * z.hidden * z.inputs;
  const int threads = (state + inputs) * z.rows * z.directions < kCallWork ? 1 : team;
  const bool side_by_side = z.directions == 2 && threads % 2 == 0;
  const int own = side_by_side ? threads / 2 : threads;
  if (own == 1) return {1, side_by_side, false};
  const bool tall = !z.batch_sizes && z.batch >= own * kTileRows<Wide<S>, Cell::kVectors> / 2;
  if (tall && (state * sizeof(S) < kSharedBytes || panels < own)) return {own, side_by_side, true};
  const bool worth = state * z.rows / z.steps >= kStepWork && panels > 1;
  return {worth ? own : 1, side_by_side, false};
}

// One thread's place in a wavefront over layers: each layer has a thread of its own, which follows the one before it by
// a few steps. Both counts are of steps in the order in which they are done.
struct Wavefront {
  const int64_t* before = nullptr;  // what the layer has done that this one waits for
  int64_t* done = nullptr;          // what this one has
};

// Rows of a piece of work in a wavefront: so few that the next layer soon begins, so many that they make good tiles.
inline int64_t wavefront_rows(const Sizes& z) { return larger<int64_t>(12, z.rows / 8); }

}  // namespace fastrnn::FASTRNN_NAMESPACE
