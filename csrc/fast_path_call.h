// What the fast path's calls share, whatever the weights are: the module's attributes, its input and states, its
// results.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "scan.h"
#include "tensors.h"

namespace fastrnn {

// A function, and a tuple of what it may return.
using Guards = std::vector<std::pair<PyObject*, PyObject*>>;

// What Python gave to prepare_fast_path: kept for good.
struct Torch {
  PyObject *tensor = nullptr, *parameter = nullptr, *empty_like = nullptr, *threads = nullptr;
  Guards of_floats, of_integers;  // what has to be so for these weights
};
inline Torch torch;

inline int thread_count() {
  const auto count = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(torch.threads));
  if (!count) throw py::error_already_set();
  return count.cast<int>();
}

inline PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

struct Names {
  PyObject* mode = interned("mode");
  PyObject* input_size = interned("input_size");
  PyObject* hidden_size = interned("hidden_size");
  PyObject* proj_size = interned("proj_size");
  PyObject* num_layers = interned("num_layers");
  PyObject* bidirectional = interned("bidirectional");
  PyObject* batch_first = interned("batch_first");
  PyObject* dropout = interned("dropout");
  PyObject* training = interned("training");
  PyObject* parameters = interned("_parameters");
  PyObject* weights = interned("_flat_weights");
  PyObject* weight_names = interned("_flat_weights_names");
  PyObject* buffers = interned("_buffers");
  PyObject* order = interned("_order");
  PyObject* new_empty = interned("new_empty");
  PyObject* new_zeros = interned("new_zeros");
  PyObject* requires_grad = interned("requires_grad");
  PyObject* bias = interned("bias");
  PyObject* of_cell[4] = {interned("weight_ih"), interned("weight_hh"), interned("bias_ih"), interned("bias_hh")};
};
inline const Names& names() {
  static const Names all;
  return all;
}

// Thrown where the call is out of the ordinary and left to Python, which knows what to do or raises the error.
struct Unusual {};

inline void require(bool ordinary) {
  if (!ordinary) throw Unusual();
}

inline PyObject* get(PyObject* dictionary, PyObject* name) {
  PyObject* const value = PyDict_GetItemWithError(dictionary, name);
  require(value);
  return value;
}

inline int64_t size(PyObject* dictionary, PyObject* name) {
  PyObject* const value = get(dictionary, name);
  require(PyLong_CheckExact(value));
  const long long number = PyLong_AsLongLong(value);
  require(number >= 0 && number < (int64_t{1} << 31));
  return number;
}

inline bool flag(PyObject* dictionary, PyObject* name) {
  PyObject* const value = get(dictionary, name);
  require(value == Py_True || value == Py_False);
  return value == Py_True;
}

inline bool undisturbed(const Guards& guards) {
  for (const auto& [ask, wanted] : guards) {
    PyObject* const answer = PyObject_CallNoArgs(ask);
    if (!answer) throw py::error_already_set();
    Py_DECREF(answer);  // the wanted ones are never freed
    bool found = false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(wanted); ++i) found |= PyTuple_GET_ITEM(wanted, i) == answer;
    if (!found) return false;
  }
  return true;
}

// A dense tensor on the CPU whose numbers are what is stored; a Parameter only where `weight`. All in C, so no other
// thread gets in meanwhile.
inline TensorView view(PyObject* tensor, bool weight = false) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  require(type == torch.tensor || (weight && type == torch.parameter));
  TensorView found;
  if (tensor_reader().read(tensor, &found)) {
    PyErr_Clear();
    throw Unusual();
  }
  require(found.on_cpu() && found.dense() && found.lanes == 1 && !has_wrong_sign(tensor));
  return found;
}

// Before anything is asked of a tensor by Python, where a class of others may do anything.
inline void require_plain(PyObject* tensor) { require(reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == torch.tensor); }

template <class N>
constexpr uint8_t kCode = std::is_integral_v<N> ? 0 : 2;
template <>
inline constexpr uint8_t kCode<bfloat16> = 4;

template <class N>
bool holds(const TensorView& tensor) {
  return tensor.code == kCode<N> && tensor.bits == 8 * sizeof(N);
}

// Of a state whose layout has no such thing, the general way says what is wrong with it.
inline py::object like(PyObject* tensor) {
  auto made = py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch.empty_like, tensor));
  if (!made) {
    const bool refused = PyErr_ExceptionMatches(PyExc_NotImplementedError);
    py::error_already_set error;
    require(!refused);
    throw error;
  }
  return made;
}

template <class... Size>
py::object made_by(PyObject* method, PyObject* like, Size... sizes) {
  const py::tuple shape = py::make_tuple(static_cast<int64_t>(sizes)...);
  auto made = py::reinterpret_steal<py::object>(PyObject_CallMethodOneArg(like, method, shape.ptr()));
  if (!made) throw py::error_already_set();
  return made;
}
template <class... Size>
py::object empty(PyObject* like, Size... sizes) {
  return made_by(names().new_empty, like, sizes...);
}
template <class... Size>
py::object zeros(PyObject* like, Size... sizes) {
  return made_by(names().new_zeros, like, sizes...);
}

// What a module's attributes say of it, but for its weights.
struct Network {
  PyObject *attributes, *cell;  // `cell` is the mode of a cell module, null for layers
  Mode mode;
  int directions = 1, layers = 1;
  int64_t inputs, hidden, outputs, rows;  // rows of a matrix of weights, those of all gates

  Network(PyObject* of, PyObject* cell_mode) : attributes(of), cell(cell_mode) {
    const Names& n = names();
    const char* const name = PyUnicode_AsUTF8(cell ? cell : get(attributes, n.mode));
    if (!name) throw py::error_already_set();
    const auto* const found = std::find_if(std::begin(kCells), std::end(kCells),
                                           [&](const CellFacts& each) { return !std::strcmp(each.name, name); });
    require(found != std::end(kCells));
    mode = static_cast<Mode>(found - std::begin(kCells));
    inputs = size(attributes, n.input_size);
    hidden = outputs = size(attributes, n.hidden_size);
    require(inputs > 0 && hidden > 0);
    rows = hidden * facts(mode).gates;
    if (cell) return;
    if (const int64_t projection = size(attributes, n.proj_size)) outputs = projection;
    layers = static_cast<int>(size(attributes, n.num_layers));
    require(layers > 0);
    directions = flag(attributes, n.bidirectional) ? 2 : 1;
    if (layers > 1 && flag(attributes, n.training)) {
      PyObject* const dropout = get(attributes, n.dropout);
      require(PyFloat_CheckExact(dropout) && PyFloat_AS_DOUBLE(dropout) == 0);
    }
  }

  bool has_cell() const { return facts(mode).has_cell; }
  int64_t count() const { return int64_t{layers} * directions; }
  int64_t width(int layer) const { return layer ? outputs * directions : inputs; }
};

// Multiply-adds from which other Python threads may run meanwhile.
constexpr double kLong = 1e6;

// One call: the sizes of input and states, checked; then the results, which lets other threads in; then where all of it
// is. From the first of those addresses to the kernel's begin no other thread runs Python, which might free or exchange
// what was read. A short call keeps the GIL to its end, a long one holds the storages.
template <class S>
struct Call {
  const Network& network;
  PyObject* const input;
  py::object h0, c0;
  bool flat;                            // a layer's (T, I) or a cell's (I): one row
  int64_t steps, batch, first, second;  // the first two sizes of x as it comes, or its one
  double work = 0;
  int threads = 1;
  py::object y, hn, cn;
  std::unique_ptr<S[]> zeros, between;  // between: y of all layers that nobody sees
  Memory memory;

  Call(const Network& of, PyObject* from, const TensorView& x, PyObject* hx) : network(of), input(from) {
    flat = x.rank == (of.cell ? 1 : 2);
    require(flat || x.rank == (of.cell ? 2 : 3));
    first = x.shape[0], second = x.rank > 1 ? x.shape[1] : 1;
    steps = of.cell ? 1 : first, batch = flat ? 1 : of.cell ? first : second;
    if (!of.cell && !flat && flag(of.attributes, names().batch_first)) {
      std::swap(steps, batch);
      require(steps == 1 || batch == 1);  // then either order is the same in memory
    }
    require(steps > 0 && batch > 0 && x.shape[x.rank - 1] == of.inputs && holds<S>(x));
    const double others = (of.layers - 1.0) * (of.width(1) + of.outputs);
    work = (of.inputs + of.outputs + others) * of.rows * of.directions * steps * batch;
    if (hx == Py_None) return;
    if (of.has_cell()) {
      require((PyTuple_CheckExact(hx) || PyList_CheckExact(hx)) && PySequence_Fast_GET_SIZE(hx) == 2);
      h0 = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(hx, 0));
      c0 = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(hx, 1));
      require_plain(c0.ptr());
    } else {
      h0 = py::reinterpret_borrow<py::object>(hx);
    }
    require_plain(h0.ptr());
  }

  bool is_long() const { return work >= kLong; }

  py::object last_state(const py::object& before, int64_t units) const {
    if (before) return like(before.ptr());
    return network.cell ? flat ? empty(input, units) : empty(input, batch, units)
           : flat       ? empty(input, network.count(), units)
                        : empty(input, network.count(), batch, units);
  }

  void make_results() {
    const Network& n = network;
    const int64_t width = n.directions * n.outputs;
    if (!h0) zeros.reset(new S[n.count() * batch * (n.outputs > n.hidden ? n.outputs : n.hidden)]());
    hn = last_state(h0, n.outputs);
    if (n.has_cell()) cn = last_state(c0, n.hidden);
    if (!n.cell) {
      const bool as_h0 = h0 && !flat && n.layers == 1 && width == n.outputs && first == 1 && second == batch;
      y = as_h0 ? like(h0.ptr()) : flat ? empty(input, steps, width) : empty(input, first, second, width);
    }
    if (const int64_t inner = n.layers - !n.cell) between.reset(new S[inner * steps * batch * width]);
    if (is_long()) threads = thread_count();
  }

  // Where the numbers of a tensor are, until the call ends.
  template <class N>
  const N* numbers(PyObject* tensor, const TensorView& found) {
    require(holds<N>(found) && has_memory(tensor, found.count(), sizeof(N)));
    if (is_long()) memory.hold(tensor);
    return reinterpret_cast<const N*>(found.address());
  }
  const S* input_at() {
    const TensorView found = view(input);
    require(found.count() == steps * batch * network.inputs);
    return numbers<S>(input, found);
  }
  const S* state_at(const py::object& state, int64_t units) {
    if (!state) return zeros.get();
    const TensorView found = view(state.ptr());
    require(network.cell ? flat ? found.has_shape(units) : found.has_shape(batch, units)
            : flat       ? found.has_shape(network.count(), units)
                         : found.has_shape(network.count(), batch, units));
    return numbers<S>(state.ptr(), found);
  }
  static S* result_at(const py::object& result) {  // which nobody else has
    return result ? reinterpret_cast<S*>(view(result.ptr()).address()) : nullptr;
  }
  template <class N, class... Size>
  const N* weight(const py::object& tensor, Size... sizes) {
    const TensorView found = view(tensor.ptr(), true);
    require(found.has_shape(sizes...));
    return numbers<N>(tensor.ptr(), found);
  }

  // Tells the layers, one upon the other, all but their weights.
  template <class Layer>
  void lay_out(std::vector<Layer>& all) {
    const Network& n = network;
    const int64_t layer_size = steps * batch * n.directions * n.outputs;
    S *const hn_at = result_at(hn), *const cn_at = result_at(cn), *const y_at = result_at(y);
    const S *const x_at = input_at(), *const h0_at = state_at(h0, n.outputs), *const c0_at = state_at(c0, n.hidden);
    for (int i = 0; i < n.layers; ++i) {
      Layer& layer = all[i];
      layer.mode = n.mode;
      layer.sizes = {steps, batch, steps * batch, n.width(i), n.hidden, n.outputs, n.directions, nullptr};
      layer.threads = threads;
      layer.x = i ? all[i - 1].y : x_at;
      const int64_t before = static_cast<int64_t>(i) * n.directions * batch;
      layer.h0 = h0_at + before * n.outputs;
      layer.hn = hn_at + before * n.outputs;
      if (n.has_cell()) layer.c0 = c0_at + before * n.hidden, layer.cn = cn_at + before * n.hidden;
      layer.y = i + 1 == n.layers && y_at ? y_at : between.get() + i * layer_size;
    }
  }

  template <class Kernel>
  py::object run(Kernel kernel) {
    {
      std::optional<py::gil_scoped_release> released;
      if (is_long()) released.emplace();
      kernel();
    }
    const py::object state = network.has_cell() ? py::object(py::make_tuple(hn, cn)) : hn;
    return network.cell ? state : py::object(py::make_tuple(y, state));
  }
};

}  // namespace fastrnn
