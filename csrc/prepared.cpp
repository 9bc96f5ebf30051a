// The prepared steps, compiled once per instruction set as kernels.cpp is, apart from it: csrc/stream_table.cpp makes
// of these alone what a program needs that runs streams and knows no Python.
#include "prepared-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// Puts in what this instruction set is for: the larger ones of AVX-512 take the rest from it.
void add_prepared(Kernels& to) {
#if defined(__AVX512VNNI__)
  to.prepare_int8 = prepare_int8;
#if defined(__AVX512BF16__)
  to.prepare_bfloat16 = prepare_floats<bfloat16>;
  to.prepare_linear_bfloat16 = prepare<PreparedLinear<bfloat16>>;
#endif
#else
  to.prepare_float = prepare_floats<float>;
  to.prepare_bfloat16 = prepare_floats<bfloat16>;
  to.prepare_int8 = prepare_int8;
  to.prepare_linear_float = prepare<PreparedLinear<float>>;
  to.prepare_linear_bfloat16 = prepare<PreparedLinear<bfloat16>>;
#endif
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
