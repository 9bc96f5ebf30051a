// What this machine gives the process: CPUs, caches, and the scheduler's slice, as the system tells them.
#pragma once

#include <cstdint>

namespace fastrnn {

// Nanoseconds of a clock that never goes back.
int64_t now();

// CPUs that the process may keep busy: those of its affinity, no more than its control groups' quota (versions 1 and 2)
// leaves it, or what FASTRNN_CPUS in the environment says instead. Affinity is asked again every 10 ms.
int usable_cpus();

// A quota in whole CPUs, at least 1, by the text of cpu.max ("200000 100000", "max 100000") or, for version 1, of
// cpu.cfs_quota_us and cpu.cfs_period_us with a blank between; 0 where there is no limit.
int cpus_of_quota(const char* text);

// Bytes of second-level cache that a core has for itself.
int64_t cache_bytes();

// For how long the scheduler lets a thread run that others wait behind.
int64_t slice();

}  // namespace fastrnn
