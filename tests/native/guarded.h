// Arrays that notice a write beside them, of every dtype, read and written as doubles.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "scan.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

using Values = std::vector<double>;

template <class S>
constexpr double kEpsilon = std::numeric_limits<S>::epsilon();
template <>
inline constexpr double kEpsilon<fastrnn::bfloat16> = 1.0 / 128;

template <class S>
S to(double value) {
  return static_cast<S>(value);
}
// Rounded to the nearest, ties to even; a NaN, with the bits of a float's, stays one.
template <>
inline fastrnn::bfloat16 to(double value) {
  const float single = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof(bits));
  if (value == value) bits += 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>(bits >> 16)};
}

template <class S>
double from(S value) {
  return value;
}
inline double from(fastrnn::bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float single;
  std::memcpy(&single, &bits, sizeof(single));
  return single;
}

struct Block {
  virtual ~Block() = default;
  virtual Values values() const = 0;
  virtual bool intact() = 0;
};

// A copy of an array between two bands of a pattern, not aligned to more than its element. Under AddressSanitizer the
// first band may not be touched, and the second is the sanitizer's own, so that reading outside is noticed as well.
template <class S>
class Guarded : public Block {
 public:
  // Filled with NaN.
  explicit Guarded(std::size_t count) : count_(count), block_(new S[kBand + count + kTail]) {
    std::fill_n(block_.get(), kBand + count + kTail, to<S>(kPattern));
    std::fill_n(data(), count, to<S>(std::numeric_limits<double>::quiet_NaN()));
    ASAN_POISON_MEMORY_REGION(block_.get(), 64);
  }
  explicit Guarded(const Values& values) : Guarded(values.size()) {
    std::transform(values.begin(), values.end(), data(), to<S>);
  }
  ~Guarded() override { ASAN_UNPOISON_MEMORY_REGION(block_.get(), 64); }

  S* data() { return block_.get() + kBand; }
  S* or_null() { return count_ ? data() : nullptr; }

  Values values() const override {
    Values read(count_);
    for (std::size_t i = 0; i < count_; ++i) read[i] = from(block_[kBand + i]);
    return read;
  }

  bool intact() override {
    ASAN_UNPOISON_MEMORY_REGION(block_.get(), 64);
    const auto all = [&](const S* first, std::size_t n) {
      return std::all_of(first, first + n, [](S s) { return from(s) == from(to<S>(kPattern)); });
    };
    return all(block_.get(), kBand) && all(data() + count_, kTail);
  }

 private:
  static constexpr std::size_t kBand = 64 / sizeof(S) + 1;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kTail = 0;
#else
  static constexpr std::size_t kTail = kBand;
#endif
  static constexpr double kPattern = -12345.5;
  std::size_t count_;
  std::unique_ptr<S[]> block_;
};
