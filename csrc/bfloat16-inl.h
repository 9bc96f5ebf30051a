// bfloat16 in vectors of float: kLanes numbers widened, or as many groups, of which each holds two numbers of k for the
// products. Without products of bfloat16 in the instruction set a group takes two multiplications, one of its low
// halves and one of its high ones, widened on the fly.
#pragma once

#include "vector-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define FASTRNN_MULTIPLIES_BFLOAT16 1
constexpr int kNarrowPasses = 1;
#else
#define FASTRNN_MULTIPLIES_BFLOAT16 0
constexpr int kNarrowPasses = 2;
#endif
template <>
inline constexpr int kPasses<bfloat16> = kNarrowPasses;

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// Rounded to the nearest, ties to even, as torch does; a NaN stays one.
FASTRNN_INLINE Halves narrowed(Vec<float> v) {
#if defined(__AVX512BF16__)
  return bit_cast<Halves>(_mm512_cvtneps_pbh(bit_cast<__m512>(v)));
#else
  const Words bits = bit_cast<Words>(v);
  const Words rounded = v == v ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
  return __builtin_convertvector(rounded >> 16, Halves);
#endif
}

FASTRNN_INLINE Vec<float> widened(Halves narrow) {
  return bit_cast<Vec<float>>(__builtin_convertvector(narrow, Words) << 16);
}

template <>
FASTRNN_INLINE Vec<float> load(const bfloat16* from) {
  Halves narrow;
  __builtin_memcpy(&narrow, from, sizeof(narrow));
  return widened(narrow);
}

template <>
FASTRNN_INLINE void store(bfloat16* to, Vec<float> v) {
  const Halves narrow = narrowed(v);
  __builtin_memcpy(to, &narrow, sizeof(narrow));
}

template <>
FASTRNN_INLINE Vec<float> load_part(const bfloat16* from, int count) {
  if (count == kLanes<bfloat16>) return load(from);
#if defined(__AVX512F__)
  return widened(bit_cast<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), from)));
#else
  Halves narrow{};
  for (int i = 0; i < count; ++i) narrow[i] = from[i].bits;
  return widened(narrow);
#endif
}

template <>
FASTRNN_INLINE void store_part(bfloat16* to, Vec<float> v, int count) {
  if (count == kLanes<bfloat16>) return store(to, v);
  const Halves narrow = narrowed(v);
#if defined(__AVX512F__)
#if defined(__clang__)  // 22 writes four bytes where the mask is known to be of one number
  if (count == 1) {
    to->bits = narrow[0];
    return;
  }
#endif
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), bit_cast<__m256i>(narrow));
#else
  for (int i = 0; i < count; ++i) to[i].bits = narrow[i];
#endif
}

template <>
FASTRNN_INLINE Vec<bfloat16> load_groups_part(const bfloat16* from, int count) {
  if (count == 2 * kLanes<bfloat16>) return load_groups(from);
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), from));
#else
  bfloat16 groups[2 * kLanes<bfloat16>] = {};
  copy(groups, from, count);
  return load_groups(groups);
#endif
}

FASTRNN_INLINE float widen(bfloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

template <>
FASTRNN_INLINE Vec<bfloat16> of_group(const bfloat16* from, int64_t index) {
  const Words bits = bit_cast<Words>(load_groups(from));
  return bit_cast<Vec<float>>(index ? bits & 0xffff0000 : bits << 16);
}

FASTRNN_INLINE Vec<bfloat16> joined(Vec<float> low, Vec<float> high) {
  return bit_cast<Vec<float>>(bit_cast<Words>(low) >> 16 | bit_cast<Words>(high));
}

template <>
FASTRNN_INLINE Vec<bfloat16> interleave<bfloat16>(const bfloat16* first, const bfloat16* second, int count) {
  return joined(load_part(first, count), second ? load_part(second, count) : Vec<float>{});
}

template <>
FASTRNN_INLINE Vec<bfloat16> interleave<bfloat16>(const float* first, const float* second, int count) {
  const Vec<float> high = second ? widened(narrowed(load_part(second, count))) : Vec<float>{};
  return joined(widened(narrowed(load_part(first, count))), high);
}

template <>
FASTRNN_INLINE Vec<bfloat16> broadcast_group(const bfloat16* from) {
  int pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return bit_cast<Vec<float>>(Bits<float>{} + pair);
}

template <>
FASTRNN_INLINE Vec<bfloat16> operand<bfloat16>(Vec<float> groups, [[maybe_unused]] int pass) {
#if FASTRNN_MULTIPLIES_BFLOAT16
  return groups;
#else
  const Words bits = bit_cast<Words>(groups);
  return bit_cast<Vec<float>>(pass ? bits & 0xffff0000 : bits << 16);
#endif
}

#if FASTRNN_MULTIPLIES_BFLOAT16
template <>
FASTRNN_INLINE Vec<bfloat16> multiply_add<bfloat16>(Vec<float> left, Vec<float> right, Vec<float> sum) {
#if defined(__AVX512BF16__)
  return bit_cast<Vec<float>>(
      _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(left), bit_cast<__m512bh>(right)));
#else
  return bit_cast<Vec<float>>(
      vbfdotq_f32(bit_cast<float32x4_t>(sum), bit_cast<bfloat16x8_t>(left), bit_cast<bfloat16x8_t>(right)));
#endif
}
#endif

}  // namespace fastrnn::FASTRNN_NAMESPACE
