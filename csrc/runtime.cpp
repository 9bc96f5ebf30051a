#include "runtime.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <algorithm>
#include <cfenv>
#include <cstdint>

#include "barrier.h"
#include "machine.h"
#include "threads.h"

namespace fastrnn {
namespace {

std::atomic<bool> forked{false};

#if !defined(_WIN32)
void note_fork() { forked.store(true); }

const int fork_handler = pthread_atfork(nullptr, nullptr, note_fork);
#endif

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
    : size_(wanted <= 1 || forked.load(std::memory_order_relaxed) || inside_threads()
                ? 1
                : std::min(wanted, usable_cpus())),
      crowded_(wanted > size_) {}

bool Team::run(int threads, void (*body)(void*, int), void* context) {
  if (threads <= 1) return body(context, 0), true;
  struct Call {
    const FloatMode mode;
    const int threads;
    void (*const body)(void*, int);
    void* const context;
    int came;
    int64_t done;  // when this thread was
  } call{float_mode(), threads, body, context, 0, 0};
  const int64_t begin = now();
  run_on_threads(
      threads, {size_, crowded_},
      [](void* of, int thread, int came) {
        Call& call = *static_cast<Call*>(of);
        if (thread == 0) call.came = came;
        if (came < call.threads || thread >= call.threads) return;
        const FloatMode own = float_mode();
        set_float_mode(call.mode);
        call.body(call.context, thread);
        set_float_mode(own);
        if (thread == 0) call.done = now();
      },
      &call);
  if (call.came >= threads) {
    // A thread that was woken for the last meeting, or shares rows, may find no CPU to end on.
    if (const int64_t end = now(), waited = end - call.done;
        waited > slice() / kLatePart && waited > (call.done - begin) / 2)
      note_company(waited, (threads + 1) / 2);
    return true;
  }
  size_ = call.came;
  return false;
}

}  // namespace fastrnn
