// The one product of this library: C = init + A * panel, for a few rows of A and one packed panel of columns.
//
// A panel is NV vectors wide and stands packed: for each k, NV * kLanes numbers side by side, zero where it stands over
// the edge. Of a narrow type, k counts groups of numbers: a row of A that is no whole number of groups is followed by
// something finite, and the panel holds zeros there. Every result is the same chains of multiply-adds in the order of
// k, whatever the tile it was computed in, so results do not depend on batch size or number of threads.
#pragma once

#include "amx-inl.h"
#include "bfloat16-inl.h"
#include "bfmmla-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// Rows of a tile, with NV vectors a row: its sums fill the registers, less those for the panel and for A. Two passes
// take more of these, since both halves of whichever is fewer stay at hand.
template <class S, int NV>
constexpr int tile_rows() {
  const bool two = kPasses<S> == 2;
  const int sums = kRegisters == 32 ? (two ? 16 : 24) : two ? (NV == 4 ? 8 : 6) : 12;
  return sums / NV < 12 ? sums / NV : 12;
}
template <class S, int NV>
constexpr int kTileRows = tile_rows<S, NV>();

// The width of the panels of plain matrix products.
constexpr int kPlain = 4;

template <class S, int NV>
constexpr int kPanel = NV * kLanes<S>;

// Longest chain of multiply-adds. Chains that start anew round less than one long one, and as much of a panel stays in
// L2 while all rows pass over it. Counted in groups.
constexpr int64_t kChain = 128;

// c (R, NV vectors, dense) = a (R, depth groups; rows lda apart) * panel (depth, NV) + init (rows ld_init apart; null:
// zero). Fetches `share` bytes a group from `ahead` on into L2. A function of its own: with other code around it
// compilers spill the accumulators.
template <class S, int NV, int R>
__attribute__((noinline)) void multiply_tile(const S* a, int64_t lda, int64_t depth, const S* panel,
                                             const Wide<S>* init, int64_t ld_init, Wide<S>* c, const char* ahead,
                                             int64_t share) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  if constexpr (kGroup<S> == 2 && R > 1)
    return multiply_tile_in_squares<NV, R>(a, lda, depth, panel, init, ld_init, c, ahead, share);
#endif
  constexpr int L = kLanes<S>;
  Vec<S> sum[R][NV];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[r][v] = Vec<S>{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    // The fewer of the two operands stay in registers, the others pass one by one: where 16 registers hold 12 sums,
    // one more vector at hand is two sums in memory, and half the speed.
    const S* row = panel + k * NV * L * kGroup<S>;
    const S* column = a + k * kGroup<S>;
    __builtin_prefetch(ahead + k * share, 0, 2);
    constexpr int P = kPasses<S>;
    if constexpr (R < NV) {
      Vec<S> left[P][R];
#pragma GCC unroll 2
      for (int pass = 0; pass < P; ++pass)
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) left[pass][r] = operand<S>(broadcast_group(column + r * lda), pass);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const auto both = load_groups(row + v * L * kGroup<S>);
#pragma GCC unroll 2
        for (int pass = 0; pass < P; ++pass) {
          const Vec<S> right = operand<S>(both, pass);
#pragma GCC unroll 12
          for (int r = 0; r < R; ++r) sum[r][v] = multiply_add<S>(left[pass][r], right, sum[r][v]);
        }
      }
    } else {
#pragma GCC unroll 2
      for (int pass = 0; pass < P; ++pass) {
        Vec<S> right[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) right[v] = operand<S>(load_groups(row + v * L * kGroup<S>), pass);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          const Vec<S> left = operand<S>(broadcast_group(column + r * lda), pass);
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) sum[r][v] = multiply_add<S>(left, right[v], sum[r][v]);
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v)
      store(c + (r * NV + v) * L, init ? sum[r][v] + load(init + r * ld_init + v * L) : sum[r][v]);
}

template <class S, int NV>
struct Tiles {
  using Function = void (*)(const S*, int64_t, int64_t, const S*, const Wide<S>*, int64_t, Wide<S>*, const char*,
                            int64_t);
  static constexpr int size = kTileRows<S, NV>;
  Function by_rows[size + 1];
  template <int... R>
  static constexpr Tiles make(std::integer_sequence<int, R...>) {
    return {{nullptr, multiply_tile<S, NV, R + 1>...}};
  }
};

// Fetches the lines of `count` numbers that are soon needed. A lambda around it must be always_inline: GCC holds a
// function that does nothing else to have no effect, and drops the call.
template <class S>
FASTRNN_INLINE void fetch(const S* from, int64_t count) {
  const char* end = reinterpret_cast<const char*>(from + count);
  for (const char* line = reinterpret_cast<const char*>(from); line < end; line += 64) __builtin_prefetch(line);
}

struct Nothing {
  FASTRNN_INLINE void operator()(int64_t, int64_t) const {}
};

// Any number of rows, cut into tiles of about the same height, and any depth, cut into chains of about the same length.
// Calls `expect(top, bottom)` before each tile of the first chain, to fetch what its results will meet.
//
// Each tile fetches its share of the numbers that stand behind its part of the panel: those of the next chain, or of
// the next panel, which so come out of far caches or memory while this part is multiplied.
template <class S, int NV, class Expect = Nothing>
FASTRNN_INLINE void multiply_by_vectors(const S* a, int64_t lda, int64_t rows, int64_t depth, const S* panel,
                                        const Wide<S>* init, int64_t ld_init, Wide<S>* c, const Expect& expect = {}) {
  static constexpr auto tiles = Tiles<S, NV>::make(std::make_integer_sequence<int, kTileRows<S, NV>>());
  constexpr int64_t width = kPanel<S, NV>, bytes = width * kGroup<S> * static_cast<int64_t>(sizeof(S));
  const int64_t count = ceil_div(rows, kTileRows<S, NV>), share = smaller<int64_t>(64, ceil_div(bytes, count));
  const int64_t groups = ceil_div(depth, kGroup<S>), cuts = ceil_div(groups, kChain);
  for (int64_t cut = 0; cut < cuts; ++cut) {
    const int64_t begin = groups * cut / cuts, end = groups * (cut + 1) / cuts;
    const S* part = panel + begin * width * kGroup<S>;
    const char* ahead = reinterpret_cast<const char*>(part) + (end - begin) * bytes;
    for (int64_t i = 0; i < count; ++i, ahead += (end - begin) * share) {
      const int64_t top = rows * i / count, bottom = rows * (i + 1) / count;
      const Wide<S>* start = cut ? c + top * width : init ? init + top * ld_init : nullptr;
      if (!cut) expect(top, bottom);
      tiles.by_rows[bottom - top](a + top * lda + begin * kGroup<S>, lda, end - begin, part, start,
                                  cut ? width : ld_init, c + top * width, ahead, share);
    }
  }
}

template <class S, int NV, class Expect = Nothing>
FASTRNN_INLINE void multiply(const S* a, int64_t lda, int64_t rows, int64_t depth, const S* panel, const Wide<S>* init,
                             int64_t ld_init, Wide<S>* c, const Expect& expect = {}) {
#if defined(__AMX_BF16__)
  if constexpr (kGroup<S> == 2) {
    const int64_t groups = ceil_div(depth, kGroup<S>), rest = groups % kTileHeight, tiles = groups / kTileHeight;
    constexpr int64_t kWidth = kPanel<S, NV>, kTile = kTileHeight * kGroup<S>;
    if (tiles) {
      // First what is no whole tile of k.
      const int64_t after = tiles * kTile;
      if (rest)
        multiply_by_vectors<S, NV>(a + after, lda, rows, depth - after, panel + after * kWidth, init, ld_init, c);
      if (rest) init = c, ld_init = kWidth;
      const int64_t cuts = ceil_div(tiles * kTileHeight, kChain);
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const int64_t begin = tiles * cut / cuts, end = tiles * (cut + 1) / cuts;
        const S* part = panel + begin * kTile * kWidth;
        if (cut)
          multiply_rows_on_tiles<NV>(a + begin * kTile, lda, rows, end - begin, part, c, kWidth, c, Nothing{});
        else
          multiply_rows_on_tiles<NV>(a, lda, rows, end, part, init, ld_init, c, expect);
      }
      return;
    }
  }
#endif
  multiply_by_vectors<S, NV>(a, lda, rows, depth, panel, init, ld_init, c, expect);
}

// One row and two panels at once, for depth groups of panels that are `apart` numbers apart; rows of init and c lie one
// behind the other. The sums of one panel are too few to hide how long a multiply-add takes, and two streams come
// faster out of far caches than one.
template <class S, int NV>
__attribute__((noinline)) void multiply_pair(const S* a, int64_t depth, const S* panel, int64_t apart,
                                             const Wide<S>* init, Wide<S>* c) {
  constexpr int L = kLanes<S>;
  constexpr int64_t kAhead = 1024;  // bytes between what is multiplied and what is fetched
  Vec<S> sum[2 * NV];
#pragma GCC unroll 16
  for (int v = 0; v < 2 * NV; ++v) sum[v] = Vec<S>{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<S> left = broadcast_group(a + k * kGroup<S>);
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      const S* row = panel + q * apart + k * NV * L * kGroup<S>;
#pragma GCC unroll 8
      for (int byte = 0; byte < NV * kVectorBytes; byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row) + kAhead + byte);
#pragma GCC unroll 2
      for (int pass = 0; pass < kPasses<S>; ++pass)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const Vec<S> right = operand<S>(load_groups(row + v * L * kGroup<S>), pass);
          sum[q * NV + v] = multiply_add<S>(operand<S>(left, pass), right, sum[q * NV + v]);
        }
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < 2 * NV; ++v) store(c + v * L, init ? sum[v] + load(init + v * L) : sum[v]);
}

// One row and `count` panels that lie one behind the other, bit for bit as panel by panel.
template <class S, int NV>
FASTRNN_INLINE void multiply_row(const S* a, int64_t depth, const S* panels, int64_t count, const Wide<S>* init,
                                 Wide<S>* c) {
  constexpr int64_t width = kPanel<S, NV>;
  const int64_t groups = ceil_div(depth, kGroup<S>), cuts = ceil_div(groups, kChain), size = groups * width * kGroup<S>;
  int64_t p = 0;
#if defined(__AMX_BF16__)
  if constexpr (kGroup<S> == 2)
    for (; p < count; ++p)
      multiply<S, NV>(a, 0, 1, depth, panels + p * size, init ? init + p * width : nullptr, 0, c + p * width);
#endif
  for (; p + 2 <= count; p += 2)
    for (int64_t cut = 0; cut < cuts; ++cut) {
      const int64_t begin = groups * cut / cuts, end = groups * (cut + 1) / cuts;
      multiply_pair<S, NV>(a + begin * kGroup<S>, end - begin, panels + p * size + begin * width * kGroup<S>, size,
                           cut    ? c + p * width
                           : init ? init + p * width
                                  : nullptr,
                           c + p * width);
    }
  if (p < count)
    multiply<S, NV>(a, 0, 1, depth, panels + p * size, init ? init + p * width : nullptr, 0, c + p * width);
}

template <class V>
constexpr int kWidthOf = sizeof(V) / sizeof(V{}[0]);
template <class V>
using LanesOf = std::make_integer_sequence<int, kWidthOf<V>>;

// One round of transposing as many vectors as they have lanes: lanes whose index has bit `kBit` change places between
// two of them.
template <int kBit, class V, int... lane>
FASTRNN_INLINE void swap_lanes(V& a, V& b, std::integer_sequence<int, lane...>) {
  constexpr int L = sizeof...(lane);
  const V low = __builtin_shufflevector(a, b, (lane & kBit ? L + lane - kBit : lane)...);
  b = __builtin_shufflevector(a, b, (lane & kBit ? L + lane : lane + kBit)...);
  a = low;
}

// The sums of the lanes of `count` vectors, one in each of the first `count` lanes. Whatever the count, neighbours are
// added first, then pairs, then fours: a sum does not depend on what is summed beside it. Rounds `kBit` to `kEnd` alone
// may be had of it: a round leaves its sums in every second vector of the round before.
template <int count, int kBit = 1, int kEnd = 0, class V>
FASTRNN_INLINE V sums_of_lanes(V* v) {
  if constexpr (kBit == kEnd || kBit == kWidthOf<V>) {
    return v[0];
  } else if constexpr (kBit < count) {
#pragma GCC unroll 16
    for (int i = 0; i < count; i += 2 * kBit) {
      swap_lanes<kBit>(v[i], v[i + kBit], LanesOf<V>());
      v[i] += v[i + kBit];
    }
    return sums_of_lanes<count, kBit * 2, kEnd>(v);
  } else {
    V other = v[0];
    swap_lanes<kBit>(v[0], other, LanesOf<V>());
    v[0] += other;
    return sums_of_lanes<count, kBit * 2, kEnd>(v);
  }
}

// The same product with weights as they are, (.., depth) row by row, for so few rows of A that packing would not pay:
// c[r * ld_c + i] = a[r] . weights[i] + init[i] for R rows of A and C rows of weights, along the lanes.
template <class S, int R, int C>
__attribute__((noinline)) void multiply_dots(const S* a, int64_t lda, int64_t depth, const S* weights,
                                             const Wide<S>* init, Wide<S>* c, int64_t ld_c) {
  constexpr int L = kLanes<S> * kGroup<S>;
  Vec<S> sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) sum[r][i] = Vec<S>{};
  const auto add = [&](int64_t k, int lanes) __attribute__((always_inline)) {
    Vec<S> left[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) left[r] = load_groups_part(a + r * lda + k, lanes);
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) {
      const Vec<S> right = load_groups_part(weights + i * depth + k, lanes);
#pragma GCC unroll 2
      for (int pass = 0; pass < kPasses<S>; ++pass)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sum[r][i] = multiply_add<S>(operand<S>(left[r], pass), operand<S>(right, pass), sum[r][i]);
    }
  };
  int64_t k = 0;
  for (; k + L <= depth; k += L) add(k, L);
  if (k < depth) add(k, static_cast<int>(depth - k));
  constexpr int kTogether = C < kLanes<S> ? C : kLanes<S>;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < C; i += kTogether) {
      Vec<S> start{};
      __builtin_memcpy(&start, init + i, kTogether * sizeof(Wide<S>));
      const Vec<S> sums = sums_of_lanes<kTogether>(sum[r] + i) + start;
      __builtin_memcpy(c + r * ld_c + i, &sums, kTogether * sizeof(Wide<S>));
    }
}

// `count` rows of weights, for any number of rows of A.
template <class S>
FASTRNN_INLINE void multiply_raw(const S* a, int64_t lda, int64_t rows, int64_t depth, const S* weights, int64_t count,
                                 const Wide<S>* init, Wide<S>* c, int64_t ld_c) {
  constexpr int kMany = kRegisters == 32 ? 4 : 3;
  int64_t r = 0;
  const auto pass = [&](auto tile, auto single, int height, int width) {
    for (; r + height <= rows; r += height) {
      int64_t i = 0;
      for (; i + width <= count; i += width)
        tile(a + r * lda, lda, depth, weights + i * depth, init + i, c + r * ld_c + i, ld_c);
      for (; i < count; ++i) single(a + r * lda, lda, depth, weights + i * depth, init + i, c + r * ld_c + i, ld_c);
    }
  };
  pass(multiply_dots<S, kMany, 4>, multiply_dots<S, kMany, 1>, kMany, 4);
  pass(multiply_dots<S, 1, 8>, multiply_dots<S, 1, 1>, 1, 8);
}

// `multiply` with a panel that is `width` wide.
template <class S, class Expect = Nothing>
FASTRNN_INLINE void multiply_plain(int64_t width, const S* a, int64_t lda, int64_t rows, int64_t depth, const S* panel,
                                   const Wide<S>* init, Wide<S>* c, const Expect& expect = {}) {
  switch (width / kLanes<S>) {
    case 1: return multiply<S, 1>(a, lda, rows, depth, panel, init, 0, c, expect);
    case 2: return multiply<S, 2>(a, lda, rows, depth, panel, init, 0, c, expect);
    case 3: return multiply<S, 3>(a, lda, rows, depth, panel, init, 0, c, expect);
    default: return multiply<S, kPlain>(a, lda, rows, depth, panel, init, 0, c, expect);
  }
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
