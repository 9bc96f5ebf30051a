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
  bool meet_by_units, meet_by_rows;  // whether threads meet at every step; now and then
};

// What it runs on.
struct Machine {
  double start, meeting;       // of two threads, us
  double multiply_adds, read;  // multiply-adds of floats, and bytes out of the second-level cache, a us
  double cache;                // bytes of it that a thread has for itself
  int threads;                 // at most
  int threads_that_meet;       // fewer in company: other programs want the CPUs
  double slice;                // us
};

// How the threads of a team share one layer. Directions run side by side or one behind the other; within one, threads
// share either rows (each takes its own sequences to the end, alone) or panels of hidden units (a barrier a step).
struct TeamPlan {
  int threads;  // of one direction
  bool side_by_side;
  bool by_rows;
};

// How long the work takes by a plan, in us:
//   D (T (max(m r / M, b s / R) + meeting) + a s / M) + start
// for D directions that come one behind the other, T steps, r rows of m multiply-adds each, b bytes of weights, M and R
// what the machine does a us, s the largest share of the panels, a what is computed ahead. A meeting or a start of n
// threads takes log2 n times as long as of two.
double predicted_time(const TeamWork& work, const Machine& machine, TeamPlan plan);

// The plan that takes the shortest time, with no more threads than make it shorter. Rows are shared where each thread
// keeps enough of them and its cache holds all weights. A pure function.
TeamPlan plan_team(const TeamWork& work, const Machine& machine);

// This machine, at this time, for a team of at most so many threads; the four rates are measured once.
Machine this_machine(int threads);

}  // namespace fastrnn
