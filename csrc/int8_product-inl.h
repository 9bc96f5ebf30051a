// Products with matrices of int8, which have a scale a row.
//
// Rows of weights are dot products with depth along the lanes, with a few rows of activations at once. Activations
// become int8 just before the product, by round(x / scale), scale = max |x| / 127 of a row. Sums of products are exact
// in int32, hence the same on every instruction set. A row with a NaN or an infinity has scale NaN and makes every
// result of its product a NaN.
#pragma once

#include "int8_vectors-inl.h"
#include "plan-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// Rows of activations that share a reading of the weights.
constexpr int kInt8Rows = kRegisters == 32 ? 5 : 2;

#if defined(__ARM_FEATURE_MATMUL_INT8)
// multiply_int8 of more than one row: an instruction takes two rows of activations by two of weights, eight of depth
// each, twice the products of one with a single row. Of an odd number of rows the last one is its own neighbour.
template <bool kPacked, int kRows>
FASTRNN_INLINE void multiply_int8_squares(const int8_t* a, int64_t lda, const int8_t* weights, int64_t depth,
                                          Sums* sums) {
  constexpr int L = kLanes<float>, kPairs = (kRows + 1) / 2;
  static_assert(L == 4, "two pairs of weights");
  const int64_t apart = kPacked ? kVectorBytes : depth, along = kPacked ? L * kVectorBytes : kVectorBytes;
  typedef int64_t Eights __attribute__((vector_size(kVectorBytes)));
  // Both halves of two vectors, each half beside its like.
  const auto pair = [](const int8_t* first, const int8_t* second, int8x16_t* halves) __attribute__((always_inline)) {
    const auto one = bit_cast<Eights>(vld1q_s8(first)), two = bit_cast<Eights>(vld1q_s8(second));
    halves[0] = bit_cast<int8x16_t>(__builtin_shufflevector(one, two, 0, 2));
    halves[1] = bit_cast<int8x16_t>(__builtin_shufflevector(one, two, 1, 3));
  };
  int32x4_t sum[kPairs][2];
#pragma GCC unroll 4
  for (int p = 0; p < kPairs; ++p) sum[p][0] = sum[p][1] = vdupq_n_s32(0);
  for (int64_t k = 0; k < depth; k += kVectorBytes, weights += along) {
    int8x16_t right[2][2];
    for (int q = 0; q < 2; ++q) pair(weights + 2 * q * apart, weights + (2 * q + 1) * apart, right[q]);
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      int8x16_t left[2];
      pair(a + 2 * p * lda + k, a + smaller(2 * p + 1, kRows - 1) * lda + k, left);
      for (int half = 0; half < 2; ++half)
        for (int q = 0; q < 2; ++q) sum[p][q] = vmmlaq_s32(sum[p][q], left[half], right[q][half]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPairs; ++p) {
    const auto one = bit_cast<Eights>(sum[p][0]), two = bit_cast<Eights>(sum[p][1]);
    sums[2 * p] = bit_cast<Sums>(__builtin_shufflevector(one, two, 0, 2));
    if (2 * p + 1 < kRows) sums[2 * p + 1] = bit_cast<Sums>(__builtin_shufflevector(one, two, 1, 3));
  }
}
#endif

// sums[r] = `kRows` rows of activations, lda bytes apart, times L rows of weights, a lane each. Packed weights stand as
// L vectors for each of depth, others row by row, depth bytes apart. `a` has zeros up to a whole vector; what weights
// hold there is the row behind, and must be readable. A function of its own, as multiply_tile.
template <bool kPacked, int kRows>
__attribute__((noinline)) void multiply_int8(const int8_t* a, int64_t lda, const int8_t* weights, int64_t depth,
                                             Sums* sums) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (kRows > 1) return multiply_int8_squares<kPacked, kRows>(a, lda, weights, depth, sums);
#endif
  constexpr int L = kLanes<float>, kMost = kRegisters == 32 ? 24 : 8;
  constexpr int kColumns = kRows == 1 ? L : L >= 8 && kRows * 8 <= kMost ? 8 : 4;  // whose sums registers hold
  constexpr int64_t kAhead = 2048;  // bytes between what is multiplied and what is fetched
  const int64_t apart = kPacked ? kVectorBytes : depth, along = kPacked ? L * kVectorBytes : kVectorBytes;
  Sums parts[kRows][L];
  for (int first = 0; first < L; first += kColumns) {
    Sums sum[kRows][kColumns];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
      for (int i = 0; i < kColumns; ++i) sum[r][i] = Sums{};
    const int8_t* from = weights + first * apart;
    for (int64_t k = 0; k < depth; k += kVectorBytes, from += along) {
      // Of more rows than one the next vectors are at hand: they are read again for each tile of rows.
      if constexpr (kPacked && kRows == 1)
#pragma GCC unroll 16
        for (int byte = 0; byte < L * kVectorBytes; byte += 64) __builtin_prefetch(from + byte + kAhead);
      Activations left[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) left[r] = Activations(a + r * lda + k);
#pragma GCC unroll 16
      for (int i = 0; i < kColumns; ++i) {
        const Int8Weights right(from + i * apart);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r][i] = left[r].add_products(sum[r][i], right);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) parts[r][first] = sums_of_lanes<kColumns, 1, kColumns>(sum[r]);
  }
  for (int r = 0; r < kRows; ++r) sums[r] = sums_of_lanes<L, kColumns>(parts[r]);
}

template <bool kPacked>
struct Int8Products {
  using Function = void (*)(const int8_t*, int64_t, const int8_t*, int64_t, Sums*);
  Function by_rows[kInt8Rows];
  template <int... r>
  static constexpr Int8Products make(std::integer_sequence<int, r...>) {
    return {{multiply_int8<kPacked, r + 1>...}};
  }
};

FASTRNN_INLINE int64_t whole_vectors(int64_t bytes) { return ceil_div(bytes, kVectorBytes) * kVectorBytes; }

// Some rows of activations, lda bytes apart, each with its scale and its sum, `every` apart.
struct Int8Operand {
  const int8_t* values;
  const float* scales;
  const int32_t* totals;
  int64_t lda, every;

  // to[r] = rows of weights of scales s and biases b times row r of `rows`, at most kInt8Rows, plus the bias.
  template <bool kPacked>
  FASTRNN_INLINE void times(const int8_t* weights, int64_t depth, Vec<float> s, Vec<float> b, int64_t rows,
                            Vec<float>* to) const {
    static constexpr auto products = Int8Products<kPacked>::make(std::make_integer_sequence<int, kInt8Rows>());
    Sums sums[kInt8Rows];
    if (rows == 1)  // the most frequent, whose products are short
      multiply_int8<kPacked, 1>(values, lda, weights, depth, sums);
    else
      products.by_rows[rows - 1](values, lda, weights, depth, sums);
    for (int64_t r = 0; r < rows; ++r) {
      const Sums exact = sums[r] - kShift * totals[r * every];
      to[r] = __builtin_convertvector(exact, Vec<float>) * (s * scales[r * every]) + b;  // in one rounding everywhere
    }
  }
};

// One matrix: weight[r][k] = values[r * depth + k] * scales[r].
struct Int8Matrix {
  const int8_t* values;
  const float *scales, *bias;
  int64_t rows, depth, tail_row;
  int8_t* tail;  // a copy of the rows from tail_row on with zeros behind, for products that read past the end

  Int8Matrix(const int8_t* w, const float* s, const float* b, int64_t r, int64_t d, Scratch& scratch)
      : values(w), scales(s), bias(b), rows(r), depth(d) {
    constexpr int64_t L = kLanes<float>;
    const int64_t own = smaller(rows, L + kVectorBytes / depth + 1), size = own * depth;
    tail_row = rows - own;
    tail = scratch.take<int8_t>(size + L * depth + kVectorBytes);
    copy(tail, values + tail_row * depth, size);
    clear(tail + size, L * depth + kVectorBytes);
  }

  // Where L units of a gate begin, of gates of so many units.
  int64_t row_of(int64_t gate, int64_t unit, int64_t units) const { return gate * units + unit; }

  // Rows `row` and on, `lanes` of them, times rows of activations, plus the bias.
  FASTRNN_INLINE void times(int64_t row, int lanes, const Int8Operand& a, int64_t count, Vec<float>* to) const {
    constexpr int64_t L = kLanes<float>;
    const bool inside = (row + L - 1) * depth + whole_vectors(depth) <= rows * depth;
    const int8_t* from = inside ? values + row * depth : tail + (row - tail_row) * depth;
    a.times<false>(from, depth, load_part(scales + row, lanes), bias ? load_part(bias + row, lanes) : Vec<float>{},
                   count, to);
  }
};

// The same matrix packed, for who multiplies with it again and again: L units of all gates one behind the other, with
// zeros over the edge, each gate's as L vectors for each of depth, so that reading it is one stream. Its products have
// the bits of the other's.
struct PackedInt8Matrix {
  static constexpr int64_t L = kLanes<float>;
  int8_t* values;
  float *scales, *bias;
  int64_t gates, ld;

  PackedInt8Matrix(const int8_t* w, const float* s, const float* b, int64_t gates_in_all, int64_t units, int64_t depth,
                   Scratch& kept)
      : gates(gates_in_all), ld(whole_vectors(depth)) {
    const int64_t rows = ceil_div(units, L) * L * gates;
    values = kept.take<int8_t>(rows * ld), scales = kept.take<float>(rows), bias = kept.take<float>(rows);
    clear(values, rows * ld), clear(scales, rows), clear(bias, rows);
    for (int64_t gate = 0; gate < gates; ++gate)
      for (int64_t unit = 0; unit < units; ++unit) {
        const int64_t from = gate * units + unit, first = row_of(gate, unit / L * L, units), lane = unit % L;
        scales[first + lane] = s[from];
        if (b) bias[first + lane] = b[from];
        for (int64_t k = 0; k < depth; ++k)
          values[first * ld + (k / kVectorBytes * L + lane) * kVectorBytes + k % kVectorBytes] = w[from * depth + k];
      }
  }

  int64_t row_of(int64_t gate, int64_t unit, int64_t) const { return unit * gates + gate * L; }

  FASTRNN_INLINE void times(int64_t row, int, const Int8Operand& a, int64_t count, Vec<float>* to) const {
    a.times<true>(values + row * ld, ld, load(scales + row), load(bias + row), count, to);
  }
};

// A matrix of floats in the place of one of int8: its rows lie as they are stored, (R, depth).
struct FloatMatrix {
  const float *values, *bias;
  int64_t depth;

  // From now on in memory of its own, as packed matrices are.
  void keep(int64_t rows, Scratch& scratch) {
    const auto own = [&](const float* from, int64_t count) {
      float* const to = scratch.take<float>(count);
      copy(to, from, count);
      return to;
    };
    values = own(values, rows * depth);
    if (bias) bias = own(bias, rows);
  }

  // The same sums as those of Int8Matrix::times, of a row of activations that is not rounded. The order of the terms
  // of a sum depends on nothing but the depth.
  FASTRNN_INLINE Vec<float> times(int64_t row, int lanes, const float* x) const {
    Vec<float> sums{};
    for (int lane = 0; lane < lanes; ++lane) {
      const float* w = values + (row + lane) * depth;
      constexpr int L = kLanes<float>;
      Vec<float> terms[2]{};
      int64_t k = 0;
      for (; k + 2 * L <= depth; k += 2 * L) {
        terms[0] += load(w + k) * load(x + k);
        terms[1] += load(w + k + L) * load(x + k + L);
      }
      for (; k < depth; k += L) {
        const int count = static_cast<int>(smaller<int64_t>(L, depth - k));
        terms[0] += load_part(w + k, count) * load_part(x + k, count);
      }
      terms[0] += terms[1];
      float sum = 0;
      for (int i = 0; i < L; ++i) sum += terms[0][i];
      sums[lane] = sum;
    }
    return bias ? sums + load_part(bias + row, lanes) : sums;
  }
};

// A row as int8, with zeros up to a whole vector; returns its scale, and the sum of the integers in `total`. A row so
// small that its scale would be no normal number counts as zeros.
FASTRNN_INLINE float quantize(const float* from, int64_t count, int8_t* to, int32_t& total) {
  constexpr int L = kLanes<float>;
  if (count < 0) __builtin_unreachable();  // else GCC warns of what `clear` would do then
  const auto read = [&](int64_t i) __attribute__((always_inline)) {
    return load_part(from + i, static_cast<int>(smaller<int64_t>(L, count - i)));
  };
  Bits<float> most{};
  for (int64_t i = 0; i < count; i += L) {
    const Bits<float> size = bit_cast<Bits<float>>(read(i)) & 0x7fffffff;  // in the order of the numbers; NaN behind
    most = size > most ? size : most;
  }
  int32_t bits = 0;
  for (int i = 0; i < L; ++i) bits = larger(bits, static_cast<int32_t>(most[i]));
  const float scale = bit_cast<float>(bits) / 127;
  const bool finite = bits < 0x7f800000;
  clear(to, whole_vectors(count));
  total = 0;
  if (!finite || scale < 1.17549435e-38f) return finite ? 0 : __builtin_nanf("");
  typedef int8_t Narrow __attribute__((vector_size(L)));
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: the sum's last bit is worth 1
  Bits<float> totals{};
  for (int64_t i = 0; i < count; i += L) {
    const Vec<float> rounded = read(i) / scale + kRounder;  // to the nearest, ties to even
    const Narrow narrow = __builtin_convertvector(bit_cast<Bits<float>>(rounded), Narrow);
    __builtin_memcpy(to + i, &narrow, L);
    totals += bit_cast<Bits<float>>(rounded) - bit_cast<int32_t>(kRounder);
  }
  if constexpr (kShift != 0) total = sums_of_lanes<1>(&totals)[0];
  return scale;
}

// Rows of activations as int8, each as `parts` parts with a scale of their own (the heads of a block-diagonal matrix).
// A copy for each thread, which costs less than to wait for each other's share.
struct Int8Rows {
  int8_t* values;
  float* scales;
  int32_t* totals;
  int64_t count, parts, depth, ld;  // numbers in a part; bytes from part to part

  Int8Rows(int64_t rows, int64_t of_parts, int64_t width, int threads, Scratch& scratch)
      : values(scratch.take<int8_t>(threads * rows * of_parts * whole_vectors(width))),
        scales(scratch.take<float>(threads * rows * of_parts)),
        totals(scratch.take<int32_t>(threads * rows * of_parts)), count(rows), parts(of_parts), depth(width),
        ld(whole_vectors(width)) {}
  Int8Rows of(int thread) const {
    Int8Rows own = *this;
    const int64_t before = thread * count * parts;
    own.values += before * ld, own.scales += before, own.totals += before;
    return own;
  }
  // From row `to` on, of rows that are `stride` numbers apart.
  void fill(const float* from, int64_t stride, int64_t rows, int64_t to = 0) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t p = 0; p < parts; ++p) {
        const int64_t i = (to + r) * parts + p;
        scales[i] = quantize(from + r * stride + p * depth, depth, values + i * ld, totals[i]);
      }
  }
  // to[r] = rows of a matrix times part p of row first + r, of at most kInt8Rows.
  template <class Matrix>
  FASTRNN_INLINE void times(const Matrix& matrix, int64_t row, int lanes, int64_t first, int64_t rows, Vec<float>* to,
                            int64_t p = 0) const {
    const int64_t at = first * parts + p;
    matrix.times(row, lanes, {values + at * ld, scales + at, totals + at, parts * ld, parts}, rows, to);
  }
};

// use(first, count) for tiles of about the same height, of so many rows in all.
template <class Use>
FASTRNN_INLINE void in_int8_tiles(int64_t rows, const Use& use) {
  const int64_t tiles = ceil_div(rows, kInt8Rows);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = rows * i / tiles;
    use(first, rows * (i + 1) / tiles - first);
  }
}

}  // namespace fastrnn::FASTRNN_NAMESPACE
