// All kernels, compiled once per instruction set: FASTRNN_NAMESPACE names it, the compiler's flags choose it. Nothing
// in here may be an inline function with external linkage outside the namespace (the standard library's templates,
// say): the linker would keep one copy for all, perhaps one that this machine cannot run.
#include "backward-inl.h"
#include "forward-inl.h"
#include "int8-inl.h"
#include "layer-inl.h"
#include "peak-inl.h"
#include "weight_cache-inl.h"

#define FASTRNN_TEXT_(name) #name
#define FASTRNN_TEXT(name) FASTRNN_TEXT_(name)

namespace fastrnn {
#if defined(__AVX512VNNI__)
namespace avx512 {
const Kernels& table();
}
#endif
namespace FASTRNN_NAMESPACE {

void run_program(const Run& run);  // in phases.cpp

const Kernels& table() {
#if defined(__AVX512VNNI__)
  static const Kernels all = [] {  // what AVX-512 has, with products of int8 and, perhaps, of bfloat16
    Kernels kernels = avx512::table();
    kernels.name = FASTRNN_TEXT(FASTRNN_NAMESPACE);
    kernels.forward_int8 = forward_int8;
    kernels.run_program = run_program;
#if defined(__AVX512BF16__)
    kernels.multiplies_bfloat16 = true;
    kernels.forward_bfloat16 = forward<bfloat16>;
    kernels.backward_bfloat16 = backward<bfloat16>;
    kernels.forward_mixed = forward<bfloat16>;
    kernels.backward_mixed = backward<bfloat16>;
#endif
    return kernels;
  }();
#else
  static const Kernels all{FASTRNN_TEXT(FASTRNN_NAMESPACE),
                           false,
                           forward<float>,
                           forward<double>,
                           forward<bfloat16>,
                           forward<bfloat16>,
                           backward<float>,
                           backward<double>,
                           backward<bfloat16>,
                           backward<bfloat16>,
                           forward_int8,
                           multiply_adds,
                           fingerprint,
                           run_program};
#endif
  return all;
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace fastrnn
