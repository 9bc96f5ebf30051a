// Tensors as Python hands them over, read without torch's headers, so that one build serves every torch.
//
// From torch 2.10 or so its tensors have DLPack's exchange API: one call in C tells all there is to know of one, in
// some 20 ns. Before that, their attributes tell it, one by one. Source: DLPack 1.3, dlpack.h, DLPackExchangeAPI.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace fastrnn {

namespace py = pybind11;

// The layout that dlpack.h fixes for DLTensor.
struct TensorView {
  void* data;
  int32_t device, device_index;
  int32_t rank;
  uint8_t code, bits;  // of the dtype: 0 an integer, 2 a float, 4 a bfloat16; of so many bits
  uint16_t lanes;
  const int64_t *shape, *strides;  // they live as long as the tensor
  uint64_t offset;

  bool on_cpu() const { return device == 1; }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data) + offset; }
  int64_t count() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= shape[i];
    return product;
  }
  bool dense() const {
    int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != step) return count() == 0;
      step *= shape[i];
    }
    return true;
  }
  template <class... Size>
  bool has_shape(Size... sizes) const {
    const int64_t wanted[] = {static_cast<int64_t>(sizes)...};
    if (rank != static_cast<int>(sizeof...(sizes))) return false;
    for (int i = 0; i < rank; ++i)
      if (shape[i] != wanted[i]) return false;
    return true;
  }
};

using ReadTensor = int (*)(void* tensor, TensorView* to);  // 0, or -1 with a Python error set

// Reads an object of this type, torch.Tensor; null where this torch has no such function.
struct TensorReader {
  ReadTensor read;
  PyTypeObject* type;
};

inline const TensorReader& tensor_reader() {
  static const TensorReader found = [] {
    struct Exchange {
      struct {
        uint32_t major, minor;
      } version;
      void* previous;
      void *allocate, *export_owned, *import_owned;
      ReadTensor read;
      void* stream;
    };
    py::object type = py::module_::import("torch").attr("Tensor");
    TensorReader reader{nullptr, reinterpret_cast<PyTypeObject*>(type.ptr())};
    if (py::hasattr(type, "__dlpack_c_exchange_api__")) {
      const py::object capsule = type.attr("__dlpack_c_exchange_api__");
      const auto* exchange = static_cast<Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
      if (!exchange) throw py::error_already_set();
      if (exchange->version.major == 1) reader.read = exchange->read;
    }
    type.release();  // kept for good
    return reader;
  }();
  return found;
}

// Address of a dense CPU tensor of exactly `count` elements of `item` bytes. None stands for null where `optional`.
inline uintptr_t address(py::handle tensor, const char* name, __int128 count, size_t item, bool optional = false) {
  if (tensor.is_none()) {
    if (optional) return 0;
    throw py::value_error(std::string(name) + ": expected a tensor, got None");
  }
  const __int128 wanted = count * static_cast<__int128>(item);
  __int128 bytes;
  uintptr_t place;
  bool fits;
  const TensorReader& reader = tensor_reader();
  if (!PyObject_TypeCheck(tensor.ptr(), reader.type)) throw py::type_error(std::string(name) + ": expected a tensor");
  if (reader.read) {
    TensorView view;
    if (reader.read(tensor.ptr(), &view)) throw py::error_already_set();
    bytes = static_cast<__int128>(view.count()) * view.bits / 8;
    place = view.address();
    fits = view.on_cpu() && view.dense();
  } else {
    const auto get = [&](const char* attribute) { return tensor.attr(attribute); };
    bytes = py::cast<int64_t>(get("nbytes"));
    place = py::cast<uintptr_t>(get("data_ptr")());
    fits = py::cast<bool>(get("is_cpu")) && py::cast<bool>(get("is_contiguous")());
  }
  if (!fits) throw py::value_error(std::string(name) + ": expected a contiguous tensor on the CPU");
  if (bytes != wanted)
    throw py::value_error(std::string(name) + ": expected " + std::to_string(static_cast<int64_t>(wanted)) +
                          " bytes, got " + std::to_string(static_cast<int64_t>(bytes)));
  return place;
}

}  // namespace fastrnn
