// Teams, on whatever threads the build has: all come, at once, in the caller's floating-point mode; many callers,
// callers inside of teams, teams larger than the machine; fewer threads than asked for; before and after a fork. One
// that waits for ever is ended by whoever runs the tests.
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#endif

#include "assumptions.h"
#include "barrier.h"
#include "checks.h"
#include "machine.h"
#include "runtime.h"
#include "team_plan.h"
#include "threads_pool.h"

namespace {

using fastrnn::Barrier;
using fastrnn::Seat;
using fastrnn::Team;

constexpr int kMost = 16;

// By how the calling thread rounds.
float rounded() {
  volatile float one = 1, little = 1e-10f;
  return one + little;
}

// What a team did, in memory that no atomic guards: the meetings alone, and the end of the call, let others read it.
struct Work {
  int threads;
  Barrier barrier{};
  int ran[kMost] = {}, seen[kMost] = {}, nested[kMost] = {};
  float sums[kMost] = {};

  static void run(void* context, int thread) {
    Work& all = *static_cast<Work*>(context);
    ++all.ran[thread];
    all.nested[thread] = Team(kMost).size();
    all.sums[thread] = rounded();
    all.barrier.wait({thread, all.threads});
    for (int t = 0; t < all.threads; ++t) all.seen[thread] += all.ran[t];
    all.barrier.wait({thread, all.threads});
    ++all.ran[thread];
  }
};

// Runs work on teams of up to `wanted`, as the kernels do; how many threads came.
int run_team(int wanted, const char* who) {
  Team team(wanted);
  for (;;) {
    const int threads = team.size();
    Work work{threads};
    if (!team.run(threads, Work::run, &work)) continue;
    const std::string name = std::string(who) + ", " + std::to_string(threads) + " threads: ";
    for (int t = 0; t < kMost; ++t) {
      check(work.ran[t] == (t < threads ? 2 : 0), name + "each runs once");
      if (t >= threads) continue;
      check(work.seen[t] == threads, name + "all see what all did before they met");
      check(threads == 1 || work.nested[t] == 1, name + "a team inside of a team is of one thread");
      check(work.sums[t] == rounded(), name + "rounds as the caller");
    }
    return threads;
  }
}

void rest(int microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

void check_sizes() {
  const int most = std::min(kMost, fastrnn::usable_cpus());
  check(Team(1000).size() == fastrnn::usable_cpus(), "no more threads than CPUs that may be used");
  for (int turn = 0; turn < 300; ++turn)
    for (int wanted = 1; wanted <= kMost; wanted += 1 + turn % 3) {
      check(run_team(wanted, "sizes") == std::min(wanted, most), "sizes: as many come as are wanted");
      if (turn % 50 == 0) rest(1000);  // threads that wait have gone to sleep
    }
}

// A runtime of more threads than there are CPUs is left alone: its idle ones would be ended, or woken for nothing.
void check_crowded() {
  const int cpus = fastrnn::usable_cpus();
  if (cpus < 2) return;  // then no team is of several
  const bool alone = !std::strcmp(fastrnn::thread_source(), "std");
  for (int more = 0; more < 3; ++more) {
    std::atomic<int> pooled{0};
    Team team(cpus + more);
    const auto body = [](void* context, int) { *static_cast<std::atomic<int>*>(context) += fastrnn::inside_pool(); };
    const int threads = team.size();
    check(threads == cpus && team.run(threads, body, &pooled), "crowded: all come");
    check(pooled == (more || alone ? threads : 0), "crowded: on the pool alone where the runtime has more threads");
  }
}

// Some threads are late, so that the others sleep when they come.
void check_late() {
  struct Late {
    std::atomic<int> ended{0};
  };
  for (int turn = 0; turn < 12; ++turn) {
    Late late;
    Team team(3);
    const int threads = team.size();
    const auto body = [](void* context, int thread) {
      rest(thread * 700);
      ++static_cast<Late*>(context)->ended;
    };
    while (!team.run(threads, body, &late)) continue;
    check(late.ended == threads, "late: the call ends when all have");
    rest(turn * 100);
  }
}

// Work in shares, which each thread adds to a number of the share's own.
struct Shared {
  static constexpr int kRounds = 60;
  int threads;
  Barrier::Share shares[kMost] = {};
  Barrier barrier{shares};
  int done[kMost] = {}, left = 0;
  std::atomic<int> helped{0};

  static void run(void* context, int thread) {
    Shared& all = *static_cast<Shared*>(context);
    Seat seat{thread, all.threads};
    for (int round = 0; round < kRounds; ++round) {
      if ((round + thread) % 7 == 0) rest(300);
      if (round % 3 == 2) {  // each its own
        check(all.done[thread] == round, "shares: all are done before a round");
        ++all.done[thread];
        if (!all.barrier.meet(seat)) return;
      } else {
        for (int share = all.barrier.take(seat); share >= 0; share = all.barrier.next(seat, share)) {
          check(all.done[share] == round, "shares: each is done once, in every round");
          ++all.done[share];
          all.helped += share != thread;
        }
        if (seat.thread >= seat.threads) return;
      }
      if (seat.threads == 1) break;
    }
    if (thread == 0) all.left = seat.threads;
  }
};

void check_shares() {
  int helped = 0;
  for (int turn = 0; turn < 6; ++turn)
    for (const int late : {0, 25}) {
      fastrnn::assume_late(late);
      Team team(2 + turn % 3);
      const int threads = team.size();
      Shared work{threads};
      if (threads == 1 || !team.run(threads, Shared::run, &work)) continue;
      for (int t = 0; t < work.left; ++t)
        check(work.left == 1 || work.done[t] == Shared::kRounds, "shares: none is left over");
      helped += work.helped;
    }
  fastrnn::assume_late(0);
  check(helped || fastrnn::usable_cpus() == 1, "shares of those that are late are done by others");
}

// A thread that is late by more than a slice tells of company, which half of a team leaves to, but for long calls.
void check_company() {
  struct Late {
    Barrier::Share shares[2] = {};
    Barrier barrier;
    int left = 0;
    explicit Late(bool stays) : barrier(shares, stays) {}
  };
  for (const bool stays : {false, true}) {
    Team team(2);
    if (team.size() < 2 || !team.run(2, [](void*, int) {}, nullptr)) return;  // its threads are there
    Late late(stays);
    const auto body = [](void* context, int thread) {
      Late& all = *static_cast<Late*>(context);
      Seat seat{thread, 2};
      for (int share = all.barrier.take(seat); share >= 0; share = all.barrier.next(seat, share))
        if (share == 1) rest(static_cast<int>(8 * fastrnn::slice() / 1000));
      if (thread == 0) all.left = seat.threads;
    };
    if (!team.run(2, body, &late)) return;
    check(late.left == (stays ? 2 : 1), "company: half of a team leaves, but for long calls");
    check(fastrnn::most_in_company() == 1, "company: noted");
    fastrnn::forget_company();
  }
}

// Whoever learns how many are left, however late, forms the same groups, for which there is room.
void check_groups() {
  for (int threads = 1; threads <= 128; ++threads)
    for (int groups = 1; groups <= threads; ++groups) {
      if (threads % groups) continue;
      const fastrnn::TeamPlan plan{threads, false, groups, false};
      fastrnn::TeamPlan before = plan;
      for (int stay = threads; stay > 1; stay = (stay + 1) / 2) {
        const fastrnn::TeamPlan now = plan.left(stay);
        check(now.threads == stay && stay % now.groups == 0, "groups: of one size each");
        check(now.groups == before.left(stay).groups, "groups: by whatever way");
        check(now.groups <= before.groups, "groups: never more than before");
        check(now.groups == 1 || now.members() <= plan.most_members(), "groups: room for all members");
        before = now;
      }
    }
}

void check_rounding() {
  const int before = std::fegetround();
  std::fesetround(FE_UPWARD);
  check(rounded() > 1, "rounding upward");
  run_team(4, "rounding upward");
  std::fesetround(before);
  run_team(4, "rounding as before");
}

// Each with a team of its own, and each ends, so that the next has other threads.
void check_callers() {
  for (int turn = 0; turn < 8; ++turn) {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 5; ++caller)
      callers.emplace_back([] {
        for (int i = 0; i < 40; ++i) run_team(2 + i % 4, "many callers");
      });
    for (std::thread& caller : callers) caller.join();
  }
}

#if !defined(_WIN32)
int in_child(int (*body)()) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (!child) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// While another thread has a team. But not at that moment under AddressSanitizer, whose allocator a child finds locked
// for ever if that thread was in it.
void check_fork() {
#if defined(__SANITIZE_ADDRESS__)
  std::mutex turn;
#else
  struct {
    void lock() {}
    void unlock() {}
  } turn;
#endif
  std::atomic<bool> end{false};
  std::thread other([&] {
    while (!end) {
      const std::lock_guard lock(turn);
      run_team(3, "beside a fork");
    }
  });
  for (int i = 0; i < 10; ++i) {
    const std::lock_guard lock(turn);
    check(in_child([] { return Team(4).size() == 1 && run_team(4, "a forked child") == 1 && !failures ? 0 : 1; }) == 0,
          "a forked child works alone");
    run_team(4, "behind a fork");
  }
  end = true;
  other.join();
}

// In a process of its own, before it has any thread; OpenMP's runtime ends a process to which the system gives none.
int few_threads() {
  const auto come = [](void* context, int, int came) { *static_cast<std::atomic<int>*>(context) = came; };
  if (getuid() == 0 && setuid(65534)) return 2;  // limits do not hold for root
  const rlimit none{0, 0};
  if (setrlimit(RLIMIT_NPROC, &none)) return 2;
  try {
    std::thread([] {}).join();
    return 2;  // this system does not keep to the limit
  } catch (const std::exception&) {
  }
  std::atomic<int> came{0};
  fastrnn::run_on_threads(4, {4, false}, come, &came);
  if (came != 1) return 1;
  return run_team(4, "no threads to be had") == 1 && !failures ? 0 : 1;
}
#endif

}  // namespace

int main() {
#if !defined(_WIN32)
  if (!std::strcmp(fastrnn::thread_source(), "std")) {
    const int status = in_child(few_threads);
    check(status == 0 || status == 2, "fewer threads than asked for: " + std::to_string(status));
    if (status == 2)
      std::printf("threads: this system gives threads beyond its limit, so that one check is left out\n");
  }
#endif
  check_sizes();
  check_crowded();
  check_late();
  check_shares();
  check_company();
  check_groups();
  check_rounding();
  check_callers();
#if !defined(_WIN32)
  check_fork();
#endif
  return count_up((std::string("threads of ") + fastrnn::thread_source()).c_str());
}
