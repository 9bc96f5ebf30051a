// Threads of our own, beside those of any runtime.
#pragma once

#include "threads.h"

namespace fastrnn {

// run_on_threads on as many as are needed, or as many as the system gives.
void run_on_pool(int needed, ThreadBody body, void* context);

// Whether the calling thread runs such a body.
bool inside_pool();

}  // namespace fastrnn
