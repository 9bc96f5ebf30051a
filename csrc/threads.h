// Where the threads of a team come from: OpenMP's (threads_openmp.cpp), or a pool of std::thread of our own alone
// (threads_std.cpp). A build has one of the two files, by FASTRNN_THREADS, and nothing else knows which.
#pragma once

namespace fastrnn {

// What a thread runs: `thread` is its number among the `came` that there are, 0 that of the caller. Must not throw.
using ThreadBody = void (*)(void* context, int thread, int came);

// What is known of the runtime that the caller takes its threads from. Of a caller who asks again and again, `most` is
// the largest number that it needs; `crowded` whether the runtime has more than there are CPUs.
struct Runtime {
  int most;
  bool crowded;
};

// Runs it on `needed` threads at once, the caller being one, and returns when all have; on fewer where there are no
// more to be had, on others as well where that costs nothing.
void run_on_threads(int needed, const Runtime& runtime, ThreadBody body, void* context);

// Whether the calling thread runs such a body, or one of the caller's own that leaves no threads for another.
bool inside_threads();

// "openmp" or "std".
const char* thread_source();

}  // namespace fastrnn
