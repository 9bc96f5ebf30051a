#include "runtime.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

namespace fastrnn {
namespace {

std::atomic<bool> forked{false};

void note_fork() { forked.store(true); }

const int fork_handler = pthread_atfork(nullptr, nullptr, note_fork);

// One turn of waiting for another thread, which runs on a core of its own unless that has lasted long.
inline void pause_or_yield(int spins) {
  if (spins >= 4000) {
    sched_yield();
    return;
  }
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What is larger goes back to the system after each call.
constexpr size_t kKeptBytes = size_t{64} << 20;
constexpr size_t kAlign = 64, kHugePage = size_t{2} << 20;

// Memory of a multiple of kAlign. In huge pages where there are such and it fills one: prefetchers stop at the end of
// a page, and weights larger than L2 stream half as fast again without a stop every 4 KiB.
void* allocate(size_t bytes) {
  const bool huge = bytes >= kHugePage;
  void* memory = nullptr;
  if (posix_memalign(&memory, huge ? kHugePage : kAlign, bytes)) return nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // advice: a system without them says no
#endif
  return memory;
}

struct Pool {
  char* block = nullptr;
  size_t size = 0, used = 0, wanted = 0;
  std::vector<void*> overflow;  // of a call that outgrew the block, which is grown after it
  ~Pool() { std::free(block); }
};

thread_local Pool pool;

}  // namespace

void Barrier::wait(int threads) {
  if (threads == 1) return;
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) pause_or_yield(spins);
}

void wait_until(const int64_t* done, int64_t wanted) {
  for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < wanted; ++spins) pause_or_yield(spins);
}

Kept::~Kept() { std::free(block_); }

char* Kept::open(size_t bytes, const int64_t (&layout)[kLayout], bool* fresh) {
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  *fresh = bytes != size_ || !std::equal(layout, layout + kLayout, layout_);
  if (!*fresh) return block_;
  std::free(block_);
  size_ = 0;
  block_ = static_cast<char*>(allocate(bytes));
  if (!block_) throw std::bad_alloc();
  size_ = bytes;
  std::copy(layout, layout + kLayout, layout_);
  return block_;
}

int team_size(int wanted) {
  if (wanted <= 1 || forked.load(std::memory_order_relaxed) || omp_in_parallel()) return 1;
  return wanted < omp_get_thread_limit() ? wanted : omp_get_thread_limit();
}

void run_team(int threads, void (*body)(void*, int), void* context) {
  if (threads <= 1) return body(context, 0);
  const int dynamic = omp_get_dynamic();
  omp_set_dynamic(0);  // the team meets at barriers of its own, so it must be complete
#pragma omp parallel num_threads(threads)
  body(context, omp_get_thread_num());
  omp_set_dynamic(dynamic);
}

Scratch::Scratch() { pool.used = pool.wanted = 0; }

Scratch::~Scratch() {
  for (void* memory : pool.overflow) std::free(memory);
  pool.overflow.clear();
  if (pool.wanted > pool.size && pool.wanted <= kKeptBytes) {
    std::free(pool.block);
    pool.block = static_cast<char*>(allocate(pool.wanted));
    pool.size = pool.block ? pool.wanted : 0;
  }
}

void* Scratch::take_bytes(size_t bytes) {
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  pool.wanted += bytes;
  if (pool.used + bytes <= pool.size) {
    void* memory = pool.block + pool.used;
    pool.used += bytes;
    return memory;
  }
  void* memory = allocate(bytes);
  if (!memory) throw std::bad_alloc();
  pool.overflow.push_back(memory);
  return memory;
}

}  // namespace fastrnn
