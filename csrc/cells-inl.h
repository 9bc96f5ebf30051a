// Printed by `python -m fastrnn.compiler.built_in` from the definitions in fastrnn/cells: change those.
//
// The cells, each as data and pointwise functions over vectors.
//
// forward: `a` is the input's share of the gates and `b` the state's, each with its bias. In two halves, since the
// whole is a chain of some 200 cycles and a processor sees too few instructions ahead to work on the next vector
// meanwhile: `open` puts the gates that are ready into `b`, `close` does the rest. backward: from the gradient of h and
// the gradient that flows along the time axis outside the product (`carry`: of c if there is one, else of h), the
// gradients of the slots and the carry of the step before. A slot is a gate, or one share of it where the two are read
// apart; those of `b` are the first kGates of them, those of `a` the last. row_hh: the row of weight_hh that column k
// of the slots of `b` belongs to; those of `a` stand in weight_ih's order.
#pragma once

#include "math-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S>
struct RnnTanh {
  static constexpr int kGates = 1, kSaved = 0, kSlots = 1, kVectors = 4;
  static constexpr bool kHasCell = false, kReadsState = false, kHasCarry = false;
  using V = Vec<S>;

  static FASTRNN_INLINE void open(const V*, V*) {}

  static FASTRNN_INLINE V close(const V* a, const V* b, V, V&, V*) { return tanh<S>(a[0] + b[0]); }

  static FASTRNN_INLINE void backward(const V*, V h, V, V, V, V grad_h, V&, V* grad) {
    grad[0] = grad_h * (S(1) - h * h);
  }

  static FASTRNN_INLINE int64_t row_hh(int64_t k, int64_t) { return k; }
};

template <class S>
struct RnnRelu {
  static constexpr int kGates = 1, kSaved = 0, kSlots = 1, kVectors = 4;
  static constexpr bool kHasCell = false, kReadsState = false, kHasCarry = false;
  using V = Vec<S>;

  static FASTRNN_INLINE void open(const V*, V*) {}

  static FASTRNN_INLINE V close(const V* a, const V* b, V, V&, V*) { return relu<S>(a[0] + b[0]); }

  static FASTRNN_INLINE void backward(const V*, V h, V, V, V, V grad_h, V&, V* grad) {
    grad[0] = S(0) >= h ? V{} : grad_h;
  }

  static FASTRNN_INLINE int64_t row_hh(int64_t k, int64_t) { return k; }
};

template <class S>
struct Lstm {
  static constexpr int kGates = 4, kSaved = 4, kSlots = 4, kVectors = 4;
  static constexpr bool kHasCell = true, kReadsState = false, kHasCarry = true;
  using V = Vec<S>;

  static FASTRNN_INLINE void open(const V* a, V* b) {
    b[0] = sigmoid<S>(a[0] + b[0]);
    b[1] = sigmoid<S>(a[1] + b[1]);
    b[2] = tanh<S>(a[2] + b[2]);
    b[3] = sigmoid<S>(a[3] + b[3]);
  }

  static FASTRNN_INLINE V close(const V*, const V* b, V, V& c, V* saved) {
    const V i = b[0];
    const V f = b[1];
    const V g = b[2];
    const V o = b[3];
    c = f * c + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    return o * tanh<S>(c);
  }

  static FASTRNN_INLINE void backward(const V* saved, V, V, V c, V c_before, V grad_h, V& carry, V* grad) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V v1 = tanh<S>(c);
    const V v2 = carry + grad_h * (o * (S(1) - v1 * v1));
    grad[0] = v2 * (g * (i * (S(1) - i)));
    grad[1] = v2 * (c_before * (f * (S(1) - f)));
    grad[2] = v2 * (i * (S(1) - g * g));
    grad[3] = grad_h * (v1 * (o * (S(1) - o)));
    carry = v2 * f;
  }

  static FASTRNN_INLINE int64_t row_hh(int64_t k, int64_t) { return k; }
};

template <class S>
struct Gru {
  static constexpr int kGates = 3, kSaved = 4, kSlots = 4, kVectors = 3;
  static constexpr bool kHasCell = false, kReadsState = true, kHasCarry = true;
  using V = Vec<S>;

  static FASTRNN_INLINE void open(const V* a, V* b) {
    b[0] = sigmoid<S>(a[0] + b[0]);
    b[1] = sigmoid<S>(a[1] + b[1]);
  }

  static FASTRNN_INLINE V close(const V* a, const V* b, V h, V&, V* saved) {
    const V b_n = b[2];
    const V r = b[0];
    const V z = b[1];
    const V n = tanh<S>(a[2] + r * b_n);
    saved[0] = b_n, saved[1] = r, saved[2] = z, saved[3] = n;
    return (S(1) - z) * n + z * h;
  }

  static FASTRNN_INLINE void backward(const V* saved, V, V h_before, V, V, V grad_h, V& carry, V* grad) {
    const V b_n = saved[0], r = saved[1], z = saved[2], n = saved[3];
    grad_h += carry;
    const V v1 = S(1) - z;
    const V v2 = grad_h * (v1 * (S(1) - n * n));
    grad[0] = v2 * r;
    grad[1] = v2 * (b_n * (r * (S(1) - r)));
    grad[2] = grad_h * ((h_before - n) * (z * v1));
    grad[3] = v2;
    carry = grad_h * z;
  }

  static FASTRNN_INLINE int64_t row_hh(int64_t k, int64_t hidden) { return k < hidden ? k + 2 * hidden : k - hidden; }
};

// Calls f with an object of the cell's struct, over numbers of S.
template <class S, class F>
void with_cell(Mode mode, const F& f) {
  switch (mode) {
    case Mode::rnn_tanh: return f(RnnTanh<S>{});
    case Mode::rnn_relu: return f(RnnRelu<S>{});
    case Mode::lstm: return f(Lstm<S>{});
    case Mode::gru: return f(Gru<S>{});
  }
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
