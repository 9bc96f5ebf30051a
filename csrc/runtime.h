// Teams of threads and scratch memory, shared by all instruction sets (so compiled once, for the baseline).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fastrnn {

// The threads of one call (threads.h). How many there are is known only once they run: OpenMP's runtime may give fewer
// than asked for, by its limits or because it likes, and a system has so many and no more. So the work is shared out
// among size() of them, which learns from every attempt:
//   Team team(wanted);
//   while (!attempt(team)) {}  // plans for team.size() threads, then calls run
class Team {
 public:
  // No more than the CPUs that the process may use; one inside another parallel region, and one in a forked child,
  // since no thread but the one that forks survives that.
  explicit Team(int wanted);
  int size() const { return size_; }

  // Runs body(context, thread) on `threads` <= size() threads at once, all in the caller's floating-point mode. False
  // where fewer came: then size() is their number, and nothing has run. `body` must not throw.
  [[nodiscard]] bool run(int threads, void (*body)(void*, int), void* context);

 private:
  int size_;
  const bool crowded_;  // more threads are wanted than there are CPUs
};

// Scratch memory of the calling thread, kept from call to call so that its pages stay mapped: up to 2 MiB by each
// thread, what is more by all together, up to 256 MiB. One call at a time: everything taken is given back when the
// Scratch goes.
//
// Or, `Scratch(Scratch::kept)`, memory of its own, for what is prepared once and stays.
class Scratch {
 public:
  enum Kept { kept };
  Scratch();
  explicit Scratch(Kept);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Uninitialised memory for `count` elements, aligned to a cache line.
  template <class S>
  S* take(int64_t count) {
    return static_cast<S*>(take_bytes(count, sizeof(S)));
  }

 private:
  void* take_bytes(int64_t count, size_t item);
  struct Blocks;
  Blocks* kept_;  // what has been taken of its own; null where it is the thread's
};

// Memory that outlives a call; whoever holds it claims it for one call at a time.
class WeightCache {
 public:
  static constexpr int kLayout = 8;

  WeightCache() = default;
  ~WeightCache();
  WeightCache(const WeightCache&) = delete;
  WeightCache& operator=(const WeightCache&) = delete;

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
