// Sleeping on a word: the system's own call where there is one, else condition variables. The build may ask for the
// latter anywhere (FASTRNN_WAITS_ON_CONDITIONS), so that tests run them on any system.
#include "waiting.h"

#if defined(FASTRNN_WAITS_ON_CONDITIONS) || !(defined(__linux__) || defined(_WIN32))
#define FASTRNN_CONDITIONS
#include <condition_variable>
#include <mutex>
#elif defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#else
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

namespace fastrnn {

#if defined(FASTRNN_CONDITIONS)

namespace {

// Where those sleep whose words fall to the same place. Whoever wakes has written the word before, and takes the mutex;
// whoever sleeps asks for the word with the mutex held: so either sees the write, or is found asleep.
struct Place {
  std::mutex mutex;
  std::condition_variable changed;
};

Place& place_of(const void* word) {
  constexpr uintptr_t kPlaces = 64;
  static Place* const places = new Place[kPlaces];  // never destroyed: threads sleep there until the process ends
  return places[reinterpret_cast<uintptr_t>(word) / 64 % kPlaces];
}

}  // namespace

void sleep_while(std::atomic<uint32_t>* word, uint32_t seen) {
  Place& place = place_of(word);
  std::unique_lock<std::mutex> lock(place.mutex);
  if (word->load(std::memory_order_seq_cst) == seen) place.changed.wait(lock);
}

void wake_all(std::atomic<uint32_t>* word) {
  Place& place = place_of(word);
  {
    const std::lock_guard<std::mutex> lock(place.mutex);
  }
  place.changed.notify_all();
}

#elif defined(__linux__)

void sleep_while(std::atomic<uint32_t>* word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

#else

void sleep_while(std::atomic<uint32_t>* word, uint32_t seen) { WaitOnAddress(word, &seen, sizeof(seen), INFINITE); }

void wake_all(std::atomic<uint32_t>* word) { WakeByAddressAll(word); }

#endif

}  // namespace fastrnn
