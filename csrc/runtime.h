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

// Waits until another thread has counted `done` up to `wanted`, spinning at first.
void wait_until(const int64_t* done, int64_t wanted);

// Memory that outlives a call; whoever holds it claims it for one call at a time.
class Kept {
 public:
  static constexpr int kLayout = 8;

  Kept() = default;
  ~Kept();
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  bool claim() { return !claimed_.exchange(true, std::memory_order_acquire); }
  void release() { claimed_.store(false, std::memory_order_release); }

  // Memory of `bytes`, aligned to a cache line. What it held is still there if the last call opened it for the same
  // layout; else it is `fresh`.
  char* open(size_t bytes, const int64_t (&layout)[kLayout], bool* fresh);

 private:
  std::atomic<bool> claimed_{false};
  char* block_ = nullptr;
  size_t size_ = 0;
  int64_t layout_[kLayout] = {};
};

}  // namespace fastrnn
