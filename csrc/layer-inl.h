// A whole layer: its directions on a team of threads.
#pragma once

#include "backward-inl.h"
#include "forward-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// Runs scans[direction]->run(thread) for all directions, side by side or one after the other; false as Team::run.
template <class Scan>
bool run_scans(Team& team, Scan* first, Scan* second, TeamPlan team_plan) {
  struct Shared {
    Scan* scans[2];
    TeamPlan team_plan;
  } shared{{first, second}, team_plan};
  return team.run(
      team_plan.side_by_side ? 2 * team_plan.threads : team_plan.threads,
      [](void* context, int thread) {
        const auto& [scans, team_plan] = *static_cast<Shared*>(context);
        [[maybe_unused]] const TileRegisters tiles;
        if (team_plan.side_by_side) return scans[thread / team_plan.threads]->run(thread % team_plan.threads);
        for (Scan* scan : scans)
          if (scan) scan->run(thread);
      },
      &shared);
}

template <class Scan, class Layer>
TeamWork work_of(const Layer& args) {
  return work_of<typename Scan::Number, typename Scan::Unit>(args, Scan::shared_panels(args.sizes), Scan::kIsBackward);
}

template <class Scan, class Layer>
bool run_layer(const Layer& args, Team& team) {
  Scratch scratch;
  const TeamPlan team_plan = plan_team(work_of<Scan>(args), team);
  const int64_t* offsets = make_offsets(args.sizes, scratch);
  Scan first(args, 0, offsets, team_plan, make_barriers(team_plan, scratch, Scan::kIsBackward), scratch);
  if (args.sizes.directions == 1) return run_scans<Scan>(team, &first, nullptr, team_plan);
  Scan second(args, 1, offsets, team_plan, make_barriers(team_plan, scratch, Scan::kIsBackward), scratch);
  if (!run_scans(team, &first, &second, team_plan)) return false;
  second.join();
  return true;
}

// How many of the layers, from the first, to run in a wavefront.
template <class Scan, class Layer>
int wavefront_height(const Layer* layers, int count, const Team& team) {
  const Sizes& z = layers->sizes;
  if (count < 2 || grouped<typename Scan::Number>(z.outputs) != z.outputs)
    return 1;  // the layer above copies its x before it begins
  const TeamWork work = work_of<Scan>(*layers);
  if (!is_worth_a_team(work, team)) return 1;
  return plan_wavefront(work, this_machine(team.size()), count, wavefront_rows(z));
}

template <class Scan, class Layer>
bool run_wavefront(const Layer* layers, int height, Team& team) {
  Scratch scratch;
  Scan* scans = reinterpret_cast<Scan*>(scratch.take<char>(height * sizeof(Scan)));
  Progress* done = scratch.take<Progress>(height);
  const int64_t* offsets = make_offsets(layers->sizes, scratch);
  for (int i = 0; i < height; ++i) {
    new (done + i) Progress;
    new (scans + i)
        Scan(layers[i], 0, offsets, TeamPlan{}, Barriers{}, scratch, Wavefront{i ? done + i - 1 : nullptr, done + i});
  }
  return team.run(
      height,
      [](void* context, int thread) {
        [[maybe_unused]] const TileRegisters tiles;
        static_cast<Scan*>(context)[thread].run(0);
      },
      scans);
}

template <class Scan, class Layer>
void run_layers(const Layer* layers, int count) {
  Team team(layers->threads);
  while (count) {
    const int height = wavefront_height<Scan>(layers, count, team);
    const bool done = height > 1 ? run_wavefront<Scan>(layers, height, team) : run_layer<Scan>(*layers, team);
    if (done) layers += height, count -= height;
  }
}

template <template <class, class, class> class Scan, class S, class A, class Layer>
void run_cells(const Layer* layers, int count) {
  with_cell<Wide<S>>(layers->mode, [&](auto cell) { run_layers<Scan<S, A, decltype(cell)>>(layers, count); });
}

template <class S, class A>
void forward(const Forward<S, A>* layers, int count) {
  run_cells<ForwardScan, S, A>(layers, count);
}

template <class S, class A>
void backward(const Backward<S, A>* layers, int count) {
  run_cells<BackwardScan, S, A>(layers, count);
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
