// The blocks of steps of a backward pass: what the gate gradients of one are multiplied into.
//
// A block fits the caches. Its gate gradients are multiplied into the gradients of x and of the parameters, block
// by block, so that long sums are blocked and keep their digits. Those of x can come in pieces of a block, as soon
// as their steps are done, for who waits for them.
#pragma once

#include "cells-inl.h"
#include "products-inl.h"
#include "weights-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S>
void add_to(S* to, const S* from, int64_t count) {
  constexpr int L = kLanes<S>;
  for (int64_t i = 0; i < count; i += L) {
    const int lanes = static_cast<int>(smaller<int64_t>(L, count - i));
    store_part(to + i, load_part(to + i, lanes) + load_part(from + i, lanes), lanes);
  }
}

template <class S, class A, class Cell>
struct StepBlocks {
  using W = Wide<S>;
  static constexpr bool kNarrow = kGroup<S> > 1, kRounds = sizeof(A) < sizeof(W);  // products; results
  static constexpr int L = kLanes<S>;
  static constexpr int G = Cell::kGates;
  static constexpr int kSlots = Cell::kSlots;
  static constexpr int64_t kChunkRows = 512;

  const Backward<S, A>& args;
  const Sizes& z;
  const Parameters<const S, const A>& weights;
  const Parameters<A>& grads;
  Parameters<W> totals;  // what the gradients of the parameters are summed up in: themselves unless they are narrow
  const int64_t direction;
  const Steps steps;
  const TeamPlan team_plan;
  const bool projected;
  const Panels<S> inputs, outputs, units;  // columns of x, h and the units
  const int64_t chunk, chunk_rows;         // steps and rows of a block
  const int64_t ld, ld_outputs, ld_rows;   // columns of the gate gradients, of P and of rows: whole groups
  const A *h0, *hidden;
  A* grad_x;  // of the second direction its share, which is added when both are done

  S* grad_gates[2];                        // of a block and of the one behind it: (chunk_rows, kSlots * H)
  S* grad_outputs[2];                      // gradient of the projected h, with a projection: (chunk_rows, P)
  S* unprojected;                          // h before the projection: (chunk_rows, H)
  S* w_ih;                                 // packed: (G*H, I)
  S *gates_by_column, *outputs_by_column;  // transposed blocks
  S *inputs_packed, *states_packed, *unprojected_packed;  // panels of x, of h before each step, and of `unprojected`
  const A** before;                                       // per thread: h before each row of a block
  // With tokens, columns of totals.w_ih: one for each token that there is or, of narrow results, one for each that
  // comes, `named` by order of appearance; there `places` has the column of a token.
  int64_t token_columns;
  int32_t *places, *named;

  StepBlocks(const Backward<S, A>& a, int d, const int64_t* offsets, TeamPlan c, Scratch& scratch)
      : args(a), z(a.sizes), weights(a.weights[d]), grads(a.grad_weights[d]), direction(d),
        steps{z.steps, z.batch, z.batch_sizes, offsets, d == 1}, team_plan(c), projected(weights.w_hr != nullptr),
        inputs(z.inputs), outputs(z.outputs), units(z.hidden),
        chunk(smaller(z.steps, larger<int64_t>(1, kChunkRows / z.batch))), chunk_rows(chunk * z.batch),
        ld(kSlots * z.hidden + z.hidden % kGroup<S>), ld_outputs(grouped<S>(z.outputs)),
        ld_rows(grouped<S>(chunk_rows)), h0(a.h0 + d * z.batch * z.outputs),
        hidden(a.saved.hidden + d * z.rows * z.outputs),
        grad_x(d && a.grad_x ? scratch.take<A>(z.rows * z.inputs) : a.grad_x) {
    const int64_t depth = G * z.hidden;
    const bool wanted = grads.w_ih != nullptr;
    for (int i = 0; i < 2; ++i) {
      grad_gates[i] = scratch.take<S>(chunk_rows * ld);
      grad_outputs[i] = projected ? scratch.take<S>(chunk_rows * ld_outputs) : nullptr;
    }
    unprojected = projected ? scratch.take<S>(chunk_rows * z.hidden) : nullptr;
    w_ih = grad_x ? scratch.take<S>(inputs.size(depth)) : nullptr;
    const auto wide = [&](A* values, int64_t count) {
      if constexpr (kRounds)
        return values ? scratch.take<W>(count) : nullptr;
      else
        return values;
    };
    token_columns = z.inputs;
    places = named = nullptr;
    if (kRounds && wanted && args.tokens) place_tokens(scratch);
    totals = {wide(grads.w_ih, depth * token_columns),
              wide(grads.w_hh, depth * z.outputs),
              wide(grads.b_ih, depth),
              wide(grads.b_hh, depth),
              wide(grads.w_hr, z.outputs * z.hidden),
              wide(grads.b_hr, z.outputs)};
    gates_by_column = wanted ? scratch.take<S>(ld * ld_rows) : nullptr;
    outputs_by_column = wanted && projected ? scratch.take<S>(z.outputs * ld_rows) : nullptr;
    inputs_packed = wanted && args.x ? scratch.take<S>(inputs.size(chunk_rows)) : nullptr;
    states_packed = wanted ? scratch.take<S>(outputs.size(chunk_rows)) : nullptr;
    unprojected_packed = wanted && projected ? scratch.take<S>(units.size(chunk_rows)) : nullptr;
    before = scratch.take<const A*>(team_plan.threads * chunk_rows);
  }

  void place_tokens(Scratch& scratch) {
    places = scratch.take<int32_t>(z.inputs), named = scratch.take<int32_t>(smaller(z.rows, z.inputs));
    for (int64_t token = 0; token < z.inputs; ++token) places[token] = -1;
    token_columns = 0;
    for (int64_t n = 0; n < z.rows; ++n) {
      int32_t& place = places[args.tokens[n]];
      if (place >= 0) continue;
      place = static_cast<int32_t>(token_columns);
      named[token_columns++] = static_cast<int32_t>(args.tokens[n]);
    }
  }

  static int64_t results_size() { return kProductRows * kPanel<S, kPlain>; }  // of one thread

  // Packs this thread's share of `rows` rows.
  template <class Source>
  void pack_share(const Panels<S>& panels, Source source, int64_t rows, S* to, const Seat& seat) const {
    const Part own = whole_groups(part(ceil_div(rows, kGroup<S>), seat), rows);
    pack_rows(panels, source, rows, own.begin, own.end, to);
  }

  // This thread's share of the weights, and of what stands behind rows that are no whole number of groups.
  void prepare(const Seat& seat) const {
    if (grad_x) pack_share(inputs, [&](int64_t k) { return weights.w_ih + k * z.inputs; }, G * z.hidden, w_ih, seat);
    if constexpr (kNarrow) {
      const Part rows = part(chunk_rows, seat);
      for (int i = 0; i < 2; ++i) {
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          if (ld != kSlots * z.hidden) grad_gates[i][r * ld + ld - 1] = S{};
          if (projected && ld_outputs != z.outputs) grad_outputs[i][r * ld_outputs + z.outputs] = S{};
        }
      }
    }
  }

  // A share of the gradients of the parameters, when all is summed up.
  void narrow(const Seat& seat) const {
    if (!grads.w_ih) return;
    const Part own = part(G * z.hidden, seat), of_h = part(z.outputs, seat);
    for (int64_t k = own.begin; k < own.end; ++k) {
      const int64_t row = Cell::row_hh(k, z.hidden);
      A* of_inputs = grads.w_ih + k * z.inputs;
      if (args.tokens) {
        clear(of_inputs, z.inputs);
        for (int64_t j = 0; j < token_columns; ++j)
          convert(of_inputs + named[j], totals.w_ih + k * token_columns + j, 1);
      } else {
        convert(of_inputs, totals.w_ih + k * z.inputs, z.inputs);
      }
      convert(grads.w_hh + row * z.outputs, totals.w_hh + row * z.outputs, z.outputs);
      if (grads.b_ih) convert(grads.b_ih + k, totals.b_ih + k, 1), convert(grads.b_hh + row, totals.b_hh + row, 1);
    }
    if (!projected) return;
    convert(grads.w_hr + of_h.begin * z.hidden, totals.w_hr + of_h.begin * z.hidden,
            (of_h.end - of_h.begin) * z.hidden);
    if (grads.b_hr) convert(grads.b_hr + of_h.begin, totals.b_hr + of_h.begin, of_h.end - of_h.begin);
  }

  static Part whole_groups(Part groups, int64_t rows) {
    return {groups.begin * kGroup<S>, smaller(groups.end * kGroup<S>, rows)};
  }

  int64_t block_of(int64_t s) const { return s / chunk; }
  int64_t first_row(int64_t block) const {
    return steps.first_row(block * chunk, smaller((block + 1) * chunk, z.steps));
  }
  // Row r of step s among those of its block.
  int64_t row_at(int64_t s, int64_t r) const { return steps.offset(s) + r - first_row(block_of(s)); }
  S* gates_at(int64_t s, int64_t r) const { return grad_gates[block_of(s) % 2] + row_at(s, r) * ld; }
  S* outputs_at(int64_t s, int64_t r) const { return grad_outputs[block_of(s) % 2] + row_at(s, r) * ld_outputs; }
  S* unprojected_at(int64_t s, int64_t r) const { return unprojected + row_at(s, r) * z.hidden; }
  // h or c before row r of step s.
  template <class N>
  const N* state_before(int64_t s, int64_t r, const N* saved, const N* initial, int64_t width) const {
    return r < steps.rows(s - 1) ? saved + (steps.offset(s - 1) + r) * width : initial + r * width;
  }

  // Steps [s, end), of one block: their gradients of x.
  void multiply_inputs(int64_t s, int64_t end, const Seat& seat, W* sums) const {
    if (!grad_x) return;
    const int64_t first = steps.first_row(s, end);
    const S* grad = grad_gates[block_of(s) % 2] + (first - first_row(block_of(s))) * ld + (kSlots - G) * z.hidden;
    for_own_rows(s, end, first, steps.rows_between(s, end), seat, [&](Part own) {
      multiply_panels(
          grad, ld, own, G * z.hidden, w_ih, inputs, false,
          [&](int64_t row) { return grad_x + (first + row) * z.inputs; }, sums);
    });
  }

  // Steps [s, end), a block that is packed: their part of the gradients of the parameters.
  void multiply_weights(int64_t s, int64_t end, const Seat& seat, W* sums) const {
    const int64_t first = steps.first_row(s, end), rows = steps.rows_between(s, end);
    const bool add = end < z.steps;
    const Part own = part(G * z.hidden, seat);
    const S *of_state = gates_by_column, *of_input = gates_by_column + (kSlots - G) * z.hidden * ld_rows;
    if (args.tokens)
      add_by_token(of_input, args.tokens + first, rows, own, add);
    else
      multiply_panels(
          of_input, ld_rows, own, rows, inputs_packed, inputs, add,
          [&](int64_t k) { return totals.w_ih + k * z.inputs; }, sums);
    multiply_panels(
        of_state, ld_rows, own, rows, states_packed, outputs, add,
        [&](int64_t k) { return totals.w_hh + Cell::row_hh(k, z.hidden) * z.outputs; }, sums);
    if (grads.b_ih)
      for (int64_t k = own.begin; k < own.end; ++k) {
        const W a = sum_of<S>(of_input + k * ld_rows, rows), b = sum_of<S>(of_state + k * ld_rows, rows);
        W &to_a = totals.b_ih[k], &to_b = totals.b_hh[Cell::row_hh(k, z.hidden)];
        to_a = add ? to_a + a : a;
        to_b = add ? to_b + b : b;
      }
    if (!projected) return;
    const Part of_h = part(z.outputs, seat);
    multiply_panels(
        outputs_by_column, ld_rows, of_h, rows, unprojected_packed, units, add,
        [&](int64_t k) { return totals.w_hr + k * z.hidden; }, sums);
    if (grads.b_hr)
      for (int64_t k = of_h.begin; k < of_h.end; ++k) {
        const W total = sum_of<S>(outputs_by_column + k * ld_rows, rows);
        totals.b_hr[k] = add ? totals.b_hr[k] + total : total;
      }
  }

  // The product with one-hot rows: each row of the gate gradients goes to the column of its token. Some gates at a
  // time, since additions to one number, of a token that comes again and again, wait for each other.
  void add_by_token(const S* of_input, const int64_t* tokens, int64_t rows, Part own, bool add) const {
    constexpr int kAtOnce = 4;
    for (int64_t k = own.begin; k < own.end && !add; ++k) clear(totals.w_ih + k * token_columns, token_columns);
    int64_t k = own.begin;
    for (; k + kAtOnce <= own.end; k += kAtOnce) add_rows_by_token<kAtOnce>(of_input, tokens, rows, k);
    for (; k < own.end; ++k) add_rows_by_token<1>(of_input, tokens, rows, k);
  }

  template <int kCount>
  void add_rows_by_token(const S* of_input, const int64_t* tokens, int64_t rows, int64_t k) const {
    const S* from = of_input + k * ld_rows;
    for (int64_t row = 0; row < rows; ++row) {
      W* to = totals.w_ih + k * token_columns + (places ? places[tokens[row]] : tokens[row]);
      for (int i = 0; i < kCount; ++i) to[i * token_columns] += widen(from[i * ld_rows + row]);
    }
  }

  // Calls `each` with a share of the rows of a block: those that its thread has computed itself and that its own
  // caches hold, unless that is a handful a step, which would make poor tiles.
  template <class Each>
  void for_own_rows(int64_t s, int64_t end, int64_t first, int64_t rows, const Seat& seat, Each each) const {
    const bool alone_with_rows = team_plan.groups > 1 && team_plan.members() == 1;
    if (kNarrow || !alone_with_rows || z.batch < 24 * seat.threads)
      return each(whole_groups(part(ceil_div(rows, kGroup<S>), seat), rows));
    const Part own = part(z.batch, seat);
    for (int64_t i = s; i < end; ++i)
      each(Part{steps.offset(i) - first + own.begin, steps.offset(i) - first + own.end});
  }

  // A share of a block, laid out for the products over its rows, by this thread.
  void pack_block(int64_t s, int64_t end, const Seat& seat, int thread) const {
    const int64_t first = steps.first_row(s, end), rows = steps.rows_between(s, end);
    const S* grad = grad_gates[block_of(s) % 2];
    const A** source = before + thread * chunk_rows;
    for (int64_t i = s; i < end; ++i)
      for (int64_t r = 0; r < steps.rows(i); ++r)
        source[steps.offset(i) + r - first] = state_before(i, r, hidden, h0, z.outputs);
    const auto pack = [&](const Panels<S>& panels, auto row, S* to) {
      for_own_rows(s, end, first, rows, seat, [&](Part own) { pack_rows(panels, row, rows, own.begin, own.end, to); });
    };
    const auto turn = [&](const S* from, int64_t ld_from, int64_t width, S* to) {
      for_own_rows(s, end, first, rows, seat, [&](Part own) {
        transpose_numbers(from + own.begin * ld_from, ld_from, own.end - own.begin, width, to + own.begin, ld_rows);
      });
    };
    turn(grad, ld, kSlots * z.hidden, gates_by_column);
    if (args.x) pack(inputs, [&](int64_t k) { return args.x + (first + k) * z.inputs; }, inputs_packed);
    pack(outputs, [&](int64_t k) { return source[k]; }, states_packed);
    if (!projected) return;
    turn(grad_outputs[block_of(s) % 2], ld_outputs, z.outputs, outputs_by_column);
    pack(units, [&](int64_t k) { return unprojected + k * z.hidden; }, unprojected_packed);
  }
};

}  // namespace fastrnn::FASTRNN_NAMESPACE
