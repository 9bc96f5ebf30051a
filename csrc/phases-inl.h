// The time loop over the phases of a program.
//
// A thread's way through it: pack a share of the weights and set up states; then, for a chunk of steps small enough to
// stay in cache, those products that no step writes to; then, step by step, phase by phase, panel by panel, results and
// the function on them. Threads that share units meet before phases that read what others wrote; threads that share
// rows never do. What lies between two meetings, from such a phase to the next, which may be of the next step, is the
// work that comes in shares.
#pragma once

#include "schedule-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S>
struct PhaseScan {
  static constexpr int64_t kFold = 16;  // steps after which partial sums are folded
  static constexpr int64_t kChunkRows = 120;

  const Run& run;
  const Span<Phase>& phases;
  const Steps steps;
  const TeamPlan team_plan;
  const Barriers barriers;
  const RunArrays<S> arrays;
  const int64_t chunk;  // steps
  PartPlan<S>* parts;   // of all phases, one behind the other
  int64_t* first_part;  // of each phase, and their number
  int64_t part_count = 0;
  int64_t head = 0;  // phases before the first that meets
  bool has_ahead = false;
  S* workspace;     // per thread: results
  char** pointers;  // per thread, one for each operand of a function
  int64_t* strides;
  int64_t workspace_size = 0, most_operands = 0;

  // What one thread does at a step.
  struct Turn {
    int thread, group;
    Seat seat;                // in its group
    Part rows;                // of its group
    int64_t share;            // whose units it computes, of as many as there were threads
    int64_t s, row_in_chunk;  // of the step's first row
    View* views;
    S* results;
    char** pointers;
    int64_t* strides;
  };

  PhaseScan(const Run& r, const int64_t* offsets, TeamPlan c, Barriers b, Scratch& scratch)
      : run(r), phases(r.program->phases), steps{r.steps, r.batch, r.batch_sizes, offsets, r.reverse}, team_plan(c),
        barriers(b), arrays(r, steps, c.threads, scratch),
        chunk(ceil_div(r.steps, ceil_div(r.steps, larger<int64_t>(1, kChunkRows / r.batch)))) {
    Planner<S> planner{run,
                       team_plan.members(),
                       team_plan.threads,
                       chunk * run.batch,
                       find_written(scratch),
                       int8_matrices(scratch),
                       scratch};
    first_part = scratch.take<int64_t>(phases.count + 1);
    for (int64_t i = 0; i < phases.count; ++i) first_part[i] = part_count, part_count += phases[i].parts.count;
    first_part[phases.count] = part_count;
    while (head < phases.count && !phases[head].meets) ++head;
    parts = take_cleared<PartPlan<S>>(scratch, part_count);
    PartPlan<S>* next = parts;
    for (const Phase& phase : phases)
      for (const PhasePart& part : phase.parts) {
        *next = planner.plan(part);
        has_ahead = has_ahead || next->ahead_count;
        if (next->count) workspace_size = larger(workspace_size, next->workspace(planner.threads));
        most_operands = larger(most_operands, part.operands.count);
        ++next;
      }
    PackedMemory memory{planner.packed ? run.weight_cache : nullptr, scratch};
    memory.open(PackedMemory::bytes_of<S>(planner.packed), planner.tags,
                {run.program->identity, planner.threads, sizes_print(), planner.packed, planner.tags, 0, 0, 0});
    S* packed = memory.take<S>(planner.packed);
    for (int64_t i = 0; i < part_count; ++i) planner.place(parts[i], packed, memory.tags);
    workspace = scratch.take<S>(team_plan.threads * workspace_size);
    pointers = scratch.take<char*>(team_plan.threads * most_operands);
    strides = scratch.take<int64_t>(team_plan.threads * most_operands);
  }

  int64_t sizes_print() const {
    Fingerprint print;
    print.add(run.sizes, run.program->sizes * static_cast<int64_t>(sizeof(int64_t)));
    return static_cast<int64_t>(print.sum());
  }

  // Of each array that is one.
  const Int8Matrix* int8_matrices(Scratch& scratch) const {
    const Span<Array>& all = run.program->arrays;
    Int8Matrix* matrices = scratch.take<Int8Matrix>(all.count);
    for (int64_t i = 0; i < all.count; ++i)
      if (all[i].int8)
        matrices[i] = Int8Matrix(reinterpret_cast<const int8_t*>(run.places[i].data), run.places[i].scales, nullptr,
                                 all[i].blocks * run.sizes[all[i].size],
                                 run.sizes[all[i].columns_size] / all[i].columns_parts, scratch);
    return matrices;
  }

  const bool* find_written(Scratch& scratch) const {
    bool* written = take_cleared<bool>(scratch, run.program->arrays.count);
    for (const Phase& phase : phases)
      for (const PhasePart& part : phase.parts)
        for (const Operand& operand : part.operands)
          if (operand.array >= 0 && operand.write) written[operand.array] = true;
    return written;
  }

  void execute(int thread) const {
    const Place place(team_plan, thread);
    Turn turn{thread,
              place.group,
              place.own,
              part(run.batch, place.group, team_plan.groups),
              0,
              -1,
              0,
              arrays.views(thread),
              workspace + thread * workspace_size,
              pointers + thread * most_operands,
              strides + thread * most_operands};
    arrays.prepare(thread);
    if (team_plan.groups > 1) {
      pack(place.own, place.group), arrays.begin_states(place.all);
      barriers.wait(place.all);
    } else if (!meet_after(turn, [&](const Seat& share) { pack(share, 0), arrays.begin_states(share); })) {
      return;
    }
    if (!run_steps(turn) || !arrays.total_count) return;
    arrays.fold(thread);
    barriers.wait(place.all);
    arrays.sum_up(thread);
  }

  // False if this thread is to leave, as below.
  bool run_steps(Turn& turn) const {
    if (head == phases.count)
      return meet_after(turn, [&](const Seat& share) {
        for (int64_t s = 0; s < run.steps; ++s) begin_step(s, share, turn);
      });
    const auto first = [&](const Seat& share) { begin_step(0, share, turn); };
    if ((head || has_ahead) && !meet_after(turn, first)) return false;
    for (int64_t s = 0; s < run.steps; ++s)
      for (int64_t begin = head, end; begin < phases.count; begin = end) {
        end = begin + 1;
        while (end < phases.count && !phases[end].meets) ++end;
        const auto work = [&](const Seat& share) {
          run_phases({begin, end}, s, share, turn);
          if (end == phases.count && s + 1 < run.steps) begin_step(s + 1, share, turn);
        };
        if (!meet_after(turn, work)) return false;
      }
    return true;
  }

  // What of a step, and of the chunk that begins with it, reads nothing of the step before that others wrote.
  void begin_step(int64_t s, const Seat& share, Turn& turn) const {
    if (s && s % kFold == 0) arrays.fold(turn.thread);
    if (has_ahead && s % chunk == 0) multiply_ahead(s, smaller(s + chunk, run.steps), share, turn);
    run_phases({0, head}, s, share, turn);
  }

  // Those that share units. Where a thread has sums of its own, whose order shows, it does its share itself.
  template <class Work>
  bool meet_after(Turn& turn, const Work& work) const {
    if (!arrays.total_count) return barriers.meet_after(turn.seat, turn.group, work);
    work(turn.seat);
    barriers.wait(turn.seat, turn.group);
    return true;
  }

  // Whose units a share has: those of one thread, and of threads of its group that left.
  Part units_of(const Seat& share) const { return part(team_plan.members(), share); }

  // A share of the weights: a part of its units' where each group has the same.
  void pack(const Seat& share, int group) const {
    for (int64_t i = 0; i < part_count; ++i) {
      const PartPlan<S>& plan = parts[i];
      if (!plan.count) continue;
      const Part units = plan.panels_of(share.thread), own = part(units.end - units.begin, group, team_plan.groups);
      for (int64_t p = own.begin; p < own.end; ++p) plan.pack(units.begin + p, run.places);
    }
  }

  // What is computed ahead of steps [begin, end): by the thread that needs it.
  void multiply_ahead(int64_t begin, int64_t end, const Seat& share, const Turn& turn) const {
    const int64_t first = steps.first_row(begin, end);
    for (int64_t i = 0; i < part_count; ++i) {
      const PartPlan<S>& plan = parts[i];
      if (!plan.ahead_count) continue;
      if (team_plan.groups == 1) {
        multiply_ahead(plan, first, steps.rows_between(begin, end), 0, share, turn);
        continue;
      }
      for (int64_t s = begin; s < end; ++s) {
        const int64_t row = steps.offset(s) + turn.rows.begin;
        multiply_ahead(plan, row, turn.rows.end - turn.rows.begin, row - first, share, turn);
      }
    }
  }

  void multiply_ahead(const PartPlan<S>& plan, int64_t row, int64_t rows, int64_t to, const Seat& share,
                      const Turn& turn) const {
    const Part own = units_of(share);
    plan.round_ahead(turn.thread, run.places, row, rows, to);
    for (int64_t p = plan.panels_of(own.begin).begin; p < plan.panels_of(own.end - 1).end; ++p)
      plan.multiply_ahead(turn.thread, plan.panels[p], run.places, row, rows, to);
  }

  // Some phases of a step.
  void run_phases(Part some, int64_t s, const Seat& share, Turn& turn) const {
    if (turn.s != s) {
      const int64_t begin = s / chunk * chunk;
      arrays.set_views(s, turn.views);
      turn.s = s, turn.row_in_chunk = steps.offset(s) - steps.first_row(begin, smaller(begin + chunk, run.steps));
    }
    const Part rows{turn.rows.begin, smaller(turn.rows.end, steps.rows(s))};
    for (int64_t i = first_part[some.begin]; i < first_part[some.end]; ++i) {
      if (!arrays.neighbour_count) {
        run_shares(parts[i], rows, share, turn);
        continue;
      }
      for (int64_t r = rows.begin, until; r < rows.end; r = until) {
        until = arrays.same_neighbours(s, r, rows.end);
        arrays.set_neighbours(s, r, turn.views);
        run_shares(parts[i], {r, until}, share, turn);
      }
    }
  }

  void run_shares(const PartPlan<S>& plan, Part rows, const Seat& share, Turn& turn) const {
    const Part own = units_of(share);
    for (turn.share = own.begin; turn.share < own.end; ++turn.share) run_rows(plan, rows, turn);
  }

  // A part on rows that are one block of every array.
  void run_rows(const PartPlan<S>& plan, Part rows, const Turn& turn) const {
    const int64_t count = rows.end - rows.begin;
    if (count <= 0) return;
    const auto finish = [&](Part some, int64_t begin, int64_t end) {
      arrays.finish_states(*plan.part, turn.s, some, begin, end, turn.views);
    };
    if (!plan.count) {
      const int64_t begin = plan.bounds[turn.share], end = plan.bounds[turn.share + 1];
      if (begin >= end) return;
      plan.call_on_arrays(turn.views, rows.begin, count, begin, end, turn.pointers, turn.strides);
      return finish(rows, begin, end);
    }
    const Part own = plan.panels_of(turn.share);
    plan.round(turn.thread, turn.views, rows.begin, count);
    if (count == 1) {
      S* c = turn.results;
      plan.multiply_one_row(turn.thread, turn.share, turn.views, rows.begin, turn.row_in_chunk + rows.begin, c);
      for (int64_t p = own.begin; p < own.end; ++p) {
        const UnitPanel& panel = plan.panels[p];
        plan.take_means(panel, turn.views, rows.begin, 1, c);
        plan.call(panel, turn.views, rows.begin, 1, -1, c, turn.pointers, turn.strides);
        finish(rows, panel.begin, panel.end);
        c += plan.count * panel.width;
      }
      return;
    }
    const int64_t blocks = ceil_div(count, plan.block_rows());
    for (int64_t p = own.begin; p < own.end; ++p)
      for (int64_t b = 0; b < blocks; ++b) {
        const UnitPanel& panel = plan.panels[p];
        const Part cut = part(count, b, blocks), block{rows.begin + cut.begin, rows.begin + cut.end};
        const int64_t height = block.end - block.begin, in_chunk = turn.row_in_chunk + block.begin;
        plan.multiply_rows(turn.thread, panel, turn.views, block.begin, height, in_chunk, turn.results);
        plan.take_means(panel, turn.views, block.begin, height, turn.results);
        plan.call(panel, turn.views, block.begin, height, in_chunk, turn.results, turn.pointers, turn.strides);
        finish(block, panel.begin, panel.end);
      }
  }
};

template <class S>
bool run_phases(const Run& run, Team& team) {
  Scratch scratch;
  const int64_t* offsets = make_offsets(run, scratch);
  const TeamPlan team_plan = plan_team<S>(run, team);
  PhaseScan<S> scan(run, offsets, team_plan, make_barriers(team_plan, scratch), scratch);
  return team.run(
      scan.team_plan.threads, [](void* context, int thread) { static_cast<PhaseScan<S>*>(context)->execute(thread); },
      &scan);
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
