// The pool alone, for systems without OpenMP, and for ThreadSanitizer, which sees all of it.
#include "threads_pool.h"

namespace fastrnn {

void run_on_threads(int needed, const Runtime&, ThreadBody body, void* context) { run_on_pool(needed, body, context); }

bool inside_threads() { return inside_pool(); }

const char* thread_source() { return "std"; }

}  // namespace fastrnn
