// Weights of 8 bits on every instruction set that this machine runs: against plain loops, the same bits for any number
// of threads, and nothing outside an output written.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "checks.h"
#include "guarded.h"
#include "scan.h"

namespace {

using fastrnn::Int8Forward;
using fastrnn::Kernels;
using fastrnn::Mode;

struct Case {
  const char* isolates;
  Mode mode;
  int64_t steps, batch, inputs, hidden;
  int directions = 1;
  int64_t projection = 0;
  std::vector<int64_t> batch_sizes = {};
  bool bias = true;
  bool float_inputs = false;

  int64_t outputs() const { return projection ? projection : hidden; }
  int gates() const { return mode == Mode::lstm ? 4 : mode == Mode::gru ? 3 : 1; }
};

const Case kCases[] = {
    {"the smallest layer", Mode::lstm, 1, 1, 1, 1},
    {"the smallest layer", Mode::gru, 1, 1, 1, 1},
    {"the smallest layer", Mode::rnn_relu, 1, 1, 1, 1},
    {"less than a vector", Mode::lstm, 3, 2, 5, 3, 2},
    {"whole vectors", Mode::gru, 3, 4, 64, 64},
    {"one more than whole vectors", Mode::lstm, 3, 5, 65, 33},
    {"one more than whole vectors", Mode::rnn_tanh, 3, 5, 65, 129},
    {"packed", Mode::gru, 4, 7, 20, 40, 2, 0, {7, 5, 5, 1}},
    {"projection, no bias", Mode::lstm, 3, 4, 9, 50, 2, 17, {}, false},
    {"threads share units", Mode::lstm, 2, 40, 70, 130},
    {"inputs in float, fewer than a vector", Mode::lstm, 3, 2, 3, 17, 2, 0, {}, true, true},
    {"inputs in float, more than two vectors", Mode::gru, 2, 40, 45, 130, 1, 0, {}, true, true},
    {"inputs in float, no bias", Mode::rnn_tanh, 4, 7, 32, 40, 2, 0, {7, 5, 5, 1}, false, true},
};

struct Matrix {
  std::vector<int8_t> values;  // of the very size, so that a sanitizer sees what is read behind
  Values scales;
  Values floats() const {  // the numbers themselves
    Values found(values.size());
    const size_t depth = values.size() / scales.size();
    for (size_t i = 0; i < found.size(); ++i) found[i] = static_cast<float>(values[i] * scales[i / depth]);
    return found;
  }
};

struct Layer {
  const Case& c;
  int64_t rows = 0;
  std::vector<int64_t> sizes;  // rows of each step
  Values x, h0, c0;
  std::vector<Matrix> w_ih, w_hh, w_hr;  // one a direction
  std::vector<Values> b_ih, b_hh;

  explicit Layer(const Case& of) : c(of), sizes(of.batch_sizes) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::uniform_int_distribution<int> byte(-127, 127);
    const auto numbers = [&](int64_t count, float size) {
      Values drawn(static_cast<size_t>(count));
      for (double& value : drawn) value = uniform(random) * size;
      return drawn;
    };
    const auto matrix = [&](int64_t height, int64_t width) {
      Matrix drawn{std::vector<int8_t>(static_cast<size_t>(height * width)), Values(static_cast<size_t>(height))};
      for (int8_t& value : drawn.values) value = static_cast<int8_t>(byte(random));
      drawn.values[0] = -127, drawn.values.back() = 127;
      for (double& s : drawn.scales) s = (1 + std::abs(uniform(random))) / 127 / std::sqrt(static_cast<float>(width));
      for (double& s : drawn.scales) s = static_cast<float>(s);
      return drawn;
    };
    if (sizes.empty()) sizes.assign(static_cast<size_t>(c.steps), c.batch);
    for (const int64_t size : sizes) rows += size;
    x = numbers(rows * c.inputs, 1);
    h0 = numbers(c.directions * c.batch * c.outputs(), 1);
    c0 = numbers(c.mode == Mode::lstm ? c.directions * c.batch * c.hidden : 0, 1);
    for (int d = 0; d < c.directions; ++d) {
      w_ih.push_back(matrix(c.gates() * c.hidden, c.inputs));
      w_hh.push_back(matrix(c.gates() * c.hidden, c.outputs()));
      w_hr.push_back(c.projection ? matrix(c.projection, c.hidden) : Matrix{});
      b_ih.push_back(numbers(c.bias ? c.gates() * c.hidden : 0, 0.5f));
      b_hh.push_back(numbers(c.bias ? c.gates() * c.hidden : 0, 0.5f));
    }
  }
};

// Activations become int8 as the kernels say they do: round(a / scale), scale = max |a| / 127 of the row, in float.
Values times(const Matrix& w, const double* a, int64_t depth, const Values& bias) {
  float most = 0;
  for (int64_t k = 0; k < depth; ++k) most = std::max(most, std::abs(static_cast<float>(a[k])));
  const float scale = most / 127;
  Values product(w.scales.size());
  for (size_t r = 0; r < product.size(); ++r) {
    double sum = 0;
    for (int64_t k = 0; scale > 0 && k < depth; ++k)
      sum += std::nearbyint(static_cast<float>(a[k]) / scale) * w.values[r * static_cast<size_t>(depth) + k];
    product[r] = sum * scale * w.scales[r] + (bias.empty() ? 0 : bias[r]);
  }
  return product;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// With floats nothing is rounded.
Values times_floats(const Matrix& w, const double* a, int64_t depth, const Values& bias) {
  const Values floats = w.floats();
  Values product(bias.empty() ? Values(w.scales.size()) : bias);
  for (size_t r = 0; r < product.size(); ++r)
    for (int64_t k = 0; k < depth; ++k) product[r] += a[k] * floats[r * static_cast<size_t>(depth) + k];
  return product;
}

// y of the layer, row by row.
Values expect(const Layer& l) {
  const Case& c = l.c;
  const int64_t H = c.hidden, P = c.outputs();
  Values y(static_cast<size_t>(l.rows * c.directions * P));
  for (int d = 0; d < c.directions; ++d) {
    Values h(l.h0.begin() + d * c.batch * P, l.h0.begin() + (d + 1) * c.batch * P);
    Values cell(l.c0.empty() ? l.c0.end() : l.c0.begin() + d * c.batch * H,
                l.c0.empty() ? l.c0.end() : l.c0.begin() + (d + 1) * c.batch * H);
    for (int64_t s = 0; s < c.steps; ++s) {
      const int64_t t = d ? c.steps - 1 - s : s;
      int64_t offset = 0;
      for (int64_t i = 0; i < t; ++i) offset += l.sizes[static_cast<size_t>(i)];
      for (int64_t r = 0; r < l.sizes[static_cast<size_t>(t)]; ++r) {
        const Values a =
            (c.float_inputs ? times_floats : times)(l.w_ih[d], &l.x[(offset + r) * c.inputs], c.inputs, l.b_ih[d]);
        const Values b = times(l.w_hh[d], &h[r * P], P, l.b_hh[d]);
        Values out(static_cast<size_t>(H));
        for (int64_t u = 0; u < H; ++u) {
          const auto sum = [&](int64_t gate) { return a[gate * H + u] + b[gate * H + u]; };
          if (c.mode == Mode::lstm) {
            double& state = cell[r * H + u];
            state = sigmoid(sum(1)) * state + sigmoid(sum(0)) * std::tanh(sum(2));
            out[u] = sigmoid(sum(3)) * std::tanh(state);
          } else if (c.mode == Mode::gru) {
            const double n = std::tanh(a[2 * H + u] + sigmoid(sum(0)) * b[2 * H + u]), z = sigmoid(sum(1));
            out[u] = (1 - z) * n + z * h[r * P + u];
          } else {
            out[u] = c.mode == Mode::rnn_relu ? std::max(0.0, sum(0)) : std::tanh(sum(0));
          }
        }
        if (c.projection) out = times(l.w_hr[d], out.data(), H, {});
        for (int64_t p = 0; p < P; ++p)
          h[r * P + p] = y[((offset + r) * c.directions + d) * P + p] = static_cast<float>(out[p]);
      }
    }
  }
  return y;
}

Values run(const Kernels& kernels, const Layer& l, int threads, bool& tidy) {
  const Case& c = l.c;
  const bool lstm = c.mode == Mode::lstm;
  Guarded<float> x(l.x), h0(l.h0), c0(l.c0), y(static_cast<size_t>(l.rows * c.directions * c.outputs())),
      hn(l.h0.size()), cn(l.c0.size());
  std::vector<std::unique_ptr<Guarded<float>>> held;
  const auto hold = [&](const Values& values) {
    held.push_back(std::make_unique<Guarded<float>>(values));
    return held.back()->or_null();
  };
  Int8Forward call{};
  call.mode = c.mode;
  call.sizes = {c.steps,  c.batch,     l.rows,       c.inputs,
                c.hidden, c.outputs(), c.directions, c.batch_sizes.empty() ? nullptr : c.batch_sizes.data()};
  call.threads = threads;
  call.x = x.data(), call.h0 = h0.data(), call.c0 = lstm ? c0.data() : nullptr;
  call.y = y.data(), call.hn = hn.data(), call.cn = lstm ? cn.data() : nullptr;
  for (int d = 0; d < c.directions; ++d)
    call.weights[d] = {c.float_inputs ? nullptr : l.w_ih[d].values.data(),
                       c.float_inputs ? hold(l.w_ih[d].floats()) : nullptr,
                       hold(l.w_ih[d].scales),
                       l.w_hh[d].values.data(),
                       hold(l.w_hh[d].scales),
                       hold(l.b_ih[d]),
                       hold(l.b_hh[d]),
                       c.projection ? l.w_hr[d].values.data() : nullptr,
                       hold(l.w_hr[d].scales)};
  kernels.forward_int8(call);
  tidy = x.intact() && y.intact() && hn.intact() && cn.intact();
  Values all = y.values();
  for (const Values& more : {hn.values(), cn.values()}) all.insert(all.end(), more.begin(), more.end());
  return all;
}

// The largest error of y in budgets: float32's rounding of sums of so many terms through so many steps, and one
// activation that the loops round to the other neighbour, which moves a sum by a weight times a 127th.
double distance(const Values& got, const Values& want, int64_t depth, int64_t steps) {
  const double budget = static_cast<double>(steps) * (1e-6 * std::sqrt(static_cast<double>(depth)) + 2.0 / 127 / 8);
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(got[i] - want[i]) / budget;
    worst = error <= worst ? worst : error == error ? error : 1e9;
  }
  return worst;
}

}  // namespace

int main() {
  check(distance({0.5, 0.7}, {0.5, 0.5}, 4, 1) > 1, "a wrong value is noticed");
  check(distance({0.5, std::nan("")}, {0.5, 0.5}, 4, 1) > 1, "a NaN is noticed");
  double worst = 0;
  for (const Case& c : kCases) {
    const Layer layer(c);
    const Values want = expect(layer);
    Values first;
    for (const Kernels* const* k = fastrnn::supported_kernels(); *k; ++k)
      for (const int threads : {1, 2, 3}) {
        bool tidy = false;
        const Values got = run(**k, layer, threads, tidy);
        const std::string name = std::string((*k)->name) + ", mode " + std::to_string(int(c.mode)) + ", " + c.isolates;
        check(tidy, name + ": nothing outside an output is written");
        const double error = distance(got, want, c.inputs + c.outputs(), c.steps);
        worst = std::max(worst, error);
        check(error <= 1, name + ": y is off by " + std::to_string(error) + " budgets");
        if (threads == 1)
          first = got;
        else
          check(std::memcmp(got.data(), first.data(), got.size() * sizeof(double)) == 0, name + ": threads change y");
      }
  }
  std::printf("the largest error is %.4f budgets\n", worst);
  return count_up("int8");
}
