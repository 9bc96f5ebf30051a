// Streams: files written here run step by step as plain loops in double precision say, on every instruction set; and
// files that are cut, changed and sealed again are refused or run, under the sanitizers that the build may have.
#include "stream.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "checks.h"

namespace {

using fastrnn::Mode;
using fastrnn::Stream;
using fastrnn::StreamError;
using Bytes = std::vector<unsigned char>;

std::mt19937 generator(1);

double draw() { return std::uniform_real_distribution<double>(-1, 1)(generator); }

template <class N>
void put(Bytes& to, N value) {
  unsigned char bytes[sizeof(N)];
  std::memcpy(bytes, &value, sizeof(N));
  to.insert(to.end(), bytes, bytes + sizeof(N));
}

void align(Bytes& to) {
  while (to.size() % 64) to.push_back(0);
}

// Bit by bit, unlike csrc/stream_file.cpp.
uint32_t checksum(const Bytes& bytes) {
  uint32_t crc = ~0u;
  for (size_t i = 16; i < bytes.size(); ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

void seal(Bytes& bytes) {
  const uint64_t size = bytes.size();
  std::memcpy(bytes.data() + 16, &size, sizeof(size));
  const uint32_t crc = checksum(bytes);
  std::memcpy(bytes.data() + 12, &crc, sizeof(crc));
}

using Values = std::vector<double>;

// One layer: a file, and what its numbers are.
struct Model {
  Mode mode;
  int64_t inputs, hidden;
  bool int8;
  Values w_ih, w_hh, b_ih, b_hh;
  Bytes bytes;

  int64_t gates() const { return fastrnn::facts(mode).gates; }

  Model(Mode m, int64_t i, int64_t h, bool narrow) : mode(m), inputs(i), hidden(h), int8(narrow) {
    const char magic[] = "FRNNSTRM";
    bytes.assign(magic, magic + 8);
    for (const uint32_t each : {1u, 0u}) put(bytes, each);
    put(bytes, uint64_t{0});
    for (const uint32_t each : {0u, 1u}) put(bytes, each);
    for (const uint64_t each : {uint64_t{0}, static_cast<uint64_t>(inputs), uint64_t{0}}) put(bytes, each);
    for (const uint32_t each : {0u, 0u, static_cast<uint32_t>(mode), int8 ? 3u : 2u}) put(bytes, each);
    for (const int64_t each : {hidden, hidden, int64_t{0}}) put(bytes, each);
    align(bytes);
    w_ih = matrix(gates() * hidden, inputs), w_hh = matrix(gates() * hidden, hidden);
    b_ih = floats(gates() * hidden), b_hh = floats(gates() * hidden);
    seal(bytes);
  }

  Values floats(int64_t count) {
    Values values;
    for (int64_t k = 0; k < count; ++k) {
      const float value = static_cast<float>(draw() / 2);
      put(bytes, value), values.push_back(value);
    }
    align(bytes);
    return values;
  }

  Values matrix(int64_t rows, int64_t depth) {
    if (!int8) return floats(rows * depth);
    Values scales = floats(rows), values;
    for (int64_t k = 0; k < rows * depth; ++k) {
      const auto value = static_cast<int8_t>(std::lround(127 * draw()));
      put(bytes, value), values.push_back(value * scales[k / depth] / 127);
    }
    // scales in the file are of values up to 127
    const size_t size = static_cast<size_t>(rows * depth);
    for (int64_t r = 0; r < rows; ++r) {
      const float scale = static_cast<float>(scales[r] / 127);
      const size_t place = bytes.size() - size - static_cast<size_t>((rows * 4 + 63) / 64 * 64 - 4 * r);
      std::memcpy(bytes.data() + place, &scale, sizeof(scale));
    }
    align(bytes);
    return values;
  }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One step of one row, as fastrnn/cells has the equations.
void step(const Model& m, const Values& x, Values& h, Values& c) {
  const int64_t H = m.hidden, G = m.gates();
  Values a(G * H), b(G * H), next(H);
  for (int64_t row = 0; row < G * H; ++row) {
    a[row] = m.b_ih[row], b[row] = m.b_hh[row];
    for (int64_t k = 0; k < m.inputs; ++k) a[row] += m.w_ih[row * m.inputs + k] * x[k];
    for (int64_t k = 0; k < H; ++k) b[row] += m.w_hh[row * H + k] * h[k];
  }
  for (int64_t u = 0; u < H; ++u) {
    const auto both = [&](int64_t gate) { return a[gate * H + u] + b[gate * H + u]; };
    if (m.mode == Mode::lstm) {
      c[u] = sigmoid(both(1)) * c[u] + sigmoid(both(0)) * std::tanh(both(2));
      next[u] = sigmoid(both(3)) * std::tanh(c[u]);
    } else if (m.mode == Mode::gru) {
      const double z = sigmoid(both(1)), n = std::tanh(a[2 * H + u] + sigmoid(both(0)) * b[2 * H + u]);
      next[u] = (1 - z) * n + z * h[u];
    } else {
      next[u] = m.mode == Mode::rnn_tanh ? std::tanh(both(0)) : both(0) > 0 ? both(0) : 0;
    }
  }
  h = next;
}

// int8 rounds x and h to 127 steps of their largest; everything else to float32, whose error grows with the sums.
double error_over_budget(const Model& file, const Model& model, int64_t batch) {
  const int64_t inputs = model.inputs, hidden = model.hidden;
  Stream stream(file.bytes.data(), file.bytes.size(), batch);
  std::vector<Values> h(batch, Values(hidden)), c(batch, Values(hidden));
  double worst = 0;
  for (int t = 0; t < 5; ++t) {
    auto* const x = static_cast<float*>(stream.x());
    for (int64_t i = 0; i < batch * inputs; ++i) x[i] = static_cast<float>(draw());
    std::vector<Values> given;
    for (int64_t r = 0; r < batch; ++r) given.emplace_back(x + r * inputs, x + (r + 1) * inputs);
    stream.step();
    const auto* const y = static_cast<const float*>(stream.y());
    for (int64_t r = 0; r < batch; ++r) {
      step(model, given[r], h[r], c[r]);
      double largest = 1;
      for (int64_t u = 0; u < hidden; ++u) largest = std::fmax(largest, std::fabs(h[r][u]));
      for (int64_t u = 0; u < hidden; ++u) {
        const double error = std::fabs(y[r * hidden + u] - h[r][u]) / largest;
        if (!(error <= HUGE_VAL)) return HUGE_VAL;  // a NaN, which fmax would pass over
        worst = std::fmax(worst, error);
      }
    }
  }
  const double terms = static_cast<double>(inputs + hidden + 8);
  return worst / (model.int8 ? 0.01 * std::sqrt(terms) : 1e-6 * terms);
}

double worst_of_all = 0;

void check_steps(Mode mode, int64_t inputs, int64_t hidden, bool int8, int64_t batch) {
  const Model model(mode, inputs, hidden, int8), other(mode, inputs, hidden, int8);
  const double error = error_over_budget(model, model, batch);
  worst_of_all = std::fmax(worst_of_all, error);
  const std::string name = ", mode " + std::to_string(static_cast<int>(mode)) + ", sizes " + std::to_string(inputs) +
                           ", " + std::to_string(hidden) + (int8 ? ", int8" : "") + ", rows " + std::to_string(batch);
  check(error <= 1, std::to_string(error) + " of the budget" + name);
  if (hidden > 1) check(error_over_budget(model, other, batch) > 1, "other weights are not told apart" + name);
}

// Bytes of a size of their own, so that a sanitizer sees a reading beyond them.
bool runs(const Bytes& bytes) {
  if (bytes.empty()) return false;
  std::vector<uint64_t> own(bytes.size() / 8);
  if (bytes.size() % 8) return false;
  std::memcpy(own.data(), bytes.data(), bytes.size());
  try {
    Stream stream(own.data(), bytes.size(), 2);
    stream.step();
    return true;
  } catch (const StreamError& error) {
    check(error.status != FASTRNN_OK && !error.text.empty(), "an error without a word");
  } catch (const std::bad_alloc&) {
    check(false, "a small file that wants more memory than there is");
  }
  return false;
}

void check_files(bool int8) {
  const Model model(Mode::lstm, 5, 7, int8);
  check(runs(model.bytes), "a right file");
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    Bytes bytes = model.bytes;
    for (int k = 0; k < 1 + i % 3; ++k) bytes[24 + generator() % 72] = static_cast<unsigned char>(generator() >> 7);
    if (i % 4 == 0) bytes.resize(64 + generator() % (bytes.size() - 64) / 8 * 8);
    seal(bytes);
    refused += !runs(bytes);
  }
  check(refused > 2000 && refused < 3000, "refused " + std::to_string(refused) + " of 3000 changed files");
  for (size_t size = 0; size < model.bytes.size(); size += 8)
    check(!runs(Bytes(model.bytes.begin(), model.bytes.begin() + static_cast<long>(size))), "a file that was cut");
}

}  // namespace

// Of the instruction set that FASTRNN_ISA names, one a process; 77 where the machine does not run it.
int main() {
  const char* const asked = std::getenv("FASTRNN_ISA");
  bool found = !asked || !*asked;
  for (const fastrnn::Kernels* const* k = fastrnn::supported_kernels(); *k; ++k)
    found = found || std::string(asked) == (*k)->name;
  if (!found) return 77;
  for (const Mode mode : {Mode::rnn_tanh, Mode::rnn_relu, Mode::lstm, Mode::gru})
    for (const bool int8 : {false, true})
      for (const int64_t batch : {1, 3})
        for (const auto& [inputs, hidden] : {std::pair(1, 1), std::pair(16, 64), std::pair(33, 45), std::pair(150, 20)})
          check_steps(mode, inputs, hidden, int8, batch);
  check_files(false);
  check_files(true);
  std::printf("streams on %s: %.2f of the budget\n", fastrnn::kernels().name, worst_of_all);
  return count_up("streams");
}
