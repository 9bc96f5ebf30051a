// Threads and scratch memory, shared by all instruction sets (so compiled once, for the baseline).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fastrnn {

// A barrier for a few threads that all run: it spins, and yields its core only after a while.
class Barrier {
 public:
  void wait(int threads);

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

// How many of `wanted` threads a team can have here: one inside another parallel region, and one in a forked child,
// since no OpenMP team survives a fork.
int team_size(int wanted);

// Runs body(context, thread) on `threads` OpenMP threads at once (torch's runtime, once torch is loaded).
void run_team(int threads, void (*body)(void*, int), void* context);

// Scratch memory of the calling thread, kept from call to call so that its pages stay mapped. One call at a time:
// everything taken is given back when the Scratch goes.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Uninitialised memory for `count` elements, aligned to a cache line.
  template <class S>
  S* take(int64_t count) {
    return static_cast<S*>(take_bytes(static_cast<size_t>(count) * sizeof(S)));
  }

 private:
  void* take_bytes(size_t bytes);
};

}  // namespace fastrnn
