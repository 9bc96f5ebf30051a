// The time loop over the phases of a program.
//
// A thread's way through it: pack a share of the weights and set up states; then, for a chunk of steps small enough to
// stay in cache, those products that no step writes to; then, step by step, phase by phase, panel by panel, results and
// the function on them. Threads that share units meet before phases that read what others wrote;
// threads that share rows never do.

// What functions add to an array of the kind total: one thread's, in three floors, so that long sums keep their digits.
// Functions add to `partial`, which goes to `sum` after some steps, which goes to the caller.
template <class S>
struct TotalPlan {
  int64_t array, columns;
  S *partial, *sum;  // (threads, ld)
  int64_t ld;
};

template <class S>
struct PhaseScan {
  static constexpr int64_t kItem = sizeof(S), kFold = 16;  // steps after which partial sums are folded
  static constexpr int64_t kChunkRows = 120;

  const Run& run;
  const Program& program;
  const Steps steps;
  const Crew crew;
  Barrier& barrier;
  const int64_t chunk;  // steps
  PartPlan<S>* parts;   // of all phases, one behind the other
  int64_t part_count = 0, total_count = 0;
  bool has_neighbours = false, has_ahead = false;
  S** held;  // for each array: two buffers of a state or a row
  TotalPlan<S>* totals;
  View* all_views;  // per thread, a pair for each array
  char** pointers;  // per thread, one for each operand of a function
  int64_t* strides;
  S* workspace;
  int64_t workspace_size = 0, most_operands = 0;

  PhaseScan(const Run& r, const int64_t* offsets, Crew c, Barrier& b, Scratch& scratch)
      : run(r), program(*r.program), steps{r.steps, r.batch, r.batch_sizes, offsets, r.reverse}, crew(c), barrier(b),
        chunk(ceil_div(r.steps, ceil_div(r.steps, larger<int64_t>(1, kChunkRows / r.batch)))) {
    Planner<S> planner{run, crew.by_rows ? 1 : crew.threads, chunk * run.batch, find_written(scratch), scratch};
    for (const Phase& phase : program.phases) part_count += phase.parts.count;
    parts = take_copy<PartPlan<S>>(scratch, part_count);
    PartPlan<S>* next = parts;
    for (const Phase& phase : program.phases)
      for (const PhasePart& part : phase.parts) {
        *next = planner.plan(part);
        has_ahead = has_ahead || next->ahead_count;
        if (next->count) workspace_size = larger(workspace_size, next->workspace(planner.threads));
        most_operands = larger(most_operands, part.operands.count);
        ++next;
      }
    Room room{planner.packed ? run.kept : nullptr, scratch};
    room.open(Room::bytes_of<S>(planner.packed), planner.marks,
              {program.identity, planner.threads, sizes_print(), planner.packed, planner.marks, 0, 0, 0});
    S* packed = room.take<S>(planner.packed);
    for (int64_t i = 0; i < part_count; ++i) planner.place(parts[i], packed, room.marks);
    workspace = scratch.take<S>(crew.threads * workspace_size);
    pointers = scratch.take<char*>(crew.threads * most_operands);
    strides = scratch.take<int64_t>(crew.threads * most_operands);
    all_views = take_copy<View>(scratch, crew.threads * view_count());
    held = take_copy<S*>(scratch, program.arrays.count);
    totals = scratch.take<TotalPlan<S>>(program.arrays.count);
    for (int64_t i = 0; i < program.arrays.count; ++i) {
      const ArrayKind kind = program.arrays[i].kind;
      if (kind == ArrayKind::state || kind == ArrayKind::row) held[i] = scratch.take<S>(2 * run.batch * columns(i));
      if (kind == ArrayKind::neighbour) has_neighbours = true;
      if (kind != ArrayKind::total) continue;
      const int64_t ld = ceil_div(columns(i), 64) * 64;  // no two threads in a cache line
      totals[total_count++] = {i, columns(i), scratch.take<S>(crew.threads * ld), scratch.take<S>(crew.threads * ld),
                               ld};
    }
  }

  int64_t sizes_print() const {
    Fingerprint print;
    print.add(run.sizes, program.sizes * static_cast<int64_t>(sizeof(int64_t)));
    return static_cast<int64_t>(print.sum());
  }

  const bool* find_written(Scratch& scratch) const {
    bool* written = take_copy<bool>(scratch, program.arrays.count);
    for (const Phase& phase : program.phases)
      for (const PhasePart& part : phase.parts)
        for (const Operand& operand : part.operands)
          if (operand.array >= 0 && operand.write) written[operand.array] = true;
    return written;
  }

  int64_t view_count() const { return 2 * program.arrays.count; }

  // Numbers in a row of an array.
  int64_t columns(int64_t i) const {
    const Array& array = program.arrays[i];
    if (array.single || array.kind == ArrayKind::number) return 1;
    return array.blocks * run.sizes[array.size];
  }

  void execute(int thread) const {
    View* views = all_views + thread * view_count();
    const Part own = crew.by_rows ? part(run.batch, thread, crew.threads) : Part{0, run.batch};
    prepare(thread, views);
    barrier.wait(crew.threads);
    for (int64_t s = 0; s < run.steps; ++s) {
      if (has_ahead && s % chunk == 0) multiply_ahead(s, smaller(s + chunk, run.steps), own, thread);
      set_views(s, views);
      const Part rows{own.begin, smaller(own.end, steps.rows(s))};
      const PartPlan<S>* next = parts;
      for (const Phase& phase : program.phases) {
        if (phase.meets && !crew.by_rows) barrier.wait(crew.threads);
        for (int64_t i = 0; i < phase.parts.count; ++i) run_part(*next++, s, rows, thread, views);
      }
      if ((s + 1) % kFold == 0) fold(thread);
    }
    if (!total_count) return;
    fold(thread);
    barrier.wait(crew.threads);
    sum_up(thread);
  }

  // This thread's share of the weights and of the states, and what of its views does not change.
  void prepare(int thread, View* views) const {
    for (int64_t i = 0; i < part_count; ++i) {
      const PartPlan<S>& plan = parts[i];
      if (!plan.count) continue;
      const Part own = crew.by_rows ? part(plan.first_panel[1], thread, crew.threads)
                                    : Part{plan.first_panel[thread], plan.first_panel[thread + 1]};
      for (int64_t p = own.begin; p < own.end; ++p) plan.pack(p, run.places);
    }
    for (int64_t i = 0; i < program.arrays.count; ++i) {
      const ArrayPlace& place = run.places[i];
      const ArrayKind kind = program.arrays[i].kind;
      if (kind == ArrayKind::state) begin_state(i, part(run.batch, thread, crew.threads));
      const View fixed{place.data, kind == ArrayKind::sequence ? place.stride * kItem : 0};
      views[view_of(i, false)] = views[view_of(i, true)] = fixed;
    }
    for (int64_t i = 0; i < total_count; ++i) {
      const TotalPlan<S>& total = totals[i];
      S* partial = total.partial + thread * total.ld;
      clear(partial, total.columns);
      clear(total.sum + thread * total.ld, total.columns);
      views[view_of(total.array, true)] = {reinterpret_cast<char*>(partial), 0};
    }
  }

  // Rows of both buffers: those that begin at a later step are in whichever is read then, since none before writes
  // them.
  void begin_state(int64_t i, Part rows) const {
    const ArrayPlace& place = run.places[i];
    const int64_t width = columns(i);
    for (int64_t buffer = 0; buffer < 2; ++buffer)
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        S* to = held[i] + (buffer * run.batch + r) * width;
        if (place.initial)
          copy(to, reinterpret_cast<const S*>(place.initial) + r * place.initial_stride, width);
        else
          clear(to, width);
      }
  }

  View buffer(int64_t i, int64_t which) const {
    const int64_t width = columns(i);
    return {reinterpret_cast<char*>(held[i] + which * run.batch * width), width * kItem};
  }

  void set_views(int64_t s, View* views) const {
    for (int64_t i = 0; i < program.arrays.count; ++i) {
      View &read = views[view_of(i, false)], &write = views[view_of(i, true)];
      const ArrayPlace& place = run.places[i];
      switch (program.arrays[i].kind) {
        case ArrayKind::step:
          read = write = {place.data + steps.offset(s) * place.stride * kItem, place.stride * kItem};
          break;
        case ArrayKind::state: read = buffer(i, s % 2), write = buffer(i, (s + 1) % 2); break;
        case ArrayKind::row: read = write = buffer(i, s % 2); break;
        default: break;
      }
    }
  }

  // Neighbours of the rows from r on, up to bound(s, r).
  void set_neighbours(int64_t s, int64_t r, View* views) const {
    for (int64_t i = 0; i < program.arrays.count; ++i) {
      const Array& array = program.arrays[i];
      if (array.kind != ArrayKind::neighbour) continue;
      const ArrayPlace& place = run.places[i];
      const int64_t other = s + array.offset;
      views[view_of(i, false)] =
          r < steps.rows(other) ? View{place.data + steps.offset(other) * place.stride * kItem, place.stride * kItem}
                                : View{place.initial, place.initial_stride * kItem};
    }
  }

  // The rows from r on that all have, or all lack, a row in each neighbouring step.
  int64_t bound(int64_t s, int64_t r, int64_t end) const {
    const int64_t before = steps.rows(s - 1), after = steps.rows(s + 1);
    if (r < before) end = smaller(end, before);
    if (r < after) end = smaller(end, after);
    return end;
  }

  void run_part(const PartPlan<S>& plan, int64_t s, Part rows, int thread, View* views) const {
    if (!has_neighbours) return run_rows(plan, s, rows, thread, views);
    for (int64_t r = rows.begin, end; r < rows.end; r = end) {
      end = bound(s, r, rows.end);
      set_neighbours(s, r, views);
      run_rows(plan, s, {r, end}, thread, views);
    }
  }

  // What is computed ahead of steps [s, end): by the thread that needs it.
  void multiply_ahead(int64_t s, int64_t end, Part own_rows, int thread) const {
    const int64_t first = steps.first_row(s, end);
    for (int64_t i = 0; i < part_count; ++i) {
      const PartPlan<S>& plan = parts[i];
      if (!plan.ahead_count) continue;
      const Part own = own_panels(plan, thread);
      for (int64_t p = own.begin; p < own.end; ++p) {
        if (!crew.by_rows) {
          plan.multiply_ahead(plan.panels[p], run.places, first, steps.rows_between(s, end), 0);
          continue;
        }
        for (int64_t step = s; step < end; ++step) {
          const int64_t row = steps.offset(step) + own_rows.begin;
          plan.multiply_ahead(plan.panels[p], run.places, row, own_rows.end - own_rows.begin, row - first);
        }
      }
    }
  }

  Part own_panels(const PartPlan<S>& plan, int thread) const {
    const int share = crew.by_rows ? 0 : thread;
    return {plan.first_panel[share], plan.first_panel[share + 1]};
  }

  // Row r of step s among those of its chunk.
  int64_t in_chunk(int64_t s, int64_t r) const {
    const int64_t begin = s / chunk * chunk;
    return steps.offset(s) + r - steps.first_row(begin, smaller(begin + chunk, run.steps));
  }

  // Rows that are one stretch of every array.
  void run_rows(const PartPlan<S>& plan, int64_t s, Part rows, int thread, const View* views) const {
    const int64_t count = rows.end - rows.begin;
    if (count <= 0) return;
    char** own_pointers = pointers + thread * most_operands;
    int64_t* own_strides = strides + thread * most_operands;
    if (!plan.count) {
      const int share = crew.by_rows ? 0 : thread;
      const int64_t begin = plan.bounds[share], end = plan.bounds[share + 1];
      if (begin >= end) return;
      plan.call_on_arrays(views, rows.begin, count, begin, end, own_pointers, own_strides);
      return finish_states(plan, s, rows, begin, end, views);
    }
    const Part own = own_panels(plan, thread);
    const int64_t first = plan.ahead_count ? in_chunk(s, 0) : 0;
    S* c = workspace + thread * workspace_size;
    if (count == 1) {
      plan.multiply_one_row(crew.by_rows ? 0 : thread, views, rows.begin, first + rows.begin, c);
      for (int64_t p = own.begin; p < own.end; ++p) {
        const UnitPanel& panel = plan.panels[p];
        plan.take_means(panel, views, rows.begin, 1, c);
        plan.call(panel, views, rows.begin, 1, -1, c, own_pointers, own_strides);
        finish_states(plan, s, rows, panel.begin, panel.end, views);
        c += plan.count * panel.width;
      }
      return;
    }
    const int64_t blocks = ceil_div(count, plan.block_rows());
    for (int64_t p = own.begin; p < own.end; ++p)
      for (int64_t b = 0; b < blocks; ++b) {
        const UnitPanel& panel = plan.panels[p];
        const Part cut = part(count, b, blocks), block{rows.begin + cut.begin, rows.begin + cut.end};
        const int64_t height = block.end - block.begin, row = first + block.begin;
        plan.multiply_rows(panel, views, block.begin, height, row, c);
        plan.take_means(panel, views, block.begin, height, c);
        plan.call(panel, views, block.begin, height, row, c, own_pointers, own_strides);
        finish_states(plan, s, block, panel.begin, panel.end, views);
      }
  }

  // Hands out some units of the states that a part wrote, of rows that end with step s.
  void finish_states(const PartPlan<S>& plan, int64_t s, Part rows, int64_t begin, int64_t end,
                     const View* views) const {
    const int64_t ending = larger(rows.begin, steps.rows(s + 1));
    if (ending >= rows.end) return;
    for (const Operand& operand : plan.part->operands) {
      if (operand.array < 0 || !operand.write || program.arrays[operand.array].kind != ArrayKind::state) continue;
      S* to = reinterpret_cast<S*>(run.places[operand.array].final);
      if (!to) continue;
      const View& view = views[view_of(operand.array, true)];
      const int64_t first = operand.block * plan.units + begin, ld = columns(operand.array);
      for (int64_t r = ending; r < rows.end; ++r)
        copy(to + r * ld + first, reinterpret_cast<const S*>(view.place + r * view.stride) + first, end - begin);
    }
  }

  void fold(int thread) const {
    for (int64_t i = 0; i < total_count; ++i) {
      const TotalPlan<S>& total = totals[i];
      S *partial = total.partial + thread * total.ld, *sum = total.sum + thread * total.ld;
      for (int64_t column = 0; column < total.columns; ++column) sum[column] += partial[column];
      clear(partial, total.columns);
    }
  }

  // Totals of a share of the columns, thread after thread.
  void sum_up(int thread) const {
    for (int64_t i = 0; i < total_count; ++i) {
      const TotalPlan<S>& total = totals[i];
      S* to = reinterpret_cast<S*>(run.places[total.array].data);
      const Part own = part(total.columns, thread, crew.threads);
      for (int64_t column = own.begin; column < own.end; ++column) {
        S sum = total.sum[column];
        for (int t = 1; t < crew.threads; ++t) sum += total.sum[t * total.ld + column];
        to[column] = sum;
      }
    }
  }
};

template <class S>
bool run_phases(const Run& run, Team& team) {
  Scratch scratch;
  Barrier barrier;
  Sizes sizes{};
  sizes.steps = run.steps;
  sizes.batch_sizes = run.batch_sizes;
  const int64_t* offsets = make_offsets(sizes, scratch);
  const PhaseScan<S> scan(run, offsets, make_crew<S>(run, team.size()), barrier, scratch);
  return team.run(
      scan.crew.threads, [](void* context, int thread) { static_cast<const PhaseScan<S>*>(context)->execute(thread); },
      const_cast<PhaseScan<S>*>(&scan));
}
