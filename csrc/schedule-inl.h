// How a run is laid out before it starts: who computes what, and where it finds it. All in the call's scratch memory.
#pragma once

#include "part-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

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

// Plans parts in two rounds, since the size of all packed weights is known after the first.
template <class S>
struct Planner {
  const Run& run;
  const int threads;         // that share the units of each row
  const int team;            // all that run
  const int64_t chunk_rows;  // rows of the most steps whose products are computed ahead
  const bool* written;       // which arrays the program writes
  const Int8Matrix* int8;    // of those arrays that are matrices of int8
  Scratch& scratch;
  int64_t packed = 0, tags = 0;  // numbers in packed weights so far, and panels of factors

  PartPlan<S> plan(const PhasePart& part) {
    PartPlan<S> plan{};
    plan.part = &part;
    plan.sizes = run.sizes;
    plan.arrays = run.program->arrays.items;
    plan.units = run.sizes[part.size];
    plan.count = part.results.count;
    plan.heads = 1;
    const auto respect = [&](int64_t heads) { plan.heads *= heads / common_divisor(plan.heads, heads); };
    for (const Result& result : part.results) {
      if (!result.terms.count) respect(result.mean_heads), plan.has_means = true;
      for (const Term& term : result.terms) respect(term.heads);
    }
    plan.bounds = share_units<S>(plan.units, threads, scratch);
    plan_operands(plan);
    if (plan.count) plan_panels(plan), plan_results(plan);
    return plan;
  }

  void place(PartPlan<S>& plan, S* weights, PanelTag* all_tags) const {
    if (!plan.count) return;
    for (int64_t i = 0; i < plan.results[plan.count - 1].end; ++i) {
      plan.factors[i].packed = weights;
      plan.factors[i].tags = all_tags ? all_tags + i * plan.first_panel[threads] + plan.first_tag : nullptr;
    }
    plan_row_products(plan);
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
    int64_t* first = take_cleared<int64_t>(scratch, threads + 1);
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

  // Whether a term can be computed for many steps at once.
  bool is_ahead(const Term& term) const {
    const int array = term.operand.array;
    return run.program->arrays[array].kind == ArrayKind::step && !written[array];
  }

  Factor<S> factor_of(const Term& term, int64_t units) const {
    constexpr int64_t kRowsToPack = 8;  // this part of the depth repays
    const Array& form = run.program->arrays[term.matrix];
    Factor<S> factor{};
    factor.term = &term;
    factor.depth = depth_of(term);
    factor.ld = run.sizes[form.columns_size] / form.columns_parts;
    factor.matrix = reinterpret_cast<const S*>(run.places[term.matrix].data) +
                    term.row_block * (term.transposed ? run.sizes[form.size] : units) * factor.ld;
    factor.int8 = form.int8 ? int8 + term.matrix : nullptr;
    factor.as_it_lies =
        form.int8 || (!term.transposed && run.rows < larger<int64_t>(kKeptRows, factor.depth / kRowsToPack));
    return factor;
  }

  void plan_results(PartPlan<S>& plan) {
    ResultPlan* results = scratch.take<ResultPlan>(plan.count);
    int64_t factors = 0;
    for (int64_t j = 0; j < plan.count; ++j) {
      const Span<Term>& terms = plan.part->results[j].terms;
      ResultPlan& result = results[j] = {factors, factors, factors + terms.count, -1};
      for (const Term& term : terms) result.own += is_ahead(term);
      if (result.own > result.first) result.ahead = plan.ahead_count++;
      factors = result.end;
    }
    plan.results = results;
    plan.factors = take_cleared<Factor<S>>(scratch, factors);
    for (int64_t j = 0; j < plan.count; ++j) {
      int64_t ahead = results[j].first, own = results[j].own;
      for (const Term& term : plan.part->results[j].terms)
        plan.factors[is_ahead(term) ? ahead++ : own++] = factor_of(term, plan.units);
    }
    plan_rounded(plan, factors);
    const UnitPanel& last = plan.panels[plan.first_panel[threads] - 1];
    const int64_t width = last.offset + last.width;
    plan.bias = scratch.take<S>(width * plan.count);
    plan.ahead_rows = chunk_rows;
    plan.ahead = scratch.take<S>(width * plan.ahead_count * chunk_rows);
    place_factors(plan, width, [](const ResultPlan& result) { return Part{result.first, result.own}; });
    place_factors(plan, width, [](const ResultPlan& result) { return Part{result.own, result.end}; });
    plan.first_tag = tags;
    tags += factors * plan.first_panel[threads];
  }

  // The operands of matrices of int8, those of several factors once.
  void plan_rounded(PartPlan<S>& plan, int64_t factors) const {
    plan.rounded = scratch.take<RoundedOperand>(factors);
    for (int64_t i = 0; i < factors; ++i) {
      Factor<S>& factor = plan.factors[i];
      if (!factor.int8) continue;
      const Blocks& v = factor.term->operand;
      const int64_t heads = factor.term->heads, column = v.block * run.sizes[plan.arrays[v.array].size];
      const bool ahead = is_ahead(*factor.term);
      int64_t k = 0;
      for (; k < plan.rounded_count; ++k) {
        const RoundedOperand& other = plan.rounded[k];
        if (other.array == v.array && other.column == column && other.rows.parts == heads) break;
      }
      factor.rounded = k;
      if (k < plan.rounded_count) continue;
      const int64_t rows = ahead ? chunk_rows : run.batch;
      plan.rounded[plan.rounded_count++] = {v.array, column, ahead, {rows, heads, factor.depth, team, scratch}};
    }
  }

  // Places the packed panels of those factors of each result that which(result) names.
  template <class Which>
  void place_factors(PartPlan<S>& plan, int64_t width, const Which& which) {
    for (int64_t place = 0, all = 1; all; ++place) {
      all = 0;
      const auto each = [&](const auto& use) {
        for (int64_t j = 0; j < plan.count; ++j) {
          const Part own = which(plan.results[j]);
          if (own.begin + place < own.end) use(plan.factors[own.begin + place]);
        }
      };
      bool any = false;
      each([&](Factor<S>& factor) {
        factor.before = all;
        all += factor.depth;
        any = any || !factor.as_it_lies;
      });
      each([&](Factor<S>& factor) { factor.all = all, factor.offset = packed; });
      if (any) packed += ceil_div(width * all, 16) * 16;
    }
  }

  // Products that can be one: of the same numbers, with panels, biases and results that lie one behind the other.
  static bool joins(const RowProduct<S>& a, const RowProduct<S>& b) {
    const Blocks &v = a.factor->term->operand, &w = b.factor->term->operand;
    const int64_t depth = a.factor->depth, done = a.count * a.width;
    return v.array == w.array && a.column == b.column && depth == b.factor->depth && a.width == b.width &&
           !a.factor->as_it_lies && !b.factor->as_it_lies && b.to == a.to + done &&
           b.factor->panel(*b.panel) == a.factor->panel(*a.panel) + done * depth &&
           (a.bias ? b.bias == a.bias + done : !b.bias);
  }

  void plan_row_products(PartPlan<S>& plan) const {
    int64_t most = 0, count = 0;
    for (int64_t j = 0; j < plan.count; ++j) most += plan.results[j].end - plan.results[j].own;
    plan.row_products = scratch.take<RowProduct<S>>(most * plan.first_panel[threads]);
    int64_t* first = take_cleared<int64_t>(scratch, threads + 1);
    for (int t = 0; t < threads; ++t) {
      for (int64_t place = 0, more = 1; more; ++place) {
        more = 0;
        int64_t to = 0;
        for (int64_t p = plan.first_panel[t]; p < plan.first_panel[t + 1]; ++p)
          for (int64_t j = 0; j < plan.count; ++j, to += plan.panels[p].width) {
            const ResultPlan& result = plan.results[j];
            if (result.own + place >= result.end) continue;
            more = 1;
            const UnitPanel& panel = plan.panels[p];
            const Factor<S>& factor = plan.factors[result.own + place];
            const bool starts = place == 0 && result.ahead < 0;
            const RowProduct<S> next{
                &factor, plan.column(factor, panel), panel.width, 1, &panel, starts ? plan.bias_of(panel, j) : nullptr,
                to};
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

// Multiply-adds of floats that a row of a step is worth; four of integers are one. A function's work is guessed by its
// operands.
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
          const double part = run.program->arrays[term.matrix].int8 ? 0.25 : 1;
          *packed += part * units * static_cast<double>(term.operand.blocks * run.sizes[array.size] / term.heads);
        }
    }
  return work + *packed;
}

template <class S>
TeamPlan plan_team(const Run& run, const Team& team) {
  int64_t vectors = 0;
  bool meets = false;
  for (const Phase& phase : run.program->phases) {
    meets = meets || phase.meets;
    for (const PhasePart& part : phase.parts) vectors = larger(vectors, ceil_div(run.sizes[part.size], kLanes<S>));
  }
  double packed;
  TeamWork work{};
  work.recurrent = row_work(run, &packed) * kWorth<S>;
  work.weight_bytes = packed * sizeof(S);
  work.steps = run.steps, work.rows = run.rows, work.batch = run.batch_sizes ? 0 : run.batch;
  work.least_rows = packed > 0 ? kTileRows<S, kPlain> / 2 : 1;
  work.panels = vectors;
  work.directions = 1;
  work.meet_by_units = meets;
  return plan_team(work, team);
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
