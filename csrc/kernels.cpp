// All kernels, compiled once per instruction set: FASTRNN_NAMESPACE names it, the compiler's flags choose it. Nothing
// in here may be an inline function with external linkage outside the namespace (the standard library's templates,
// say): the linker would keep one copy for all, perhaps one that this machine cannot run.
#include "backward-inl.h"
#include "forward-inl.h"
#include "int8-inl.h"
#include "layer-inl.h"
#include "peak-inl.h"
#include "tables.h"
#include "weight_cache-inl.h"

namespace fastrnn {
namespace FASTRNN_NAMESPACE {

#if defined(__AMX_BF16__)
// Rows of a step from which tiles repay. A call of fewer goes to AVX512-BF16 with all of its products.
constexpr int64_t kRowsForTiles = 4;

template <class A>
void by_tiles(const Forward<bfloat16, A>* layers, int count) {
  forward<bfloat16>(layers, count);
}
template <class A>
void by_tiles(const Backward<bfloat16, A>* layers, int count) {
  backward<bfloat16>(layers, count);
}

template <auto Kernels::* kWhich, class Layer>
void where_tiles_repay(const Layer* layers, int count) {
  layers->sizes.batch >= kRowsForTiles ? by_tiles(layers, count) : (avx512_bf16::table().*kWhich)(layers, count);
}
#endif

void run_program(const Run& run);  // in phases.cpp
void add_prepared(Kernels& to);    // in prepared.cpp

const Kernels& table() {
  static const Kernels all = [] {
#if defined(FASTRNN_BASE)
    Kernels kernels = FASTRNN_BASE::table();
#else
    Kernels kernels{};
#endif
    kernels.name = FASTRNN_TEXT(FASTRNN_NAMESPACE);
#if defined(__AMX_BF16__)  // changes products of bfloat16 alone
    kernels.forward_bfloat16 = where_tiles_repay<&Kernels::forward_bfloat16>;
    kernels.forward_mixed = where_tiles_repay<&Kernels::forward_mixed>;
    kernels.backward_bfloat16 = where_tiles_repay<&Kernels::backward_bfloat16>;
    kernels.backward_mixed = where_tiles_repay<&Kernels::backward_mixed>;
#else
#if !defined(FASTRNN_BASE)  // who has a base changes products of int8 and, perhaps, of bfloat16
    kernels.forward_float = forward<float>;
    kernels.forward_double = forward<double>;
    kernels.backward_float = backward<float>;
    kernels.backward_double = backward<double>;
    kernels.multiply_adds = multiply_adds;
    kernels.fingerprint = fingerprint;
#endif
#if !defined(FASTRNN_BASE) || FASTRNN_MULTIPLIES_BFLOAT16
    kernels.multiplies_bfloat16 = FASTRNN_MULTIPLIES_BFLOAT16;
    kernels.forward_bfloat16 = forward<bfloat16>;
    kernels.forward_mixed = forward<bfloat16>;
    kernels.backward_bfloat16 = backward<bfloat16>;
    kernels.backward_mixed = backward<bfloat16>;
#endif
    kernels.forward_int8 = forward_int8;
    kernels.run_program = run_program;
    add_prepared(kernels);
#endif
    return kernels;
  }();
  return all;
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace fastrnn
