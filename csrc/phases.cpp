// The engine of programs, compiled once per instruction set, by the rules of kernels.cpp.
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "phases.h"
#include "runtime.h"
#include "scan.h"

#define FASTRNN_INLINE inline __attribute__((always_inline))

namespace fastrnn {
namespace FASTRNN_NAMESPACE {

// In the order in which they build on each other.
// clang-format off
#include "vector-inl.h"
#include "bfloat16-inl.h"
#include "gemm-inl.h"
#include "pack-inl.h"
#include "weight_cache-inl.h"
#include "int8_product-inl.h"
#include "plan-inl.h"
#include "arrays-inl.h"
#include "part-inl.h"
#include "schedule-inl.h"
#include "phases-inl.h"
// clang-format on

void run_program(const Run& run) {
  Team team(run.threads);
  while (!(run.program->is_double ? run_phases<double>(run, team) : run_phases<float>(run, team))) {
  }
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace fastrnn
