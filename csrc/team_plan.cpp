#include "team_plan.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "assumptions.h"
#include "barrier.h"
#include "machine.h"
#include "runtime.h"
#include "scan.h"

namespace fastrnn {
namespace {

// Part of a cache that weights find for themselves: what else a step touches passes through the rest.
constexpr double kCacheShare = 0.75;
// What a further thread has to bring: the rates, measured again, differ by as much, so less is nothing that is known.
constexpr double kGain = 0.98;

double levels(int threads) { return std::ceil(std::log2(static_cast<double>(threads))); }
double share(int64_t all, int64_t parts) { return std::ceil(double(all) / double(parts)) / double(all); }

struct Rates {
  double start, meeting, multiply_adds, read;
};

// The least of some, since whatever else goes on only makes it longer.
template <class Body>
double least_time(int tries, const Body& body) {
  double least = 1e300;
  for (int i = 0; i < tries; ++i) {
    const int64_t begin = now();
    body();
    least = std::min(least, static_cast<double>(now() - begin) / 1000);
  }
  return std::max(least, 1e-3);
}

// Reads memory as products do, in whole vectors.
float sum_of(const std::vector<float>& memory) {
  typedef float Four __attribute__((vector_size(16)));
  Four sums[8] = {};
  for (size_t i = 0; i + 32 <= memory.size(); i += 32)
    for (size_t v = 0; v < 8; ++v) {
      Four next;
      std::memcpy(&next, &memory[i + 4 * v], sizeof(next));
      sums[v] += next;
    }
  float all = 0;
  for (const Four& sum : sums) all += sum[0] + sum[1] + sum[2] + sum[3];
  return all;
}

// Two threads that meet, again and again, and read each time what the other one has written before.
struct Meetings {
  static constexpr int kCount = 40, kTogether = 4;
  struct alignas(64) Line {
    std::atomic<int> written{0};
  };
  Barrier barrier;
  Line lines[2][2];
  double least = 1e300;

  static void run(void* context, int thread) {
    auto& all = *static_cast<Meetings*>(context);
    Seat seat{thread, 2};
    for (int i = 0, turn = 0; i < kCount; ++i) {
      const int64_t begin = now();
      for (int end = turn + kTogether; turn < end; ++turn) {
        all.lines[turn % 2][thread].written.store(turn, std::memory_order_relaxed);
        if (!all.barrier.meet(seat) || seat.threads == 1) return;  // in company that ends a measurement
        if (all.lines[turn % 2][1 - thread].written.load(std::memory_order_relaxed) != turn) std::abort();
      }
      if (thread == 0) all.least = std::min(all.least, static_cast<double>(now() - begin) / 1000 / kTogether);
    }
  }
};

// What the machine does, measured at the first call that asks. The meeting of two threads is tried again at later calls
// until two have been seen that both had their CPUs; until then one is taken for granted that is neither slow nor fast.
class Measurement {
 public:
  Rates rates() {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return {kStart, kMeeting, multiply_adds_.load(), read_.load()};
    if (multiply_adds_.load() == 0) measure_one();
    if (tries_ < kTries && meeting_ > kSlow && most_in_company() == INT_MAX) ++tries_, measure_two();
    const bool seen = meeting_ <= kSlow;
    return {seen ? start_ : kStart, seen ? meeting_ : kMeeting, multiply_adds_.load(), read_.load()};
  }

 private:
  static constexpr double kStart = 8, kMeeting = 0.6;  // us
  static constexpr double kSlow = 3;                   // a longer meeting was not of two threads with a CPU each
  static constexpr int kTries = 20;

  void measure_one() {
    constexpr int64_t kProducts = 1 << 19;
    const double products = least_time(5, [] { kernels().multiply_adds(kProducts); });
    const std::vector<float> memory(static_cast<size_t>(std::min<int64_t>(cache_bytes() / 2, 1 << 20)) / sizeof(float));
    volatile float kept = 0;
    const double reading = least_time(5, [&] { kept = sum_of(memory); });
    read_ = static_cast<double>(memory.size() * sizeof(float)) / reading;
    multiply_adds_ = kProducts / products;
  }

  void measure_two() {
    Team team(2);
    if (team.size() < 2) return;
    Meetings meetings;
    if (!team.run(2, Meetings::run, &meetings)) return;
    const double start = least_time(3, [&] { static_cast<void>(team.run(2, [](void*, int) {}, nullptr)); });
    meeting_ = std::min(meeting_, std::max(0.02, meetings.least));
    // A team that has waited for some time sleeps, and a call has an end as well as a start.
    start_ = std::min(start_, std::clamp(2 * start, 4.0, 20.0));
  }

  std::mutex mutex_;
  std::atomic<double> multiply_adds_{0}, read_{0};
  double start_ = 1e300, meeting_ = 1e300;
  int tries_ = 0;
};

Rates assumed{};

Rates rates() {
  if (assumed.multiply_adds > 0) return assumed;
  static Measurement measurement;
  return measurement.rates();
}

}  // namespace

double predicted_time(const TeamWork& work, const Machine& machine, TeamPlan plan) {
  const int own = plan.threads, all = plan.side_by_side ? own * work.directions : own;
  const int members = plan.members();
  const double row_share = plan.groups > 1 ? share(work.batch, plan.groups) : 1;
  const double unit_share = share(work.panels, members);
  const double rows = double(work.rows) / double(work.steps);
  const double products = rows * work.recurrent * row_share * unit_share / machine.multiply_adds;
  const double step = std::max(products, work.weight_bytes * unit_share / machine.read);
  const bool meets = members > 1 && work.meet_by_units;
  const double steps = double(work.steps) * (step + (meets ? machine.meeting * levels(members) : 0));
  const double ahead = double(work.rows) * work.ahead * row_share * unit_share / machine.multiply_adds;
  const int one_behind_the_other = plan.side_by_side ? 1 : work.directions;
  return one_behind_the_other * (steps + ahead) + (all > 1 ? machine.start * levels(all) : 0);
}

TeamPlan plan_team(const TeamWork& work, const Machine& machine) {
  TeamPlan best;
  const double alone = predicted_time(work, machine, best);
  double time = alone;
  // A team may have to wait for one of its threads for a slice.
  constexpr double kSlices = 2;
  const bool stays = alone >= kSlices * machine.slice;
  const int most_at_once = stays ? machine.threads : std::min(machine.threads, machine.threads_in_company);
  const auto consider = [&](int groups, int members, int directions) {
    const TeamPlan plan{groups * members, directions > 1, groups, stays};
    const double predicted = predicted_time(work, machine, plan);
    if (predicted < time * kGain) time = predicted, best = plan;
  };
  const auto shares_rows = [&](int groups, int members) {
    const bool fits = work.weight_bytes * share(work.panels, members) < kCacheShare * machine.cache;
    const bool is_least = 2 * members > std::min<int64_t>(work.panels, most_at_once);
    return work.least_rows > 0 && work.batch >= groups * work.least_rows && (fits || is_least);
  };
  // More threads than this cannot bring what they cost to start.
  const int most = static_cast<int>(std::min<double>(most_at_once, 1 + alone / machine.start * 2));
  for (int all = 2; all <= most; ++all)
    for (int directions = all % work.directions ? 1 : work.directions; directions >= 1; directions -= 1) {
      const int threads = all / directions, most_members = static_cast<int>(std::min<int64_t>(threads, work.panels));
      for (int members = 1; members <= most_members; ++members)
        if (const int groups = threads / members; groups * members == threads)
          if (groups == 1 || shares_rows(groups, members)) consider(groups, members, directions);
    }
  return best;
}

double predicted_wavefront(const TeamWork& work, const Machine& machine, int height, int64_t piece) {
  const double pieces = std::ceil(double(work.rows) / double(piece));
  const double alone = predicted_time(work, machine, TeamPlan{});
  return alone * (1 + (height - 1) / pieces) + pieces * machine.meeting + machine.start * levels(height);
}

int plan_wavefront(const TeamWork& work, const Machine& machine, int layers, int64_t piece) {
  const int most = std::min({machine.threads, machine.threads_in_company, layers});
  if (work.directions > 1 || work.weight_bytes >= kCacheShare * machine.cache) return 1;
  int best = 1;
  double time = predicted_time(work, machine, TeamPlan{});  // of a layer
  for (int height = 2; height <= most; ++height) {
    const double predicted = predicted_wavefront(work, machine, height, piece) / height;
    if (predicted < time * kGain) time = predicted, best = height;
  }
  return time < predicted_time(work, machine, plan_team(work, machine)) ? best : 1;
}

void assume_rates(double start, double meeting, double multiply_adds, double read) {
  assumed = {start, meeting, multiply_adds, read};
}

Machine this_machine(int threads) {
  const Rates all = rates();
  return {all.start,
          all.meeting,
          all.multiply_adds,
          all.read,
          static_cast<double>(cache_bytes()),
          threads,
          std::min(threads, most_in_company()),
          static_cast<double>(slice()) / 1000};
}

}  // namespace fastrnn
