// The Python face of the engine: reads a program's spec, checks that its parts fit together, and checks each run's
// tensors against it. The engine trusts what comes from here.
#include "program.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kept.h"
#include "phases.h"
#include "scan.h"
#include "tensors.h"

namespace fastrnn {
namespace {

constexpr int64_t kMostItems = 1 << 12, kMostBlocks = 1 << 16, kMostUnits = int64_t{1} << 40;

constexpr const char* kKinds[] = {"step", "neighbour", "state", "row", "sequence", "unit", "number", "total", "matrix"};

[[noreturn]] void fail(const std::string& what) { throw py::value_error(what); }

// The fields of one dict of a spec, each asked for by name; `done` refuses those that nobody asked for.
class Fields {
 public:
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
    if (items.size() > static_cast<size_t>(kMostItems) || (needed && items.size() == 0))
      fail(at(name) + ": expected 1 to " + std::to_string(kMostItems) + " items, got " + std::to_string(items.size()));
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

// Reads a spec, and holds what its Program points to.
class ProgramReader {
 public:
  Program program{};
  std::vector<std::string> names;  // of the arrays

  explicit ProgramReader(py::handle spec) {
    static int64_t programs = 0;  // guarded by the GIL
    program.identity = ++programs;
    Fields all(spec, "");
    const std::string dtype = all.text("dtype");
    if (dtype != "float32" && dtype != "float64") fail("dtype: expected float32 or float64, got " + dtype);
    program.is_double = dtype == "float64";
    program.sizes = all.number("sizes", 1, kMostItems);
    program.arrays = hold(all.list<Array>("arrays", true, [&](Fields& f) { return array(f); }));
    written_.resize(program.arrays.count);
    find_written(all.get("phases"));
    program.phases = hold(all.list<Phase>("phases", true, [&](Fields& f) { return phase(f); }));
    all.done();
    check_states();
  }

 private:
  std::vector<std::shared_ptr<void>> held_;
  std::vector<std::set<int64_t>> written_;  // blocks of each array, by parts read so far
  std::set<int64_t> ever_written_;          // arrays, by any part

  template <class T>
  Span<T> hold(std::vector<T> items) {
    auto kept = std::make_shared<std::vector<T>>(std::move(items));
    held_.push_back(kept);
    return {kept->data(), static_cast<int64_t>(kept->size())};
  }

  Array array(Fields& f) {
    Array array{};
    const std::string kind = f.text("kind");
    int found = 0;
    while (found < 9 && kind != kKinds[found]) ++found;
    if (found == 9)
      fail(f.at("kind") + ": expected step, neighbour, state, row, sequence, unit, number, total or " + "matrix, got " +
           kind);
    array.kind = static_cast<ArrayKind>(found);
    names.push_back(f.has("name") ? f.text("name") : f.where());
    f.optional("name");
    array.blocks = 1;
    if (array.kind == ArrayKind::number) return array;
    array.size = size(f, "size");
    array.blocks = f.number("blocks", 1, kMostBlocks, 1);
    if (array.kind == ArrayKind::step || array.kind == ArrayKind::neighbour || array.kind == ArrayKind::sequence)
      array.single = f.flag("single", false);
    if (array.single && array.blocks != 1) fail(f.at("blocks") + ": expected 1 where single is True");
    if (array.kind == ArrayKind::neighbour) {
      array.offset = static_cast<int>(f.number("offset", -1, 1));
      if (!array.offset) fail(f.at("offset") + ": expected -1 or 1");
    }
    if (array.kind == ArrayKind::matrix) {
      array.columns_size = size(f, "columns_size");
      array.columns_parts = f.number("columns_parts", 1, kMostUnits, 1);
    }
    return array;
  }

  int size(Fields& f, const char* name) { return static_cast<int>(f.number(name, 0, program.sizes - 1)); }
  int array_index(Fields& f, const char* name) { return static_cast<int>(f.number(name, 0, program.arrays.count - 1)); }

  static std::string kind_of(const Array& array) { return kKinds[static_cast<int>(array.kind)]; }

  // Which arrays parts write at all, before they are read one by one.
  void find_written(const py::object& phases) {
    const auto each = [](py::handle owner, const char* name, const auto& use) {
      if (!py::isinstance<py::dict>(owner) || !owner.contains(name)) return;
      const py::object items = owner[name];
      if (py::isinstance<py::list>(items) || py::isinstance<py::tuple>(items))
        for (const py::handle item : items) use(item);
    };
    py::dict all;
    all["phases"] = phases;
    each(all, "phases", [&](py::handle phase) {
      each(phase, "parts", [&](py::handle part) {
        each(part, "operands", [&](py::handle operand) {
          if (!py::isinstance<py::dict>(operand) || !operand.contains("write") || !operand.contains("array")) return;
          if (py::object(operand["write"]).ptr() == Py_True && PyLong_Check(py::object(operand["array"]).ptr()))
            ever_written_.insert(PyLong_AsLongLong(py::object(operand["array"]).ptr()));
        });
      });
    });
    PyErr_Clear();  // of numbers out of range, which are refused when they are read
  }

  Phase phase(Fields& f) {
    Phase phase{};
    phase.meets = f.flag("meets", true);
    phase_meets_ = phase.meets;
    const std::vector<std::set<int64_t>> before = written_;
    before_ = &before;
    phase.parts = hold(f.list<PhasePart>("parts", true, [&](Fields& part) { return phase_part(part); }));
    return phase;
  }

  PhasePart phase_part(Fields& f) {
    PhasePart part{};
    part.size = size(f, "size");
    part.results = hold(f.list<Result>("results", false, [&](Fields& each) { return result(each, part); }));
    part.operands = hold(f.list<Operand>("operands", true, [&](Fields& each) { return operand(each, part); }));
    for (int64_t i = 0; i < part.operands.count; ++i) {
      const Operand& one = part.operands[i];
      if (one.array < 0 || !one.write) continue;
      const bool again = !written_[one.array].insert(one.block).second;
      const ArrayKind kind = program.arrays[one.array].kind;
      if (again && (kind == ArrayKind::state || kind == ArrayKind::row))
        fail(f.at("operands") + "[" + std::to_string(i) + "]: block " + std::to_string(one.block) + " of " +
             names[one.array] + " is written twice");
    }
    const py::object address = f.get("function");
    if (!PyLong_Check(address.ptr())) fail(f.at("function") + ": expected the address of a function");
    part.function = reinterpret_cast<PhaseFunction>(PyLong_AsVoidPtr(address.ptr()));
    if (PyErr_Occurred()) throw py::error_already_set();
    if (!part.function) fail(f.at("function") + ": expected the address of a function, got 0");
    return part;
  }

  Operand operand(Fields& f, const PhasePart& part) {
    Operand found{-1, 0, -1, false};
    if (f.has("result") == f.has("array")) fail(f.where() + ": expected either array or result");
    if (f.has("result")) {
      if (!part.results.count) fail(f.at("result") + ": this part has no results");
      found.result = static_cast<int>(f.number("result", 0, part.results.count - 1));
      f.optional("array");
      return found;
    }
    f.optional("result");
    found.array = array_index(f, "array");
    const Array& array = program.arrays[found.array];
    found.block = f.number("block", 0, array.blocks - 1, 0);
    found.write = f.flag("write", false);
    const ArrayKind kind = array.kind;
    const auto wrong = [&](const std::string& what) {
      fail(f.where() + ": " + names[found.array] + " is of the kind " + kind_of(array) + ", " + what);
    };
    if (kind == ArrayKind::matrix) wrong("which functions do not read");
    if (kind == ArrayKind::total && !found.write) wrong("which is written");
    const bool writable = kind == ArrayKind::step || kind == ArrayKind::state || kind == ArrayKind::row ||
                          kind == ArrayKind::sequence || kind == ArrayKind::total;
    if (found.write && (!writable || array.single)) wrong("which is not written");
    if (kind != ArrayKind::number && !array.single) same_size(f, found.array, array.size, part.size);
    if (kind == ArrayKind::row && !found.write) is_written(f, found.array, found.block, 1, written_);
    return found;
  }

  void same_size(const Fields& f, int64_t index, int got, int expected) const {
    if (got != expected)
      fail(f.where() + ": expected an array of size " + std::to_string(expected) + ", " + names[index] + " has size " +
           std::to_string(got));
  }

  void is_written(const Fields& f, int64_t index, int64_t block, int64_t blocks,
                  const std::vector<std::set<int64_t>>& before) const {
    for (int64_t i = block; i < block + blocks; ++i)
      if (!before[index].count(i))
        fail(f.where() + ": block " + std::to_string(i) + " of " + names[index] + " is not written before");
  }

  // Blocks of an array whose rows a result reads.
  Blocks rows(Fields& f, bool many) {
    Blocks found{array_index(f, "array"), 0, 1};
    const Array& array = program.arrays[found.array];
    found.block = f.number("block", 0, array.blocks - 1, 0);
    if (many) found.blocks = f.number("blocks", 1, array.blocks - found.block, 1);
    const ArrayKind kind = array.kind;
    const bool readable = kind == ArrayKind::step || kind == ArrayKind::neighbour || kind == ArrayKind::state ||
                          kind == ArrayKind::row || kind == ArrayKind::sequence;
    if (!readable || array.single)
      fail(f.where() + ": expected rows of units, " + names[found.array] + " is " +
           (array.single ? "a single number a row" : "of the kind " + kind_of(array)));
    if (kind == ArrayKind::row) is_written(f, found.array, found.block, found.blocks, *before_);
    if (!ever_written_.count(found.array)) return found;
    if (kind == ArrayKind::sequence)
      fail(f.where() + ": " + names[found.array] + " is written, by threads that do not wait for those that read it");
    if (kind == ArrayKind::step) is_written(f, found.array, found.block, found.blocks, *before_);
    if (!phase_meets_)
      fail(f.where() + ": " + names[found.array] + " is written, so the phase has to meet before it reads whole rows");
    return found;
  }

  Result result(Fields& f, const PhasePart& part) {
    Result found{};
    found.bias.array = -1;
    found.mean_heads = 1;
    if (f.has("mean") == f.has("terms")) fail(f.where() + ": expected either terms or mean");
    if (f.has("mean")) {
      Fields mean(f.get("mean"), f.at("mean"));
      f.optional("terms");
      found.mean = rows(mean, false);
      found.mean_heads = mean.number("heads", 1, kMostUnits, 1);
      same_size(mean, found.mean.array, program.arrays[found.mean.array].size, part.size);
      mean.done();
      return found;
    }
    f.optional("mean");
    found.terms = hold(f.list<Term>("terms", true, [&](Fields& each) { return term(each, part); }));
    if (!f.has("bias")) {
      f.optional("bias");
      return found;
    }
    Fields bias(f.get("bias"), f.at("bias"));
    const int index = array_index(bias, "array");
    const Array& array = program.arrays[index];
    if (array.kind != ArrayKind::unit) fail(bias.where() + ": expected a unit array, got a " + kind_of(array));
    same_size(bias, index, array.size, part.size);
    found.bias = {index, bias.number("block", 0, array.blocks - 1, 0), 1};
    bias.done();
    return found;
  }

  Term term(Fields& f, const PhasePart& part) {
    Term term{};
    term.operand = rows(f, true);
    term.matrix = array_index(f, "matrix");
    term.transposed = f.flag("transposed", false);
    term.heads = f.number("heads", 1, kMostUnits, 1);
    const Array &v = program.arrays[term.operand.array], &matrix = program.arrays[term.matrix];
    if (matrix.kind != ArrayKind::matrix) fail(f.at("matrix") + ": expected a matrix, got a " + kind_of(matrix));
    const int64_t row_blocks = term.transposed ? term.operand.blocks : 1;
    term.row_block = f.number("row_block", 0, kMostBlocks, 0);
    if (term.row_block + row_blocks > matrix.blocks)
      fail(f.at("row_block") + ": expected blocks within the " + std::to_string(matrix.blocks) + " of " +
           names[term.matrix] + ", got " + std::to_string(row_blocks) + " from " + std::to_string(term.row_block));
    if (term.operand.blocks > 1 && (!term.transposed || term.heads > 1))
      fail(f.at("blocks") + ": expected 1 unless the matrix is transposed and has one head");
    if (matrix.columns_parts != term.heads)
      fail(f.at("heads") + ": expected the columns_parts of " + names[term.matrix] + ", " +
           std::to_string(matrix.columns_parts) + ", got " + std::to_string(term.heads));
    same_size(f, term.matrix, matrix.size, term.transposed ? v.size : part.size);
    same_size(f, term.matrix, matrix.columns_size, term.transposed ? part.size : v.size);
    return term;
  }

  void check_states() const {
    for (int64_t i = 0; i < program.arrays.count; ++i) {
      const Array& array = program.arrays[i];
      if (array.kind == ArrayKind::state && static_cast<int64_t>(written_[i].size()) != array.blocks)
        fail(names[i] + ": expected every block of a state to be written, " + std::to_string(written_[i].size()) +
             " of " + std::to_string(array.blocks) + " are");
    }
  }

  bool phase_meets_ = true;
  const std::vector<std::set<int64_t>>* before_ = nullptr;  // written when the phase begins
};

// One run's tensors, checked.
class RunReader {
 public:
  Run run{};

  RunReader(const ProgramReader& own, Memory& memory) : own_(own), memory_(memory) {
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
  const ProgramReader& own_;
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
      case ArrayKind::matrix: data(value, nullptr, width, matrix_columns(name, array), false); break;
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
  explicit PythonProgram(const py::dict& spec) : own_(spec) {}

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
    std::unique_ptr<KeptFor> kept;
    if (keep) kept = keep_for(arrays, read.run);
    const Kernels& all = kernels();
    py::gil_scoped_release release;
    all.run_program(read.run);
  }

 private:
  ProgramReader own_;

  // What is kept for the first matrix that is a parameter.
  std::unique_ptr<KeptFor> keep_for(const py::sequence& arrays, Run& run) const {
    for (int64_t i = 0; i < own_.program.arrays.count; ++i) {
      if (own_.program.arrays[i].kind != ArrayKind::matrix) continue;
      auto kept = std::make_unique<KeptFor>(arrays[i], reinterpret_cast<uintptr_t>(run.places[i].data));
      run.kept = kept->get();
      if (run.kept) return kept;
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
