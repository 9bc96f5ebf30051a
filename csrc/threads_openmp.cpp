// The threads of OpenMP: of torch's runtime, once torch is loaded, so that both share one team. Its idle threads spin
// for some milliseconds in case of another region, which a team of other threads would have to share the CPUs with.
//
// But not where it has more threads than there are CPUs: they sleep soon, and of the two ways to run on few of them
// each costs: a region of few makes the runtime end the others, which it starts again for torch's next operator, and
// one of all wakes them to do nothing. There the pool serves.
#include <omp.h>

#include "threads_pool.h"

namespace fastrnn {

// Always as many, for the same reason.
void run_on_threads(int needed, const Runtime& runtime, ThreadBody body, void* context) {
  if (runtime.crowded) return run_on_pool(needed, body, context);
#pragma omp parallel num_threads(runtime.most)
  body(context, omp_get_thread_num(), omp_get_num_threads());
}

bool inside_threads() { return omp_in_parallel() || inside_pool(); }

const char* thread_source() { return "openmp"; }

}  // namespace fastrnn
