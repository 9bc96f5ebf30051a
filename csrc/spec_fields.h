// The dicts of a program's spec, field by field.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace fastrnn {

namespace py = pybind11;

[[noreturn]] inline void fail(const std::string& what) { throw py::value_error(what); }

// The fields of one dict of a spec, each asked for by name; `done` refuses those that nobody asked for.
class Fields {
 public:
  static constexpr int64_t kMostFields = 1 << 12;  // items of a list

  Fields(py::handle item, std::string where) : where_(std::move(where)) {
    if (!py::isinstance<py::dict>(item)) fail(where_ + ": expected a dict");
    dict_ = py::reinterpret_borrow<py::dict>(item);
  }

  const std::string& where() const { return where_; }
  bool has(const char* name) const { return dict_.contains(name) && !dict_[name].is_none(); }

  py::object get(const char* name) {
    if (!dict_.contains(name)) fail(at(name) + ": expected this field");
    return optional(name);
  }

  py::object optional(const char* name) {
    asked_.insert(name);
    return dict_.contains(name) ? py::reinterpret_borrow<py::object>(dict_[name]) : py::none();
  }

  // A whole number in [low, high]; without a fallback it has to be there.
  int64_t number(const char* name, int64_t low, int64_t high, std::optional<int64_t> fallback = {}) {
    const py::object value = fallback ? optional(name) : get(name);
    if (fallback && value.is_none()) return *fallback;
    const std::string expected =
        at(name) + ": expected a number from " + std::to_string(low) + " to " + std::to_string(high);
    if (!PyLong_Check(value.ptr())) fail(expected + ", got " + py::cast<std::string>(py::repr(value)));
    int overflow = 0;
    const int64_t found = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow || found < low || found > high) fail(expected + ", got " + py::cast<std::string>(py::str(value)));
    return found;
  }

  bool flag(const char* name, bool fallback) {
    const py::object value = optional(name);
    if (value.is_none()) return fallback;
    if (!PyBool_Check(value.ptr())) fail(at(name) + ": expected a bool");
    return value.ptr() == Py_True;
  }

  std::string text(const char* name) {
    const py::object value = get(name);
    if (!py::isinstance<py::str>(value)) fail(at(name) + ": expected a string");
    return py::cast<std::string>(value);
  }

  // The dicts of a list, each read by read(fields).
  template <class T, class Read>
  std::vector<T> list(const char* name, bool needed, const Read& read) {
    std::vector<T> all;
    const py::object value = needed ? get(name) : optional(name);
    if (value.is_none() && !needed) return all;
    if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value))
      fail(at(name) + ": expected a list of dicts");
    const auto items = py::cast<py::sequence>(value);
    if (items.size() > static_cast<size_t>(kMostFields) || (needed && items.size() == 0))
      fail(at(name) + ": expected 1 to " + std::to_string(kMostFields) + " items, got " + std::to_string(items.size()));
    for (size_t i = 0; i < items.size(); ++i) {
      const py::object item = items[i];
      Fields fields(item, at(name) + "[" + std::to_string(i) + "]");
      all.push_back(read(fields));
      fields.done();
    }
    return all;
  }

  void done() const {
    for (const auto& [key, value] : dict_) {
      const auto name = py::cast<std::string>(py::str(key));
      if (!asked_.count(name)) fail(at(name.c_str()) + ": no such field is known here");
    }
  }

  std::string at(const char* name) const { return where_.empty() ? name : where_ + "." + name; }

 private:
  std::string where_;
  py::dict dict_;
  std::set<std::string> asked_;
};

}  // namespace fastrnn
