// Products of many rows with a packed matrix, and sums over rows: what the gradients of weights and inputs are made of.
#pragma once

#include "pack-inl.h"
#include "plan-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

constexpr int64_t kProductRows = 48;  // of a large product, whose results wait in L1

// Rows `own` of a (.., depth) times packed panels, stored or added to the rows that `target` names. `sums` has
// kProductRows rows of a panel.
template <class S, class Target>
void multiply_panels(const S* a, int64_t lda, Part own, int64_t depth, const S* packed, const Panels<S>& panels,
                     bool add, Target target, Wide<S>* sums) {
  constexpr int L = kLanes<S>;
  // Block by block of rows: their targets lie on few pages, and the panels come in the order in which they lie.
  for (int64_t top = own.begin; top < own.end; top += kProductRows)
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.begin(p), width = panels.width(p), bottom = smaller(top + kProductRows, own.end);
      multiply_plain<S>(width, a + top * lda, lda, bottom - top, depth, packed + panels.offset(p, depth), nullptr, sums,
                        [&](int64_t from, int64_t to) __attribute__((always_inline)) {
                          for (int64_t row = top + from; row < top + to; ++row) fetch(target(row) + first, width);
                        });
      for (int64_t row = top; row < bottom; ++row)
        for (int64_t column = first; column < panels.end(p); column += L) {
          const int lanes = static_cast<int>(smaller<int64_t>(L, panels.columns - column));
          Vec<S> v = load(sums + (row - top) * width + column - first);
          auto* to = target(row) + column;
          if (add) v += load_part(to, lanes);
          store_part(to, v, lanes);
        }
    }
}

// Summed up in several short chains, which round less than a long one.
template <class S>
Wide<S> sum_of(const S* from, int64_t count) {
  constexpr int L = kLanes<S>;
  Vec<S> totals[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L)
    for (int chain = 0; chain < 4; ++chain) totals[chain] += load(from + i + chain * L);
  for (int chain = 0; i < count; i += L, ++chain)
    totals[chain] += load_part(from + i, static_cast<int>(smaller<int64_t>(L, count - i)));
  Vec<S> total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  return sums_of_lanes<1>(&total)[0];
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
