// The machine's own limit, to hold times against: multiply-adds that wait for nothing and read no memory.

// Runs at least `wanted` multiply-adds of single numbers and returns how many it ran.
__attribute__((noinline)) inline int64_t multiply_adds(int64_t wanted) {
  constexpr int kChains = kRegisters == 32 ? 24 : 12;  // more than one takes to be done, times units that do it
  constexpr int64_t kRound = kChains * kLanes<float>;
  Vec<float> sum[kChains];
  const Vec<float> factor = broadcast(0.5f), term = broadcast(1.0f);
  // Each starts as another number for all that the compiler knows, or it would run one chain for all.
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    sum[i] = term;
#if defined(__x86_64__)
    asm("" : "+x"(sum[i]));
#elif defined(__aarch64__)
    asm("" : "+w"(sum[i]));
#endif
  }
  const int64_t rounds = ceil_div(wanted, kRound);
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sum[i] = multiply_add<float>(sum[i], factor, term);
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  volatile float kept = sum[0][0];
  static_cast<void>(kept);
  return rounds * kRound;
}
