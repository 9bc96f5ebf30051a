// Products of bfloat16 by Arm's BFMMLA: two rows of A by two columns and four numbers of k in one instruction, twice
// what BFDOT does in the time.
//
// A packed panel stands in groups of two numbers of k, a vector of four columns each. Those of two groups in turn are
// what the instruction wants: four numbers of each of two columns. It adds the first two products to a sum, then the
// other two, as BFDOT does in two instructions: results do not depend on which of both computed them.
#pragma once

#include "bfloat16-inl.h"

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

namespace fastrnn::FASTRNN_NAMESPACE {

// multiply_tile for R > 1 rows: pairs of rows by BFMMLA, an odd last one by BFDOT.
template <int NV, int R>
FASTRNN_INLINE void multiply_tile_in_squares(const bfloat16* a, int64_t lda, int64_t depth, const bfloat16* panel,
                                             const float* init, int64_t ld_init, float* c, const char* ahead,
                                             int64_t share) {
  constexpr int L = kLanes<bfloat16>, kPairs = R / 2;
  static_assert(L == 4, "two pairs of columns");
  typedef int64_t Eights __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Fours __attribute__((vector_size(kVectorBytes)));
  float32x4_t sum[kPairs][NV][2];  // of two rows and two columns: r c, r c+1, r+1 c, r+1 c+1
  Vec<float> last[NV];
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[p][v][0] = sum[p][v][1] = vdupq_n_f32(0);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) last[v] = Vec<float>{};
  // `groups` of k, one or two; what is no second one counts as zeros.
  const auto add = [&](int64_t k, auto groups) __attribute__((always_inline)) {
    constexpr int kGroups = decltype(groups)::value;
    const bfloat16 *row = panel + k * NV * L * 2, *column = a + k * 2;
    bfloat16x8_t left[kPairs];
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      int64_t of_rows[2] = {};
      for (int r = 0; r < 2; ++r) __builtin_memcpy(&of_rows[r], column + (2 * p + r) * lda, kGroups * 4);
      left[p] = bit_cast<bfloat16x8_t>(Eights{of_rows[0], of_rows[1]});
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const auto first = load_groups(row + v * L * 2);
      const auto second = kGroups == 2 ? load_groups(row + (NV + v) * L * 2) : Vec<float>{};
      const auto one = bit_cast<Fours>(first), two = bit_cast<Fours>(second);
      const auto low = bit_cast<bfloat16x8_t>(__builtin_shufflevector(one, two, 0, 4, 1, 5)),
                 high = bit_cast<bfloat16x8_t>(__builtin_shufflevector(one, two, 2, 6, 3, 7));
#pragma GCC unroll 8
      for (int p = 0; p < kPairs; ++p) {
        sum[p][v][0] = vbfmmlaq_f32(sum[p][v][0], left[p], low);
        sum[p][v][1] = vbfmmlaq_f32(sum[p][v][1], left[p], high);
      }
      if constexpr (R % 2 == 1) {
        const bfloat16* from = column + (R - 1) * lda;
        last[v] = multiply_add<bfloat16>(broadcast_group(from), first, last[v]);
        if (kGroups == 2) last[v] = multiply_add<bfloat16>(broadcast_group(from + 2), second, last[v]);
      }
    }
  };
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    __builtin_prefetch(ahead + k * share, 0, 2);
    add(k, std::integral_constant<int, 2>());
  }
  if (k < depth) add(k, std::integral_constant<int, 1>());
  const auto keep = [&](int r, int v, Vec<float> result) __attribute__((always_inline)) {
    store(c + (r * NV + v) * L, init ? result + load(init + r * ld_init + v * L) : result);
  };
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      const auto one = bit_cast<Eights>(sum[p][v][0]), two = bit_cast<Eights>(sum[p][v][1]);
      keep(2 * p, v, bit_cast<Vec<float>>(__builtin_shufflevector(one, two, 0, 2)));
      keep(2 * p + 1, v, bit_cast<Vec<float>>(__builtin_shufflevector(one, two, 1, 3)));
    }
    if (R % 2 == 1) keep(R - 1, v, last[v]);
  }
}

}  // namespace fastrnn::FASTRNN_NAMESPACE

#endif
