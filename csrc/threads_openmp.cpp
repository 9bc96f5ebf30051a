// The threads of OpenMP: of torch's runtime, once torch is loaded, so that both share one team.
#include <omp.h>

#include "threads.h"

namespace fastrnn {

// Always as many: a region of fewer makes the runtime end threads, which it starts again for the next one.
void run_on_threads(int, int most, ThreadBody body, void* context) {
#pragma omp parallel num_threads(most)
  body(context, omp_get_thread_num(), omp_get_num_threads());
}

bool inside_threads() { return omp_in_parallel(); }

const char* thread_source() { return "openmp"; }

}  // namespace fastrnn
