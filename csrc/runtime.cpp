#include "runtime.h"

#include <omp.h>
#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "barrier.h"
#include "machine.h"

namespace fastrnn {
namespace {

std::atomic<bool> forked{false};

void note_fork() { forked.store(true); }

const int fork_handler = pthread_atfork(nullptr, nullptr, note_fork);

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
    : size_(wanted <= 1 || forked.load(std::memory_order_relaxed) || omp_in_parallel()
                ? 1
                : std::min(wanted, usable_cpus())) {}

bool Team::run(int threads, void (*body)(void*, int), void* context) {
  if (threads <= 1) return body(context, 0), true;
  const FloatMode mode = float_mode();
  int came = 0;
  const int64_t begin = now();
  int64_t done = 0;  // when this thread was
  // Always as many: a region of fewer makes the runtime end threads, which it starts again for the next one.
#pragma omp parallel num_threads(size_)
  {
    const int thread = omp_get_thread_num();
    if (thread == 0) came = omp_get_num_threads();
    if (omp_get_num_threads() >= threads && thread < threads) {
      const FloatMode own = float_mode();
      set_float_mode(mode);
      body(context, thread);
      set_float_mode(own);
      if (thread == 0) done = now();
    }
  }
  if (came >= threads) {
    // A thread that was woken for the last meeting, or shares rows, may find no CPU to end on.
    if (const int64_t end = now(), waited = end - done; waited > slice() / 4 && waited > (done - begin) / 2)
      note_company(waited, (threads + 1) / 2);
    return true;
  }
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
