// How one thread waits for another: a short time by the clock on its CPU, then asleep, so that whoever it waits for
// finds a CPU.
#pragma once

#include <atomic>
#include <cstdint>

#include "machine.h"

namespace fastrnn {

// Nanoseconds: twice what it takes to sleep and to be woken on a virtual machine, 34 us, more often what it takes
// elsewhere. Once would be never more than twice as slow as to know beforehand how long the wait is; but a CPU that was
// given away in company does not come back as soon.
constexpr int64_t kSpin = 60'000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins while `still()`, for a short time by the clock; 0 if it ended, else since when.
template <class Still>
int64_t spin(const Still& still) {
  int64_t since = 0;
  for (int turn = 1;; ++turn) {
    if (!still()) return 0;
    pause();
    if (turn % 32) continue;
    const int64_t time = now();
    if (!since) since = time;
    if (time - since > kSpin) return since;
  }
}

// Sleeps unless *word is no longer `seen`, until woken, or for no reason: whoever calls asks again. Only the address of
// the word is used by wake_all, so the word may be gone by then.
void sleep_while(std::atomic<uint32_t>* word, uint32_t seen);
void wake_all(std::atomic<uint32_t>* word);

}  // namespace fastrnn
