// A dict from Python whose fields a caller knows by name, read in tens of nanoseconds each: the names are made once.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace fastrnn {

namespace py = pybind11;

// The name of a field, of a static object, so that it lives as long as the process.
struct Name {
  const char* text;
  PyObject* string;

  explicit Name(const char* name) : text(name), string(PyUnicode_InternFromString(name)) {}
};

class Record {
 public:
  // Of exactly so many fields; all of them are to be read, so that none is there which nobody knows.
  Record(py::handle of, Py_ssize_t fields, const char* what) : dict_(of), what_(what) {
    if (!PyDict_Check(of.ptr())) throw py::value_error(std::string(what) + ": expected a dict");
    if (PyDict_Size(of.ptr()) != fields)
      throw py::value_error(std::string(what) + ": expected " + std::to_string(fields) + " fields, got " +
                            std::to_string(PyDict_Size(of.ptr())));
  }

  py::handle operator[](const Name& name) const {
    PyObject* const found = PyDict_GetItemWithError(dict_.ptr(), name.string);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (!found) throw py::value_error(std::string(what_) + ": expected a field " + name.text);
    return found;
  }

 private:
  py::handle dict_;  // the caller's
  const char* what_;
};

}  // namespace fastrnn
