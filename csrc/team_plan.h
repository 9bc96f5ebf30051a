// How many threads a layer or program is worth, and how they share it.
#pragma once

#include <cstdint>

namespace fastrnn {

// What there is to share: multiply-adds, or what is worth as much.
struct TeamWork {
  double recurrent;     // of a row at a step, that wait for the step before
  double ahead;         // of a row at a step, that do not
  double weight_bytes;  // of the recurrent weights, which each step reads
  int64_t steps, rows;  // rows of all steps
  int64_t batch;        // 0: rows cannot be shared
  int64_t least_rows;   // of a thread, below which they make poor tiles
  int64_t panels;       // pieces that units can be shared in
  int directions;
  bool meet_by_units;  // whether threads that share them meet at every step
};

// What it runs on.
struct Machine {
  double start, meeting;       // of two threads, us
  double multiply_adds, read;  // multiply-adds of floats, and bytes out of the second-level cache, a us
  double cache;                // bytes of it that a thread has for itself
  int threads;                 // at most
  int threads_in_company;      // fewer while other programs want the CPUs
  double slice;                // us
};

// How the threads of a team share one layer. Directions run side by side or one behind the other. Within one, rows are
// shared by groups of threads, each of which takes its own sequences to the end; and panels of hidden units by the
// threads of a group, who meet at every step: as many groups as threads share rows alone, one group units alone.
struct TeamPlan {
  int threads = 1;  // of one direction
  bool side_by_side = false;
  int groups = 1;      // of as many threads each
  bool stays = false;  // whatever company it has (barrier.h)

  int members() const { return threads / groups; }
  // When half leaves: as many groups, or fewer where these would not be of one size.
  TeamPlan half() const {
    TeamPlan plan{(threads + 1) / 2, side_by_side, groups, stays};
    if (plan.groups > plan.threads) plan.groups = plan.threads;
    while (plan.threads % plan.groups) --plan.groups;
    return plan;
  }
  // When half has left again and again, until so many are left: never more groups than there were, so that who learns
  // of the last time only plans as those who were there each time.
  TeamPlan left(int stay) const {
    TeamPlan plan = *this;
    while (plan.threads > stay) plan = plan.half();
    return plan;
  }
  // Of a group, however many leave.
  int most_members() const {
    int most = members();
    for (TeamPlan plan = *this; plan.groups > 1; plan = plan.half())
      if (plan.members() > most) most = plan.members();
    return most;
  }
};

// How long the work takes by a plan, in us:
//   D (T (max(m r s / M, b s / R) + meeting) + a r s / M) + start
// for D directions that come one behind the other, T steps, r the largest share of a step's rows, of m multiply-adds
// each, b bytes of weights, M and R what the machine does a us, s the largest share of the panels, a what is computed
// ahead. A meeting of the n threads of a group, or a start of all, takes log2 n times as long as of two.
double predicted_time(const TeamWork& work, const Machine& machine, TeamPlan plan);

// The plan that takes the shortest time, with no more threads than make it shorter. Rows are shared where each group
// keeps enough of them, and a thread's cache its share of the weights unless no share is smaller. In company a call
// that one thread ends in a slice or two has no more threads than are said to be in company. A pure function.
TeamPlan plan_team(const TeamWork& work, const Machine& machine);

// How long `height` such layers take one upon the other in a wavefront, in us: each has a thread of its own, which
// follows that of the layer below by `piece` rows of all steps.
//   t (1 + (height - 1) piece / rows) + meeting rows / piece + start
// with t as one layer takes alone.
double predicted_wavefront(const TeamWork& work, const Machine& machine, int height, int64_t piece);

// How many of `layers` to run in a wavefront; 1 where it takes no less time for each than the plan for one layer, or
// where a thread's cache has no room for a layer's weights. A pure function.
int plan_wavefront(const TeamWork& work, const Machine& machine, int layers, int64_t piece);

// This machine, at this time, for a team of at most so many threads; the four rates are measured once.
Machine this_machine(int threads);

}  // namespace fastrnn
