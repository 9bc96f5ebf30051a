// The Python face of the engine: programs, and runs whose tensors are checked against them. The engine trusts what
// comes from here.
#include "program.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "phases.h"
#include "program_spec.h"
#include "scan.h"
#include "tensors.h"
#include "weight_cache.h"

namespace fastrnn {
namespace {

// One run's tensors, checked.
class RunReader {
 public:
  Run run{};

  RunReader(const ProgramSpec& own, Memory& memory) : own_(own), memory_(memory) {
    run.program = &own.program;
    item_ = own.program.is_double ? sizeof(double) : sizeof(float);
  }

  void read_sizes(const py::sequence& sizes) {
    const Program& program = own_.program;
    if (static_cast<int64_t>(sizes.size()) != program.sizes)
      fail("sizes: expected " + std::to_string(program.sizes) + ", got " + std::to_string(sizes.size()));
    for (int64_t i = 0; i < program.sizes; ++i) {
      const auto size = py::cast<int64_t>(sizes[i]);
      if (size < 1 || size > kMostUnits)
        fail("sizes[" + std::to_string(i) + "]: out of range, " + std::to_string(size));
      sizes_.push_back(size);
    }
    run.sizes = sizes_.data();
    for (const Phase& phase : program.phases)
      for (const PhasePart& part : phase.parts)
        for (const Result& result : part.results) {
          divides(result.mean_heads, part.size);
          for (const Term& term : result.terms) {
            divides(term.heads, part.size);
            divides(term.heads, program.arrays[term.operand.array].size);
          }
        }
    for (const OuterSum& sum : program.sums)
      for (const int array : {sum.grad.array, sum.values.array}) divides(sum.heads, program.arrays[array].size);
    for (const BackProduct& product : program.products)
      for (const int array : {product.grad.array, product.to}) divides(product.heads, program.arrays[array].size);
  }

  void read_rows(int64_t steps, int64_t batch, int64_t rows, py::handle batch_sizes) {
    for (const int64_t size : {steps, batch, rows})
      if (size < 1 || size > kMostUnits) fail("steps, batch, rows: out of range, " + std::to_string(size));
    run.steps = steps, run.batch = batch, run.rows = rows;
    if (batch_sizes.is_none()) {
      if (__int128{steps} * batch != rows)
        fail("rows: expected steps * batch, " + std::to_string(steps) + " * " + std::to_string(batch) + ", got " +
             std::to_string(rows));
      return;
    }
    run.batch_sizes = memory_.batch_sizes(batch_sizes, steps, batch, rows);
  }

  void read_arrays(const py::sequence& arrays) {
    const int64_t count = own_.program.arrays.count;
    if (static_cast<int64_t>(arrays.size()) != count)
      fail("arrays: expected " + std::to_string(count) + ", got " + std::to_string(arrays.size()));
    places_.resize(count);
    for (int64_t i = 0; i < count; ++i) places_[i] = place(i, arrays[i]);
    run.places = places_.data();
  }

 private:
  const ProgramSpec& own_;
  Memory& memory_;
  size_t item_;
  std::vector<int64_t> sizes_;
  std::vector<ArrayPlace> places_;

  void divides(int64_t heads, int size) const {
    if (sizes_[size] % heads)
      fail("sizes[" + std::to_string(size) + "]: expected a multiple of " + std::to_string(heads) + " heads, got " +
           std::to_string(sizes_[size]));
  }

  ArrayPlace place(int64_t i, const py::object& value) {
    const Array& array = own_.program.arrays[i];
    const std::string& name = own_.names[i];
    const int64_t width = array.single || array.kind == ArrayKind::number ? 1 : columns(name, array);
    ArrayPlace place{};
    const auto data = [&](py::handle tensor, const char* field, int64_t rows, int64_t of_columns, bool spaced) {
      const Memory::Rows found = memory_.rows(tensor, {name, field}, rows, of_columns, item_, spaced);
      place.data = reinterpret_cast<char*>(found.address);
      place.stride = found.stride;
    };
    const auto initial = [&](py::handle tensor) {
      const Memory::Rows found = memory_.rows(tensor, {name, "initial"}, run.batch, width, item_, true);
      place.initial = reinterpret_cast<char*>(found.address);
      place.initial_stride = found.stride;
    };
    switch (array.kind) {
      case ArrayKind::step: data(value, nullptr, run.rows, width, true); break;
      case ArrayKind::sequence: data(value, nullptr, run.batch, width, true); break;
      case ArrayKind::unit:
      case ArrayKind::total: data(value, nullptr, 1, width, false); break;
      case ArrayKind::number: data(value, nullptr, 1, 1, false); break;
      case ArrayKind::matrix: {
        const int64_t of_columns = matrix_columns(name, array);
        if (!array.int8) {
          data(value, nullptr, width, of_columns, false);
          break;
        }
        const auto [values, scales] = pair(value, name, "values", "scales");
        place.data = reinterpret_cast<char*>(
            memory_.address(values, name.c_str(), static_cast<__int128>(width) * of_columns, sizeof(int8_t)));
        place.scales = reinterpret_cast<const float*>(memory_.rows(scales, {name, "scales"}, 1, width, item_).address);
        break;
      }
      case ArrayKind::neighbour: {
        const auto [history, first] = pair(value, name, "history", "initial");
        data(history, "history", run.rows, width, true);
        initial(first);
        break;
      }
      case ArrayKind::state: {
        const auto [first, last] = pair(value, name, "initial", "final");
        if (!first.is_none()) initial(first);
        if (!last.is_none())
          place.final =
              reinterpret_cast<char*>(memory_.rows(last, {name, "final"}, run.batch, width, item_, false).address);
        break;
      }
      case ArrayKind::row:
        if (!value.is_none()) fail(name + ": expected None, for the engine keeps it itself");
        break;
    }
    return place;
  }

  // The two fields of a dict; by hand, since a run is to begin within microseconds.
  struct Pair {
    py::handle first, second;
  };
  static Pair pair(const py::object& value, const std::string& name, const char* first, const char* second) {
    if (!PyDict_Check(value.ptr())) fail(name + ": expected a dict of " + first + " and " + second);
    const Pair found{PyDict_GetItemString(value.ptr(), first), PyDict_GetItemString(value.ptr(), second)};
    if (!found.first || !found.second || PyDict_Size(value.ptr()) != 2)
      fail(name + ": expected a dict of " + first + " and " + second + ", got " +
           py::cast<std::string>(py::repr(py::list(value))));
    return found;
  }

  // Numbers in a row of an array; of a matrix its rows.
  int64_t columns(const std::string& name, const Array& array) const {
    const __int128 count = static_cast<__int128>(array.blocks) * sizes_[array.size];
    if (count > kMostUnits) fail(name + ": too many units");
    return static_cast<int64_t>(count);
  }

  int64_t matrix_columns(const std::string& name, const Array& array) const {
    const int64_t size = sizes_[array.columns_size];
    if (size % array.columns_parts)
      fail(name + ": expected a columns_size that " + std::to_string(array.columns_parts) + " parts divide, got " +
           std::to_string(size));
    return size / array.columns_parts;
  }
};

class PythonProgram {
 public:
  explicit PythonProgram(const py::dict& spec) : own_(read_spec(spec)) {}

  void run(int64_t steps, int64_t batch, int64_t rows, py::handle batch_sizes, bool reverse, int threads,
           const py::sequence& sizes, const py::sequence& arrays, bool keep) const {
    Memory memory;
    RunReader read(own_, memory);
    read.run.reverse = reverse;
    read.run.threads = threads;
    if (threads < 1) fail("threads: expected at least 1, got " + std::to_string(threads));
    read.read_sizes(sizes);
    read.read_rows(steps, batch, rows, batch_sizes);
    read.read_arrays(arrays);
    std::unique_ptr<WeightCacheClaim> claim;
    if (keep) claim = keep_for(arrays, read.run);
    const Kernels& all = kernels();
    py::gil_scoped_release release;
    all.run_program(read.run);
  }

 private:
  ProgramSpec own_;

  // What is kept for the first matrix that is a parameter.
  std::unique_ptr<WeightCacheClaim> keep_for(const py::sequence& arrays, Run& run) const {
    for (int64_t i = 0; i < own_.program.arrays.count; ++i) {
      if (own_.program.arrays[i].kind != ArrayKind::matrix || own_.program.arrays[i].int8) continue;
      auto claim = std::make_unique<WeightCacheClaim>(arrays[i], reinterpret_cast<uintptr_t>(run.places[i].data));
      run.weight_cache = claim->get();
      if (run.weight_cache) return claim;
    }
    return nullptr;
  }
};

}  // namespace

void add_program(py::module_& m) {
  using namespace py::literals;
  py::class_<PythonProgram>(m, "Program")
      .def(py::init<const py::dict&>(), "spec"_a)
      .def("run", &PythonProgram::run, py::kw_only(), "steps"_a, "batch"_a, "rows"_a, "batch_sizes"_a, "reverse"_a,
           "threads"_a, "sizes"_a, "arrays"_a, "keep"_a = false);
}

}  // namespace fastrnn
