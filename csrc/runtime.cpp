#include "runtime.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <cfenv>
#include <cstdint>

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

}  // namespace

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

}  // namespace fastrnn
