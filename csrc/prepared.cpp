// The prepared steps, compiled once per instruction set as kernels.cpp is, apart from it: csrc/stream_table.cpp makes
// of these alone what a program needs that runs streams and knows no Python.
#include "prepared-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// Puts in what this instruction set is for: one that has a base takes the rest from it.
void add_prepared(Kernels& to) {
#if !defined(FASTRNN_BASE)
  to.prepare_float = prepare_floats<float>;
  to.prepare_linear_float = prepare<PreparedLinear<float>>;
#endif
#if !defined(FASTRNN_BASE) || FASTRNN_MULTIPLIES_BFLOAT16
  to.prepare_bfloat16 = prepare_floats<bfloat16>;
  to.prepare_linear_bfloat16 = prepare<PreparedLinear<bfloat16>>;
#endif
  to.prepare_int8 = prepare_int8;
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
