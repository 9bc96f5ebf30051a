#include "program_spec.h"

namespace fastrnn {
namespace {

constexpr int64_t kMostBlocks = 1 << 16;

constexpr const char* kKinds[] = {"step", "neighbour", "state", "row", "sequence", "unit", "number", "total", "matrix"};

class ProgramReader {
 public:
  ProgramSpec spec;

  explicit ProgramReader(py::handle given) {
    static int64_t programs = 0;  // guarded by the GIL
    program.identity = ++programs;
    Fields all(given, "");
    const std::string dtype = all.text("dtype");
    if (dtype != "float32" && dtype != "float64") fail("dtype: expected float32 or float64, got " + dtype);
    program.is_double = dtype == "float64";
    program.sizes = all.number("sizes", 1, Fields::kMostFields);
    program.arrays = hold(all.list<Array>("arrays", true, [&](Fields& f) { return array(f); }));
    written_.resize(program.arrays.count);
    find_written(all.get("phases"));
    program.phases = hold(all.list<Phase>("phases", true, [&](Fields& f) { return phase(f); }));
    program.sums = hold(all.list<OuterSum>("sums", false, [&](Fields& f) { return outer_sum(f); }));
    program.products = hold(all.list<BackProduct>("products", false, [&](Fields& f) { return back_product(f); }));
    all.done();
    check_states();
  }

 private:
  Program& program = spec.program;
  std::vector<std::string>& names = spec.names;
  std::vector<std::set<int64_t>> written_;  // blocks of each array, by parts read so far
  std::set<int64_t> ever_written_;          // arrays, by any part

  template <class T>
  Span<T> hold(std::vector<T> items) {
    auto kept = std::make_shared<std::vector<T>>(std::move(items));
    spec.held.push_back(kept);
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
      array.int8 = f.flag("int8", false);
      if (array.int8 && program.is_double) fail(f.at("int8") + ": expected a program of float32");
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
    blocks_within(f, "row_block", term.row_block, row_blocks, term.matrix);
    if (matrix.int8 && term.transposed) fail(f.at("transposed") + ": expected False of a matrix of int8");
    if (term.operand.blocks > 1 && (!term.transposed || term.heads > 1))
      fail(f.at("blocks") + ": expected 1 unless the matrix is transposed and has one head");
    if (matrix.columns_parts != term.heads)
      fail(f.at("heads") + ": expected the columns_parts of " + names[term.matrix] + ", " +
           std::to_string(matrix.columns_parts) + ", got " + std::to_string(term.heads));
    same_size(f, term.matrix, matrix.size, term.transposed ? v.size : part.size);
    same_size(f, term.matrix, matrix.columns_size, term.transposed ? part.size : v.size);
    return term;
  }

  // Blocks whose rows are read behind the loop, of an array of one of two kinds.
  Blocks rows_behind(Fields& f, const char* name, ArrayKind kind, ArrayKind or_kind, bool many) {
    Fields own(f.get(name), f.at(name));
    const int index = array_index(own, "array");
    const Array& array = program.arrays[index];
    if ((array.kind != kind && array.kind != or_kind) || array.single)
      fail(own.where() + ": expected rows of units of all steps, " + names[index] + " is " +
           (array.single ? "a single number a row" : "of the kind " + kind_of(array)));
    Blocks found{index, own.number("block", 0, array.blocks - 1, 0), 1};
    if (many) found.blocks = own.number("blocks", 1, array.blocks - found.block, 1);
    own.done();
    return found;
  }

  // A matrix with a row for each unit of some gradients; its columns are parts of the units of `columns`.
  int matrix_behind(Fields& f, const char* name, const Blocks& grad, int columns, int64_t row_block, int64_t heads) {
    const int index = array_index(f, name);
    const Array& matrix = program.arrays[index];
    if (matrix.kind != ArrayKind::matrix || matrix.int8)
      fail(f.at(name) + ": expected a matrix of floats, got a " + kind_of(matrix) + (matrix.int8 ? " of int8" : ""));
    same_size(f, index, matrix.size, program.arrays[grad.array].size);
    same_size(f, index, matrix.columns_size, program.arrays[columns].size);
    blocks_within(f, "row_block", row_block, grad.blocks, index);
    if (matrix.columns_parts != heads)
      fail(f.at("heads") + ": expected the columns_parts of " + names[index] + ", " +
           std::to_string(matrix.columns_parts) + ", got " + std::to_string(heads));
    return index;
  }

  void blocks_within(const Fields& f, const char* name, int64_t block, int64_t blocks, int64_t index) const {
    if (block + blocks > program.arrays[index].blocks)
      fail(f.at(name) + ": expected blocks within the " + std::to_string(program.arrays[index].blocks) + " of " +
           names[index] + ", got " + std::to_string(blocks) + " from " + std::to_string(block));
  }

  OuterSum outer_sum(Fields& f) {
    OuterSum sum{};
    sum.grad = rows_behind(f, "grad", ArrayKind::step, ArrayKind::step, true);
    sum.values = rows_behind(f, "values", ArrayKind::step, ArrayKind::neighbour, false);
    sum.row_block = f.number("row_block", 0, kMostBlocks, 0);
    sum.heads = f.number("heads", 1, kMostUnits, 1);
    sum.add = f.flag("add", false);
    sum.to = matrix_behind(f, "to", sum.grad, sum.values.array, sum.row_block, sum.heads);
    sum.bias = -1;
    if (!f.has("bias")) {
      f.optional("bias");
      return sum;
    }
    sum.bias = array_index(f, "bias");
    const Array& bias = program.arrays[sum.bias];
    if (bias.kind != ArrayKind::unit) fail(f.at("bias") + ": expected a unit array, got a " + kind_of(bias));
    same_size(f, sum.bias, bias.size, program.arrays[sum.grad.array].size);
    blocks_within(f, "bias", sum.row_block, sum.grad.blocks, sum.bias);
    return sum;
  }

  BackProduct back_product(Fields& f) {
    BackProduct product{};
    product.grad = rows_behind(f, "grad", ArrayKind::step, ArrayKind::step, true);
    product.to = array_index(f, "to");
    const Array& to = program.arrays[product.to];
    if (to.kind != ArrayKind::step || to.single || to.blocks != 1)
      fail(f.at("to") + ": expected rows of one block of units of all steps, got a " + kind_of(to));
    product.row_block = f.number("row_block", 0, kMostBlocks, 0);
    product.heads = f.number("heads", 1, kMostUnits, 1);
    product.add = f.flag("add", false);
    product.matrix = matrix_behind(f, "matrix", product.grad, product.to, product.row_block, product.heads);
    return product;
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

}  // namespace

ProgramSpec read_spec(py::handle spec) { return ProgramReader(spec).spec; }

}  // namespace fastrnn
