// A whole layer: its directions on a team of threads.

// Runs scans[direction]->run(thread) for all directions, side by side or one after the other.
template <class Scan>
void run_scans(Scan* first, Scan* second, Crew crew) {
  struct Team {
    Scan* scans[2];
    Crew crew;
  } team{{first, second}, crew};
  run_team(
      crew.side_by_side ? 2 * crew.threads : crew.threads,
      [](void* context, int thread) {
        const Team& team = *static_cast<Team*>(context);
        if (team.crew.side_by_side) return team.scans[thread / team.crew.threads]->run(thread % team.crew.threads);
        for (Scan* scan : team.scans)
          if (scan) scan->run(thread);
      },
      &team);
}

template <class Cell, class S, class A>
void forward_cell(const Forward<S, A>& args) {
  using Scan = ForwardScan<S, A, Cell>;
  Scratch scratch;
  Barrier barriers[2];
  const Crew crew = make_crew<S, Cell>(args, Scan::Weights::panel_count(args.sizes));
  const int64_t* offsets = make_offsets(args.sizes, scratch);
  Scan first(args, 0, offsets, crew, barriers[0], scratch);
  if (args.sizes.directions == 1) return run_scans<Scan>(&first, nullptr, crew);
  Scan second(args, 1, offsets, crew, barriers[1], scratch);
  run_scans(&first, &second, crew);
}

// Multiply-adds of one step below which a wavefront over layers beats sharing the units of each.
constexpr double kWaveWork = 1e6;

// How many of the layers, from the first, to run in a wavefront: each thread takes a layer of its own, and follows the
// one below by a few steps.
template <class Cell, class S, class A>
int wave_height(const Forward<S, A>* layers, int count) {
  const Sizes& z = layers->sizes;
  if (count < 2 || z.directions > 1) return 1;
  const int threads = team_size(layers->threads);
  const double step = double(Cell::kGates) * z.hidden * (z.outputs + z.inputs) * z.rows / z.steps;
  const Crew alone = make_crew<S, Cell>(*layers, ForwardWeights<S, A, Cell>::panel_count(z));
  if (step * z.steps * count < kCallWork || step >= kWaveWork || alone.by_rows || z.steps < 4) return 1;
  if (grouped<S>(z.outputs) != z.outputs) return 1;  // the layer above copies its x before it begins
  return smaller(threads, count);
}

template <class Cell, class S, class A>
void forward_wave(const Forward<S, A>* layers, int height) {
  using Scan = ForwardScan<S, A, Cell>;
  struct Wave {
    Scan* scans;
    struct alignas(64) Done {
      int64_t steps;
    }* done;
  } wave;
  Scratch scratch;
  Barrier none;
  wave.scans = reinterpret_cast<Scan*>(scratch.take<char>(height * sizeof(Scan)));
  wave.done = scratch.take<typename Wave::Done>(height);
  const int64_t* offsets = make_offsets(layers->sizes, scratch);
  for (int i = 0; i < height; ++i) {
    wave.done[i].steps = 0;
    new (wave.scans + i) Scan(layers[i], 0, offsets, Crew{1, false, false}, none, scratch,
                              i ? &wave.done[i - 1].steps : nullptr, &wave.done[i].steps);
  }
  run_team(height, [](void* context, int thread) { static_cast<Wave*>(context)->scans[thread].run(0); }, &wave);
}

template <class Cell, class S, class A>
void stack_cells(const Forward<S, A>* layers, int count) {
  for (int height = 1; count; layers += height, count -= height) {
    if constexpr (std::is_same_v<S, A>) {
      height = wave_height<Cell>(layers, count);
      if (height > 1) {
        forward_wave<Cell>(layers, height);
        continue;
      }
    }
    forward_cell<Cell>(*layers);
  }
}

template <class S>
void add_to(S* to, const S* from, int64_t count) {
  constexpr int L = kLanes<S>;
  for (int64_t i = 0; i < count; i += L) {
    const int lanes = static_cast<int>(smaller<int64_t>(L, count - i));
    store_part(to + i, load_part(to + i, lanes) + load_part(from + i, lanes), lanes);
  }
}

template <class Cell, class S, class A>
void backward_cell(const Backward<S, A>& args) {
  using Scan = BackwardScan<S, A, Cell>;
  Scratch scratch;
  Barrier barriers[2];
  const Sizes& z = args.sizes;
  const Crew crew = make_crew<S, Cell>(args, ceil_div(z.outputs, kLanes<S>));
  const int64_t* offsets = make_offsets(z, scratch);
  Scan first(args, 0, offsets, crew, barriers[0], scratch);
  if (z.directions == 1) return run_scans<Scan>(&first, nullptr, crew);
  Scan second(args, 1, offsets, crew, barriers[1], scratch);
  run_scans(&first, &second, crew);
  if (args.grad_x) add_to(args.grad_x, second.stretches.grad_x, z.rows * z.inputs);
}

template <class S, class A>
void stack(const Forward<S, A>* layers, int count) {
  switch (layers->mode) {
    case Mode::rnn_tanh: return stack_cells<Rnn<Wide<S>, false>>(layers, count);
    case Mode::rnn_relu: return stack_cells<Rnn<Wide<S>, true>>(layers, count);
    case Mode::gru: return stack_cells<Gru<Wide<S>>>(layers, count);
    case Mode::lstm: return stack_cells<Lstm<Wide<S>>>(layers, count);
  }
}

template <class S, class A>
void forward(const Forward<S, A>& args) {
  stack(&args, 1);
}

template <class S, class A>
void backward(const Backward<S, A>& args) {
  switch (args.mode) {
    case Mode::rnn_tanh: return backward_cell<Rnn<Wide<S>, false>>(args);
    case Mode::rnn_relu: return backward_cell<Rnn<Wide<S>, true>>(args);
    case Mode::gru: return backward_cell<Gru<Wide<S>>>(args);
    case Mode::lstm: return backward_cell<Lstm<Wide<S>>>(args);
  }
}
