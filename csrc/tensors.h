// Tensors as Python hands them over, read without torch's headers, so that one build serves every torch.
//
// From torch 2.10 or so its tensors have DLPack's exchange API: one call in C tells all there is to know of one, in
// some 20 ns. Before that, their attributes tell it, one by one. Source: DLPack 1.3, dlpack.h, DLPackExchangeAPI.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

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
  // From the first element to behind the last, in memory.
  int64_t span() const {
    int64_t last = 0;
    for (int i = 0; i < rank; ++i) last += (shape[i] - 1) * strides[i];
    return count() ? last + 1 : 0;
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

// Whether tensors and their storages are read through C interfaces, in some nanoseconds; else only `address` serves, by
// Python's, in a microsecond.
bool storages_are_at_hand();

// Whether a tensor's numbers are stored with the wrong sign, as the imaginary part of a conjugate's are; where storages
// are at hand.
bool has_wrong_sign(PyObject* tensor);

// Whether the storage of a tensor has `count` elements of `item` bytes from the tensor's first one on. Its shape does
// not say so: `tensor.untyped_storage().resize_(0)` frees the memory under it.
bool has_memory(PyObject* tensor, __int128 count, size_t item);

// The first of some tensors on the CPU whose storage is too small for it, by its place; -1 where there is none.
// Subclasses, which may be anything, and None are passed over.
int freed(const py::tuple& tensors);

// What messages call a tensor: a name, and perhaps a field of what has that name.
struct TensorName {
  const std::string& of;
  const char* field = nullptr;

  std::string text() const { return field ? of + "." + field : of; }
};

// The memory of a call's tensors. What is held stays where it is until this goes, whatever another thread does to the
// tensor: `tensor.data = other` exchanges the storage of the very object, so it is the storage that is held. (Not that
// a storage which is resized in place stays where it was: nobody can hold that.) Construct, use and destroy with the
// GIL.
class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void hold(PyObject* tensor);

  // Where a dense CPU tensor of exactly `count` elements of `item` bytes is; holds it if it is `shared`, so that
  // another thread may have it. None stands for null where `optional`.
  uintptr_t address(py::handle tensor, const char* name, __int128 count, size_t item, bool optional = false,
                    bool shared = true);

  // Where a CPU tensor of floats of `item` bytes is, as `rows` rows of `columns` numbers: dense, or
  // with dense rows that are further apart where it has two dimensions and may be `spaced`. Holds it.
  struct Rows {
    uintptr_t address;
    int64_t stride;  // numbers from row to row
  };
  Rows rows(py::handle tensor, const TensorName& name, int64_t rows, int64_t columns, size_t item, bool spaced = false);

  // The rows of each step, checked: so many steps, from `batch` down to 1, `rows` in all.
  const int64_t* batch_sizes(py::handle tensor, int64_t steps, int64_t batch, int64_t rows);

 private:
  std::vector<void**> views_;
  std::vector<py::object> storages_;  // where none are at hand
};

}  // namespace fastrnn
