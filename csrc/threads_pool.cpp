// A pool of std::thread.
//
// Workers that nobody uses stand in one list of the process. A caller takes as many as it needs, starts those that
// lack, and puts all back at the end, so that as many threads exist as ever worked at once. The one who was put back
// last is taken first: a caller that is alone always has the same. A worker waits for work as teams wait at their
// meetings, a short time by the clock, then asleep. Workers never end: the process ends under them, as it does under
// OpenMP's.
#include "threads_pool.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "waiting.h"

namespace fastrnn {
namespace {

struct Job;

// One word says who waits for whom, so that nobody sleeps through a change: whoever makes it learns, by the exchange,
// whether the other one sleeps; and who wants to sleep does so only if the word has not changed.
enum State : uint32_t {
  kIdle,     // the worker waits for work
  kAsleep,   // the same, asleep
  kWorking,  // it has work
  kAwaited,  // the same, and the caller sleeps until it is done
};

struct alignas(64) Worker {
  std::atomic<uint32_t> state{kIdle};
  int thread = 0;            // its number and its work: written before kWorking by whoever gives them,
  const Job* job = nullptr;  // read before kIdle by the worker
};

// One call of run_on_pool.
struct Job {
  ThreadBody body;
  void* context;
  int came;
  Worker* const* workers;  // of the threads from 1 on
};

thread_local bool inside = false;

void wait_while(Worker& worker, State state, State sleeping) {
  if (!spin([&] { return worker.state.load(std::memory_order_acquire) == state; })) return;
  uint32_t seen = state;
  if (!worker.state.compare_exchange_strong(seen, sleeping, std::memory_order_acq_rel, std::memory_order_acquire))
    return;
  while (worker.state.load(std::memory_order_acquire) == sleeping) sleep_while(&worker.state, sleeping);
}

// A worker's state is `state` from here on; wakes the other one if it sleeps.
void change(Worker& worker, State state, State sleeping) {
  if (worker.state.exchange(state, std::memory_order_acq_rel) == sleeping) wake_all(&worker.state);
}

// Each thread gives work to two others, so that n have it after log2 n of those.
void run(const Job& job, int thread) {
  for (int next = 2 * thread + 1; next <= 2 * thread + 2 && next < job.came; ++next) {
    Worker& worker = *job.workers[next - 1];
    worker.job = &job, worker.thread = next;
    change(worker, kWorking, kAsleep);
  }
  job.body(job.context, thread, job.came);
}

void work(Worker* own) {
  inside = true;
  for (;;) {
    wait_while(*own, kIdle, kAsleep);
    run(*own->job, own->thread);
    change(*own, kIdle, kAwaited);
  }
}

class Pool {
 public:
  // Adds so many workers, or as many as there can be.
  void take(std::vector<Worker*>& to, size_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    to.reserve(count);
    for (; to.size() < count && !idle_.empty(); idle_.pop_back()) to.push_back(idle_.back());
    try {
      while (to.size() < count) to.push_back(start());
    } catch (const std::system_error&) {  // the system gives no more threads: the caller learns how many came
    }
  }

  void put_back(const std::vector<Worker*>& workers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.insert(idle_.end(), workers.rbegin(), workers.rend());
  }

 private:
  Worker* start() {
    idle_.reserve(started_ + 1);  // so that none needs memory to come back
    auto worker = std::make_unique<Worker>();
    std::thread(work, worker.get()).detach();
    ++started_;
    return worker.release();
  }

  std::mutex mutex_;
  std::vector<Worker*> idle_;
  size_t started_ = 0;
};

Pool& pool() {
  static Pool* const all = new Pool;  // never destroyed: its workers are there until the process ends
  return *all;
}

}  // namespace

void run_on_pool(int needed, ThreadBody body, void* context) {
  if (inside) return body(context, 0, 1);
  thread_local std::vector<Worker*> workers;
  workers.clear();
  pool().take(workers, static_cast<size_t>(needed) - 1);
  const Job job{body, context, static_cast<int>(workers.size()) + 1, workers.data()};
  inside = true;
  run(job, 0);
  inside = false;
  // In order: who gave a worker its work stands before it, and was done only after it had given it.
  for (Worker* worker : workers) wait_while(*worker, kWorking, kAwaited);
  pool().put_back(workers);
}

bool inside_pool() { return inside; }

}  // namespace fastrnn
