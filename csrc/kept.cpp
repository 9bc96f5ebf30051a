#include "kept.h"

#include <unordered_map>

namespace fastrnn {
namespace {

struct Entry {
  std::shared_ptr<Kept> kept;
  PyObject* reference;  // weak; when the parameter goes it erases the entry
};

// Guarded by the GIL; never destroyed, since parameters may go after static objects do.
std::unordered_map<PyObject*, Entry>& entries() {
  static auto* const all = new std::unordered_map<PyObject*, Entry>;
  return *all;
}

PyObject* forget(PyObject* key, PyObject*) {
  const auto found = entries().find(static_cast<PyObject*>(PyCapsule_GetPointer(key, nullptr)));
  if (found != entries().end()) {
    PyObject* const reference = found->second.reference;
    entries().erase(found);
    Py_DECREF(reference);
  }
  Py_RETURN_NONE;
}

PyMethodDef forget_method{"forget", forget, METH_O, nullptr};

PyObject* parameter_type() {
  static PyObject* const type =
      pybind11::object(pybind11::module_::import("torch.nn").attr("Parameter")).release().ptr();
  return type;
}

}  // namespace

KeptFor::KeptFor(pybind11::handle weight) {
  PyObject* const parameter = weight.ptr();
  if (reinterpret_cast<PyObject*>(Py_TYPE(parameter)) != parameter_type()) return;
  auto found = entries().find(parameter);
  if (found == entries().end()) {
    const auto key = pybind11::reinterpret_steal<pybind11::object>(PyCapsule_New(parameter, nullptr, nullptr));
    if (!key) throw pybind11::error_already_set();
    const auto callback = pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&forget_method, key.ptr()));
    if (!callback) throw pybind11::error_already_set();
    PyObject* const reference = PyWeakref_NewRef(parameter, callback.ptr());
    if (!reference) throw pybind11::error_already_set();
    found = entries().emplace(parameter, Entry{std::make_shared<Kept>(), reference}).first;
  }
  if (found->second.kept->claim()) kept_ = found->second.kept;
}

size_t kept_count() { return entries().size(); }

}  // namespace fastrnn
