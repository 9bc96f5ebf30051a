// Every instruction set that this machine runs, on each dtype, against the oracle: values, gradients, threads, and
// that nothing outside an output is written. Prints one line a check that fails and a count at the end.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>

#include "assumptions.h"
#include "checks.h"
#include "guarded.h"
#include "kernel_cases.h"
#include "oracle.h"
#include "runtime.h"

namespace {

using fastrnn::Backward;
using fastrnn::bfloat16;
using fastrnn::Forward;
using fastrnn::Kernels;
using oracle::Numbers;

struct Named {
  std::string name;
  Values values;
};

// One case's inputs, every value a float, and what the oracle makes of them.
struct Problem {
  const Case& c;
  oracle::Sizes sizes;
  int gates;
  bool lstm;
  Values x, h0, c0, weights[2][6];  // in the order of fastrnn::Parameters
  Values grad_y, grad_hn, grad_cn, grad_cells;
  std::vector<int64_t> tokens;
  std::vector<Named> expected;

  explicit Problem(const Case& from)
      : c(from), sizes{c.steps,  c.batch,     c.rows(),     c.inputs,
                       c.hidden, c.outputs(), c.directions, c.batch_sizes.empty() ? nullptr : c.batch_sizes.data()},
        gates(oracle::gates(c.mode)), lstm(c.mode == Mode::lstm) {
    const int64_t N = sizes.rows, B = c.batch, H = c.hidden, P = sizes.outputs, D = c.directions, G = gates;
    const double spread = 1 / std::sqrt(double(H));
    x = draw(N * c.inputs, c.spread);
    for (int64_t n = 0; c.tokens && n < N; ++n) {
      tokens.push_back(generator() % c.inputs);
      for (int64_t i = 0; i < c.inputs; ++i) x[n * c.inputs + i] = i == tokens[n];
    }
    h0 = draw(D * B * P, 1), c0 = draw(lstm ? D * B * H : 0, 1);
    for (int64_t d = 0; d < D; ++d) {
      weights[d][0] = draw(G * H * c.inputs, spread), weights[d][1] = draw(G * H * P, spread);
      weights[d][2] = draw(c.bias ? G * H : 0, spread), weights[d][3] = draw(c.bias ? G * H : 0, spread);
      weights[d][4] = draw(c.projection ? P * H : 0, spread);
      weights[d][5] = draw(c.projection && c.bias && !lstm ? P : 0, spread);
    }
    grad_y = draw(N * D * P, 1);
    if (c.seeds) {
      grad_hn = draw(D * B * P, 1);
      grad_cn = draw(lstm ? D * B * H : 0, 1), grad_cells = draw(lstm ? D * N * H : 0, 1);
    }
    solve();
  }

  // As many roundings as the longest chain has, weights' gradients summed over all rows at its end; each is off by half
  // an epsilon at random, and eight standard deviations are never seen.
  double budget(double epsilon) const {
    const int64_t step = c.inputs + sizes.outputs + 2 * gates * c.hidden + 32;
    return 4 * epsilon * std::sqrt(double(c.steps * step + sizes.rows)) * c.spread;
  }

 private:
  std::mt19937 generator{20};

  Values draw(int64_t count, double spread) {
    Values values(count);
    for (double& v : values) v = static_cast<float>((generator() / 2147483648.0 - 1) * spread);
    return values;
  }

  // Fills `expected`.
  void solve() {
    oracle::tape.clear();
    const auto numbers = [](const Values& values) {
      Numbers result;
      for (const double v : values) result.push_back({v});
      return result;
    };
    oracle::Layer layer{c.mode, c.activation, sizes, numbers(x), numbers(h0), numbers(c0), {}, {}, {}, {}, {}, {}};
    for (int d = 0; d < c.directions; ++d)
      layer.weights[d] = {numbers(weights[d][0]), numbers(weights[d][1]), numbers(weights[d][2]),
                          numbers(weights[d][3]), numbers(weights[d][4]), numbers(weights[d][5])};
    oracle::forward(layer);
    oracle::Gradient gradient;
    gradient.seed(layer.y, grad_y), gradient.seed(layer.hn, grad_hn), gradient.seed(layer.cn, grad_cn);
    gradient.seed(layer.cells, grad_cells);
    gradient.run();
    const auto add = [&](const char* name, const Numbers& result) {
      expected.push_back({name, {}});
      for (const auto& number : result) expected.back().values.push_back(number.value);
    };
    const auto add_gradient = [&](const char* name, const Numbers& input, bool wanted = true) {
      expected.push_back({name, wanted ? gradient.of(input) : Values{}});
    };
    add("y", layer.y), add("hn", layer.hn), add("cn", layer.cn), add("hidden", layer.hidden), add("cells", layer.cells);
    add_gradient("grad_x", layer.x, c.gradients_of_x);
    add_gradient("grad_h0", layer.h0), add_gradient("grad_c0", layer.c0);
    for (const oracle::Weights& w : layer.weights) {
      add_gradient("grad_w_ih", w.w_ih, c.gradients_of_weights),
          add_gradient("grad_w_hh", w.w_hh, c.gradients_of_weights);
      add_gradient("grad_b_ih", w.b_ih, c.gradients_of_weights),
          add_gradient("grad_b_hh", w.b_hh, c.gradients_of_weights);
      add_gradient("grad_w_hr", w.w_hr, c.gradients_of_weights),
          add_gradient("grad_b_hr", w.b_hr, c.gradients_of_weights);
    }
  }
};

void run_forward(const Kernels& k, const Forward<float>& args) { k.forward_float(&args, 1); }
void run_forward(const Kernels& k, const Forward<double>& args) { k.forward_double(&args, 1); }
void run_forward(const Kernels& k, const Forward<bfloat16>& args) { k.forward_bfloat16(&args, 1); }
void run_forward(const Kernels& k, const Forward<bfloat16, float>& args) { k.forward_mixed(&args, 1); }
void run_backward(const Kernels& k, const Backward<float>& args) { k.backward_float(&args, 1); }
void run_backward(const Kernels& k, const Backward<double>& args) { k.backward_double(&args, 1); }
void run_backward(const Kernels& k, const Backward<bfloat16>& args) { k.backward_bfloat16(&args, 1); }
void run_backward(const Kernels& k, const Backward<bfloat16, float>& args) { k.backward_mixed(&args, 1); }

// Values by name, in the order of Problem::expected; and whether nothing but the outputs was written.
template <class S, class A = S>
std::vector<Named> run(const Kernels& kernels, const Problem& p, int threads, bool save, bool& tidy) {
  using W = fastrnn::Wide<S>;
  std::vector<Values> sources;
  std::vector<std::unique_ptr<Block>> inputs, outputs;
  const auto array = [&](auto kind, const Values& values) {
    using N = decltype(kind);
    auto block = std::make_unique<Guarded<N>>(values);
    const N* place = block->or_null();
    sources.push_back(block->values());
    inputs.push_back(std::move(block));
    return place;
  };
  const auto operand = [&](const Values& values) { return array(S{}, values); };
  const auto input = [&](const Values& values) { return array(A{}, values); };
  const auto place = [&](auto fill, std::size_t count) {
    auto block = std::make_unique<Guarded<decltype(fill)>>(count);
    auto* const data = block->or_null();
    outputs.push_back(std::move(block));
    return data;
  };
  const auto output = [&](std::size_t count) { return place(A{}, count); };
  const auto result = [&](std::size_t index) { return outputs[index]->values(); };

  const fastrnn::Sizes& z = p.sizes;
  const int64_t D = z.directions, N = z.rows, H = z.hidden, P = z.outputs;
  const int64_t saved = p.c.mode == Mode::lstm || p.c.mode == Mode::gru ? 4 : 0;
  fastrnn::Inputs<S, A> in{p.c.mode,    p.c.activation, z,  threads, nullptr, nullptr,
                           input(p.h0), input(p.c0),    {}, {},      {}};
  if (p.c.tokens)
    in.tokens = p.tokens.data();
  else
    in.x = operand(p.x);
  for (int64_t d = 0; d < D; ++d)
    in.weights[d] = {operand(p.weights[d][0]), operand(p.weights[d][1]), input(p.weights[d][2]),
                     input(p.weights[d][3]),   operand(p.weights[d][4]), input(p.weights[d][5])};

  Forward<S, A> forward{in, output(N * D * P), output(D * z.batch * P), output(p.lstm ? D * z.batch * H : 0), {}};
  forward.saved.hidden = output(save ? D * N * P : 0);
  forward.saved.cells = place(W{}, save && (p.lstm || p.c.projection) ? D * N * H : 0);
  forward.saved.gates = output(save ? D * N * saved * H : 0);
  fastrnn::WeightCache packed[2];
  if (!save) forward.weight_cache[0] = &packed[0], forward.weight_cache[1] = &packed[1];
  run_forward(kernels, forward);
  if (!save) run_forward(kernels, forward);  // out of the packed weights of the first
  std::vector<Named> results{{"y", result(0)}, {"hn", result(1)}, {"cn", result(2)}};
  if (save) {
    results.push_back({"hidden", result(3)}), results.push_back({"cells", result(4)});
    const fastrnn::Saved<const A> kept{forward.saved.gates, forward.saved.cells, forward.saved.hidden};
    Backward<S, A> backward{in, kept, input(p.grad_y), input(p.grad_hn), input(p.grad_cn), {}, {}, {}, {}, {}};
    Guarded<W> grad_cells(p.grad_cells);
    backward.grad_cells = grad_cells.or_null();
    const auto gradient = [&](const Values& of, bool wanted = true) { return output(wanted ? of.size() : 0); };
    backward.grad_x = gradient(p.x, p.c.gradients_of_x);
    backward.grad_h0 = gradient(p.h0);
    backward.grad_c0 = gradient(p.c0);
    for (int d = 0; d < 2; ++d) {
      A* pointers[6];
      for (int i = 0; i < 6; ++i) pointers[i] = gradient(p.weights[d][i], p.c.gradients_of_weights);
      backward.grad_weights[d] = {pointers[0], pointers[1], pointers[2], pointers[3], pointers[4], pointers[5]};
    }
    const Values gates = result(5);
    run_backward(kernels, backward);
    tidy = tidy && gates == result(5) && results[3].values == result(3) && results[4].values == result(4);
    for (std::size_t i = 5; i < p.expected.size(); ++i) results.push_back({p.expected[i].name, result(i + 1)});
  }
  for (std::size_t i = 0; i < inputs.size(); ++i)
    tidy = tidy && inputs[i]->intact() && inputs[i]->values() == sources[i];
  for (auto& each : outputs) tidy = tidy && each->intact();
  return results;
}

// Largest distance over the budget; infinite where one is NaN or the sizes differ.
double distance(const Values& got, const Values& want, double budget) {
  const double never = std::numeric_limits<double>::infinity();
  if (got.size() != want.size()) return never;
  double largest = 0, scale = 1;  // what goes in is of order one, and 1 - h^2 keeps the absolute error of h
  for (const double w : want) scale = std::max(scale, std::abs(w));
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i])) return never;
    largest = std::max(largest, std::abs(got[i] - want[i]));
  }
  return largest / (budget * scale);
}

template <class S, class A = S>
void check_kernels(const Kernels& kernels, const Problem& p, const std::string& name, double& worst) {
  const double budget = p.budget(kEpsilon<S>);
  bool tidy = true;
  const std::vector<Named> results = run<S, A>(kernels, p, 1, true, tidy);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const double off = distance(results[i].values, p.expected[i].values, budget);
    worst = std::max(worst, off);
    check(off <= 1, name + ": " + results[i].name + " is " + std::to_string(off) + " budgets off");
  }
  const auto check_same = [&](const std::vector<Named>& others, const std::string& what) {
    const auto [other, own] = std::mismatch(others.begin(), others.end(), results.begin(),
                                            [](const Named& a, const Named& b) { return a.values == b.values; });
    check(other == others.end(), name + ": " + what + (other == others.end() ? "" : " changes " + other->name));
  };
  check_same(run<S, A>(kernels, p, 1, false, tidy), "saving for backward");
  for (const int threads : {2, 3, 4})
    check_same(run<S, A>(kernels, p, threads, true, tidy), "a team of " + std::to_string(threads));
  fastrnn::assume_absent(2);
  check_same(run<S, A>(kernels, p, 3, true, tidy), "a team whose threads are late");
  fastrnn::assume_absent(0);
  check(tidy, name + ": something beside the outputs was written");
}

// The judge itself: it must notice one value off by two budgets, a NaN, a missing value.
void check_distance() {
  const Values want{1, -2, 0.5};
  check(distance(want, want, 1e-6) == 0, "equal values have no distance");
  check(distance({1, -2 + 4e-6, 0.5}, want, 1e-6) > 1, "a value off by two budgets is noticed");
  check(distance({1, -2, std::numeric_limits<double>::quiet_NaN()}, want, 1e-6) > 1, "a NaN is noticed");
  check(distance({1, -2}, want, 1e-6) > 1, "a missing value is noticed");
  Guarded<float> guarded(3);
  check(guarded.intact(), "an untouched array is intact");
  guarded.data()[-1] = 0;
  check(!guarded.intact(), "a write before an array is noticed");
}

}  // namespace

int main() {
  // Whatever this machine is, teams of all sizes repay: work takes long, meetings nothing.
  fastrnn::assume_rates(1e-6, 1e-6, 1, 1);
  check_distance();
  std::string names;
  double worst[4] = {};
  for (const Case& c : kCases) {
    const Problem problem(c);
    for (const Kernels* const* k = fastrnn::supported_kernels(); *k; ++k) {
      const std::string name = std::string((*k)->name) + ", mode " + std::to_string(int(c.mode)) + ", " + c.isolates;
      check_kernels<float>(**k, problem, name + ", float", worst[0]);
      check_kernels<double>(**k, problem, name + ", double", worst[1]);
      check_kernels<bfloat16>(**k, problem, name + ", bfloat16", worst[2]);
      check_kernels<bfloat16, float>(**k, problem, name + ", bfloat16 in float", worst[3]);
    }
  }
  for (const Kernels* const* k = fastrnn::supported_kernels(); *k; ++k) names += std::string(" ") + (*k)->name;
  std::printf(
      "instruction sets:%s; largest error %.2f (float), %.2f (double), %.2f (bfloat16) and %.2f "
      "(bfloat16 in float) of its budget\n",
      names.c_str(), worst[0], worst[1], worst[2], worst[3]);
  return count_up("kernels");
}
