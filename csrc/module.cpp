// The Python face of the kernels: checks each tensor against the sizes of the layer, releases the GIL.
#include <pybind11/pybind11.h>

#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "fast_path.h"
#include "program.h"
#include "record.h"
#include "scan.h"
#include "stream_module.h"
#include "team_module.h"
#include "tensors.h"
#include "weight_cache.h"

namespace fastrnn {
namespace {

// The fields of a layer, and of what a call reads and writes of it; fastrnn/_core.pyi says what they are.
struct Names {
  const Name mode{"mode"}, activation{"activation"}, threads{"threads"}, directions{"directions"};
  const Name batch_sizes{"batch_sizes"}, steps{"steps"}, batch{"batch"}, rows{"rows"}, inputs{"inputs"};
  const Name hidden_size{"hidden_size"}, outputs{"outputs"};
  const Name layer{"layer"}, x{"x"}, tokens{"tokens"}, h0{"h0"}, c0{"c0"}, weights{"weights"}, y{"y"}, hn{"hn"};
  const Name cn{"cn"}, gates{"gates"}, cells{"cells"}, hidden{"hidden"}, grad_y{"grad_y"}, grad_hn{"grad_hn"};
  const Name grad_cn{"grad_cn"}, grad_cells{"grad_cells"}, grad_x{"grad_x"}, grad_h0{"grad_h0"}, grad_c0{"grad_c0"};
  const Name grad_weights{"grad_weights"};
};

const Names& names() {
  static const Names all;
  return all;
}

constexpr int kLayerFields = 11, kForwardFields = 12, kBackwardFields = 17;

template <class S, class A>
struct Reader {
  Memory& memory;
  bool shared = false;  // whether what is read may be another thread's, too: inputs, while results are nobody else's
  Inputs<S, A> in{};
  int64_t gates = 0, saved = 0;
  bool has_cell = false;

  Reader(py::handle of, Memory& of_call) : memory(of_call) {
    const Record layer(of, kLayerFields, "layer");
    const Names& n = names();
    in.mode = static_cast<Mode>(number(layer, n.mode, 0, static_cast<int64_t>(std::size(kCells)) - 1));
    in.activation = static_cast<Activation>(number(layer, n.activation, 0, 3));
    in.threads = layer[n.threads].template cast<int>();
    Sizes& z = in.sizes;
    const int64_t most = int64_t{1} << 40;
    z.steps = number(layer, n.steps, 1, most);
    z.batch = number(layer, n.batch, 1, most);
    z.rows = number(layer, n.rows, 1, most);
    z.inputs = number(layer, n.inputs, 1, most);
    z.hidden = number(layer, n.hidden_size, 1, most);
    z.outputs = number(layer, n.outputs, 1, most);
    z.directions = static_cast<int>(number(layer, n.directions, 1, 2));
    gates = facts(in.mode).gates;
    saved = facts(in.mode).saved;
    has_cell = facts(in.mode).has_cell;
    read_batch_sizes(layer[n.batch_sizes]);
  }

  static int64_t number(const Record& layer, const Name& name, int64_t low, int64_t high) {
    const auto found = layer[name].template cast<int64_t>();
    if (found < low || found > high)
      throw py::value_error(std::string(name.text) + ": expected " + std::to_string(low) + " to " +
                            std::to_string(high) + ", got " + std::to_string(found));
    return found;
  }

  void read_batch_sizes(py::handle batch_sizes) {
    Sizes& z = in.sizes;
    if (batch_sizes.is_none()) {
      if (__int128{z.steps} * z.batch != z.rows) throw py::value_error("rows: expected steps * batch");
      return;
    }
    z.batch_sizes = memory.batch_sizes(batch_sizes, z.steps, z.batch, z.rows);
  }

  template <class N>
  N* tensor(py::handle t, const char* name, __int128 count, bool optional = false) const {
    return reinterpret_cast<N*>(memory.address(t, name, count, sizeof(N), optional, shared));
  }
  Wide<S>* wide_per_direction(py::handle t, const char* name, int64_t rows, int64_t width,
                              bool optional = false) const {
    const __int128 count = static_cast<__int128>(in.sizes.directions) * rows * width;
    return reinterpret_cast<Wide<S>*>(memory.address(t, name, count, sizeof(Wide<S>), optional, shared));
  }
  A* per_direction(py::handle t, const char* name, int64_t rows, int64_t width, bool optional = false) const {
    return tensor<A>(t, name, static_cast<__int128>(in.sizes.directions) * rows * width, optional);
  }

  // torch's flat list: w_ih, w_hh, b_ih and b_hh if there are biases, w_hr if there is a projection, per direction; the
  // sixth, if there is one, is the bias of the projection.
  template <class Weight, class Bias>
  void parameters(const py::sequence& list, const char* name, Parameters<Weight, Bias>* to) const {
    const Sizes& z = in.sizes;
    const size_t each = list.size() / z.directions;
    if (each * z.directions != list.size() || each < 2 || each > 6)
      throw py::value_error(std::string(name) + ": expected 2 to 6 tensors a direction");
    const bool projected = each == 3 || each >= 5;
    if (projected && !facts(in.mode).projects)
      throw py::value_error(std::string("the ") + facts(in.mode).name + " has no projection");
    if (!projected && z.outputs != z.hidden)
      throw py::value_error(std::string(name) + ": expected weight_hr, since outputs and hidden differ");
    const __int128 rows = gates * z.hidden;
    for (int d = 0; d < z.directions; ++d) {
      const size_t at = d * each;
      to[d] = {};
      to[d].w_ih = tensor<Weight>(list[at], name, rows * z.inputs);
      to[d].w_hh = tensor<Weight>(list[at + 1], name, rows * z.outputs);
      if (each >= 4) {
        to[d].b_ih = tensor<Bias>(list[at + 2], name, rows);
        to[d].b_hh = tensor<Bias>(list[at + 3], name, rows);
      }
      if (projected) to[d].w_hr = tensor<Weight>(list[at + (each == 3 ? 2 : 4)], name, __int128{z.outputs} * z.hidden);
      if (each == 6) to[d].b_hr = tensor<Bias>(list[at + 5], name, z.outputs);
    }
  }

  void read_tokens(py::handle x) {
    const Sizes& z = in.sizes;
    in.tokens = reinterpret_cast<const int64_t*>(memory.address(x, "x", z.rows, sizeof(int64_t)));
    for (int64_t n = 0; n < z.rows; ++n)
      if (in.tokens[n] < 0 || in.tokens[n] >= z.inputs)
        throw py::index_error("x: expected tokens from 0 to " + std::to_string(z.inputs - 1) + ", got " +
                              std::to_string(in.tokens[n]));
  }

  bool saves_cells() const { return has_cell || in.weights[0].w_hr; }

  // `x` holds tokens where `tokens` says so.
  void inputs(py::handle x, bool tokens, py::handle h0, py::handle c0, const py::sequence& weights) {
    const Sizes& z = in.sizes;
    shared = true;
    if (tokens)
      read_tokens(x);
    else
      in.x = tensor<S>(x, "x", static_cast<__int128>(z.rows) * z.inputs);
    in.h0 = per_direction(h0, "h0", z.batch, z.outputs);
    if (has_cell) in.c0 = per_direction(c0, "c0", z.batch, z.hidden);
    Parameters<S, A> own[2];
    parameters(weights, "weights", own);
    for (int d = 0; d < z.directions; ++d)
      in.weights[d] = {own[d].w_ih, own[d].w_hh, own[d].b_ih, own[d].b_hh, own[d].w_hr, own[d].b_hr};
    shared = false;
  }
};

// The one of the kernels that is for these arrays.
void run(const Forward<float>* layers, int count) { kernels().forward_float(layers, count); }
void run(const Forward<double>* layers, int count) { kernels().forward_double(layers, count); }
void run(const Forward<bfloat16>* layers, int count) { kernels().forward_bfloat16(layers, count); }
void run(const Forward<bfloat16, float>* layers, int count) { kernels().forward_mixed(layers, count); }
void run(const Backward<float>* layers, int count) { kernels().backward_float(layers, count); }
void run(const Backward<double>* layers, int count) { kernels().backward_double(layers, count); }
void run(const Backward<bfloat16>* layers, int count) { kernels().backward_bfloat16(layers, count); }
void run(const Backward<bfloat16, float>* layers, int count) { kernels().backward_mixed(layers, count); }

// What a layer hands on to the next of a call, by which the two must be one upon the other.
template <class S, class A>
bool joined(const Forward<S, A>& below, const Forward<S, A>& layer) {
  return static_cast<const void*>(below.y) == layer.x && below.sizes.outputs == layer.sizes.inputs;
}
template <class S, class A>
bool joined(const Backward<S, A>& above, const Backward<S, A>& layer) {
  return above.grad_x == layer.grad_y && above.sizes.inputs == layer.sizes.outputs;
}

template <class Layer>
void run_joined(const std::vector<Layer>& layers) {
  if (layers.empty() || layers.size() > 1 << 20) throw py::value_error("layers: expected at least one");
  for (size_t i = 1; i < layers.size(); ++i) {
    const Layer &one = layers[i - 1], &next = layers[i];
    const Sizes &a = one.sizes, &b = next.sizes;
    if (one.mode != next.mode || a.directions != 1 || b.directions != 1 || a.steps != b.steps || a.batch != b.batch ||
        a.rows != b.rows || a.batch_sizes != b.batch_sizes || sizeof(*next.x) != sizeof(*next.h0) || !joined(one, next))
      throw py::value_error("layers: expected them one upon the other, alike in mode and rows, of one direction each");
  }
  py::gil_scoped_release release;
  run(layers.data(), static_cast<int>(layers.size()));
}

// Layers from the lowest.
template <class S, class A = S>
void forward(const py::list& records) {
  Memory memory;
  std::vector<Forward<S, A>> layers;
  std::vector<std::unique_ptr<WeightCacheClaim>> claims;
  const Names& n = names();
  for (const py::handle item : records) {
    const Record fields(item, kForwardFields, "layers");
    Reader<S, A> read(fields[n.layer], memory);
    const auto weights = py::cast<py::sequence>(fields[n.weights]);
    read.inputs(fields[n.x], fields[n.tokens].cast<bool>(), fields[n.h0], fields[n.c0], weights);
    const Sizes& z = read.in.sizes;
    Forward<S, A> call{};
    static_cast<Inputs<S, A>&>(call) = read.in;
    call.y = read.per_direction(fields[n.y], "y", z.rows, z.outputs);
    call.hn = read.per_direction(fields[n.hn], "hn", z.batch, z.outputs);
    if (read.has_cell) call.cn = read.per_direction(fields[n.cn], "cn", z.batch, z.hidden);
    if (read.saved)
      call.saved.gates = read.per_direction(fields[n.gates], "gates", z.rows, read.saved * z.hidden, true);
    if (read.saves_cells())
      call.saved.cells = read.wide_per_direction(fields[n.cells], "cells", z.rows, z.hidden, true);
    call.saved.hidden = read.per_direction(fields[n.hidden], "hidden", z.rows, z.outputs, true);
    for (int d = 0; d < z.directions && fields[n.hidden].is_none() && z.rows >= kKeptRows; ++d) {
      const py::object weight = weights[d * weights.size() / z.directions + 1];
      claims.push_back(std::make_unique<WeightCacheClaim>(weight, reinterpret_cast<uintptr_t>(call.weights[d].w_hh)));
      call.weight_cache[d] = claims.back()->get();
    }
    layers.push_back(call);
  }
  run_joined(layers);
}

// Layers from the highest.
template <class S, class A = S>
void backward(const py::list& records) {
  Memory memory;
  std::vector<Backward<S, A>> layers;
  const Names& n = names();
  for (const py::handle item : records) {
    const Record fields(item, kBackwardFields, "layers");
    Reader<S, A> read(fields[n.layer], memory);
    const auto weights = py::cast<py::sequence>(fields[n.weights]);
    const bool tokens = fields[n.tokens].cast<bool>();
    read.inputs(fields[n.x], tokens, fields[n.h0], fields[n.c0], weights);
    const Sizes& z = read.in.sizes;
    Backward<S, A> call{};
    static_cast<Inputs<S, A>&>(call) = read.in;
    if (read.saved) call.saved.gates = read.per_direction(fields[n.gates], "gates", z.rows, read.saved * z.hidden);
    if (read.saves_cells()) call.saved.cells = read.wide_per_direction(fields[n.cells], "cells", z.rows, z.hidden);
    call.saved.hidden = read.per_direction(fields[n.hidden], "hidden", z.rows, z.outputs);
    call.grad_y = read.per_direction(fields[n.grad_y], "grad_y", z.rows, z.outputs, true);
    call.grad_hn = read.per_direction(fields[n.grad_hn], "grad_hn", z.batch, z.outputs, true);
    if (read.has_cell) {
      call.grad_cn = read.per_direction(fields[n.grad_cn], "grad_cn", z.batch, z.hidden, true);
      call.grad_cells = read.wide_per_direction(fields[n.grad_cells], "grad_cells", z.rows, z.hidden, true);
      call.grad_c0 = read.per_direction(fields[n.grad_c0], "grad_c0", z.batch, z.hidden, true);
    }
    if (tokens && !fields[n.grad_x].is_none()) throw py::value_error("grad_x: there is none of tokens");
    call.grad_x = read.template tensor<A>(fields[n.grad_x], "grad_x", static_cast<__int128>(z.rows) * z.inputs, true);
    call.grad_h0 = read.per_direction(fields[n.grad_h0], "grad_h0", z.batch, z.outputs, true);
    if (!fields[n.grad_weights].is_none()) {
      const auto list = py::cast<py::sequence>(fields[n.grad_weights]);
      if (list.size() != weights.size()) throw py::value_error("grad_weights: expected one tensor for each of weights");
      read.parameters(list, "grad_weights", call.grad_weights);
    }
    layers.push_back(call);
  }
  run_joined(layers);
}

// Weights of 8 bits: a list of scale_ih, weight_ih, scale_hh, weight_hh, then bias_ih and bias_hh if there are biases,
// then scale_hr and weight_hr if there is a projection, for each direction. weight_ih may be of floats.
void forward_int8(py::handle layer, py::handle x, py::handle h0, py::handle c0, const py::sequence& weights,
                  py::handle y, py::handle hn, py::handle cn) {
  Memory memory;
  Reader<float, float> read(layer, memory);
  const Sizes& z = read.in.sizes;
  Int8Forward call{};
  call.mode = read.in.mode, call.sizes = z, call.threads = read.in.threads;
  read.shared = true;
  call.x = read.tensor<float>(x, "x", static_cast<__int128>(z.rows) * z.inputs);
  call.h0 = read.per_direction(h0, "h0", z.batch, z.outputs);
  call.y = read.per_direction(y, "y", z.rows, z.outputs);
  call.hn = read.per_direction(hn, "hn", z.batch, z.outputs);
  if (read.has_cell) {
    call.c0 = read.per_direction(c0, "c0", z.batch, z.hidden);
    call.cn = read.per_direction(cn, "cn", z.batch, z.hidden);
  }
  const bool projected = z.outputs != z.hidden;
  const size_t each = weights.size() / z.directions, plain = each - 2 * projected;
  if (each * z.directions != weights.size() || (plain != 4 && plain != 6))
    throw py::value_error("weights: expected 4 or 6 tensors a direction, and 2 more with a projection");
  if (projected && !read.has_cell) throw py::value_error("the LSTM alone has a projection");
  if (z.inputs > kInt8Depth || z.hidden > kInt8Depth)
    throw py::value_error("layer: int8 products are of at most " + std::to_string(kInt8Depth) + " terms");
  const __int128 rows = read.gates * z.hidden;
  for (int d = 0; d < z.directions; ++d) {
    size_t at = d * each;
    const auto narrow = [&](__int128 count) {
      return reinterpret_cast<const int8_t*>(memory.address(weights[at++], "weights", count, 1));
    };
    const auto wide = [&](__int128 count) { return read.tensor<float>(weights[at++], "scales and biases", count); };
    Int8Parameters& w = call.weights[d];
    w.s_ih = wide(rows);
    const py::object inputs = weights[at];
    if (py::hasattr(inputs, "element_size") && inputs.attr("element_size")().cast<size_t>() == sizeof(float))
      w.f_ih = read.tensor<float>(weights[at++], "weights", rows * z.inputs);
    else
      w.w_ih = narrow(rows * z.inputs);
    w.s_hh = wide(rows), w.w_hh = narrow(rows * z.outputs);
    if (plain == 6) w.b_ih = wide(rows), w.b_hh = wide(rows);
    if (projected) w.s_hr = wide(z.outputs), w.w_hr = narrow(__int128{z.outputs} * z.hidden);
  }
  const Kernels& all = kernels();
  py::gil_scoped_release release;
  all.forward_int8(call);
}

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(_core, m) {
  using namespace fastrnn;
  m.doc() = "Fused kernels of fastrnn for the CPU; called through fastrnn.backends.cpp.";
  add_fast_path(m);
  add_program(m);
  add_stream(m);
  add_teams(m);
  m.def("weight_cache_count", &weight_cache_count);
  m.def("storages_are_at_hand", &storages_are_at_hand);
  m.def("freed", &freed);
  m.def("isa", [] { return kernels().name; });
  m.def("supported_isas", [] {
    py::list names;
    for (const Kernels* const* k = supported_kernels(); *k; ++k) names.append((*k)->name);
    return names;
  });
  m.def("fingerprint", [](const py::buffer& weights) {
    const py::buffer_info info = weights.request();
    return kernels().fingerprint(info.ptr, info.size * info.itemsize);
  });
  m.def("multiply_adds", [](int64_t wanted) { return kernels().multiply_adds(wanted); });
  m.def("forward_float", &forward<float>);
  m.def("forward_double", &forward<double>);
  m.def("forward_int8", &forward_int8, py::kw_only(), py::arg("layer"), py::arg("x"), py::arg("h0"), py::arg("c0"),
        py::arg("weights"), py::arg("y"), py::arg("hn"), py::arg("cn"));
  m.def("multiplies_bfloat16", [] { return kernels().multiplies_bfloat16; });
  m.def("forward_bfloat16", &forward<bfloat16>);
  m.def("backward_float", &backward<float>);
  m.def("backward_double", &backward<double>);
  m.def("backward_bfloat16", &backward<bfloat16>);
  m.def("forward_mixed", &forward<bfloat16, float>);
  m.def("backward_mixed", &backward<bfloat16, float>);
}
