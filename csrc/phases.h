// The contract of the engine: a program, which is one step of a recurrence as phases, and a run of it over all steps.
// Free of any instruction set, and of any cell: forward and backward passes are both programs.
//
// Letters: T steps, B rows (sequences), N rows of all steps, Z units of a part, K numbers that a product sums over.
//
// A step runs its phases in order; a phase its parts; a part, for some rows and a panel of its units at a time, first
// its results (products and means, which read whole rows), then its function on them and on arrays, unit by unit.
#pragma once

#include <cstdint>

namespace fastrnn {

// Some items that belong to somebody else. Always inlined: a copy of its own would be one for all instruction sets.
template <class T>
struct Span {
  const T* items;
  int64_t count;

  __attribute__((always_inline)) const T* begin() const { return items; }
  __attribute__((always_inline)) const T* end() const { return items + count; }
  __attribute__((always_inline)) const T& operator[](int64_t i) const { return items[i]; }
};

// Where the rows of an array are, and for how long.
enum class ArrayKind : int {
  step,       // the caller's rows of all steps (N, columns), read or written at the rows of the step
  neighbour,  // the caller's, read at the rows of the step before or after; a row that has none there reads `initial`
  state,      // carried from step to step: read before the step, written after it; begins as `initial`, ends in `final`
  row,        // values that later phases of the same step read (B, columns)
  sequence,   // the caller's (B, columns), read, or read and written
  unit,       // the caller's vector (columns)
  number,     // the caller's one number
  total,      // the caller's vector (columns): the sum of what functions add to it, over all rows and steps
  matrix,     // the caller's (blocks * size, columns)
};

struct Array {
  ArrayKind kind;
  bool single;            // of a step, a neighbour or a sequence: one number a row, the same for all units
  int size;               // which of the program's sizes: units of a block
  int64_t blocks;         // a row has blocks * size numbers; a matrix so many rows
  int offset;             // of a neighbour: -1 the step before, +1 the step after, in the program's order
  int columns_size;       // of a matrix: which of the sizes; its columns are
  int64_t columns_parts;  // sizes[columns_size] / columns_parts
  bool int8;              // of a matrix: integers of 8 bits, each row times a float of its own
};

// Blocks [block, block + blocks) of array `array`.
struct Blocks {
  int array;
  int64_t block, blocks;
};

// A product. Of a row v of the operand's blocks, with Z units of the part: sum over k of v[k] * M[row_block * Z +
// z][k], or, where it is transposed, of v[k] * M[row_block * K + k][z], K being the size of the operand's blocks and
// one row block of M for each.
//
// Where the operand is of the kind step and no part writes it, the product is computed for many steps at once; what it
// reads must then not be memory that the program writes by another name.
//
// With several heads the matrix is block-diagonal, and the operand one block: its K / heads columns of head h reach the
// units of the same head alone. M then has K / heads columns, those of the head of its row; transposed, Z / heads.
//
// Of a matrix of int8 the numbers v of a row and head are rounded to integers of a scale of their own before they are
// multiplied (int8_product-inl.h); it is not transposed, and the program's numbers are floats.
struct Term {
  Blocks operand;
  int matrix;
  int64_t row_block;
  bool transposed;
  int64_t heads;
};

// What a part's function reads beside arrays: a product, its terms and a bias summed up; or, without terms, a mean over
// the units of each head of a block, the same at each of them.
struct Result {
  Span<Term> terms;
  Blocks bias;  // of a product: one block of a unit array, or array < 0 for none
  Blocks mean;  // of a mean
  int64_t mean_heads;
};

// One block of an array, or a result: the other is < 0. `write`: the value is written, or read and written; of a state
// the one after the step.
struct Operand {
  int array;
  int64_t block;
  int result;
  bool write;
};

// Works on `rows` rows of `units` units: pointers[k] is at the first of operand k, whose units are dense (one number a
// row where it is single, one at all where it is a number) and whose rows are strides[k] bytes apart, 0 where all rows
// read the same. It reads all operands at a unit before it writes any there.
using PhaseFunction = void (*)(int64_t rows, int64_t units, char* const* pointers, const int64_t* strides);

struct PhasePart {
  int size;  // which of the sizes is Z
  Span<Result> results;
  Span<Operand> operands;
  PhaseFunction function;
};

// What is summed up behind the last step, over the rows n of all steps, of what the phases wrote of each row: the
// gradient of a matrix and of the bias behind it, from the gradients g of its products with v. With Z units of g's
// blocks and K of v:
//   to[row_block * Z + z][k] = sum over n of g[n][z] * v[n][k],  bias[row_block * Z + z] = sum over n of g[n][z].
// With several heads g's units of head h, of each block, meet v's units of that head alone, and `to` has K / heads
// columns, as a term's matrix.
struct OuterSum {
  Blocks grad;    // of an array of the kind step
  Blocks values;  // one block of a step or of a neighbour
  int to;         // a matrix
  int bias;       // a unit array, or < 0 for none
  int64_t row_block, heads;
  bool add;  // to what is there, else it is overwritten
};

// What is multiplied behind the last step: to[n][k] = sum over z of grad[n][z] * M[row_block * Z + z][k], the gradient
// of a step array of one block that products read. Heads are those of a term.
struct BackProduct {
  Blocks grad;
  int matrix, to;
  int64_t row_block, heads;
  bool add;
};

// Threads that share the units of each row meet before a phase that `meets`: one with results that read what other
// threads may have written since they met last, or whose parts have units of another size than those that wrote what
// its functions read.
struct Phase {
  bool meets;
  Span<PhasePart> parts;
};

struct Program {
  int64_t identity;  // no two programs of a process have the same
  bool is_double;    // else all numbers are floats
  int64_t sizes;
  Span<Array> arrays;
  Span<Phase> phases;
  Span<OuterSum> sums;
  Span<BackProduct> products;
};

// Where an array is in a run. Strides are numbers between two rows. Null `initial` of a state: zeros; null `final`: not
// wanted.
struct ArrayPlace {
  char* data;  // null for states and rows, which the engine keeps itself
  int64_t stride;
  char* initial;
  int64_t initial_stride;
  char* final;
  const float* scales;  // of a matrix of int8, (blocks * size)
};

class WeightCache;

struct Run {
  const Program* program;
  WeightCache* weight_cache;  // where packed weights stay for the next run, claimed by the caller; or null
  int threads;
  int64_t steps, batch, rows;
  const int64_t* batch_sizes;  // (T,), never increasing, from B down to >= 1; null where every step has B rows
  bool reverse;                // the last step first
  const int64_t* sizes;        // of the program's sizes, each >= 1
  const ArrayPlace* places;    // of the program's arrays
};

}  // namespace fastrnn
