#include "weight_cache.h"

#include <unordered_map>
#include <vector>

namespace fastrnn {
namespace {

namespace py = pybind11;

// A storage of torch's: when it goes, so does what was packed of it. Its weak reference is to torch's Python object for
// it, which lives as long as the memory does; one to the parameter would forbid torch to swap that for another.
struct Storage {
  PyObject* reference;
  uintptr_t base;                 // of its memory
  std::vector<uintptr_t> places;  // that something is kept for
};

// Guarded by the GIL; never destroyed, since parameters may go after static objects do.
struct Entries {
  std::unordered_map<uintptr_t, std::shared_ptr<WeightCache>> caches;  // by place
  std::unordered_map<PyObject*, Storage> storages;

  void clear(Storage& storage) {
    for (const uintptr_t place : storage.places) caches.erase(place);
    storage.places.clear();
  }
};

Entries& entries() {
  static auto* const all = new Entries;
  return *all;
}

PyObject* forget(PyObject* key, PyObject*) {
  const auto found = entries().storages.find(static_cast<PyObject*>(PyCapsule_GetPointer(key, nullptr)));
  if (found != entries().storages.end()) {
    PyObject* const reference = found->second.reference;
    entries().clear(found->second);
    entries().storages.erase(found);
    Py_DECREF(reference);
  }
  Py_RETURN_NONE;
}

PyMethodDef forget_method{"forget", forget, METH_O, nullptr};

Storage& entry_of(const py::object& storage) {
  auto found = entries().storages.find(storage.ptr());
  if (found == entries().storages.end()) {
    const auto key = py::reinterpret_steal<py::object>(PyCapsule_New(storage.ptr(), nullptr, nullptr));
    if (!key) throw py::error_already_set();
    const auto callback = py::reinterpret_steal<py::object>(PyCFunction_New(&forget_method, key.ptr()));
    if (!callback) throw py::error_already_set();
    PyObject* const reference = PyWeakref_NewRef(storage.ptr(), callback.ptr());
    if (!reference) throw py::error_already_set();
    found = entries().storages.emplace(storage.ptr(), Storage{reference, 0, {}}).first;
  }
  return found->second;
}

PyObject* parameter_type() {
  static PyObject* const type = py::object(py::module_::import("torch.nn").attr("Parameter")).release().ptr();
  return type;
}

}  // namespace

WeightCacheClaim::WeightCacheClaim(py::handle weight, uintptr_t place) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(weight.ptr())) != parameter_type()) return;
  auto found = entries().caches.find(place);
  if (found == entries().caches.end()) {
    const py::object storage = weight.attr("untyped_storage")();
    const auto base = storage.attr("data_ptr")().cast<uintptr_t>();
    if (place < base || place - base >= storage.attr("nbytes")().cast<uintptr_t>()) return;  // exchanged meanwhile
    Storage& own = entry_of(storage);
    if (own.base != base) entries().clear(own);  // its memory has moved
    own.base = base;
    own.places.push_back(place);
    found = entries().caches.emplace(place, std::make_shared<WeightCache>()).first;
  }
  if (found->second->claim()) kept_ = found->second;
}

size_t weight_cache_count() { return entries().caches.size(); }

}  // namespace fastrnn
