#include "stream.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace fastrnn {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 20;

template <class S>
Prepared prepare_layer(const StreamLayer& from, int64_t batch, const void* x, void* y, Scratch& memory) {
  const Kernels& all = kernels();
  const Sizes sizes{1, batch, batch, from.inputs, from.hidden, from.outputs, 1, nullptr};
  if constexpr (std::is_same_v<S, float>) {
    if (from.int8) {
      Int8Forward layer{};
      layer.mode = from.mode, layer.sizes = sizes, layer.threads = 1;
      layer.x = static_cast<const float*>(x), layer.y = static_cast<float*>(y);
      const auto narrow = [](const void* matrix) { return static_cast<const int8_t*>(matrix); };
      const auto wide = [](const void* array) { return static_cast<const float*>(array); };
      Int8Parameters& w = layer.weights[0];
      if (from.float_inputs)
        w.f_ih = wide(from.w_ih);
      else
        w.w_ih = narrow(from.w_ih);
      w.s_ih = from.s_ih, w.w_hh = narrow(from.w_hh), w.s_hh = from.s_hh;
      w.b_ih = wide(from.b_ih), w.b_hh = wide(from.b_hh), w.w_hr = narrow(from.w_hr), w.s_hr = from.s_hr;
      return all.prepare_int8(layer, memory);
    }
  }
  Forward<S> layer{};
  layer.mode = from.mode, layer.sizes = sizes, layer.threads = 1, layer.keeps_packed = true;
  layer.x = static_cast<const S*>(x), layer.y = static_cast<S*>(y);
  const auto numbers = [](const void* array) { return static_cast<const S*>(array); };
  layer.weights[0] = {numbers(from.w_ih), numbers(from.w_hh), numbers(from.b_ih),
                      numbers(from.b_hh), numbers(from.w_hr), nullptr};
  if constexpr (std::is_same_v<S, float>)
    return all.prepare_float(layer, memory);
  else
    return all.prepare_bfloat16(layer, memory);
}

Prepared prepare_linear(const LinearForward<float>& layer, Scratch& memory) {
  return kernels().prepare_linear_float(layer, memory);
}
Prepared prepare_linear(const LinearForward<bfloat16>& layer, Scratch& memory) {
  return kernels().prepare_linear_bfloat16(layer, memory);
}

}  // namespace

void* Stream::take(int64_t count, size_t item) {
  if (count > PTRDIFF_MAX / static_cast<int64_t>(item)) throw std::bad_alloc();
  void* const memory = memory_.take<char>(count * static_cast<int64_t>(item));
  std::memset(memory, 0, static_cast<size_t>(count) * item);
  return memory;
}

const float* Stream::keep(const float* from, int64_t count) {
  if (!from) return nullptr;
  float* const own = static_cast<float*>(take(count, sizeof(float)));
  std::copy(from, from + count, own);
  return own;
}

template <class S>
void Stream::prepare(const StreamModel& model) {
  x_ = static_cast<char*>(take(batch_ * inputs_, sizeof(S)));
  row_bytes_ = static_cast<size_t>(inputs_) * sizeof(S);
  if (vocabulary_) {
    embedding_ = static_cast<char*>(take(vocabulary_ * inputs_, sizeof(S)));
    std::memcpy(embedding_, model.embedding, static_cast<size_t>(vocabulary_) * row_bytes_);
  }
  y_ = x_, outputs_ = inputs_;
  for (const StreamLayer& layer : model.layers) {
    const void* const x = y_;
    y_ = static_cast<char*>(take(batch_ * layer.outputs, sizeof(S)));
    const CellFacts& cell = facts(layer.mode);
    const int64_t c_size = cell.has_cell ? layer.hidden : 0;
    parts_.push_back({prepare_layer<S>(layer, batch_, x, y_, memory_), layer.outputs, c_size,
                      keep(layer.h, layer.outputs), keep(layer.c, c_size)});
    const double projection = layer.w_hr ? double(layer.outputs) * layer.hidden : 0;
    work_ += batch_ * (double(cell.gates) * layer.hidden * (layer.inputs + layer.outputs) + projection);
    state_size_ += batch_ * (layer.outputs + c_size);
    outputs_ = layer.outputs;
  }
  if (!model.linear_outputs) return;
  const S* const x = reinterpret_cast<const S*>(y_);
  S* const y = static_cast<S*>(take(batch_ * model.linear_outputs, sizeof(S)));
  const LinearForward<S> layer{batch_,
                               outputs_,
                               model.linear_outputs,
                               x,
                               static_cast<const S*>(model.linear_weight),
                               static_cast<const S*>(model.linear_bias),
                               y};
  parts_.push_back({prepare_linear(layer, memory_), 0, 0, nullptr, nullptr});
  work_ += double(batch_) * outputs_ * model.linear_outputs;
  y_ = reinterpret_cast<char*>(y), outputs_ = model.linear_outputs;
}

Stream::Stream(const void* bytes, size_t size, int64_t batch) : batch_(batch) {
  if (batch < 1 || batch > kMostRows)
    throw StreamError(FASTRNN_BAD_ARGUMENT,
                      "batch: expected 1 to " + std::to_string(kMostRows) + ", got " + std::to_string(batch));
  std::vector<uint64_t> aligned;
  if (reinterpret_cast<uintptr_t>(bytes) % alignof(uint64_t)) {
    aligned.resize(size / sizeof(uint64_t) + 1);
    std::memcpy(aligned.data(), bytes, size);
    bytes = aligned.data();
  }
  const StreamModel model = read_stream_file(bytes, size);
  narrow_ = model.narrow, inputs_ = model.inputs, vocabulary_ = model.vocabulary;
  if (narrow_)
    prepare<bfloat16>(model);
  else
    prepare<float>(model);
  state_ = static_cast<float*>(take(state_size_, sizeof(float)));
  reset_all();
}

bool Stream::look_up(const int64_t* tokens) {
  for (int64_t r = 0; r < batch_; ++r)
    if (tokens[r] < 0 || tokens[r] >= vocabulary_) return false;
  for (int64_t r = 0; r < batch_; ++r)
    std::memcpy(x_ + static_cast<size_t>(r) * row_bytes_, embedding_ + static_cast<size_t>(tokens[r]) * row_bytes_,
                row_bytes_);
  return true;
}

void Stream::reset(const int64_t* rows, int64_t count) {
  get_state(state_);
  float* at = state_;
  for (const Part& part : parts_)
    for (const auto& [initial, size] : {std::pair(part.h, part.h_size), std::pair(part.c, part.c_size)}) {
      for (int64_t i = 0; i < count; ++i) {
        float* const row = at + rows[i] * size;
        if (initial)
          std::copy(initial, initial + size, row);
        else
          std::fill(row, row + size, 0.0f);
      }
      at += batch_ * size;
    }
  set_state(state_);
}

void Stream::reset_all() {
  for (int64_t row = 0; row < batch_; ++row) reset(&row, 1);
}

void Stream::get_state(float* to) const {
  for (const Part& part : parts_) {
    float* const c = to + batch_ * part.h_size;
    part.prepared.get_state(part.prepared.self, to, c);
    to = c + batch_ * part.c_size;
  }
}

void Stream::set_state(const float* from) {
  for (const Part& part : parts_) {
    const float* const c = from + batch_ * part.h_size;
    part.prepared.set_state(part.prepared.self, from, c);
    from = c + batch_ * part.c_size;
  }
}

}  // namespace fastrnn
