// Vectors of int8 on each instruction set: kVectorBytes activations, as many weights, and the sums of their products.
#pragma once

#include "pack-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

using Sums = Bits<float>;

// kVectorBytes activations and as many weights, as multiplied. On x86 a product takes one unsigned factor. With VNNI
// that is the weight, shifted by 128: w ^ 0x80 as a number without a sign is w + 128, and 128 times the sum of the
// activations, which a row knows, is taken off the whole. Without VNNI the sum of two such products would not fit into
// 16 bits; there it is the size of the activation, whose sign goes to the weight. Elsewhere even and odd bytes are
// 16-bit lanes, in which the sum of two products has memory.
#if defined(__AVX512VNNI__)
constexpr int32_t kShift = 128;

struct Int8Weights {
  __m512i shifted;

  explicit FASTRNN_INLINE Int8Weights(const int8_t* from)
      : shifted(_mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(-128))) {}
};

struct Activations {
  __m512i values;

  Activations() = default;
  explicit FASTRNN_INLINE Activations(const int8_t* from) : values(_mm512_loadu_si512(from)) {}
  FASTRNN_INLINE Sums add_products(Sums sum, const Int8Weights& w) const {
    return bit_cast<Sums>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum), w.shifted, values));
  }
};
#elif defined(__AVX512BW__)
constexpr int32_t kShift = 0;

struct Int8Weights {
  __m512i values;

  explicit FASTRNN_INLINE Int8Weights(const int8_t* from) : values(_mm512_loadu_si512(from)) {}
};

struct Activations {
  __m512i size;
  __mmask64 negative;

  Activations() = default;
  explicit FASTRNN_INLINE Activations(const int8_t* from) {
    const __m512i values = _mm512_loadu_si512(from);
    size = _mm512_abs_epi8(values), negative = _mm512_movepi8_mask(values);
  }
  FASTRNN_INLINE Sums add_products(Sums sum, const Int8Weights& w) const {
    const __m512i with_sign = _mm512_mask_sub_epi8(w.values, negative, _mm512_setzero_si512(), w.values);
    return sum + bit_cast<Sums>(_mm512_madd_epi16(_mm512_maddubs_epi16(size, with_sign), _mm512_set1_epi16(1)));
  }
};
#elif defined(__AVX2__)
constexpr int32_t kShift = 0;

struct Int8Weights {
  __m256i values;

  explicit FASTRNN_INLINE Int8Weights(const int8_t* from)
      : values(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))) {}
};

struct Activations {
  __m256i values, size;

  Activations() = default;
  explicit FASTRNN_INLINE Activations(const int8_t* from)
      : values(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), size(_mm256_abs_epi8(values)) {}
  FASTRNN_INLINE Sums add_products(Sums sum, const Int8Weights& w) const {
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w.values, values));
    return sum + bit_cast<Sums>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int32_t kShift = 0;

struct Int8Weights {
  int8x16_t values;

  Int8Weights() = default;
  explicit FASTRNN_INLINE Int8Weights(const int8_t* from) : values(vld1q_s8(from)) {}
};

struct Activations : Int8Weights {
  Activations() = default;
  using Int8Weights::Int8Weights;
  FASTRNN_INLINE Sums add_products(Sums sum, const Int8Weights& w) const {
    return bit_cast<Sums>(vdotq_s32(bit_cast<int32x4_t>(sum), values, w.values));
  }
};
#else
constexpr int32_t kShift = 0;
typedef int16_t Pairs __attribute__((vector_size(kVectorBytes)));

struct Int8Weights {
  Pairs even, odd;

  Int8Weights() = default;
  explicit FASTRNN_INLINE Int8Weights(const int8_t* from) : even(read(from) << 8 >> 8), odd(read(from) >> 8) {}
  static FASTRNN_INLINE Pairs read(const int8_t* from) {
    Pairs pairs;
    __builtin_memcpy(&pairs, from, sizeof(pairs));
    return pairs;
  }
};

struct Activations : Int8Weights {
  Activations() = default;
  using Int8Weights::Int8Weights;
  FASTRNN_INLINE Sums add_products(Sums sum, const Int8Weights& w) const {
    const Sums pairs = bit_cast<Sums>(even * w.even + odd * w.odd);
    return sum + (pairs << 16 >> 16) + (pairs >> 16);
  }
};
#endif

}  // namespace fastrnn::FASTRNN_NAMESPACE
