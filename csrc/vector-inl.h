// Vectors of the instruction set that this file is compiled for, as GCC and Clang vector types: + - * / and comparisons
// work on them as on numbers, on x86 and Arm alike. Included once per instruction set, inside its namespace.
#pragma once

#include "target-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
#endif

// Lanes of a vector; a vector of a narrow type holds its numbers widened.
template <class S>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Wide<S>));

// Numbers whose products one instruction adds up in a lane: they stand side by side in what `multiply_add` reads.
template <class S>
constexpr int64_t kGroup = sizeof(Wide<S>) / sizeof(S);

template <class S>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class S>
using Vec = typename VectorOf<Wide<S>>::type;
template <class S>
using Bits = typename VectorOf<S>::bits;

template <class To, class From>
FASTRNN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// Not by memcpy: what that writes may be anything, so that all sizes and pointers would be read again after each store.
template <class S>
FASTRNN_INLINE Vec<S> load(const S* from) {
  return *reinterpret_cast<const typename VectorOf<S>::unaligned*>(from);
}

template <class S>
FASTRNN_INLINE void store(S* to, Vec<S> v) {
  *reinterpret_cast<typename VectorOf<S>::unaligned*>(to) = v;
}

template <class S>
FASTRNN_INLINE Vec<S> broadcast(S value) {
  return value - Vec<S>{};  // no instruction: adding a zero would change that of minus zero
}

#if defined(__AVX2__)
// A mask of the first `count` lanes.
template <class S>
FASTRNN_INLINE __m256i lanes_below(int count) {
  if constexpr (sizeof(S) == 4)
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  else
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

// The first `count` lanes, 1 <= count <= kLanes; the others load as zero and are not stored.
template <class S>
FASTRNN_INLINE Vec<S> load_part(const S* from, int count) {
  if (count == kLanes<S>) return load(from);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return bit_cast<Vec<S>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
  else
    return bit_cast<Vec<S>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from));
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4)
    return bit_cast<Vec<S>>(_mm256_maskload_ps(from, lanes_below<S>(count)));
  else
    return bit_cast<Vec<S>>(_mm256_maskload_pd(from, lanes_below<S>(count)));
#else
  Vec<S> v{};
  for (int i = 0; i < count; ++i) v[i] = from[i];
  return v;
#endif
}

template <class S>
FASTRNN_INLINE void store_part(S* to, Vec<S> v, int count) {
  if (count == kLanes<S>) return store(to, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), bit_cast<__m512>(v));
  else
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), bit_cast<__m512d>(v));
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4)
    _mm256_maskstore_ps(to, lanes_below<S>(count), bit_cast<__m256>(v));
  else
    _mm256_maskstore_pd(to, lanes_below<S>(count), bit_cast<__m256d>(v));
#else
  for (int i = 0; i < count; ++i) to[i] = v[i];
#endif
}

// The bits of kLanes groups of numbers, to and from memory, and of the first `count` numbers, the others zero.
template <class S>
FASTRNN_INLINE Vec<S> load_groups(const S* from) {
  Vec<S> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <class S, class V>
FASTRNN_INLINE void store_groups(S* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

template <class S>
FASTRNN_INLINE Vec<S> load_groups_part(const S* from, int count) {
  return load_part(from, count);
}

// The first group at `from`, in every lane.
template <class S>
FASTRNN_INLINE Vec<S> broadcast_group(const S* from) {
  return broadcast(*from);
}

// The smaller of x and `limit`, or the larger; a NaN stays. (Compilers make two instructions of the comparison.)
template <class S>
FASTRNN_INLINE Vec<S> at_most(Vec<S> x, S limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return bit_cast<Vec<S>>(_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(limit), bit_cast<__m512>(x)));
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return bit_cast<Vec<S>>(_mm256_min_ps(_mm256_set1_ps(limit), bit_cast<__m256>(x)));
#endif
  return x > limit ? broadcast(limit) : x;
}

template <class S>
FASTRNN_INLINE Vec<S> at_least(Vec<S> x, S limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return bit_cast<Vec<S>>(_mm512_maskz_max_ps(0xffff, _mm512_set1_ps(limit), bit_cast<__m512>(x)));
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return bit_cast<Vec<S>>(_mm256_max_ps(_mm256_set1_ps(limit), bit_cast<__m256>(x)));
#endif
  return x < limit ? broadcast(limit) : x;
}

// How many multiplications a vector of groups takes, and what is multiplied in each.
template <class S>
constexpr int kPasses = 1;

template <class S>
FASTRNN_INLINE Vec<S> operand(Vec<S> groups, int) {
  return groups;
}

// In one rounding where the instruction set can. On x86 compilers make one instruction of both; on Arm GCC left two in
// some tiles of products and not in others, whose last bits then depended on how many rows came together.
template <class S>
FASTRNN_INLINE Vec<S> multiply_add(Vec<S> left, Vec<S> right, Vec<S> sum) {
#if defined(__aarch64__)
  if constexpr (sizeof(Wide<S>) == 4)
    return bit_cast<Vec<S>>(
        vfmaq_f32(bit_cast<float32x4_t>(sum), bit_cast<float32x4_t>(left), bit_cast<float32x4_t>(right)));
  else
    return bit_cast<Vec<S>>(
        vfmaq_f64(bit_cast<float64x2_t>(sum), bit_cast<float64x2_t>(left), bit_cast<float64x2_t>(right)));
#else
  return sum + left * right;
#endif
}

FASTRNN_INLINE float widen(float value) { return value; }
FASTRNN_INLINE double widen(double value) { return value; }

// Number `index` of each group, widened.
template <class S>
FASTRNN_INLINE Vec<S> of_group(const S* from, int64_t) {
  return load(from);
}

// kLanes groups of which each holds a number of `first` and, where a group holds two, the one of `second`, which may be
// null for zeros; only the first `count` lanes are read.
template <class S, class A>
FASTRNN_INLINE Vec<S> interleave(const A* first, const A*, int count) {
  return load_part(first, count);
}

template <class T>
FASTRNN_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
FASTRNN_INLINE T larger(T a, T b) {
  return a < b ? b : a;
}

FASTRNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A number of values, rounded up to whole groups.
template <class S>
FASTRNN_INLINE int64_t grouped(int64_t count) {
  return ceil_div(count, kGroup<S>) * kGroup<S>;
}

template <class S>
FASTRNN_INLINE void copy(S* to, const S* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(S));
}

template <class S>
FASTRNN_INLINE void convert(S* to, const S* from, int64_t count) {
  copy(to, from, count);
}

// The same between a narrow type and its wide one.
template <class To, class From>
FASTRNN_INLINE void convert(To* to, const From* from, int64_t count) {
  constexpr int L = kLanes<To>;
  for (int64_t i = 0; i < count; i += L) {
    const int lanes = static_cast<int>(smaller<int64_t>(L, count - i));
    store_part(to + i, load_part(from + i, lanes), lanes);
  }
}

template <class S>
FASTRNN_INLINE void clear(S* to, int64_t count) {
  __builtin_memset(to, 0, static_cast<size_t>(count) * sizeof(S));
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
