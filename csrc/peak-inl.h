// The machine's own limit, to hold times against: multiply-adds that wait for nothing and read no memory.
#pragma once

#include "vector-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// A number that the compiler does not know, so that it neither runs one chain for all nor multiplies ahead of a loop.
FASTRNN_INLINE void make_unknown([[maybe_unused]] Vec<float>& v) {
#if defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// Runs at least `wanted` multiply-adds of single numbers and returns how many it ran.
__attribute__((noinline)) inline int64_t multiply_adds(int64_t wanted) {
  constexpr int kChains = kRegisters == 32 ? 24 : 12;  // more than one takes to be done, times units that do it
  constexpr int64_t kRound = kChains * kLanes<float>;
  Vec<float> sum[kChains];
  Vec<float> left = broadcast(0.5f);
  const Vec<float> right = broadcast(0.75f);
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) make_unknown(sum[i] = right);
  const int64_t rounds = ceil_div(wanted, kRound);
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      make_unknown(left);
      sum[i] = multiply_add<float>(left, right, sum[i]);  // overwrites what it adds to, as Arm must
    }
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  volatile float kept = sum[0][0];
  static_cast<void>(kept);
  return rounds * kRound;
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
