// The contract of the kernels: one recurrent layer, forward and backward. Free of any instruction set.
//
// Letters: T steps, B rows (sequences), N rows of all steps, I inputs, H hidden units, P outputs (H, or the size of the
// projection), D directions, G gates, S saved values (cell_table.h).
//
// Every array is dense, row-major and aligned to its element. Inputs are never written, outputs never read. Arrays
// belong to the caller and need live only for the call; no output overlaps another array, but that saved.hidden may be
// y where D is 1.
#pragma once

#include <cstdint>

#include "cell_table.h"

namespace fastrnn {

// A number as wide as float with 7 bits of fraction: the upper half of a float's bits.
struct bfloat16 {
  uint16_t bits;
};

// What sums of products, the cell state and the gates' math are kept in, whatever the arrays hold.
template <class S>
struct WideOf {
  using type = S;
};
template <>
struct WideOf<bfloat16> {
  using type = float;
};
template <>
struct WideOf<const bfloat16> {
  using type = const float;
};
template <class S>
using Wide = typename WideOf<S>::type;

// What a projection's sums go through: h = activation(w_hr u + b_hr), u being the cell's own h.
enum class Activation : int { none, tanh, relu, sigmoid };

struct Sizes {
  int64_t steps;               // T >= 1
  int64_t batch;               // B >= 1
  int64_t rows;                // N, the sum of batch_sizes, or T * B
  int64_t inputs;              // I >= 1
  int64_t hidden;              // H >= 1
  int64_t outputs;             // P; P == H unless there is a projection
  int directions;              // D, 1 or 2; the second runs backwards in time
  const int64_t* batch_sizes;  // (T,), never increasing, from B down to >= 1; null where every step has B rows
};

// One direction's parameters, in torch's layout. Biases are both there or both null; w_hr null without projection,
// which the LSTM can have, and the RNN, whose fed-back output then makes it a Jordan network.
template <class S, class A = S>
struct Parameters {
  S* w_ih;  // (G*H, I)
  S* w_hh;  // (G*H, P)
  A* b_ih;  // (G*H)
  A* b_hh;  // (G*H)
  S* w_hr;  // (P, H)
  A* b_hr;  // (P), or null
};

class WeightCache;

// Rows of all steps below which weights are never packed, so that there is nothing to keep.
constexpr int64_t kKeptRows = 4;

// Here and below S is what is multiplied and A all else: the same, or float around products of bfloat16.
template <class S, class A = S>
struct Inputs {
  Mode mode;
  Activation activation;  // of the projection, if there is one
  Sizes sizes;
  int threads;
  const S* x;             // (N, I), rows in order of their step; or null, with
  const int64_t* tokens;  // (N), 0 <= token < I: rows of x that are 1 in this column and 0 elsewhere
  const A* h0;            // (D, B, P)
  const A* c0;            // (D, B, H), LSTM only
  Parameters<const S, const A> weights[2];
  WeightCache*
      weight_cache[2];  // where a direction's packed weights stay for the next call, claimed by the caller; or null
  bool keeps_packed;    // weights are packed however few the rows: what they are packed into outlives the call
};

// What backward reads: null members of `Forward` are not saved.
template <class S>
struct Saved {
  S* gates;        // (D, N, S*H), LSTM and GRU
  Wide<S>* cells;  // (D, N, H): c of the LSTM, u of an RNN with a projection
  S* hidden;       // (D, N, P)
};

template <class S, class A = S>
struct Forward : Inputs<S, A> {
  A* y;   // (N, D*P)
  A* hn;  // (D, B, P)
  A* cn;  // (D, B, H), LSTM only
  Saved<A> saved;
};

template <class S, class A = S>
struct Backward : Inputs<S, A> {
  Saved<const A> saved;
  const A* grad_y;                // (N, D*P), null for zeros
  const A* grad_hn;               // (D, B, P), null for zeros
  const A* grad_cn;               // (D, B, H), null for zeros
  const Wide<S>* grad_cells;      // (D, N, H), of the LSTM's saved.cells, null for zeros
  A* grad_x;                      // (N, I), null where not wanted and with tokens
  A* grad_h0;                     // (D, B, P), null where not wanted
  A* grad_c0;                     // (D, B, H), LSTM only, null where not wanted
  Parameters<A> grad_weights[2];  // null w_ih: the gradients of the parameters are not wanted
};

// One direction's parameters with weights of 8 bits: weight[r][k] = w[r * depth + k] * s[r], w from -127 to 127. Depths
// are at most kInt8Depth, so that no sum of products leaves int32.
struct Int8Parameters {
  const int8_t* w_ih;  // (G*H, I), or null, with
  const float* f_ih;   // (G*H, I): floats in its place, by which x is multiplied as it is
  const float* s_ih;   // (G*H), not read with f_ih
  const int8_t* w_hh;  // (G*H, P)
  const float* s_hh;   // (G*H)
  const float* b_ih;   // (G*H), or null with b_hh
  const float* b_hh;   // (G*H)
  const int8_t* w_hr;  // (P, H), LSTM only, or null
  const float* s_hr;   // (P)
};
constexpr int64_t kInt8Depth = 0x7fffffff / (127 * 127);

struct Int8Forward {
  Mode mode;
  Sizes sizes;
  int threads;
  const float* x;   // (N, I)
  const float* h0;  // (D, B, P)
  const float* c0;  // (D, B, H), LSTM only
  Int8Parameters weights[2];
  float* y;   // (N, D*P)
  float* hn;  // (D, B, P)
  float* cn;  // (D, B, H), LSTM only
};

// A linear layer: y = x w^T + b.
template <class S>
struct LinearForward {
  int64_t rows, inputs, outputs;
  const S* x;  // (rows, inputs)
  const S* w;  // (outputs, inputs)
  const S* b;  // (outputs), or null
  S* y;        // (rows, outputs)
};

// One step of a layer, made ready to be done again and again, by one thread, without taking memory: weights are packed,
// x and y stay where they were, the state stands in between. What was given for its making, but for x and y, may go.
struct Prepared {
  void* self;
  void (*step)(void* self);
  // The state, of a recurrent layer: h (B, P) and, with a cell state, c (B, H); else c is not touched.
  void (*get_state)(const void* self, float* h, float* c);
  void (*set_state)(void* self, const float* h, const float* c);
};

// One instruction set's kernels. They trust their arguments: module.cpp checks them. Forward and backward take layers
// one upon the other, of the same mode, steps and rows, with one direction if there are several. Forward takes them
// from the lowest, and the x of each but the first is the y of the one before; backward from the highest, and the
// grad_y of each but the first is the grad_x of the one before. Mixed layers come one by one.
struct Run;
class Scratch;
struct Kernels {
  const char* name;
  bool multiplies_bfloat16;  // itself; else numbers are widened on the fly
  void (*forward_float)(const Forward<float>* layers, int count);
  void (*forward_double)(const Forward<double>* layers, int count);
  void (*forward_bfloat16)(const Forward<bfloat16>* layers, int count);
  void (*forward_mixed)(const Forward<bfloat16, float>* layers, int count);
  void (*backward_float)(const Backward<float>* layers, int count);
  void (*backward_double)(const Backward<double>* layers, int count);
  void (*backward_bfloat16)(const Backward<bfloat16>* layers, int count);
  void (*backward_mixed)(const Backward<bfloat16, float>* layers, int count);
  void (*forward_int8)(const Int8Forward&);
  int64_t (*multiply_adds)(int64_t wanted);                     // that many or more, on registers alone; how many
  uint64_t (*fingerprint)(const void* weights, int64_t bytes);  // by which packed weights are known
  void (*run_program)(const Run& run);                          // of phases.h
  // Of layers with one direction, one step and no tokens; states are zeros, and hn, cn, h0, c0 are not looked at.
  Prepared (*prepare_float)(const Forward<float>&, Scratch& kept);
  Prepared (*prepare_bfloat16)(const Forward<bfloat16>&, Scratch& kept);
  Prepared (*prepare_int8)(const Int8Forward&, Scratch& kept);
  Prepared (*prepare_linear_float)(const LinearForward<float>&, Scratch& kept);
  Prepared (*prepare_linear_bfloat16)(const LinearForward<bfloat16>&, Scratch& kept);
};

// The kernels in use: the best that this machine runs, or the one that FASTRNN_ISA in the environment names.
const Kernels& kernels();
// The compiled instruction sets that this machine runs, best first; null after the last.
const Kernels* const* supported_kernels();

}  // namespace fastrnn
