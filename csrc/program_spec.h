// A program's spec, as Python gives it, read and checked: its parts fit together.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "phases.h"
#include "spec_fields.h"

namespace fastrnn {

constexpr int64_t kMostUnits = int64_t{1} << 40;

// A program and what it points to.
struct ProgramSpec {
  Program program{};
  std::vector<std::string> names;  // of the arrays
  std::vector<std::shared_ptr<void>> held;
};

// Throws a ValueError where a field is missing, unknown or out of range, or two things do not fit together.
ProgramSpec read_spec(pybind11::handle spec);

}  // namespace fastrnn
