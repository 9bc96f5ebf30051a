#include "tensors.h"

#if defined(_WIN32)
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include <cstring>

namespace fastrnn {
namespace {

// What torch's C interface (torch/csrc/inductor/aoti_torch/c/shim.h) knows of a tensor's storage, told in some
// nanoseconds where Python's way takes some hundred. A handle there is a pointer to an at::Tensor, which is nothing but
// a pointer to its implementation, and that stands in Python's object.
struct Torch {
  using Handle = void* const*;
  int32_t (*storage_size)(Handle tensor, int64_t* bytes) = nullptr;
  int32_t (*storage_offset)(Handle tensor, int64_t* elements) = nullptr;
  int32_t (*view)(Handle tensor, int64_t rank, const int64_t* sizes, const int64_t* strides, int64_t offset,
                  void*** to) = nullptr;
  int32_t (*release)(void** tensor) = nullptr;
  size_t place = 0;  // of the implementation's address in Python's object; 0 where this torch has no such interface
  size_t sign_place = 0;    // in the implementation, of the word which says that the signs are stored wrong,
  uint64_t wrong_sign = 0;  // and its bit there

  Handle handle(PyObject* tensor) const {
    return reinterpret_cast<Handle>(reinterpret_cast<const char*>(tensor) + place);
  }
};

// Where in Python's object for a tensor its implementation's address stands: as the tensor itself tells it, of several.
size_t place_of_implementation() {
  const py::object empty = py::module_::import("torch").attr("empty");
  const py::object parameter = py::module_::import("torch.nn").attr("Parameter");
  size_t found = 0;
  for (int i = 0; i < 4; ++i) {
    py::object tensor =
        empty(i, py::arg("device") = "cpu", py::arg("dtype") = py::module_::import("torch").attr("float32"));
    if (i % 2) tensor = parameter(tensor);
    const auto implementation = tensor.attr("_cdata").cast<uintptr_t>();
    size_t place = sizeof(PyObject);  // from here on the object is torch's: the address, or a flag and the address
    for (; place <= sizeof(PyObject) + sizeof(void*); place += sizeof(void*)) {
      uintptr_t word;
      std::memcpy(&word, reinterpret_cast<const char*>(tensor.ptr()) + place, sizeof(word));
      if (word == implementation) break;
    }
    if (place > sizeof(PyObject) + sizeof(void*) || (i && place != found)) return 0;
    found = place;
  }
  return found;
}

constexpr size_t kImplementation = 176;  // bytes of a tensor's implementation, at least

// Finds the word and the bit of it that change where a tensor is told that its signs are wrong: nothing in C tells it.
// False where they are not the same of several tensors.
bool find_wrong_sign(Torch& torch) {
  const py::object empty = py::module_::import("torch").attr("empty");
  const py::object parameter = py::module_::import("torch.nn").attr("Parameter");
  const py::object set = py::module_::import("torch._C").attr("_set_neg");
  for (int i = 0; i < 4; ++i) {
    py::object tensor = empty(i, py::arg("device") = "cpu");
    if (i % 2) tensor = parameter(tensor);
    const char* const implementation = static_cast<const char*>(*torch.handle(tensor.ptr()));
    const auto word = [&](size_t at) {
      uint64_t found;
      std::memcpy(&found, implementation + at, sizeof(found));
      return found;
    };
    const auto flipped = [&](size_t at) {
      const uint64_t before = word(at);
      set(tensor, true);
      const uint64_t after = word(at);
      set(tensor, false);
      return before ^ after;
    };
    size_t at = 0;  // word by word up to that one: nobody knows how much there is behind it
    while (at < kImplementation && !flipped(at)) at += sizeof(uint64_t);
    if (at == kImplementation) return false;
    const uint64_t changed = flipped(at);
    if ((changed & (changed - 1)) || (i && (at != torch.sign_place || changed != torch.wrong_sign))) return false;
    torch.sign_place = at, torch.wrong_sign = changed;
  }
  return true;
}

Torch find_torch() {
  Torch torch;
#if defined(_WIN32)
  const HMODULE library = GetModuleHandleA("torch_cpu.dll");
  const auto symbol = [&](const char* name) { return reinterpret_cast<void*>(GetProcAddress(library, name)); };
#else
#if defined(__APPLE__)
  void* const library = dlopen("@rpath/libtorch_cpu.dylib", RTLD_LAZY | RTLD_NOLOAD);
#else
  void* const library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
#endif
  const auto symbol = [&](const char* name) { return dlsym(library, name); };
#endif
  if (!library) return torch;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol(name));
    return function != nullptr;
  };
  if (find(torch.storage_size, "aoti_torch_get_storage_size") &&
      find(torch.storage_offset, "aoti_torch_get_storage_offset") &&
      find(torch.view, "aoti_torch__reinterpret_tensor") && find(torch.release, "aoti_torch_delete_tensor_object"))
    torch.place = place_of_implementation();
  if (torch.place && !find_wrong_sign(torch)) torch.place = 0;
  return torch;
}

const Torch& torch() {
  static const Torch found = find_torch();
  return found;
}

}  // namespace

bool storages_are_at_hand() { return tensor_reader().read && torch().place; }

bool has_wrong_sign(PyObject* tensor) {
  const Torch& all = torch();
  uint64_t word;
  std::memcpy(&word, static_cast<const char*>(*all.handle(tensor)) + all.sign_place, sizeof(word));
  return word & all.wrong_sign;
}

bool has_memory(PyObject* tensor, __int128 count, size_t item) {
  const Torch& all = torch();
  int64_t bytes, offset;
  if (all.storage_size(all.handle(tensor), &bytes) || all.storage_offset(all.handle(tensor), &offset)) return false;
  return count == 0 || (offset + count) * static_cast<__int128>(item) <= bytes;
}

int freed(const py::tuple& tensors) {
  static PyObject* const parameter = py::object(py::module_::import("torch.nn").attr("Parameter")).release().ptr();
  const TensorReader& reader = tensor_reader();
  for (size_t i = 0; i < tensors.size(); ++i) {
    PyObject* const tensor = PyTuple_GET_ITEM(tensors.ptr(), i);
    PyTypeObject* const type = Py_TYPE(tensor);
    if (type != reader.type && reinterpret_cast<PyObject*>(type) != parameter) continue;
    TensorView view;
    if (reader.read(tensor, &view)) {  // of a device or a layout without such memory
      PyErr_Clear();
      continue;
    }
    if (view.on_cpu() && !has_memory(tensor, view.span(), view.bits / 8)) return static_cast<int>(i);
  }
  return -1;
}

Memory::~Memory() {
  for (void** view : views_) torch().release(view);
}

void Memory::hold(PyObject* tensor) {
  const Torch& all = torch();
  const int64_t size = 0, stride = 1;
  views_.push_back(nullptr);
  if (all.view(all.handle(tensor), 1, &size, &stride, 0, &views_.back())) {
    views_.pop_back();
    throw std::runtime_error("torch gave no view of a tensor's storage");
  }
}

namespace {

std::string bytes_of(__int128 bytes) { return std::to_string(static_cast<int64_t>(bytes)) + " bytes"; }

}  // namespace

uintptr_t Memory::address(py::handle tensor, const char* name, __int128 count, size_t item, bool optional,
                          bool shared) {
  const auto wrong = [&](const std::string& what) { return name + (": " + what); };
  if (tensor.is_none()) {
    if (optional) return 0;
    throw py::value_error(wrong("expected a tensor, got None"));
  }
  if (!PyObject_TypeCheck(tensor.ptr(), tensor_reader().type)) throw py::type_error(wrong("expected a tensor"));
  __int128 bytes;
  uintptr_t place;
  bool fits, there;
  if (storages_are_at_hand()) {  // C throughout: no other thread gets in before the address is known
    TensorView view;
    if (tensor_reader().read(tensor.ptr(), &view)) throw py::error_already_set();
    if (shared) hold(tensor.ptr());
    bytes = static_cast<__int128>(view.count()) * view.bits / 8;
    place = view.address();
    fits = view.on_cpu() && view.dense();
    there = has_memory(tensor.ptr(), count, item);
  } else {
    const py::object storage = tensor.attr("untyped_storage")();
    const auto number = [](const py::object& owner, const char* method) {
      return owner.attr(method)().cast<int64_t>();
    };
    const int64_t offset = number(py::reinterpret_borrow<py::object>(tensor), "storage_offset") * item;
    bytes = py::cast<int64_t>(tensor.attr("nbytes"));
    place = static_cast<uintptr_t>(number(storage, "data_ptr") + offset);
    fits = py::cast<bool>(tensor.attr("is_cpu")) && py::cast<bool>(tensor.attr("is_contiguous")());
    there = count == 0 || offset + count * item <= number(storage, "nbytes");
    storages_.push_back(storage);
  }
  const __int128 wanted = count * static_cast<__int128>(item);
  if (!fits) throw py::value_error(wrong("expected a contiguous tensor on the CPU"));
  if (bytes != wanted) throw py::value_error(wrong("expected " + bytes_of(wanted) + ", got " + bytes_of(bytes)));
  if (!there)
    throw std::runtime_error(wrong("the memory of a tensor of " + bytes_of(wanted) +
                                   " was freed or cut short, as untyped_storage().resize_() does"));
  return place;
}

namespace {

std::string list_of(const int64_t* values, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return "(" + text + ")";
}

std::string text_of(const TensorView& view) {
  return std::string(view.code == 2 ? "float" : "int") + std::to_string(view.bits) + " " +
         list_of(view.shape, view.rank) + " with strides " + list_of(view.strides, view.rank) +
         (view.on_cpu() ? "" : ", not on the CPU");
}

// The same view by Python's attributes; `sizes` holds its shape and strides.
TensorView view_by_attributes(py::handle tensor, const py::object& storage, std::vector<int64_t>& sizes) {
  TensorView view{};
  const auto item = py::cast<size_t>(tensor.attr("element_size")());
  view.data = reinterpret_cast<void*>(py::cast<uintptr_t>(storage.attr("data_ptr")()));
  view.offset = py::cast<size_t>(tensor.attr("storage_offset")()) * item;
  view.device = py::cast<bool>(tensor.attr("is_cpu")) ? 1 : 0;
  const py::object torch = py::module_::import("torch"), dtype = tensor.attr("dtype");
  view.code = dtype.is(torch.attr("float32")) || dtype.is(torch.attr("float64")) ? 2 : 0;
  view.bits = static_cast<uint8_t>(8 * item);
  sizes = py::cast<std::vector<int64_t>>(tensor.attr("shape"));
  view.rank = static_cast<int>(sizes.size());
  const auto strides = py::cast<std::vector<int64_t>>(tensor.attr("stride")());
  sizes.insert(sizes.end(), strides.begin(), strides.end());
  view.shape = sizes.data();
  view.strides = sizes.data() + view.rank;
  return view;
}

}  // namespace

Memory::Rows Memory::rows(py::handle tensor, const TensorName& name, int64_t rows, int64_t columns, size_t item,
                          bool spaced) {
  if (tensor.is_none()) throw py::value_error(name.text() + ": expected a tensor, got None");
  if (!PyObject_TypeCheck(tensor.ptr(), tensor_reader().type))
    throw py::value_error(name.text() + ": expected a tensor, got " + Py_TYPE(tensor.ptr())->tp_name);
  const bool at_hand = storages_are_at_hand();
  TensorView view;
  std::vector<int64_t> sizes;
  if (!at_hand) {
    storages_.push_back(tensor.attr("untyped_storage")());
    view = view_by_attributes(tensor, storages_.back(), sizes);
  } else if (tensor_reader().read(tensor.ptr(), &view)) {  // of a device or a layout without such memory
    PyErr_Clear();
    throw py::value_error(name.text() + ": expected a dense CPU tensor");
  } else {
    hold(tensor.ptr());
  }
  const __int128 count = static_cast<__int128>(rows) * columns;
  Rows found{view.address(), columns};
  bool fits = view.on_cpu() && view.code == 2 && view.bits == 8 * item && view.count() == count;
  if (fits && !view.dense()) {
    fits =
        spaced && view.has_shape(rows, columns) && view.strides[0] >= columns && (columns == 1 || view.strides[1] == 1);
    found.stride = view.strides[0];
  }
  if (!fits) {
    const int64_t wanted[] = {rows, columns};
    throw py::value_error(name.text() + ": expected a CPU tensor of float" + std::to_string(8 * item) + " " +
                          list_of(wanted, 2) + " with dense rows" + (spaced ? "" : ", one behind the other") +
                          "; got " + text_of(view));
  }
  const __int128 span = count ? static_cast<__int128>(rows - 1) * found.stride + columns : 0;
  const auto in_storage = [&] {
    const auto bytes = py::cast<int64_t>(storages_.back().attr("nbytes")());
    return static_cast<__int128>(view.offset) + span * static_cast<__int128>(item) <= bytes;
  };
  if (!(at_hand ? has_memory(tensor.ptr(), span, item) : in_storage()))
    throw std::runtime_error(name.text() +
                             ": the memory of the tensor was freed or cut short, as "
                             "untyped_storage().resize_() does");
  return found;
}

const int64_t* Memory::batch_sizes(py::handle tensor, int64_t steps, int64_t batch, int64_t rows) {
  const auto* sizes = reinterpret_cast<const int64_t*>(address(tensor, "batch_sizes", steps, sizeof(int64_t)));
  int64_t before = batch, sum = 0;
  for (int64_t t = 0; t < steps; ++t) {
    if (sizes[t] < 1 || sizes[t] > before || (t == 0 && sizes[t] != batch))
      throw py::value_error("batch_sizes: expected numbers from the batch size down to 1, never increasing");
    before = sizes[t];
    sum += sizes[t];
  }
  if (sum != rows) throw py::value_error("batch_sizes: expected to add up to the rows of the input");
  return sizes;
}

}  // namespace fastrnn
