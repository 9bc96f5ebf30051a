#include "runtime.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace fastrnn {
namespace {

std::atomic<bool> forked{false};

void note_fork() { forked.store(true); }

const int fork_handler = pthread_atfork(nullptr, nullptr, note_fork);

// Turns of waiting after which a thread gives its core away: the other one may want that very core.
constexpr int kPatience = 4000;
const int processors = omp_get_num_procs();

// One turn of waiting for another thread, which runs on a core of its own unless that has lasted long.
inline void pause_or_yield(int spins, int patience) {
  if (spins >= patience) {
    sched_yield();
    return;
  }
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How the calling thread rounds, and whether denormals count as zeros to it (torch.set_flush_denormal): a register,
// read and written 20 times as fast as by the standard library, which stands in for it elsewhere.
#if defined(__x86_64__)
using FloatMode = unsigned;
FloatMode float_mode() { return __builtin_ia32_stmxcsr(); }
void set_float_mode(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = std::fenv_t;
FloatMode float_mode() {
  FloatMode mode;
  std::fegetenv(&mode);
  return mode;
}
void set_float_mode(const FloatMode& mode) { std::fesetenv(&mode); }
#endif

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
  const int patience = threads <= processors ? kPatience : 0;
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) pause_or_yield(spins, patience);
}

void wait_until(const int64_t* done, int64_t wanted) {
  for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < wanted; ++spins) pause_or_yield(spins, kPatience);
}

WeightCache::~WeightCache() { std::free(block_); }

char* WeightCache::open(size_t bytes, const int64_t (&layout)[kLayout], bool* fresh) {
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

Team::Team(int wanted)
    : size_(wanted <= 1 || forked.load(std::memory_order_relaxed) || omp_in_parallel() ? 1 : wanted) {}

bool Team::run(int threads, void (*body)(void*, int), void* context) {
  if (threads <= 1) return body(context, 0), true;
  const FloatMode mode = float_mode();
  int came = 0;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    if (thread == 0) came = omp_get_num_threads();
    if (omp_get_num_threads() == threads) {
      const FloatMode own = float_mode();
      set_float_mode(mode);
      body(context, thread);
      set_float_mode(own);
    }
  }
  if (came == threads) return true;
  size_ = came;
  return false;
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

void* Scratch::take_bytes(int64_t count, size_t item) {
  if (count < 0 || static_cast<size_t>(count) > PTRDIFF_MAX / item) throw std::bad_alloc();
  size_t bytes = static_cast<size_t>(count) * item;
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  pool.wanted += bytes;
  if (pool.used + bytes <= pool.size) {
    void* memory = pool.block + pool.used;
    pool.used += bytes;
    return memory;
  }
  pool.overflow.push_back(nullptr);  // first, since it throws where there is no memory for it
  void*& memory = pool.overflow.back();
  memory = allocate(bytes);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace fastrnn
