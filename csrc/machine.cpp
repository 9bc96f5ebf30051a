#include "machine.h"

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace fastrnn {
namespace {

// What systems tell: CPUs by a quota, INT_MAX for none; by affinity; and bytes of second-level cache that a core has
// for itself, 0 where nothing is known.
#if defined(__linux__)

// The first line of a file, or nothing.
std::string line_of(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// How many CPUs a list as "0-3,8" names.
int64_t count_of_list(const std::string& list) {
  int64_t count = 0;
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t dash = part.find('-');
    const int64_t first = std::atoll(part.c_str());
    count += dash == std::string::npos ? 1 : std::atoll(part.c_str() + dash + 1) - first + 1;
  }
  return count;
}

// The tightest quota of a group and those around it; INT_MAX for none. `group` is its path below `root`.
template <class Quota>
int tightest(const std::string& root, std::string group, Quota quota) {
  int most = INT_MAX;
  for (;;) {
    if (const int cpus = quota(root + group + "/")) most = std::min(most, cpus);
    const size_t slash = group.find_last_of('/');
    if (slash == std::string::npos) return most;
    group.resize(slash);
  }
}

// Each line of /proc/self/cgroup is number:controllers:path, with no controllers for version 2. In a container the
// path may be the host's; its own group is then the root.
int cpus_of_groups() {
  int most = INT_MAX;
  std::ifstream groups("/proc/self/cgroup");
  const auto second = [](const std::string& at) { return cpus_of_quota(line_of(at + "cpu.max").c_str()); };
  const auto first = [](const std::string& at) {
    return cpus_of_quota((line_of(at + "cpu.cfs_quota_us") + " " + line_of(at + "cpu.cfs_period_us")).c_str());
  };
  for (std::string line; std::getline(groups, line);) {
    const size_t begin = line.find(':'), end = line.find(':', begin + 1);
    if (begin == std::string::npos || end == std::string::npos) continue;
    const std::string controllers = "," + line.substr(begin + 1, end - begin - 1) + ",", group = line.substr(end + 1);
    if (controllers == ",,")
      for (const char* root : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"})
        most = std::min(most, tightest(root, group, second));
    else if (controllers.find(",cpu,") != std::string::npos)
      for (const char* root : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"})
        most = std::min(most, tightest(root, group, first));
  }
  return most;
}

int cpus_of_affinity() {
  for (int known = CPU_SETSIZE; known <= 1 << 16; known *= 2) {  // the system refuses a set of fewer than it may have
    cpu_set_t* const set = CPU_ALLOC(known);
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(known);
    const int cpus = sched_getaffinity(0, bytes, set) ? 0 : CPU_COUNT_S(bytes, set);
    CPU_FREE(set);
    if (cpus) return cpus;
  }
  return 0;
}

int64_t cache_of_core() {
  const std::string cpu = "/sys/devices/system/cpu/cpu0/";
  const int64_t siblings = std::max<int64_t>(1, count_of_list(line_of(cpu + "topology/thread_siblings_list")));
  for (int index = 0; index < 8; ++index) {
    const std::string cache = cpu + "cache/index" + std::to_string(index) + "/";
    if (line_of(cache + "level") != "2" || line_of(cache + "type") == "Instruction") continue;
    const int64_t cores = std::max<int64_t>(1, count_of_list(line_of(cache + "shared_cpu_list")) / siblings);
    if (const int64_t size = std::atoll(line_of(cache + "size").c_str())) return size * 1024 / cores;
  }
#if defined(_SC_LEVEL2_CACHE_SIZE)
  if (const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE); size > 0) return size;
#endif
  return 0;
}

#elif defined(__APPLE__)

int64_t told(const char* name) {
  int64_t value = 0;  // what is asked for may have 4 bytes: the processors are little-endian
  size_t bytes = sizeof(value);
  return sysctlbyname(name, &value, &bytes, nullptr, 0) ? 0 : value;
}

int cpus_of_groups() { return INT_MAX; }

int cpus_of_affinity() { return 0; }  // there is none

// Of the fast cores, of which some share a cache; Intel's have one each.
int64_t cache_of_core() {
  if (const int64_t shared = told("hw.perflevel0.l2cachesize"))
    return shared / std::max<int64_t>(1, told("hw.perflevel0.cpusperl2"));
  return told("hw.l2cachesize");
}

#elif defined(_WIN32)

int cpus_of_groups() { return INT_MAX; }

int cpus_of_affinity() {
  DWORD_PTR own = 0, all = 0;
  return GetProcessAffinityMask(GetCurrentProcess(), &own, &all) ? __builtin_popcountll(own) : 0;
}

int64_t cache_of_core() {
  DWORD bytes = 0;
  GetLogicalProcessorInformation(nullptr, &bytes);
  std::vector<SYSTEM_LOGICAL_PROCESSOR_INFORMATION> all(bytes / sizeof(SYSTEM_LOGICAL_PROCESSOR_INFORMATION));
  if (all.empty() || !GetLogicalProcessorInformation(all.data(), &bytes)) return 0;
  int64_t cores = 0;
  const auto cache = std::find_if(all.begin(), all.end(), [](const auto& one) {
    return one.Relationship == RelationCache && one.Cache.Level == 2 && one.Cache.Type != CacheInstruction;
  });
  if (cache == all.end()) return 0;
  for (const auto& one : all)
    cores += one.Relationship == RelationProcessorCore && (one.ProcessorMask & cache->ProcessorMask);
  return cache->Cache.Size / std::max<int64_t>(1, cores);
}

#else

int cpus_of_groups() { return INT_MAX; }
int cpus_of_affinity() { return 0; }
int64_t cache_of_core() { return 0; }

#endif

}  // namespace

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int cpus_of_quota(const char* text) {
  char* end;
  const double quota = std::strtod(text, &end), period = std::strtod(end, nullptr);
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::min(1e6, std::max(1.0, quota / period + 0.999)));
}

int usable_cpus() {
  static const int limit = [] {
    const char* said = std::getenv("FASTRNN_CPUS");
    const int cpus = said ? std::atoi(said) : 0;
    return cpus > 0 ? -cpus : cpus_of_groups();
  }();
  if (limit < 0) return -limit;
  static std::atomic<int> found{0};
  static std::atomic<int64_t> asked{0};
  constexpr int64_t kFresh = 10'000'000;
  const int64_t time = now();
  int cpus = found.load(std::memory_order_relaxed);
  if (!cpus || time - asked.load(std::memory_order_relaxed) > kFresh) {
    cpus = cpus_of_affinity();
    if (!cpus) cpus = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    cpus = std::min(limit, cpus);
    found.store(cpus, std::memory_order_relaxed);
    asked.store(time, std::memory_order_relaxed);
  }
  return cpus;
}

int64_t cache_bytes() {
  // Of a system that does not tell: what server cores of the last ten years have at least.
  static const int64_t bytes = std::max<int64_t>(cache_of_core(), 0);
  return bytes ? bytes : int64_t{1} << 20;
}

int64_t slice() {
  static const int64_t length = [] {
    int64_t told = 0;
#if defined(__linux__)
    timespec interval{};
    if (!sched_rr_get_interval(0, &interval)) told = interval.tv_sec * 1'000'000'000 + interval.tv_nsec;
#endif
    // A policy without slices says 0; some systems say 100 ms, after which no call would notice anything.
    return std::clamp<int64_t>(told ? told : 3'000'000, 750'000, 6'000'000);
  }();
  return length;
}

}  // namespace fastrnn
