#include "fast_path.h"

#include <new>

#include "fast_path_call.h"
#include "trained_step.h"
#include "weight_cache.h"

namespace fastrnn {
namespace {

using Held = std::vector<py::object>;  // weights, whatever another thread does to the module meanwhile

py::object hold(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

Held parameters_of(const Network& network) {
  const Names& n = names();
  PyObject* const parameters = get(network.attributes, n.parameters);
  Held held;
  if (network.cell) {
    for (PyObject* name : n.of_cell)
      if (PyObject* parameter = get(parameters, name); parameter != Py_None) held.push_back(hold(parameter));
    return held;
  }
  PyObject* const list = get(network.attributes, n.weights);
  PyObject* const list_names = get(network.attributes, n.weight_names);
  require(PyList_CheckExact(list) && PyList_CheckExact(list_names));
  require(PyList_GET_SIZE(list) == PyList_GET_SIZE(list_names));
  held.reserve(PyList_GET_SIZE(list));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    PyObject* const parameter = PyList_GET_ITEM(list, i);
    require(get(parameters, PyList_GET_ITEM(list_names, i)) == parameter);
    held.push_back(hold(parameter));
  }
  return held;
}

Held buffers_of(const Network& network) {
  PyObject* const buffers = get(network.attributes, names().buffers);
  PyObject* const order = get(network.attributes, names().order);
  require(PyList_CheckExact(order));
  Held held;
  held.reserve(PyList_GET_SIZE(order));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(order); ++i) held.push_back(hold(get(buffers, PyList_GET_ITEM(order, i))));
  return held;
}

void run_stack(const std::vector<Forward<float>>& all) {
  kernels().forward_float(all.data(), static_cast<int>(all.size()));
}
void run_stack(const std::vector<Forward<double>>& all) {
  kernels().forward_double(all.data(), static_cast<int>(all.size()));
}
void run_stack(const std::vector<Forward<bfloat16>>& all) {
  kernels().forward_bfloat16(all.data(), static_cast<int>(all.size()));
}

// How many there are for each direction of each layer; more layers than weights are no network.
size_t share(const Network& network, const Held& held) {
  require(network.count() <= static_cast<int64_t>(held.size()) && held.size() % network.count() == 0);
  return held.size() / network.count();
}

// torch's list: w_ih, w_hh, b_ih and b_hh if there are biases, w_hr if there is a projection, for each direction.
template <class S>
py::object run_floats(const Network& network, PyObject* input, const TensorView& x, PyObject* hx) {
  Call<S> call(network, input, x, hx);
  const Held held = parameters_of(network);
  const size_t each = share(network, held);
  const int64_t rows = network.rows, outputs = network.outputs;
  require(each >= 2 && each <= 5);
  const bool projected = each % 2;
  require(projected ? network.has_cell() : outputs == network.hidden);
  call.make_results();
  std::vector<Forward<S>> layers(network.layers);
  std::vector<std::unique_ptr<WeightCacheClaim>> claims;
  for (int i = 0; i < network.count() && call.steps * call.batch >= kKeptRows; ++i) {
    const py::object& of = held[i * each + 1];
    claims.push_back(std::make_unique<WeightCacheClaim>(of, view(of.ptr(), true).address()));
    layers[i / network.directions].weight_cache[i % network.directions] = claims.back()->get();
  }
  call.lay_out(layers);
  for (int i = 0; i < network.count(); ++i) {
    const int layer = i / network.directions;
    const py::object* const own = held.data() + i * each;
    Parameters<const S>& to = layers[layer].weights[i % network.directions];
    to.w_ih = call.template weight<S>(own[0], rows, network.width(layer));
    to.w_hh = call.template weight<S>(own[1], rows, outputs);
    if (each >= 4) to.b_ih = call.template weight<S>(own[2], rows), to.b_hh = call.template weight<S>(own[3], rows);
    if (projected) to.w_hr = call.template weight<S>(own[each - 1], outputs, network.hidden);
  }
  return call.run([&] { run_stack(layers); });
}

py::object floats(const Network& network, PyObject* input, PyObject* hx) {
  const TensorView x = view(input);
  if (holds<float>(x)) return run_floats<float>(network, input, x, hx);
  if (holds<double>(x)) return run_floats<double>(network, input, x, hx);
  if (holds<bfloat16>(x)) return run_floats<bfloat16>(network, input, x, hx);
  throw Unusual();
}

// The list of forward_int8 in module.cpp, for each direction.
py::object integers(const Network& network, PyObject* input, PyObject* hx) {
  Call<float> call(network, input, view(input), hx);
  const Held held = buffers_of(network);
  const int64_t rows = network.rows, hidden = network.hidden, outputs = network.outputs;
  const bool projected = outputs != hidden;
  const size_t each = share(network, held), plain = each - 2 * projected;
  require(plain == 4 || plain == 6);
  require((!projected || network.has_cell()) && hidden <= kInt8Depth);
  call.make_results();
  std::vector<Int8Forward> layers(network.layers);
  call.lay_out(layers);
  for (int i = 0; i < network.count(); ++i) {
    const int64_t width = network.width(i / network.directions);
    require(width <= kInt8Depth);
    const py::object* own = held.data() + i * each;
    Int8Parameters& to = layers[i / network.directions].weights[i % network.directions];
    const auto wide = [&](auto... sizes) { return call.weight<float>(*own++, sizes...); };
    const auto narrow = [&](auto... sizes) { return call.weight<int8_t>(*own++, sizes...); };
    to.s_ih = wide(rows);
    if (holds<float>(view(own->ptr())))
      to.f_ih = wide(rows, width);
    else
      to.w_ih = narrow(rows, width);
    to.s_hh = wide(rows), to.w_hh = narrow(rows, outputs);
    if (plain == 6) to.b_ih = wide(rows), to.b_hh = wide(rows);
    if (projected) to.s_hr = wide(outputs), to.w_hr = narrow(outputs, hidden);
  }
  return call.run([&] {
    for (const Int8Forward& layer : layers) kernels().forward_int8(layer);
  });
}

py::object by_torch(const Network& network, PyObject* input, PyObject* hx) {
  const TensorView x = view(input);
  const Held held = parameters_of(network);
  return network.cell ? trained_cell(network, input, x, hx, held) : trained_layer(network, input, x, hx, held);
}

// fast_path(attributes, input, hx) and fast_path(attributes, input, hx, mode)
template <py::object (*serve)(const Network&, PyObject* input, PyObject* hx), Guards Torch::* guards>
PyObject* fast_path(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3 && count != 4) {
    PyErr_SetString(PyExc_TypeError, "fast_path: expected 3 or 4 arguments");
    return nullptr;
  }
  try {
    PyObject* const input = arguments[1];
    if (torch.tensor && reinterpret_cast<PyObject*>(Py_TYPE(input)) == torch.tensor) {
      const auto by = [&](auto* path) {
        return path(Network(arguments[0], count == 4 ? arguments[3] : nullptr), input, arguments[2]).release().ptr();
      };
      if (undisturbed(torch.*guards)) return by(serve);
      if (trained_steps.layers && serve == floats && undisturbed(trained_steps.guards)) return by(by_torch);
    }
  } catch (const Unusual&) {
    if (PyErr_Occurred()) PyErr_Clear();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

template <py::object (*serve)(const Network&, PyObject* input, PyObject* hx), Guards Torch::* guards>
void add(py::module_& module, const char* name) {
  static PyMethodDef method{name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fast_path<serve, guards>)),
                            METH_FASTCALL, nullptr};
  module.add_object(name, py::reinterpret_steal<py::object>(PyCFunction_New(&method, nullptr)));
}

Guards kept_for_good(const py::list& pairs) {
  Guards guards;
  for (const py::handle pair : pairs) {
    auto [ask, wanted] = pair.cast<std::pair<py::object, py::tuple>>();
    guards.emplace_back(ask.release().ptr(), wanted.release().ptr());
  }
  return guards;
}

}  // namespace

void add_fast_path(py::module_& module) {
  add<floats, &Torch::of_floats>(module, "fast_path");
  add<integers, &Torch::of_integers>(module, "fast_path_int8");
  module.def("prepare_fast_path", [](py::object parameter, py::object empty_like, py::object threads,
                                     const py::list& of_floats, const py::list& of_integers) {
    if (!storages_are_at_hand()) return;  // both then leave every call to Python
    torch.parameter = parameter.release().ptr();
    torch.empty_like = empty_like.release().ptr();
    torch.threads = threads.release().ptr();
    torch.of_floats = kept_for_good(of_floats);
    torch.of_integers = kept_for_good(of_integers);
    torch.tensor = reinterpret_cast<PyObject*>(tensor_reader().type);
  });
  module.def("prepare_trained_steps", [](py::dict cells, py::dict layers, const py::list& guards) {
    trained_steps.guards = kept_for_good(guards);
    trained_steps.cells = cells.release().ptr();
    trained_steps.layers = layers.release().ptr();
  });
}

}  // namespace fastrnn
