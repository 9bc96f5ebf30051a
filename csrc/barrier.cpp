#include "barrier.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <thread>

#include "assumptions.h"
#include "machine.h"
#include "waiting.h"

namespace fastrnn {
namespace {

// Times as long as a team was late it is not tried again: what is lost to company is a part of 16, 6%, of the time.
constexpr int64_t kRepay = 16;
constexpr uint64_t kRoundBits = 16;

// Until when, in us, and how many threads: one word, so that both belong together.
std::atomic<uint64_t> company{0};

std::atomic<int> late_by_assumption{0}, absent_by_assumption{0};

}  // namespace

int most_in_company() {
  const uint64_t noted = company.load(std::memory_order_relaxed);
  if (!noted) return INT_MAX;
  if (static_cast<uint64_t>(now() / 1000) < noted >> kRoundBits) return static_cast<int>(noted & 0xffff);
  uint64_t seen = noted;
  company.compare_exchange_strong(seen, 0, std::memory_order_relaxed);
  return INT_MAX;
}

void note_company(int64_t late, int threads) {
  const auto until = static_cast<uint64_t>((now() + kRepay * late) / 1000);
  company.store(until << kRoundBits | static_cast<uint64_t>(threads), std::memory_order_relaxed);
}

void forget_company() { company.store(0, std::memory_order_relaxed); }

void assume_late(int every) { late_by_assumption.store(every, std::memory_order_relaxed); }

void assume_absent(int every) { absent_by_assumption.store(every, std::memory_order_relaxed); }

// Those who arrive at one counter do so one behind the other, each with its cache line: n threads in g groups take
// n / g + g turns in all, least where g is the root of n, here rounded down to a power of two; below six threads one
// counter takes no more.
bool Barrier::arrives_last(int share, int threads) {
  int groups = threads < 6 ? 1 : 2;
  while (groups < kGroups && 4 * groups * groups <= threads) groups *= 2;
  // Neighbours go to one counter: runtimes that bind threads put them side by side, in one cache domain.
  const int group = share * groups / threads;
  const auto first = [&](int of) { return (of * threads + groups - 1) / groups; };
  const int members = first(group + 1) - first(group);
  std::atomic<int>& arrived = groups_[group].arrived;
  if (arrived.fetch_add(1, std::memory_order_acq_rel) != members - 1) return false;
  arrived.store(0, std::memory_order_relaxed);
  if (groups == 1) return true;
  if (root_.arrived.fetch_add(1, std::memory_order_acq_rel) != groups - 1) return false;
  root_.arrived.store(0, std::memory_order_relaxed);
  return true;
}

// Ends the round; returns how many threads go on.
int Barrier::release(uint32_t round, int came) {
  int threads = came;
  const uint64_t late = late_.load(std::memory_order_relaxed);
  if (late && (late & 0xffff) == (round & 0xffff)) {
    const int64_t since = static_cast<int64_t>(late >> kRoundBits) * 1000, waited = now() - since;
    // Late by more than rounds take on the whole: a step of some ms may be late by much for no other's sake.
    const int64_t usual = (since - begin_) / (round + 1);
    if (waited > std::max(slice() / kLatePart, usual / 2)) {
      const int fewer = (threads + 1) / 2;
      note_company(waited, fewer * teams_);
      if (!stays_) threads = fewer;
    }
  }
  if (const int every = late_by_assumption.load(std::memory_order_relaxed); every && (round + 1) % every == 0)
    threads = (threads + 1) / 2;
  if (fixed_) threads = came;
  size_.store(uint64_t{round + 1} << 32 | static_cast<uint32_t>(threads), std::memory_order_relaxed);
  round_.store(round + 1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst)) wake_all(&round_);
  return threads;
}

void Barrier::sleep(uint32_t round, int64_t since) {
  if (uint64_t late = late_.load(std::memory_order_relaxed); !late || (late & 0xffff) != (round & 0xffff)) {
    const uint64_t mark = static_cast<uint64_t>(since / 1000) << kRoundBits | (round & 0xffff);
    late_.compare_exchange_strong(late, mark, std::memory_order_relaxed);
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (round_.load(std::memory_order_seq_cst) == round) sleep_while(&round_, round);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

// Who is behind is never alone, for that one does all shares itself, and rounds that are over had two at least.
void Barrier::pass(Seat& seat) {
  const uint64_t size = size_.load(std::memory_order_relaxed);
  const bool behind = static_cast<uint32_t>(size >> 32) != ++seat.round;
  seat.threads = std::max(static_cast<int>(size), behind ? 2 : 1);
}

bool Barrier::meet(Seat& seat) {
  if (seat.threads == 1) return true;
  if (arrives_last(seat.thread, seat.threads)) {
    seat.threads = release(seat.round++, seat.threads);
  } else {
    const auto waits = [&] { return round_.load(std::memory_order_acquire) == seat.round; };
    if (const int64_t since = spin(waits)) sleep(seat.round, since);
    pass(seat);
  }
  return seat.thread < seat.threads;
}

// Rounds without take leave the counts behind.
bool Barrier::takes(int share, uint32_t round) {
  std::atomic<uint32_t>& rounds = shares_[share].rounds;
  uint32_t seen = rounds.load(std::memory_order_relaxed);
  return static_cast<int32_t>(seen - round) <= 0 &&
         rounds.compare_exchange_strong(seen, round + 1, std::memory_order_relaxed);
}

// From its neighbour's on, so that several who help begin with different ones.
int Barrier::take_of_others(const Seat& seat) {
  for (int i = 1; i < seat.threads; ++i)
    if (const int share = (seat.thread + i) % seat.threads; takes(share, seat.round)) return share;
  return -1;
}

int Barrier::take(Seat& seat) {
  if (const auto every = static_cast<uint32_t>(absent_by_assumption.load(std::memory_order_relaxed));
      every && (seat.round + static_cast<uint32_t>(seat.thread)) % every == 0)
    std::this_thread::sleep_for(std::chrono::nanoseconds(4 * kSpin));
  return takes(seat.thread, seat.round) ? seat.thread : take_more(seat);
}

int Barrier::next(Seat& seat, int done) {
  if (!arrives_last(done, seat.threads)) return take_more(seat);
  seat.threads = release(seat.round++, seat.threads);
  return -1;
}

// A share that nobody has begun, once it was waited for; from then on at once, for a thread that lost its CPU has none
// for many rounds. Nobody sleeps before all are taken.
int Barrier::take_more(Seat& seat) {
  const auto waits = [&] { return round_.load(std::memory_order_acquire) == seat.round; };
  int64_t since = seat.helps ? 0 : spin(waits);
  if (seat.helps || since) {
    const int share = take_of_others(seat);
    seat.helps = share >= 0;
    if (seat.helps) return share;
    if (!since) since = spin(waits);
    if (since) sleep(seat.round, since);
  }
  pass(seat);
  return -1;
}

Progress::Progress() = default;

void Progress::publish(int64_t done) {
  done_.store(done, std::memory_order_seq_cst);
  if (!sleepers_.load(std::memory_order_seq_cst)) return;
  wakes_.fetch_add(1, std::memory_order_seq_cst);
  wake_all(&wakes_);
}

void Progress::wait_until(int64_t wanted) {
  const bool begun = done_.load(std::memory_order_relaxed) > 0;  // the first wait is long by the order of the work
  const int64_t since = spin([&] { return done_.load(std::memory_order_acquire) < wanted; });
  if (!since) return;
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t seen = wakes_.load(std::memory_order_seq_cst);
    if (done_.load(std::memory_order_seq_cst) >= wanted) break;
    sleep_while(&wakes_, seen);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  if (const int64_t waited = now() - since; begun && waited > slice() / kLatePart) note_company(waited, 1);
}

}  // namespace fastrnn
