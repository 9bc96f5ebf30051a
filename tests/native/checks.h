// What the native tests count, from whatever thread: one line for each check that fails, and a count at the end.
#pragma once

#include <atomic>
#include <cstdio>
#include <string>

inline std::atomic<int> checks{0}, failures{0};

inline void check(bool passed, const std::string& what) {
  ++checks;
  if (passed) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

// What main returns.
inline int count_up(const char* tests) {
  std::printf("%s: %d passed, %d failed\n", tests, checks - failures, failures.load());
  return failures != 0;
}
