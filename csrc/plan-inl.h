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

// The part of [0, size) of a thread of a team.
FASTRNN_INLINE Part part(int64_t size, const Seat& seat) { return part(size, seat.thread, seat.threads); }

// Where the threads of one direction meet: all of them, and those of a group, which are the same where there is one.
// Who is alone needs none.
struct Barriers {
  Barrier *all = nullptr, *of_groups = nullptr;

  // As a Barrier's.
  [[nodiscard]] bool meet(Seat& seat) const { return seat.threads == 1 || all->meet(seat); }
  void wait(const Seat& seat) const {
    if (seat.threads > 1) all->wait(seat);
  }
  void wait(const Seat& seat, int group) const {
    if (seat.threads > 1) of_groups[group].wait(seat);
  }
  // Calls work(share), its own and whatever else is left, then meets.
  template <class Work>
  [[nodiscard]] FASTRNN_INLINE bool meet_after(Seat& seat, const Work& work) const {
    return meet_after(all, seat, work);
  }
  template <class Work>
  [[nodiscard]] FASTRNN_INLINE bool meet_after(Seat& seat, int group, const Work& work) const {
    return meet_after(of_groups + group, seat, work);
  }

 private:
  template <class Work>
  static FASTRNN_INLINE bool meet_after(Barrier* at, Seat& seat, const Work& work) {
    const bool alone = seat.threads == 1;
    for (int share = alone ? 0 : at->take(seat); share >= 0; share = alone ? -1 : at->next(seat, share))
      work(Seat{share, seat.threads});
    return seat.thread < seat.threads;
  }
};

// `together`: half leaves where all meet, and groups are formed anew; else of each group by itself.
inline Barriers make_barriers(const TeamPlan& plan, Scratch& scratch, bool together = false) {
  if (plan.threads == 1) return {};
  const int64_t begin = now();
  const auto make = [&](Barrier* at, int threads, int teams, bool fixed) {
    Barrier::Share* shares = scratch.take<Barrier::Share>(threads);
    for (int i = 0; i < threads; ++i) new (shares + i) Barrier::Share;
    new (at) Barrier(shares, plan.stays, teams, begin, fixed);
  };
  const int more = plan.groups > 1 ? plan.groups : 0;
  Barrier* const all = scratch.take<Barrier>(1 + more);
  make(all, plan.threads, 1, false);
  const int members = together ? plan.most_members() : plan.members();
  for (int group = 1; group <= more; ++group) make(all + group, members, more, together);
  return {all, more ? all + 1 : all};
}

// Where a thread works: in which group, and its seats there and among all.
struct Place {
  Seat all, own;
  int group;

  Place(const TeamPlan& plan, int thread)
      : all{thread, plan.threads}, own{thread % plan.members(), plan.members()}, group(thread / plan.members()) {}
  // In the groups of those who are left. All groups have met as often, so the meetings of one are those of any.
  void move(const TeamPlan& left) {
    const uint32_t round = own.round;
    *this = Place(left, all.thread);
    own.round = round;
  }
};

// Multiply-adds of a whole call below which nobody thinks of a team, nor measures what one brings: any machine does
// them in the 4 us and more that it takes to start one.
constexpr double kCallWork = 2e5;

// Multiply-adds of floats that one is worth; on tiles, with what is pointwise around it.
#if defined(__AMX_BF16__)
constexpr double kWorthOfNarrow = 0.25;
#else
constexpr double kWorthOfNarrow = 1;
#endif
template <class S>
constexpr double kWorth = kGroup<S> > 1 ? kWorthOfNarrow : sizeof(S) / sizeof(float);

template <class S, class Cell, class A>
TeamWork work_of(const Inputs<S, A>& args, int64_t panels, bool is_backward) {
  const Sizes& z = args.sizes;
  constexpr double kSize = kWorth<S>;
  const double state = double(Cell::kGates) * z.hidden * z.outputs;
  // Backward, inputs and weights are multiplied with twice more, or thrice.
  const double ahead = double(Cell::kGates) * z.hidden * (is_backward ? 2. * z.inputs + z.outputs : 1. * z.inputs);
  TeamWork work{};
  work.recurrent = state * kSize, work.ahead = ahead * kSize;
  work.weight_bytes = state * sizeof(S);
  work.steps = z.steps, work.rows = z.rows, work.batch = z.batch_sizes ? 0 : z.batch;
  work.least_rows = kTileRows<Wide<S>, Cell::kVectors> / 2;
  work.panels = panels;
  work.directions = z.directions;
  work.meet_by_units = true;
  return work;
}

inline bool is_worth_a_team(const TeamWork& work, const Team& team) {
  return team.size() > 1 && (work.recurrent + work.ahead) * work.rows * work.directions >= kCallWork;
}

inline TeamPlan plan_team(const TeamWork& work, const Team& team) {
  return is_worth_a_team(work, team) ? plan_team(work, this_machine(team.size())) : TeamPlan{};
}

// One thread's place in a wavefront over layers: each layer has a thread of its own, which follows the one before it by
// a few steps. Both counts are of steps in the order in which they are done.
struct Wavefront {
  Progress* before = nullptr;  // what the layer has done that this one waits for
  Progress* done = nullptr;    // what this one has
};

// Rows of a piece of work in a wavefront: so few that the next layer soon begins, so many that they make good tiles.
inline int64_t wavefront_rows(const Sizes& z) { return larger<int64_t>(12, z.rows / 8); }

}  // namespace fastrnn::FASTRNN_NAMESPACE
