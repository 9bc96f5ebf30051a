// An instruction set's kernels for a program that runs streams alone: those of prepared.cpp, all others null.
#include "tables.h"

namespace fastrnn {
namespace FASTRNN_NAMESPACE {

void add_prepared(Kernels& to);  // in prepared.cpp

const Kernels& table() {
  static const Kernels all = [] {
#if defined(__AMX_BF16__)
    Kernels kernels = avx512_bf16::table();
    kernels.name = FASTRNN_TEXT(FASTRNN_NAMESPACE);
#else
#if defined(__AVX512VNNI__)
    Kernels kernels = avx512::table();
#else
    Kernels kernels{};
#endif
    kernels.name = FASTRNN_TEXT(FASTRNN_NAMESPACE);
#if defined(__AVX512BF16__)
    kernels.multiplies_bfloat16 = true;
#endif
    add_prepared(kernels);
#endif
    return kernels;
  }();
  return all;
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace fastrnn
