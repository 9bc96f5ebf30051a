// What every `-inl.h` file stands on. Those files are compiled once per instruction set, each time into a namespace of
// its own: the build names it FASTRNN_NAMESPACE and chooses its compiler flags. An editor, which has neither, sees
// plain C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "barrier.h"
#include "machine.h"
#include "runtime.h"
#include "scan.h"
#include "team_plan.h"

#ifndef FASTRNN_NAMESPACE
#define FASTRNN_NAMESPACE generic
#endif
#define FASTRNN_INLINE inline __attribute__((always_inline))
