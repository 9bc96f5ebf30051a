#include "quick.h"

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "kept.h"
#include "scan.h"
#include "tensors.h"

namespace fastrnn {
namespace {

// What Python gave to prepare_quick: kept for good.
struct Torch {
  PyObject *tensor = nullptr, *parameter = nullptr, *empty_like = nullptr, *threads = nullptr;
  std::vector<std::pair<PyObject*, PyObject*>> guards;  // a function, and a tuple of what it may return
};
Torch torch;

PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

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
  PyObject* new_empty = interned("new_empty");
  PyObject* is_neg = interned("is_neg");
  PyObject* of_cell[4] = {interned("weight_ih"), interned("weight_hh"), interned("bias_ih"), interned("bias_hh")};
};
const Names& names() {
  static const Names all;
  return all;
}

// Thrown where the call is out of the ordinary and left to Python, which knows what to do or raises the error.
struct Unusual {};

void require(bool ordinary) {
  if (!ordinary) throw Unusual();
}

PyObject* get(PyObject* dictionary, PyObject* name) {
  PyObject* const value = PyDict_GetItemWithError(dictionary, name);
  require(value);
  return value;
}

int64_t size(PyObject* dictionary, PyObject* name) {
  PyObject* const value = get(dictionary, name);
  require(PyLong_CheckExact(value));
  const long long number = PyLong_AsLongLong(value);
  require(number >= 0 && number < (int64_t{1} << 31));
  return number;
}

bool flag(PyObject* dictionary, PyObject* name) {
  PyObject* const value = get(dictionary, name);
  require(value == Py_True || value == Py_False);
  return value == Py_True;
}

bool undisturbed() {
  for (const auto& [ask, wanted] : torch.guards) {
    PyObject* const answer = PyObject_CallNoArgs(ask);
    if (!answer) throw py::error_already_set();
    Py_DECREF(answer);  // the wanted ones are never freed
    bool found = false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(wanted); ++i) found |= PyTuple_GET_ITEM(wanted, i) == answer;
    if (!found) return false;
  }
  return true;
}

// A plain dense tensor on the CPU; a Parameter only where `weight`.
TensorView view(PyObject* tensor, bool weight = false) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  require(type == torch.tensor || (weight && type == torch.parameter));
  TensorView found;
  if (tensor_reader().read(tensor, &found)) {
    PyErr_Clear();
    throw Unusual();
  }
  require(found.on_cpu() && found.dense() && found.lanes == 1);
  if (type == torch.tensor) {  // an operator alone knows of numbers stored with the wrong sign
    const auto negative = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, names().is_neg));
    if (!negative) throw py::error_already_set();
    require(negative.ptr() == Py_False);
  }
  return found;
}

py::object like(PyObject* tensor) {
  auto made = py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch.empty_like, tensor));
  if (!made) throw py::error_already_set();
  return made;
}

template <class... Size>
py::object empty(PyObject* like, Size... sizes) {
  const py::tuple shape = py::make_tuple(static_cast<int64_t>(sizes)...);
  auto made = py::reinterpret_steal<py::object>(PyObject_CallMethodOneArg(like, names().new_empty, shape.ptr()));
  if (!made) throw py::error_already_set();
  return made;
}

// Multiply-adds from which other Python threads may run meanwhile.
constexpr double kLong = 1e6;

struct Call {
  PyObject *attributes, *input, *cell;  // `cell` is the mode of a cell module, null for layers
  Mode mode;
  int gates, directions, layers;
  int64_t inputs, hidden, outputs;
  std::vector<py::object> weights;  // held, whatever another thread does to the module meanwhile

  Call(PyObject* of, PyObject* x, PyObject* cell_mode) : attributes(of), input(x), cell(cell_mode) {
    const Names& n = names();
    const char* const name = PyUnicode_AsUTF8(cell ? cell : get(attributes, n.mode));
    if (!name) throw py::error_already_set();
    mode = !std::strcmp(name, "LSTM")       ? Mode::lstm
           : !std::strcmp(name, "GRU")      ? Mode::gru
           : !std::strcmp(name, "RNN_TANH") ? Mode::rnn_tanh
                                            : Mode::rnn_relu;
    require(mode != Mode::rnn_relu || !std::strcmp(name, "RNN_RELU"));
    gates = mode == Mode::lstm ? 4 : mode == Mode::gru ? 3 : 1;
    inputs = size(attributes, n.input_size);
    hidden = outputs = size(attributes, n.hidden_size);
    layers = directions = 1;
    PyObject* const parameters = get(attributes, n.parameters);
    if (cell) {
      for (PyObject* each : n.of_cell)
        if (PyObject* weight = get(parameters, each); weight != Py_None) weights.push_back(hold(weight));
      return;
    }
    if (const int64_t projection = size(attributes, n.proj_size)) outputs = projection;
    layers = static_cast<int>(size(attributes, n.num_layers));
    directions = flag(attributes, n.bidirectional) ? 2 : 1;
    PyObject* const list = get(attributes, n.weights);
    PyObject* const list_names = get(attributes, n.weight_names);
    require(PyList_CheckExact(list) && PyList_CheckExact(list_names));
    require(PyList_GET_SIZE(list) == PyList_GET_SIZE(list_names));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
      PyObject* const weight = PyList_GET_ITEM(list, i);
      require(get(parameters, PyList_GET_ITEM(list_names, i)) == weight);
      weights.push_back(hold(weight));
    }
    if (layers > 1 && flag(attributes, n.training)) {
      PyObject* const dropout = get(attributes, n.dropout);
      require(PyFloat_CheckExact(dropout) && PyFloat_AS_DOUBLE(dropout) == 0);
    }
  }

  static py::object hold(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

  py::object run(PyObject* hx) {
    const TensorView x = view(input);
    if (x.code == 2 && x.bits == 32) return run<float>(x, hx);
    if (x.code == 2 && x.bits == 64) return run<double>(x, hx);
    if (x.code == 4 && x.bits == 16 && kernels().stack_bfloat16) return run<bfloat16>(x, hx);
    throw Unusual();
  }

  template <class S>
  py::object run(const TensorView& x, PyObject* hx) {
    const bool lstm = mode == Mode::lstm;
    // A cell's (B, I) or (I,) is one step; a layer's (T, I) is one row.
    require(cell ? x.rank == 1 || x.rank == 2 : x.rank == 2 || x.rank == 3);
    const bool flat = x.rank == (cell ? 1 : 2);
    int64_t steps = cell ? 1 : x.shape[0], batch = flat ? 1 : cell ? x.shape[0] : x.shape[1];
    if (!cell && !flat && flag(attributes, names().batch_first)) {
      std::swap(steps, batch);
      require(steps == 1 || batch == 1);  // then either order is the same in memory
    }
    require(steps > 0 && batch > 0 && hidden > 0 && inputs > 0 && x.shape[x.rank - 1] == inputs);
    const auto reads = [&](const TensorView& tensor) {
      require(tensor.code == x.code && tensor.bits == x.bits);
      return reinterpret_cast<S*>(tensor.address());
    };

    const int64_t count = layers * directions;
    PyObject *h0 = nullptr, *c0 = nullptr;
    const S *h0_at, *c0_at = nullptr;
    std::unique_ptr<S[]> zeros;
    if (hx == Py_None) {
      zeros.reset(new S[count * batch * hidden]());
      h0_at = c0_at = zeros.get();
    } else {
      h0 = hx;
      if (lstm) {
        require((PyTuple_CheckExact(hx) || PyList_CheckExact(hx)) && PySequence_Fast_GET_SIZE(hx) == 2);
        h0 = PySequence_Fast_GET_ITEM(hx, 0);
        c0 = PySequence_Fast_GET_ITEM(hx, 1);
      }
      const auto state = [&](PyObject* tensor, int64_t units) {
        const TensorView found = view(tensor);
        require(cell   ? flat ? found.has_shape(units) : found.has_shape(batch, units)
                : flat ? found.has_shape(count, units)
                       : found.has_shape(count, batch, units));
        return reads(found);
      };
      h0_at = state(h0, outputs);
      if (lstm) c0_at = state(c0, hidden);
    }

    std::vector<Forward<S>> calls(layers);
    const size_t each = weights.size() / count;
    require(each * count == weights.size() && each >= 2 && each <= 5);
    const bool projected = each % 2;
    require(projected ? lstm : outputs == hidden);
    const int64_t rows = gates * hidden;
    double work = 0;
    for (int i = 0; i < count; ++i) {
      const int64_t width = i < directions ? inputs : outputs * directions;
      const py::object* const own = weights.data() + i * each;
      const auto matrix = [&](int at, int64_t height, int64_t columns) {
        const TensorView found = view(own[at].ptr(), true);
        require(found.has_shape(height, columns));
        return reads(found);
      };
      const auto bias = [&](int at) {
        const TensorView found = view(own[at].ptr(), true);
        require(found.has_shape(rows));
        return reads(found);
      };
      Parameters<const S>& to = calls[i / directions].weights[i % directions];
      to = {};
      to.w_ih = matrix(0, rows, width);
      to.w_hh = matrix(1, rows, outputs);
      if (each >= 4) to.b_ih = bias(2), to.b_hh = bias(3);
      if (projected) to.w_hr = matrix(static_cast<int>(each) - 1, outputs, hidden);
      work += static_cast<double>(rows) * (width + outputs) * steps * batch;
    }

    const int64_t width = directions * outputs;
    py::object y, hn, cn;
    const auto last_state = [&](PyObject* first, int64_t units) {
      if (first) return like(first);
      return cell   ? flat ? empty(input, units) : empty(input, batch, units)
             : flat ? empty(input, count, units)
                    : empty(input, count, batch, units);
    };
    hn = last_state(h0, outputs);
    if (lstm) cn = last_state(c0, hidden);
    if (!cell) {
      const bool as_h0 = h0 && !flat && layers == 1 && width == outputs && x.shape[0] == 1 && x.shape[1] == batch;
      y = as_h0 ? like(h0) : flat ? empty(input, steps, width) : empty(input, x.shape[0], x.shape[1], width);
    }
    const auto writes = [&](const py::object& tensor) {
      TensorView found;
      if (tensor_reader().read(tensor.ptr(), &found)) throw py::error_already_set();
      return reads(found);
    };
    S* const hn_at = writes(hn);
    S* const cn_at = lstm ? writes(cn) : nullptr;
    const int64_t layer_size = steps * batch * width;
    const std::unique_ptr<S[]> between(new S[(layers - !cell) * layer_size]);  // y of all layers that nobody sees
    const int threads = work < kLong ? 1 : thread_count();
    std::vector<std::unique_ptr<KeptFor>> kept;
    for (int i = 0; i < layers; ++i) {
      Forward<S>& call = calls[i];
      call.mode = mode;
      call.sizes = {steps, batch, steps * batch, i ? width : inputs, hidden, outputs, directions, nullptr};
      call.threads = threads;
      call.x = i ? calls[i - 1].y : reads(x);
      const int64_t before = static_cast<int64_t>(i) * directions * batch;
      call.h0 = h0_at + before * outputs;
      call.hn = hn_at + before * outputs;
      if (lstm) call.c0 = c0_at + before * hidden, call.cn = cn_at + before * hidden;
      call.y = i + 1 == layers && !cell ? writes(y) : between.get() + i * layer_size;
      for (int d = 0; d < directions && steps * batch >= kKeptRows; ++d) {
        kept.push_back(std::make_unique<KeptFor>(weights[(i * directions + d) * each + 1]));
        call.kept[d] = kept.back()->get();
      }
    }
    {
      std::optional<py::gil_scoped_release> released;
      if (work >= kLong) released.emplace();
      run_stack(calls.data());
    }
    if (cell) return lstm ? py::object(py::make_tuple(hn, cn)) : hn;
    return py::make_tuple(y, lstm ? py::object(py::make_tuple(hn, cn)) : hn);
  }

  void run_stack(const Forward<float>* calls) const { kernels().stack_float(calls, layers); }
  void run_stack(const Forward<double>* calls) const { kernels().stack_double(calls, layers); }
  void run_stack(const Forward<bfloat16>* calls) const { kernels().stack_bfloat16(calls, layers); }

  static int thread_count() {
    const auto count = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(torch.threads));
    if (!count) throw py::error_already_set();
    return count.cast<int>();
  }
};

// quick(attributes, input, hx) and quick(attributes, input, hx, mode)
PyObject* quick(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3 && count != 4) {
    PyErr_SetString(PyExc_TypeError, "quick: expected 3 or 4 arguments");
    return nullptr;
  }
  try {
    PyObject* const input = arguments[1];
    if (torch.tensor && reinterpret_cast<PyObject*>(Py_TYPE(input)) == torch.tensor && undisturbed())
      return Call(arguments[0], input, count == 4 ? arguments[3] : nullptr).run(arguments[2]).release().ptr();
  } catch (const Unusual&) {
    if (PyErr_Occurred()) PyErr_Clear();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyMethodDef quick_method{"quick", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(quick)), METH_FASTCALL,
                         nullptr};

}  // namespace

void add_quick(py::module_& module) {
  module.add_object("quick", py::reinterpret_steal<py::object>(PyCFunction_New(&quick_method, nullptr)));
  module.def("prepare_quick", [](py::object parameter, py::object empty_like, py::object threads, py::list guards) {
    const TensorReader& reader = tensor_reader();
    if (!reader.read) return;  // `quick` then leaves every call to Python
    torch.parameter = parameter.release().ptr();
    torch.empty_like = empty_like.release().ptr();
    torch.threads = threads.release().ptr();
    for (const py::handle pair : guards) {
      const auto [ask_one, answers] = pair.cast<std::pair<py::object, py::tuple>>();
      py::object ask = ask_one, wanted = answers;
      torch.guards.emplace_back(ask.release().ptr(), wanted.release().ptr());
    }
    torch.tensor = reinterpret_cast<PyObject*>(reader.type);
  });
}

}  // namespace fastrnn
