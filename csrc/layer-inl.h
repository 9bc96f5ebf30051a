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
  const Crew crew = make_crew<S, Cell>(args, Scan::panel_count(args.sizes));
  const int64_t* offsets = make_offsets(args.sizes, scratch);
  Scan first(args, 0, offsets, crew, barriers[0], scratch);
  if (args.sizes.directions == 1) return run_scans<Scan>(&first, nullptr, crew);
  Scan second(args, 1, offsets, crew, barriers[1], scratch);
  run_scans(&first, &second, crew);
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
  Scan first(args, 0, offsets, crew, barriers[0], args.grad_x, scratch);
  if (z.directions == 1) return run_scans<Scan>(&first, nullptr, crew);
  // The second direction's share of the gradient of x is added when both are done.
  A* share = args.grad_x ? scratch.take<A>(z.rows * z.inputs) : nullptr;
  Scan second(args, 1, offsets, crew, barriers[1], share, scratch);
  run_scans(&first, &second, crew);
  if (share) add_to(args.grad_x, share, z.rows * z.inputs);
}

template <class S, class A>
void forward(const Forward<S, A>& args) {
  switch (args.mode) {
    case Mode::rnn_tanh: return forward_cell<Rnn<Wide<S>, false>>(args);
    case Mode::rnn_relu: return forward_cell<Rnn<Wide<S>, true>>(args);
    case Mode::gru: return forward_cell<Gru<Wide<S>>>(args);
    case Mode::lstm: return forward_cell<Lstm<Wide<S>>>(args);
  }
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
