// Scratch memory of large calls: kept for the next one of whatever thread, within a bound, never of two calls at once.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FASTRNN_COUNTS_PAGES  // a sanitizer holds pages of its own
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#endif

#include "checks.h"
#include "runtime.h"

namespace {

using fastrnn::Scratch;

constexpr int64_t kMiB = 1 << 20;
// Bytes of the process that lie in memory, and how often it had to wait for a page; 0 where nothing tells.
int64_t resident() {
#if defined(FASTRNN_COUNTS_PAGES)
  int64_t all = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> all >> pages;
  return pages * sysconf(_SC_PAGESIZE);
#else
  return 0;
#endif
}

int64_t faults() {
#if defined(FASTRNN_COUNTS_PAGES)
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
#else
  return 0;
#endif
}

// A call that takes and fills so many MiB in pieces, and a little besides.
void call(const std::vector<int64_t>& pieces, unsigned char value) {
  Scratch scratch;
  std::vector<unsigned char*> taken;
  for (const int64_t piece : pieces) {
    taken.push_back(scratch.take<unsigned char>(piece * kMiB));
    std::memset(taken.back(), value, static_cast<size_t>(piece * kMiB));
    taken.push_back(scratch.take<unsigned char>(1000));
    std::memset(taken.back(), value, 1000);
    check(reinterpret_cast<uintptr_t>(taken.back()) % 64 == 0, "memory begins with a cache line");
  }
  for (size_t i = 0; i < taken.size(); ++i) {
    const int64_t count = i % 2 ? 1000 : pieces[i / 2] * kMiB;
    bool same = true;
    for (int64_t k = 0; k < count; k += 997) same = same && taken[i][k] == value;
    check(same && taken[i][count - 1] == value, "what is taken belongs to one call alone");
  }
}

void pages_stay() {
  for (int i = 0; i < 2; ++i) call({80, 20}, 1), call({1}, 1);  // what a thread keeps is made behind its first call
  const int64_t before = faults();
  for (int i = 0; i < 4; ++i) call({80, 20}, 2), call({1}, 2);
  check(faults() - before < 30, std::to_string(faults() - before) + " page faults of calls like one before them");
}

void threads_share() {
  const int64_t before = resident();
  std::vector<std::thread> threads;
  std::mutex one_at_a_time, until_all_called;
  std::unique_lock<std::mutex> hold(until_all_called);
  std::atomic<int> called{0};
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      {
        const std::lock_guard<std::mutex> lock(one_at_a_time);
        for (int i = 0; i < 2; ++i) call({40}, 3);
      }
      ++called;
      const std::lock_guard<std::mutex> wait(until_all_called);
    });
  while (called < 8) std::this_thread::yield();
  const int64_t grown = resident() - before;
  hold.unlock();
  for (std::thread& thread : threads) thread.join();
  check(grown < 100 * kMiB,
        std::to_string(grown / kMiB) + " MiB stay behind 8 threads' calls of 40, one after another");
}

void bounded() {
  const int64_t before = resident();
  call({70, 70, 70, 70, 70, 70}, 4);
  call({300}, 4);
  const int64_t grown = resident() - before;
  check(grown < 270 * kMiB, std::to_string(grown / kMiB) + " MiB are kept, and 256 may be");
}

void at_once() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t] {
      for (int i = 0; i < 20; ++i) call({1 + (i * 7 + t) % 5, 2 + (i + t) % 3}, static_cast<unsigned char>(10 * t + i));
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  pages_stay();
  threads_share();
  bounded();
  at_once();
  return count_up("scratch");
}
