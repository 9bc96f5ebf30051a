// How matrices are laid out for the products of gemm-inl.h: cut into panels, and transposed.
#pragma once

#include "gemm-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// How the columns of a plain matrix are cut into panels of at most kPlain vectors, about equally wide; into a multiple
// of `shares` panels where there are columns enough, so that as many threads get the same.
template <class S>
struct Panels {
  int64_t columns, count;

  Panels(int64_t all_columns, int64_t shares = 1) : columns(all_columns), count(ceil_div(all_vectors(), kPlain)) {
    const int64_t even = ceil_div(count, shares) * shares;
    if (even <= all_vectors()) count = even;
  }
  int64_t all_vectors() const { return ceil_div(columns, kLanes<S>); }
  int64_t begin(int64_t p) const { return all_vectors() * p / count * kLanes<S>; }
  int64_t end(int64_t p) const { return smaller(begin(p + 1), columns); }
  int64_t width(int64_t p) const { return begin(p + 1) - begin(p); }
  // Numbers in all panels of a matrix, which stand one behind the other, and those before panel p.
  int64_t size(int64_t depth) const { return begin(count) * grouped<S>(depth); }
  int64_t offset(int64_t p, int64_t depth) const { return begin(p) * grouped<S>(depth); }
};

// Rows [begin, end), whole groups of them, of all panels of a matrix (depth, columns) whose row k stands at
// `source(k)`; zero over its edge.
template <class S, class Source>
void pack_rows(const Panels<S>& panels, Source source, int64_t depth, int64_t begin, int64_t end, S* packed) {
  constexpr int L = kLanes<S>;
  constexpr int64_t kTogether = 8 * kGroup<S>;  // rows read from end to end, as prefetchers like it
  for (int64_t top = begin; top < end; top += kTogether)
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.begin(p), count = panels.end(p) - first, width = panels.width(p);
      S* to = packed + panels.offset(p, depth) + top * width;
      for (int64_t k = top; k < smaller(top + kTogether, end); k += kGroup<S>, to += width * kGroup<S>) {
        const auto* from = source(k) + first;
        const auto* second = kGroup<S> > 1 && k + 1 < depth ? source(k + 1) + first : decltype(from){};
        for (int64_t i = 0; i < count; i += L) {
          const int lanes = static_cast<int>(smaller<int64_t>(L, count - i));
          store_groups(to + i * kGroup<S>, interleave<S>(from + i, second ? second + i : nullptr, lanes));
        }
      }
    }
}

template <class S, int kBit = 1>
FASTRNN_INLINE void transpose_block(Vec<S>* rows) {
  constexpr int L = kLanes<S>;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if (!(i & kBit)) swap_lanes<kBit>(rows[i], rows[i | kBit], LanesOf<Vec<S>>());
  if constexpr (kBit * 2 < L) transpose_block<S, kBit * 2>(rows);
}

// Rows of `from`, ld apart, become the columns of `to`, ld_to apart, group by group: for k counting groups,
// to[k * ld_to + i] = from[i * ld + k].
template <class S>
void transpose(const S* from, int64_t ld, int64_t rows, int64_t depth, S* to, int64_t ld_to) {
  constexpr int L = kLanes<S>, kSize = static_cast<int>(kGroup<S>);
  const int64_t groups = depth / kSize;
  for (int64_t i = 0; i < rows; i += L) {
    const int64_t height = smaller<int64_t>(L, rows - i);
    int64_t k = 0;
    for (; height == L && k + L <= groups; k += L) {
      Vec<S> block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) block[l] = load_groups(from + (i + l) * ld + k * kSize);
      transpose_block<Wide<S>>(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) store_groups(to + ((k + l) * ld_to + i) * kSize, block[l]);
    }
    for (k *= kSize; k < depth; ++k)
      for (int64_t l = i; l < i + height; ++l) to[(k / kSize * ld_to + l) * kSize + k % kSize] = from[l * ld + k];
    if (kSize > 1 && depth % kSize)
      for (int64_t l = i; l < i + height; ++l) to[(depth / kSize * ld_to + l) * kSize + 1] = S{};
  }
}

// The same number by number: to[k * ld_to + i] = from[i * ld + k], and where rows are no whole number of groups one
// more column of zeros.
template <class S>
void transpose_numbers(const S* from, int64_t ld, int64_t rows, int64_t depth, S* to, int64_t ld_to) {
  if constexpr (kGroup<S> == 1) {
    transpose(from, ld, rows, depth, to, ld_to);
  } else {
    constexpr int L = kLanes<S>;
    for (int64_t i = 0; i < rows; i += 2 * L) {
      const int64_t height = smaller<int64_t>(2 * L, rows - i);
      int64_t k = 0;
      for (; height == 2 * L && k + L <= depth; k += L) {
        Vec<S> block[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l)
          block[l] = interleave<S>(from + (i + 2 * l) * ld + k, from + (i + 2 * l + 1) * ld + k, L);
        transpose_block<Wide<S>>(block);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) store_groups(to + (k + l) * ld_to + i, block[l]);
      }
      for (; k < depth; ++k) {
        for (int64_t l = i; l < i + height; ++l) to[k * ld_to + l] = from[l * ld + k];
        if (height % 2) to[k * ld_to + i + height] = S{};
      }
    }
  }
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
