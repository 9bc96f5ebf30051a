#include "stream_module.h"

#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "stream.h"
#include "tensors.h"

namespace fastrnn {
namespace {

// Multiply-adds from which other Python threads may run meanwhile, as in fast_path_call.h.
constexpr double kLong = 1e6;

// A stream with the tensors that its results are, of the same memory: (B, O), and (O) of one row or null.
struct Handle {
  std::unique_ptr<Stream> stream;
  py::object memory, rows, row, prepare;
  std::vector<std::pair<py::object, py::object>> guards;  // functions, and what they return while nobody looks on
  char* y = nullptr;                                      // of `memory`
  bool busy = false;  // guarded by the GIL: whether a thread that let it go is in a step

  void require_idle() const {
    if (busy) throw std::runtime_error("expected one thread at a time in a stream: another is in its step");
  }
};

bool undisturbed(const Handle& handle) {
  for (const auto& [ask, expected] : handle.guards) {
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(ask.ptr()));
    if (!answer) throw py::error_already_set();
    if (!answer.is(expected)) return false;
  }
  return true;
}

size_t item(const Stream& stream) { return stream.narrow() ? 2 : 4; }

// The bytes of an object with the buffer protocol, for as long as this is there.
struct Bytes {
  Py_buffer view;
  Bytes(const py::handle& of, int flags) {
    if (PyObject_GetBuffer(of.ptr(), &view, flags)) throw py::error_already_set();
  }
  ~Bytes() { PyBuffer_Release(&view); }
  Bytes(const Bytes&) = delete;
};

std::unique_ptr<Stream> read(const py::handle& bytes, int64_t batch) {
  const Bytes own(bytes, PyBUF_SIMPLE);
  try {
    return std::make_unique<Stream>(own.view.buf, static_cast<size_t>(own.view.len), batch);
  } catch (const StreamError& error) {
    throw py::value_error(error.text);
  }
}

// Where the numbers of an ordinary x are, and whether it is one row without a batch; null for all others.
const void* ordinary(const Stream& stream, PyObject* x, bool* flat) {
  const TensorReader& reader = tensor_reader();
  TensorView view;
  if (Py_TYPE(x) != reader.type || !storages_are_at_hand()) return nullptr;
  if (reader.read(x, &view)) {
    PyErr_Clear();
    return nullptr;
  }
  const bool tokens = stream.vocabulary() > 0;
  const size_t bytes = tokens ? sizeof(int64_t) : item(stream);
  const uint8_t code = tokens ? 0 : stream.narrow() ? 4 : 2;
  if (!view.on_cpu() || view.code != code || view.bits != 8 * bytes || view.lanes != 1) return nullptr;
  const int rank = tokens ? 1 : 2;
  *flat = view.rank == rank - 1;
  if (view.rank != rank && !(*flat && stream.batch() == 1)) return nullptr;
  if (!*flat && view.shape[0] != stream.batch()) return nullptr;
  if (!tokens && view.shape[view.rank - 1] != stream.inputs()) return nullptr;
  if (!view.dense() || has_wrong_sign(x) || !has_memory(x, view.count(), bytes)) return nullptr;
  return reinterpret_cast<const void*>(view.address());
}

// A result is one object for good, so that whoever changes its shape in place would change what the next step returns.
void require_as_made(const Handle& handle, PyObject* result, bool flat) {
  const TensorReader& reader = tensor_reader();
  TensorView view;
  if (!reader.read) return;
  const Stream& stream = *handle.stream;
  if (reader.read(result, &view)) PyErr_Clear(), view.rank = -1;
  const bool same = flat ? view.has_shape(stream.outputs()) : view.has_shape(stream.batch(), stream.outputs());
  if (!same || !view.dense() || view.address() != reinterpret_cast<uintptr_t>(handle.y))
    throw std::runtime_error(
        "expected the result of step as it was made, but its shape or memory has been changed in place: take a "
        "clone()");
}

PyObject* step(Handle& handle, PyObject* x) {
  handle.require_idle();
  Stream& stream = *handle.stream;
  bool flat = false;
  py::object kept;  // what `prepare` made of x
  int64_t token;
  const bool plain = undisturbed(handle);
  const void* from = plain ? ordinary(stream, x, &flat) : nullptr;
  if (plain && !from && stream.vocabulary() && stream.batch() == 1 && PyLong_CheckExact(x)) {
    int overflow;
    token = PyLong_AsLongLongAndOverflow(x, &overflow);
    from = &token, flat = true;
    if (overflow) token = -1;
  }
  if (!from) {
    kept = handle.prepare(py::handle(x));
    const auto [address, is_flat, tensor] = kept.cast<std::tuple<uintptr_t, bool, py::object>>();
    from = reinterpret_cast<const void*>(address), flat = is_flat;
    handle.require_idle();
  }
  PyObject* const result = flat ? handle.row.ptr() : handle.rows.ptr();
  require_as_made(handle, result, flat);
  if (stream.vocabulary()) {
    if (!stream.look_up(static_cast<const int64_t*>(from)))
      throw py::index_error("step: expected tokens from 0 to " + std::to_string(stream.vocabulary() - 1));
  } else {
    std::memcpy(stream.x(), from, static_cast<size_t>(stream.batch() * stream.inputs()) * item(stream));
  }
  if (stream.work() < kLong) {
    stream.step();
  } else {
    handle.busy = true;
    {
      py::gil_scoped_release released;
      stream.step();
    }
    handle.busy = false;
  }
  std::memcpy(handle.y, stream.y(), static_cast<size_t>(stream.batch() * stream.outputs()) * item(stream));
  Py_INCREF(result);
  return result;
}

constexpr const char* kCapsule = "fastrnn._core.Stream";
using Shared = std::shared_ptr<Handle>;

PyObject* call_step(PyObject* capsule, PyObject* x) {
  auto* const handle = static_cast<Shared*>(PyCapsule_GetPointer(capsule, kCapsule));
  if (!handle) return nullptr;
  try {
    return step(**handle, x);
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef step_method{"step", call_step, METH_O,
                        "step(x)\n--\n\nOne step of all rows; see fastrnn.streaming.Stream.step."};

py::object step_function(const Shared& handle) {
  const auto free = [](PyObject* capsule) { delete static_cast<Shared*>(PyCapsule_GetPointer(capsule, kCapsule)); };
  auto own = std::make_unique<Shared>(handle);
  const auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(own.get(), kCapsule, free));
  if (!capsule) throw py::error_already_set();
  own.release();
  auto made =
      py::reinterpret_steal<py::object>(PyCFunction_NewEx(&step_method, capsule.ptr(), py::str("fastrnn._core").ptr()));
  if (!made) throw py::error_already_set();
  return made;
}

float* state(const Stream& stream, py::handle tensor, Memory& memory) {
  return reinterpret_cast<float*>(memory.address(tensor, "state", stream.state_size(), sizeof(float)));
}

}  // namespace

void add_stream(py::module_& module) {
  module.def("weights_fingerprint", [](py::handle weights, int64_t count, size_t bytes) {
    Memory memory;
    const auto* const from = reinterpret_cast<const void*>(memory.address(weights, "weights", count, bytes));
    return kernels().fingerprint(from, count * static_cast<int64_t>(bytes));
  });
  py::class_<Handle, Shared>(module, "Stream")
      .def(py::init([](py::handle bytes, int64_t batch) {
        auto made = std::make_shared<Handle>();
        made->stream = read(bytes, batch);
        return made;
      }))
      .def_property_readonly("outputs", [](const Handle& handle) { return handle.stream->outputs(); })
      .def_property_readonly("state_size", [](const Handle& handle) { return handle.stream->state_size(); })
      .def("step_function",
           [](const Shared& handle, py::object memory, py::object rows, py::object row, py::object prepare,
              const std::vector<std::pair<py::object, py::object>>& guards) {
             const Bytes bytes(memory, PyBUF_WRITABLE);
             const Stream& stream = *handle->stream;
             const auto size = static_cast<Py_ssize_t>(item(stream)) * stream.batch() * stream.outputs();
             if (bytes.view.len != size)
               throw py::value_error("memory: expected " + std::to_string(size) + " bytes, got " +
                                     std::to_string(bytes.view.len));
             handle->y = static_cast<char*>(bytes.view.buf);  // it stays: the tensors of this memory hold it in place
             handle->memory = std::move(memory), handle->rows = std::move(rows), handle->row = std::move(row);
             handle->prepare = std::move(prepare), handle->guards = guards;
             return step_function(handle);
           })
      .def("read",
           [](Handle& handle, py::handle bytes) {
             auto made = read(bytes, handle.stream->batch());
             handle.require_idle();
             const Stream& old = *handle.stream;
             if (made->inputs() != old.inputs() || made->outputs() != old.outputs() ||
                 made->vocabulary() != old.vocabulary() || made->state_size() != old.state_size() ||
                 made->narrow() != old.narrow())
               throw py::value_error("expected a model of the sizes and the dtype that the stream was made for");
             std::vector<float> state(static_cast<size_t>(old.state_size()));
             old.get_state(state.data());
             made->set_state(state.data());
             handle.stream = std::move(made);
           })
      .def("reset",
           [](Handle& handle, const std::optional<std::vector<int64_t>>& rows) {
             handle.require_idle();
             if (!rows) return handle.stream->reset_all();
             for (const int64_t row : *rows)
               if (row < 0 || row >= handle.stream->batch())
                 throw py::index_error("rows: expected 0 to " + std::to_string(handle.stream->batch() - 1) + ", got " +
                                       std::to_string(row));
             handle.stream->reset(rows->data(), static_cast<int64_t>(rows->size()));
           })
      .def("get_state",
           [](const Handle& handle, py::handle to) {
             Memory memory;
             handle.require_idle();
             handle.stream->get_state(state(*handle.stream, to, memory));
           })
      .def("set_state", [](Handle& handle, py::handle from) {
        Memory memory;
        handle.require_idle();
        handle.stream->set_state(state(*handle.stream, from, memory));
      });
}

}  // namespace fastrnn
