// Layers one upon the other, which threads take as a wavefront, on every instruction set that this machine runs: bit
// for bit as layer by layer, forward and backward, and nothing outside an output written.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "guarded.h"
#include "runtime.h"
#include "scan.h"

namespace {

using fastrnn::Backward;
using fastrnn::bfloat16;
using fastrnn::Forward;
using fastrnn::Kernels;
using fastrnn::Mode;

struct Case {
  const char* isolates;
  Mode mode;
  int layers;
  int64_t steps, batch, inputs, hidden;
  int64_t projection = 0;
  std::vector<int64_t> batch_sizes = {};
  bool bias = true;

  int64_t outputs() const { return projection ? projection : hidden; }
  int gates() const { return mode == Mode::lstm ? 4 : mode == Mode::gru ? 3 : 1; }
  int64_t rows() const {
    int64_t sum = 0;
    for (const int64_t size : batch_sizes) sum += size;
    return batch_sizes.empty() ? steps * batch : sum;
  }
};

// All but the last two are a wavefront: of much work in all (kCallWork), little a step (kWavefrontWork) and few rows.
const Case kCases[] = {
    {"as many layers as threads", Mode::lstm, 2, 50, 2, 24, 36},
    {"as many layers as threads", Mode::gru, 3, 50, 3, 24, 36},
    {"layers left over", Mode::rnn_tanh, 4, 130, 2, 5, 64},
    {"layers left over", Mode::lstm, 5, 41, 3, 7, 30},
    {"one row", Mode::gru, 3, 90, 1, 20, 50},
    {"packed", Mode::lstm, 5, 12, 40, 9, 22, 0, {40, 33, 33, 20, 9, 9, 9, 4, 2, 1, 1, 1}},
    {"packed", Mode::rnn_relu, 3, 9, 30, 70, 80, 0, {30, 30, 30, 17, 17, 2, 2, 2, 1}},
    {"projection", Mode::lstm, 4, 30, 4, 11, 40, 18},
    {"no bias", Mode::gru, 4, 60, 3, 9, 34, 0, {}, false},
    {"an odd number of units, one by one in bfloat16", Mode::lstm, 3, 40, 4, 6, 33},
    {"too few steps, one by one", Mode::lstm, 3, 3, 30, 40, 64},
};

void run_stack(const Kernels& k, const Backward<float>* layers, int count) { k.backward_float(layers, count); }
void run_stack(const Kernels& k, const Backward<double>* layers, int count) { k.backward_double(layers, count); }
void run_stack(const Kernels& k, const Backward<bfloat16>* layers, int count) { k.backward_bfloat16(layers, count); }
void run_stack(const Kernels& k, const Forward<float>* layers, int count) { k.forward_float(layers, count); }
void run_stack(const Kernels& k, const Forward<double>* layers, int count) { k.forward_double(layers, count); }
void run_stack(const Kernels& k, const Forward<bfloat16>* layers, int count) { k.forward_bfloat16(layers, count); }

// All results of all layers. Without `train` twice, since the second call finds the weights packed. Until a layer has
// run there are NaNs in its y, and in its gradient of x, so that none is read too early unnoticed.
template <class S>
Values run(const Kernels& kernels, const Case& c, bool train, bool together, int threads, bool& tidy) {
  std::mt19937 random(11);
  std::vector<std::unique_ptr<Guarded<S>>> inputs, outputs;
  std::vector<std::unique_ptr<Guarded<fastrnn::Wide<S>>>> wide;
  const auto input = [&](int64_t count, double spread) {
    Values drawn(static_cast<std::size_t>(count));
    for (double& value : drawn) value = (random() / 2147483648.0 - 1) * spread;
    inputs.push_back(std::make_unique<Guarded<S>>(drawn));
    return inputs.back()->or_null();
  };
  const auto output = [&](int64_t count) {
    outputs.push_back(std::make_unique<Guarded<S>>(static_cast<std::size_t>(count)));
    return outputs.back()->or_null();
  };

  const int64_t B = c.batch, H = c.hidden, P = c.outputs(), rows = c.gates() * H;
  const int64_t cells = c.mode == Mode::lstm ? B * H : 0;
  const double spread = 1 / std::sqrt(static_cast<double>(H));
  std::vector<fastrnn::WeightCache> packed(static_cast<std::size_t>(c.layers));
  std::vector<Forward<S>> layers(packed.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Forward<S>& layer = layers[i];
    const int64_t I = i ? P : c.inputs;
    layer.mode = c.mode, layer.threads = threads;
    layer.sizes = {c.steps, B, c.rows(), I, H, P, 1, c.batch_sizes.empty() ? nullptr : c.batch_sizes.data()};
    layer.x = i ? layers[i - 1].y : input(c.rows() * I, 1);
    layer.h0 = input(B * P, 1), layer.c0 = input(cells, 1);
    layer.weights[0] = {input(rows * I, spread),          input(rows * P, spread),
                        input(c.bias ? rows : 0, spread), input(c.bias ? rows : 0, spread),
                        input(c.projection * H, spread),  nullptr};
    if (!train) layer.weight_cache[0] = &packed[i];
    layer.y = output(c.rows() * P), layer.hn = output(B * P), layer.cn = output(cells);
    if (!train) continue;
    layer.saved.gates = output(c.gates() > 1 ? c.rows() * 4 * H : 0);
    if (cells) {
      wide.push_back(std::make_unique<Guarded<fastrnn::Wide<S>>>(static_cast<std::size_t>(c.rows() * H)));
      layer.saved.cells = wide.back()->or_null();
    }
    layer.saved.hidden = i + 1 < layers.size() ? layer.y : output(c.rows() * P);
  }
  std::vector<Backward<S>> back;  // from the highest
  for (std::size_t i = layers.size(); train && i--;) {
    const Forward<S>& layer = layers[i];
    const fastrnn::Saved<const S> saved{layer.saved.gates, layer.saved.cells, layer.saved.hidden};
    Backward<S> of{layer, saved, {}, input(B * P, 1), input(cells, 1), {}, {}, {}, {}, {}};
    of.grad_y = back.empty() ? input(c.rows() * P, 1) : back.back().grad_x;
    const int64_t I = layer.sizes.inputs, biases = c.bias ? rows : 0;
    of.grad_x = output(c.rows() * I), of.grad_h0 = output(B * P), of.grad_c0 = output(cells);
    of.grad_weights[0] = {output(rows * I), output(rows * P),         output(biases),
                          output(biases),   output(c.projection * H), nullptr};
    back.push_back(of);
  }

  Values all;
  const auto call = [&](const auto& stack) {
    if (together) return run_stack(kernels, stack.data(), c.layers);
    for (const auto& layer : stack) run_stack(kernels, &layer, 1);
  };
  const auto collect = [&] {
    for (const auto& each : outputs) {
      const Values values = each->values();
      all.insert(all.end(), values.begin(), values.end());
    }
  };
  call(layers);
  if (!train) collect(), call(layers);
  if (train) call(back);
  collect();
  for (const auto& each : inputs) tidy = each->intact() && tidy;
  for (const auto& each : outputs) tidy = each->intact() && tidy;
  for (const auto& each : wide) tidy = each->intact() && tidy;
  return all;
}

template <class S>
void check_stack(const Kernels& kernels, const Case& c, const char* dtype) {
  const std::string name =
      std::string(kernels.name) + ", mode " + std::to_string(int(c.mode)) + ", " + c.isolates + ", " + dtype;
  bool tidy = true;
  for (const bool train : {false, true}) {
    const Values want = run<S>(kernels, c, train, false, 1, tidy);
    bool numbers = true;
    for (const double value : want) numbers = numbers && std::isfinite(value);
    check(numbers, name + ": every result is written");
    for (const int threads : {1, 2, 3}) {
      const Values got = run<S>(kernels, c, train, true, threads, tidy);
      check(std::memcmp(got.data(), want.data(), want.size() * sizeof(double)) == 0,
            name + (train ? ", training" : "") + ": not as layer by layer with threads: " + std::to_string(threads));
    }
  }
  check(tidy, name + ": something beside the outputs was written");
}

}  // namespace

int main() {
  for (const Case& c : kCases)
    for (const Kernels* const* k = fastrnn::supported_kernels(); *k; ++k) {
      check_stack<float>(**k, c, "float");
      check_stack<double>(**k, c, "double");
      check_stack<bfloat16>(**k, c, "bfloat16");
    }
  return count_up("stack");
}
