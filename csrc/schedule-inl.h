// How a run is laid out before it starts: who computes what, and where it finds it. All in the call's scratch memory.

template <class T>
FASTRNN_INLINE T* take_copy(Scratch& scratch, int64_t count) {
  T* all = scratch.take<T>(count);
  for (int64_t i = 0; i < count; ++i) all[i] = T{};
  return all;
}

FASTRNN_INLINE int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// Units of size Z that each thread computes, the same in all parts: begin of thread t, and Z behind the last.
template <class S>
int64_t* share_units(int64_t units, int threads, Scratch& scratch) {
  const Panels<S> all(units, threads);
  int64_t* bounds = scratch.take<int64_t>(threads + 1);
  for (int t = 0; t <= threads; ++t) bounds[t] = smaller(all.begin(all.count * t / threads), units);
  return bounds;
}

// Calls use(thread, panel) for all panels of a part: of one thread and one head each.
template <class S, class Use>
void each_panel(const PartPlan<S>& plan, int threads, const Use& use) {
  int64_t offset = 0;
  const int64_t of_head = plan.units / plan.heads;
  for (int t = 0; t < threads; ++t)
    for (int64_t begin = plan.bounds[t], end; begin < plan.bounds[t + 1]; begin = end) {
      end = smaller((begin / of_head + 1) * of_head, plan.bounds[t + 1]);
      const Panels<S> cut(end - begin);
      for (int64_t p = 0; p < cut.count; ++p) {
        use(t, UnitPanel{begin + cut.begin(p), begin + cut.end(p), cut.width(p), offset});
        offset += cut.width(p);
      }
    }
}

template <class S>
struct Planner {
  const Run& run;
  const int threads;  // that share the units of each row
  Scratch& scratch;

  PartPlan<S> plan(const PhasePart& part) const {
    PartPlan<S> plan{};
    plan.part = &part;
    plan.sizes = run.sizes;
    plan.units = run.sizes[part.size];
    plan.results = part.results.count;
    plan.heads = 1;
    const auto respect = [&](int64_t heads) { plan.heads *= heads / common_divisor(plan.heads, heads); };
    for (const Result& result : part.results) {
      if (!result.terms.count) respect(result.mean_heads);
      for (const Term& term : result.terms) respect(term.heads);
    }
    plan.bounds = share_units<S>(plan.units, threads, scratch);
    plan_operands(plan);
    if (plan.results) plan_panels(plan), plan_factors(plan), plan_row_products(plan);
    return plan;
  }

  void plan_operands(PartPlan<S>& plan) const {
    const Span<Operand>& all = plan.part->operands;
    OperandPlan* operands = scratch.take<OperandPlan>(all.count);
    for (int64_t k = 0; k < all.count; ++k) {
      if (all[k].result >= 0) {
        operands[k] = {-1 - all[k].result, 0, 0};
        continue;
      }
      const Array& array = run.program->arrays[all[k].array];
      const bool number = array.single || array.kind == ArrayKind::number;
      const int64_t item = sizeof(S);
      operands[k] = {view_of(all[k].array, all[k].write), number ? 0 : all[k].block * plan.units * item,
                     number ? 0 : item};
    }
    plan.operands = operands;
  }

  void plan_panels(PartPlan<S>& plan) const {
    int64_t count = 0;
    each_panel(plan, threads, [&](int, const UnitPanel&) { ++count; });
    UnitPanel* panels = scratch.take<UnitPanel>(count);
    int64_t* first = take_copy<int64_t>(scratch, threads + 1);
    count = 0;
    each_panel(plan, threads, [&](int t, const UnitPanel& panel) {
      panels[count++] = panel;
      first[t + 1] = count;
    });
    for (int t = 0; t < threads; ++t) first[t + 1] = larger(first[t], first[t + 1]);  // of threads without a unit
    plan.panels = panels;
    plan.first_panel = first;
  }

  int64_t depth_of(const Term& term) const {
    const Array& array = run.program->arrays[term.operand.array];
    return term.operand.blocks * run.sizes[array.size] / term.heads;
  }

  void plan_factors(PartPlan<S>& plan) const {
    int64_t* first = take_copy<int64_t>(scratch, plan.results + 1);
    int64_t most = 0;
    for (int64_t j = 0; j < plan.results; ++j) {
      first[j + 1] = first[j] + plan.result(j).terms.count;
      most = larger(most, plan.result(j).terms.count);
    }
    plan.first_factor = first;
    plan.factors = take_copy<Factor<S>>(scratch, first[plan.results]);
    const UnitPanel& last = plan.panels[plan.panel_count(threads) - 1];
    const int64_t width = last.offset + last.width;
    plan.bias = scratch.take<S>(width * plan.results);
    for (int64_t place = 0; place < most; ++place) {
      int64_t all = 0;
      const auto each = [&](const auto& use) {
        for (int64_t j = 0; j < plan.results; ++j)
          if (place < plan.result(j).terms.count) use(plan.factors[first[j] + place], plan.result(j).terms[place]);
      };
      each([&](Factor<S>& factor, const Term& term) {
        factor.term = &term;
        factor.depth = depth_of(term);
        factor.before = all;
        all += factor.depth;
      });
      S* packed = scratch.take<S>(width * all);
      each([&](Factor<S>& factor, const Term&) { factor.all = all, factor.packed = packed; });
    }
  }

  // Products that can be one: of the same numbers, with panels, biases and results that lie one behind the other.
  static bool joins(const RowProduct<S>& a, const RowProduct<S>& b) {
    const Blocks &v = a.factor->term->operand, &w = b.factor->term->operand;
    const int64_t depth = a.factor->depth, done = a.count * a.width;
    return v.array == w.array && a.column == b.column && depth == b.factor->depth && a.width == b.width &&
           b.panels == a.panels + done * depth && b.to == a.to + done &&
           (a.bias ? b.bias == a.bias + done : !b.bias);
  }

  void plan_row_products(PartPlan<S>& plan) const {
    const int64_t factors = plan.first_factor[plan.results];
    plan.row_products = scratch.take<RowProduct<S>>(factors * plan.panel_count(threads));
    int64_t* first = take_copy<int64_t>(scratch, threads + 1);
    int64_t count = 0;
    for (int t = 0; t < threads; ++t) {
      for (int64_t place = 0, more = 1; more; ++place) {
        more = 0;
        int64_t to = 0;
        for (int64_t p = plan.first_panel[t]; p < plan.first_panel[t + 1]; ++p)
          for (int64_t j = 0; j < plan.results; ++j, to += plan.panels[p].width) {
            if (place >= plan.result(j).terms.count) continue;
            more = 1;
            const UnitPanel& panel = plan.panels[p];
            const Factor<S>& factor = plan.factors[plan.first_factor[j] + place];
            const RowProduct<S> next{&factor, plan.column(factor, panel, run.program->arrays), panel.width, 1,
                                     factor.panel(panel), place ? nullptr : plan.bias_of(panel, j), to};
            if (count > first[t] && joins(plan.row_products[count - 1], next))
              ++plan.row_products[count - 1].count;
            else
              plan.row_products[count++] = next;
          }
      }
      first[t + 1] = count;
    }
    plan.first_row_product = first;
  }
};

// Multiply-adds that a row of a step is worth. A function's work is guessed by its operands.
inline double row_work(const Run& run, double* packed) {
  constexpr double kOperandWork = 8;
  double work = 0;
  *packed = 0;
  for (const Phase& phase : run.program->phases)
    for (const PhasePart& part : phase.parts) {
      const double units = static_cast<double>(run.sizes[part.size]);
      work += kOperandWork * units * static_cast<double>(part.operands.count);
      for (const Result& result : part.results)
        for (const Term& term : result.terms) {
          const Array& array = run.program->arrays[term.operand.array];
          *packed += units * static_cast<double>(term.operand.blocks * run.sizes[array.size] / term.heads);
        }
    }
  return work + *packed;
}

// How a team shares a run: by make_crew's rules.
template <class S>
Crew make_crew(const Run& run, int team) {
  int64_t vectors = 0;
  bool meets = false;
  for (const Phase& phase : run.program->phases) {
    meets = meets || phase.meets;
    for (const PhasePart& part : phase.parts) vectors = larger(vectors, ceil_div(run.sizes[part.size], kLanes<S>));
  }
  double packed;
  const double row = row_work(run, &packed), rows = static_cast<double>(run.rows);
  if (team == 1 || row * rows < kCallWork) return {1, false, false};
  const bool tall = !run.batch_sizes && run.batch >= (packed > 0 ? team * kTileRows<S, kPlain> / 2 : team);
  if (tall && (packed * sizeof(S) < kSharedBytes || vectors < team)) return {team, false, true};
  const bool worth = (!meets || row * rows / static_cast<double>(run.steps) >= kStepWork) && vectors > 1;
  return {worth ? smaller<int>(team, static_cast<int>(smaller<int64_t>(vectors, team))) : 1, false, false};
}
