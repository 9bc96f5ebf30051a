/* stream_steps model.stream STEPS: steps with numbers of their own, every allocation of the process counted meanwhile;
 * prints allocations, the least and the mean time of blocks of 1000 steps in ns a step, and a sum of the results.
 * stream_steps model.stream threads: the same in two threads, each with a handle, whose results must be the same. */
#define _GNU_SOURCE
#include <errno.h>
#include <fastrnn_stream.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* glibc's, under the names that stay its own when a program has its own malloc. */
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
static volatile long allocations;

void* malloc(size_t size) { return __sync_fetch_and_add(&allocations, 1), __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return __sync_fetch_and_add(&allocations, 1), __libc_calloc(count, size); }
void* realloc(void* old, size_t size) { return __sync_fetch_and_add(&allocations, 1), __libc_realloc(old, size); }
int posix_memalign(void** to, size_t alignment, size_t size) {
  __sync_fetch_and_add(&allocations, 1);
  *to = __libc_memalign(alignment, size);
  return *to ? 0 : ENOMEM;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return 1e9 * (double)time.tv_sec + (double)time.tv_nsec;
}

static fastrnn_stream* loaded(const char* path) {
  fastrnn_stream* stream;
  if (fastrnn_stream_load(path, 1, &stream) != FASTRNN_OK) {
    fprintf(stderr, "%s\n", fastrnn_error());
    exit(1);
  }
  return stream;
}

static double steps(fastrnn_stream* stream, long count, double* least, double* mean) {
  const long block = 1000;
  const int64_t inputs = fastrnn_stream_inputs(stream), outputs = fastrnn_stream_outputs(stream);
  static __thread float x[4096], y[4096];
  double sum = 0, begin = now();
  *least = 1e300;
  for (long step = 0; step < count; step += block) {
    const double start = now();
    for (long i = step; i < step + block; ++i) {
      x[i % inputs] = (float)(i % 17) / 8 - 1;
      if (fastrnn_stream_step(stream, x, y) != FASTRNN_OK) exit(1);
    }
    const double time = (now() - start) / block;
    if (time < *least) *least = time;
    for (int64_t i = 0; i < outputs; ++i) sum += y[i];
  }
  *mean = (now() - begin) / (double)count;
  return sum;
}

static void* in_thread(void* path) {
  double* sum = __libc_malloc(sizeof(double));
  double least, mean;
  fastrnn_stream* stream = loaded(path);
  *sum = steps(stream, 20000, &least, &mean);
  fastrnn_stream_free(stream);
  return sum;
}

int main(int count, char** arguments) {
  if (count != 3) return 2;
  if (!strcmp(arguments[2], "threads")) {
    pthread_t threads[2];
    void* sums[2];
    for (int i = 0; i < 2; ++i)
      if (pthread_create(threads + i, NULL, in_thread, arguments[1])) return 1;
    for (int i = 0; i < 2; ++i) pthread_join(threads[i], sums + i);
    return *(double*)sums[0] == *(double*)sums[1] ? 0 : 1;
  }
  fastrnn_stream* stream = loaded(arguments[1]);
  double least, mean, sum;
  const long before = allocations;
  sum = steps(stream, atol(arguments[2]), &least, &mean);
  printf("%ld %.0f %.0f %.9g\n", allocations - before, least, mean, sum);
  printf("%ld in all\n", allocations);
  fastrnn_stream_free(stream);
  return 0;
}
