// sigmoid and tanh over a vector, within a few ulp, NaN kept, for any finite or infinite argument. A gate closes
// entirely: sigmoid is right down to the least denormal number and 0 below it.
//
// Both stand on e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, as in Cephes' expf and exp: n comes from
// adding a number so large that the sum's last bit is worth 1, and stands in the low bits of that sum, ready to be
// shifted into an exponent. e^r - 1 is a polynomial, so that tanh keeps its relative accuracy near zero.
#pragma once

#include "vector-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float log2e = 1.44269504088896341f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float rounder = 12582912.0f;  // 1.5 * 2^23
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float tanh_limit = 10.0f;  // tanh is 1 from 9.01 on
  static constexpr int shift = -32;
  static constexpr float lowest = -64.0f, highest = 111.0f;
  // (e^r - 1 - r) / r^2, minimax: e^r within 3.6e-9 of itself.
  static constexpr float polynomial[] = {1.381453989513946e-3f, 8.368745126928222e-3f, 4.166839078939169e-2f,
                                         1.6666520398848653e-1f, 4.999999343210027e-1f};
};

template <>
struct ExpConstants<double> {
  static constexpr double log2e = 1.4426950408889634074;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double rounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double tanh_limit = 20.0;
  static constexpr int shift = -64;
  static constexpr double lowest = -640.0, highest = 754.2;
  // Taylor's: 1/13! ... 1/2!; the next term is below 1e-17 of the sum.
  static constexpr double polynomial[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                          1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                          1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
};

template <class S>
struct Exponential {
  Vec<S> scale;   // 2^(n + shift)
  Vec<S> excess;  // e^r - 1
};

template <class S, int shift = 0>
FASTRNN_INLINE Exponential<S> exponential(Vec<S> x) {
  using C = ExpConstants<S>;
  const Vec<S> rounded = x * C::log2e + C::rounder;
  const Vec<S> n = rounded - C::rounder;
  const Vec<S> r = (x - n * C::ln2_high) - n * C::ln2_low;
  Vec<S> p = broadcast(C::polynomial[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof(C::polynomial) / sizeof(S); ++i) p = p * r + C::polynomial[i];
  const Bits<S> exponent = (bit_cast<Bits<S>>(rounded) + (C::bias + shift)) << C::mantissa;
  return {bit_cast<Vec<S>>(exponent), p * (r * r) + r};
}

// 2^shift / (2^shift + 2^shift e^-x): the fraction of 1 / (1 + e^-x), bit for bit, but for a denominator that is a
// number as long as the result is one. From `highest` on, just over (128 - shift) ln 2 in float32, 2^(n + shift) is
// infinite and the result 0 without an underflow, which would take a processor a hundred cycles: a closed gate costs
// what an open one does. Up to `lowest` 2^(n + shift) is normal.
template <class S>
FASTRNN_INLINE Vec<S> sigmoid(Vec<S> x) {
  using C = ExpConstants<S>;
  constexpr S unit = S(1) / (int64_t{1} << (-C::shift / 2)) / (int64_t{1} << (-C::shift / 2));
  const auto e = exponential<S, C::shift>(at_least<S>(at_most<S>(-x, C::highest), C::lowest));
  return unit / (unit + e.scale * (S(1) + e.excess));  // infinity times 1 + excess, not plus infinity times excess
}

template <class S>
FASTRNN_INLINE Vec<S> tanh(Vec<S> x) {
  const Bits<S> sign = bit_cast<Bits<S>>(x) & bit_cast<Bits<S>>(broadcast(S(-0.0)));
  const Vec<S> size = at_most<S>(bit_cast<Vec<S>>(bit_cast<Bits<S>>(x) ^ sign), ExpConstants<S>::tanh_limit);
  Vec<S> t;
  if constexpr (sizeof(S) == 8) {
    // -E / (2 + E) with E = e^(-2 size) - 1, good near zero as well
    const auto e = exponential<S>(S(-2) * size);
    const Vec<S> minus = e.scale * e.excess + (e.scale - S(1));
    t = -minus / (S(2) + minus);
  } else {
    // Half an ulp better than that, which a recurrence feels: a minimax polynomial (error 1.5e-8) up to 0.7, and from
    // there 1 - 2 / (e^(2 size) + 1), where the roundings of the fraction count less.
    constexpr S polynomial[] = {-5.138661712408066e-3f, 2.0091969519853592e-2f, -5.355885997414589e-2f,
                                1.332911103963852e-1f, -3.333319127559662e-1f};
    const Vec<S> square = x * x;
    Vec<S> p = broadcast(polynomial[0]);
#pragma GCC unroll 4
    for (int i = 1; i < 5; ++i) p = p * square + polynomial[i];
    const auto e = exponential<S>(size + size);
    const Vec<S> far = S(1) - S(2) / (S(1) + (e.scale * e.excess + e.scale));
    t = size > S(0.7) ? far : size + (size * square) * p;
  }
  return bit_cast<Vec<S>>(bit_cast<Bits<S>>(t) ^ sign);
}

template <class S>
FASTRNN_INLINE Vec<S> relu(Vec<S> x) {
  return x < S(0) ? Vec<S>{} : x;  // keeps a NaN
}

template <class S>
FASTRNN_INLINE Vec<S> activate(Activation kind, Vec<S> x) {
  switch (kind) {
    case Activation::tanh: return tanh<S>(x);
    case Activation::relu: return relu<S>(x);
    case Activation::sigmoid: return sigmoid<S>(x);
    default: return x;
  }
}

// The gradient of an activation's argument, from that of its value y; where relu is closed it is 0 whatever came.
template <class S>
FASTRNN_INLINE Vec<S> activation_gradient(Activation kind, Vec<S> y, Vec<S> grad) {
  switch (kind) {
    case Activation::tanh: return grad * (S(1) - y * y);
    case Activation::relu: return y <= S(0) ? Vec<S>{} : grad;
    case Activation::sigmoid: return grad * (y * (S(1) - y));
    default: return grad;
  }
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
