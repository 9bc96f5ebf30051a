// How the threads of a team wait for each other, on CPUs that other programs may want as well.
//
// Whoever waits spins for a short time by the clock, then sleeps (waiting.h), so that a thread that lost its CPU finds
// one. A meeting that came late by a good part of the scheduler's slice tells of company: half of the team then
// leaves the call, and for some time calls plan for no more threads than stayed. The time is a multiple of the time
// that was lost, so that whatever the company does, trying costs a small part of the whole. That holds for calls that
// are short beside a slice. In long ones nobody leaves: who sleeps because another one is late gives its CPU away, so
// that threads come to run at the same time, and together have more of the CPUs than one would.
//
// Work between two meetings comes in as many shares as there are threads. Each takes its own first; who has waited for
// long takes those that nobody has begun, of threads that are still to be woken or lost their CPU on the way. Such a
// thread finds its work done, and goes from meeting to meeting without waiting until it is where the others are.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "machine.h"

namespace fastrnn {

// A thread of a team, or the share of one, and how many those are who still work: threads 0 .. threads - 1.
struct Seat {
  int thread, threads;
  uint32_t round = 0;  // meetings it has been at; others may be further
  bool helps = false;  // the last one had to take another's share
};

// Where the threads of a team meet, again and again.
//
// Memory order. Arrivals are read-modify-writes with acquire and release, so the last to arrive has seen all that the
// others did before; it sets the counters back and the new size, then the round by a release, which those that wait
// acquire: all see all that was done before the meeting. Counters are next written when shares of the next round are
// done, by threads that have seen this round end; the size at its end. A thread that goes to sleep announces itself,
// then asks for the round; the last one writes the round, then asks for sleepers. Both writes and both questions are
// sequentially consistent: at least one of the two sees the other's, so nobody sleeps through a round (and the kernel
// compares the round once more before it lets a thread sleep).
//
// Who takes a share raises its count of rounds, by a read-modify-write that one thread alone brings about. It says
// nothing of what others did, which the round has said before, so it is relaxed. The size stands with the round it is
// of: who is behind reads a later one, which is no larger, so all shares that it knows of are taken; and as long as a
// round is not over, none but its own stands there. tests/barrier_model.py walks through every interleaving of this.
class Barrier {
 public:
  // In how many rounds a share was taken, by whomever.
  struct alignas(64) Share {
    std::atomic<uint32_t> rounds{0};
    static void* operator new(size_t, void* place) { return place; }
  };

  // `shares`: one for each thread, for who calls take. `stays`: nobody leaves in company. `teams`: of how many of one
  // size in a call it is one, so that company is noted for all of them. `begin`: now(). `fixed`: nobody leaves at all,
  // those who meet here do so at meetings of a larger team.
  explicit Barrier(Share* shares = nullptr, bool stays = false, int teams = 1, int64_t begin = now(),
                   bool fixed = false)
      : shares_(shares), stays_(stays), fixed_(fixed), teams_(teams), begin_(begin) {}
  static void* operator new(size_t, void* place) { return place; }  // as the scans'
  // Waits for all; true if this thread stays. The last meeting of all may be late, so who leaves has nothing left to
  // do. Each does its own share before.
  [[nodiscard]] bool meet(Seat& seat);
  // The same for teams that nobody leaves and where none is behind: all that meet here do so by wait.
  void wait(Seat seat) {
    seat.round = round_.load(std::memory_order_relaxed);
    static_cast<void>(meet(seat));
  }
  // The same with work that whoever comes takes: the share to do, then the next behind it, -1 when all have met and
  // `seat` says who stays.
  int take(Seat& seat);
  int next(Seat& seat, int done);

 private:
  static constexpr int kGroups = 8;
  struct alignas(64) Counter {
    std::atomic<int> arrived{0};
  };

  bool takes(int share, uint32_t round);
  int take_more(Seat& seat);
  int take_of_others(const Seat& seat);
  bool arrives_last(int share, int threads);
  int release(uint32_t round, int came);
  void pass(Seat& seat);
  void sleep(uint32_t round, int64_t since);

  Counter groups_[kGroups], root_;  // so that not all threads fight for one cache line
  alignas(64) std::atomic<uint32_t> round_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<uint64_t> size_{0};  // and the round it is of, above
  std::atomic<uint64_t> late_{0};  // when the first sleeper of a round came, in us, and the round's low bits
  Share* const shares_;
  const bool stays_, fixed_;
  const int teams_;
  const int64_t begin_;
};

// How many steps of a layer are done, for the one thread that follows.
class Progress {
 public:
  Progress();
  static void* operator new(size_t, void* place) { return place; }  // as the scans'
  void publish(int64_t done);
  // Until that many are done.
  void wait_until(int64_t wanted);

 private:
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<uint32_t> wakes_{0};
  std::atomic<int> sleepers_{0};
};

// Part of a slice from which a thread that is late has lost its CPU to somebody else, who has it for a slice or what is
// left of one. Interrupts and faults of pages are tens of microseconds, a hundredth of it.
constexpr int64_t kLatePart = 4;
// Threads that may work with meetings at this time: few behind a meeting that came late, else INT_MAX.
int most_in_company();
// Notes that a meeting was late by so many nanoseconds, and how many threads to go on with.
void note_company(int64_t late, int threads);
// Forgets it (for tests).
void forget_company();

}  // namespace fastrnn
