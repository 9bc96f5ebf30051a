// One recurrent layer as plain loops in double precision, and its gradients by a tape: only the equations of
// fastrnn/modes.py are written down here, nothing of their derivatives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scan.h"

namespace oracle {

using fastrnn::Activation;
using fastrnn::Mode;
using fastrnn::Sizes;

// The derivatives of one result by its two operands, which stand earlier on the tape.
struct Node {
  std::size_t left, right;
  double by_left, by_right;
};

inline std::vector<Node> tape;

struct Number {
  double value = 0;
  std::size_t node = record(0, 0, 0, 0);

  static std::size_t record(std::size_t left, std::size_t right, double by_left, double by_right) {
    tape.push_back({left, right, by_left, by_right});
    return tape.size() - 1;
  }
};

inline Number of(const Number& x, double value, double derivative) {
  return {value, Number::record(x.node, x.node, derivative, 0)};
}
inline Number operator+(const Number& a, const Number& b) {
  return {a.value + b.value, Number::record(a.node, b.node, 1, 1)};
}
inline Number operator*(const Number& a, const Number& b) {
  return {a.value * b.value, Number::record(a.node, b.node, b.value, a.value)};
}
inline Number one_minus(const Number& x) { return of(x, 1 - x.value, -1); }
inline Number relu(const Number& x) { return of(x, x.value > 0 ? x.value : 0, x.value > 0); }
inline Number tanh(const Number& x) {
  const double t = std::tanh(x.value);
  return of(x, t, 1 - t * t);
}
inline Number sigmoid(const Number& x) {
  const double s = 1 / (1 + std::exp(-x.value));
  return of(x, s, s * (1 - s));
}

using Numbers = std::vector<Number>;

struct Weights {
  Numbers w_ih, w_hh, b_ih, b_hh, w_hr, b_hr;  // the biases and w_hr empty where the layer has none
};

struct Layer {
  Mode mode;
  Activation activation;
  Sizes sizes;
  Numbers x, h0, c0;
  Weights weights[2];
  Numbers y, hn, cn, hidden, cells;  // results
};

inline int gates(Mode mode) { return mode == Mode::lstm ? 4 : mode == Mode::gru ? 3 : 1; }

// weight (rows, columns) times a vector that begins at `from`, plus the bias if there is one.
inline Numbers linear(const Numbers& weight, const Numbers& bias, const Number* from, int64_t rows, int64_t columns) {
  Numbers result;
  for (int64_t r = 0; r < rows; ++r) {
    Number sum = bias.empty() ? Number{} : bias[r];
    for (int64_t k = 0; k < columns; ++k) sum = sum + weight[r * columns + k] * from[k];
    result.push_back(sum);
  }
  return result;
}

inline Number activate(Activation kind, const Number& x) {
  switch (kind) {
    case Activation::tanh: return tanh(x);
    case Activation::relu: return relu(x);
    case Activation::sigmoid: return sigmoid(x);
    default: return x;
  }
}

// One step of one row: h (P) and c (H) become the next ones. c of an RNN with a projection is its h before that.
inline void step(const Layer& layer, const Weights& w, const Number* x, Numbers& h, Numbers& c) {
  const int64_t H = layer.sizes.hidden, P = layer.sizes.outputs, rows = gates(layer.mode) * H;
  const Numbers a = linear(w.w_ih, w.b_ih, x, rows, layer.sizes.inputs);
  const Numbers b = linear(w.w_hh, w.b_hh, h.data(), rows, P);
  Numbers next;
  for (int64_t u = 0; u < H; ++u) {
    const auto sum = [&](int gate) { return a[gate * H + u] + b[gate * H + u]; };
    if (layer.mode == Mode::lstm) {
      c[u] = sigmoid(sum(1)) * c[u] + sigmoid(sum(0)) * tanh(sum(2));
      next.push_back(sigmoid(sum(3)) * tanh(c[u]));
    } else if (layer.mode == Mode::gru) {
      const Number z = sigmoid(sum(1));
      const Number n = tanh(a[2 * H + u] + sigmoid(sum(0)) * b[2 * H + u]);
      next.push_back(one_minus(z) * n + z * h[u]);
    } else {
      next.push_back(layer.mode == Mode::rnn_relu ? relu(sum(0)) : tanh(sum(0)));
    }
  }
  h = next;
  if (w.w_hr.empty()) return;
  if (layer.mode != Mode::lstm) c = next;
  h = linear(w.w_hr, w.b_hr, next.data(), P, H);
  for (Number& output : h) output = activate(layer.activation, output);
}

// Fills the results: each sequence by itself, from its first step to its last or back.
inline void forward(Layer& layer) {
  const Sizes& s = layer.sizes;
  const int64_t T = s.steps, B = s.batch, N = s.rows, H = s.hidden, P = s.outputs, D = s.directions;
  const bool lstm = layer.mode == Mode::lstm;
  layer.y.resize(N * D * P), layer.hidden.resize(D * N * P), layer.hn.resize(D * B * P);
  const bool keeps_c = lstm || !layer.weights[0].w_hr.empty();
  layer.cells.resize(keeps_c ? D * N * H : 0), layer.cn.resize(lstm ? D * B * H : 0);
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t b = 0; b < B; ++b) {
      std::vector<int64_t> rows;  // of this sequence, in the order of x
      for (int64_t t = 0, first = 0; t < T; ++t) {
        const int64_t size = s.batch_sizes ? s.batch_sizes[t] : B;
        if (b < size) rows.push_back(first + b);
        first += size;
      }
      if (d == 1) std::reverse(rows.begin(), rows.end());
      const auto state = layer.h0.begin() + (d * B + b) * P;
      const auto cell = layer.c0.begin() + (lstm ? (d * B + b) * H : 0);
      Numbers h(state, state + P), c(cell, cell + (lstm ? H : 0));
      for (const int64_t row : rows) {
        step(layer, layer.weights[d], &layer.x[row * s.inputs], h, c);
        for (int64_t p = 0; p < P; ++p) layer.y[row * D * P + d * P + p] = layer.hidden[(d * N + row) * P + p] = h[p];
        for (std::size_t u = 0; u < c.size(); ++u) layer.cells[(d * N + row) * H + u] = c[u];
      }
      for (int64_t p = 0; p < P; ++p) layer.hn[(d * B + b) * P + p] = h[p];
      for (std::size_t u = 0; lstm && u < c.size(); ++u) layer.cn[(d * B + b) * H + u] = c[u];
    }
  }
}

// Gradient of sum(seed * output) over all pairs by every number on the tape.
struct Gradient {
  std::vector<double> of_node = std::vector<double>(tape.size());

  void seed(const Numbers& output, const std::vector<double>& by) {
    for (std::size_t i = 0; i < by.size(); ++i) of_node[output[i].node] += by[i];
  }
  void run() {
    for (std::size_t i = tape.size(); i-- > 0;) {
      const double g = of_node[i];
      of_node[tape[i].left] += g * tape[i].by_left;
      of_node[tape[i].right] += g * tape[i].by_right;
    }
  }
  std::vector<double> of(const Numbers& input) const {
    std::vector<double> result;
    for (const Number& x : input) result.push_back(of_node[x.node]);
    return result;
  }
};

}  // namespace oracle
