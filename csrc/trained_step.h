// A trained call of few steps, of a layer or a cell, by torch's own function (fastrnn/one_step.py says why): what
// stands around it in C, since that in Python takes as long as a small step's function does.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "fast_path_call.h"
#include "machine.h"

namespace fastrnn {

// What Python gave to prepare_trained_steps: kept for good. By mode, functions of cells; functions of layers and the
// most steps that they are to take.
struct TrainedSteps {
  PyObject *cells = nullptr, *layers = nullptr;
  Guards guards;
};
inline TrainedSteps trained_steps;

// A tensor that the function may have as it is, of the input's dtype; notes whether it is trained.
class TrainedTensors {
 public:
  explicit TrainedTensors(const TensorView& input) : input_(input) {
    require(holds<float>(input) || holds<double>(input));
  }

  template <class... Size>
  void add(PyObject* tensor, bool weight, Size... sizes) {
    const TensorView found = view(tensor, weight);
    require(found.has_shape(sizes...) && found.code == input_.code && found.bits == input_.bits);
    require(has_memory(tensor, found.count(), found.bits / 8));
    const auto trains = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, names().requires_grad));
    if (!trains) throw py::error_already_set();
    trained_ = trained_ || trains.ptr() == Py_True;
  }
  bool trained() const { return trained_; }

 private:
  const TensorView& input_;
  bool trained_ = false;
};

// Torch shares steps of that many gates and of more than one row out among its threads. Where those are more than there
// are CPUs, they wait for one another, and our kernels take half of that time and less.
constexpr int64_t kSharedGates = 32;
inline void require_room(int64_t batch, const Network& network) {
  require(batch == 1 || network.rows < kSharedGates || thread_count() <= usable_cpus());
}

template <class... Argument>
py::object call(PyObject* function, Argument... arguments) {
  PyObject* const all[] = {arguments...};
  auto result = py::reinterpret_steal<py::object>(PyObject_Vectorcall(function, all, sizeof...(arguments), nullptr));
  if (!result) throw py::error_already_set();
  return result;
}

inline py::object trained_layer(const Network& network, PyObject* input, const TensorView& x, PyObject* hx,
                                const std::vector<py::object>& held) {
  const Names& n = names();
  PyObject* const of_mode = get(trained_steps.layers, get(network.attributes, n.mode));
  const bool turned = flag(network.attributes, n.batch_first), bias = flag(network.attributes, n.bias);
  require(x.rank == 3 && network.outputs == network.hidden);
  const int64_t steps = x.shape[turned], batch = x.shape[!turned];
  require(steps > 0 && batch > 0 && steps <= PyLong_AsLongLong(PyTuple_GET_ITEM(of_mode, 1)));
  require_room(batch, network);
  const size_t each = bias ? 4 : 2;
  require(held.size() == each * network.count());
  TrainedTensors all(x);
  all.add(input, false, x.shape[0], x.shape[1], network.inputs);
  for (size_t i = 0; i < held.size(); i += each) {
    const int layer = static_cast<int>(i / each) / network.directions;
    all.add(held[i].ptr(), true, network.rows, network.width(layer));
    all.add(held[i + 1].ptr(), true, network.rows, network.hidden);
    for (size_t k = 2; k < each; ++k) all.add(held[i + k].ptr(), true, network.rows);
  }
  py::object state = py::reinterpret_borrow<py::object>(hx);
  if (hx != Py_None) all.add(hx, false, network.count(), batch, network.hidden);
  require(all.trained());
  if (hx == Py_None) state = zeros(input, network.count(), batch, network.hidden);
  py::tuple weights(held.size());
  for (size_t i = 0; i < held.size(); ++i) weights[i] = held[i];
  const auto own = [&](PyObject* name) { return get(network.attributes, name); };
  return call(PyTuple_GET_ITEM(of_mode, 0), input, state.ptr(), weights.ptr(), own(n.bias), own(n.num_layers),
              own(n.dropout), own(n.training), own(n.bidirectional), own(n.batch_first));
}

inline py::object trained_cell(const Network& network, PyObject* input, const TensorView& x, PyObject* hx,
                               const std::vector<py::object>& held) {
  PyObject* const function = get(trained_steps.cells, network.cell);
  require(x.rank == 2 && x.shape[0] > 0 && (held.size() == 2 || held.size() == 4));
  const int64_t batch = x.shape[0];
  require_room(batch, network);
  TrainedTensors all(x);
  all.add(input, false, batch, network.inputs);
  all.add(held[0].ptr(), true, network.rows, network.inputs);
  all.add(held[1].ptr(), true, network.rows, network.hidden);
  for (size_t k = 2; k < held.size(); ++k) all.add(held[k].ptr(), true, network.rows);
  py::object state = py::reinterpret_borrow<py::object>(hx);
  if (hx != Py_None) {
    const bool pair = network.has_cell();
    require(!pair || (PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2));
    for (int i = 0; i < 1 + pair; ++i) all.add(pair ? PyTuple_GET_ITEM(hx, i) : hx, false, batch, network.hidden);
  }
  require(all.trained());
  if (hx == Py_None) {
    state = zeros(input, batch, network.hidden);
    if (network.has_cell()) state = py::make_tuple(state, state);
  }
  const auto bias = [&](size_t i) { return held.size() == 4 ? held[i].ptr() : Py_None; };
  return call(function, input, state.ptr(), held[0].ptr(), held[1].ptr(), bias(2), bias(3));
}

}  // namespace fastrnn
