// An instruction set's kernels for a program that runs streams alone: those of prepared.cpp, all others null.
#include "bfloat16-inl.h"
#include "tables.h"

namespace fastrnn {
namespace FASTRNN_NAMESPACE {

void add_prepared(Kernels& to);  // in prepared.cpp

const Kernels& table() {
  static const Kernels all = [] {
#if defined(FASTRNN_BASE)
    Kernels kernels = FASTRNN_BASE::table();
#else
    Kernels kernels{};
#endif
    kernels.name = FASTRNN_TEXT(FASTRNN_NAMESPACE);
#if !defined(__AMX_BF16__)
    kernels.multiplies_bfloat16 = FASTRNN_MULTIPLIES_BFLOAT16;
    add_prepared(kernels);
#endif
    return kernels;
  }();
  return all;
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace fastrnn
