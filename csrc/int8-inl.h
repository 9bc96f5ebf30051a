// The forward scan of one direction of a layer whose weights are int8, with a scale a row.
//
// Floor per step of one row: G H (I + P) bytes of weights. So they are read as they lie, once a step, rows as dot
// products with depth along the lanes; nothing is packed. Activations become int8 just before the product, by
// round(x / scale), scale = max |x| / 127 of a row of x or h. Sums of products are exact in int32, hence the same on
// every instruction set. A row with a NaN or an infinity has scale NaN and makes every result of its product a NaN.

using Sums = Bits<float>;

// kVectorBytes activations, as multiplied: on x86 a product takes one unsigned factor, the size of an activation, and
// its sign goes to the weight. (A shift by 128 in its place would want a correction for each row, and overflows in
// vpmaddubsw.) Elsewhere even and odd bytes are 16-bit lanes, in which the sum of two products has memory.
#if defined(__AVX512BW__)
struct Operand {
  __m512i size;
  __mmask64 negative;

  explicit FASTRNN_INLINE Operand(const int8_t* from) {
    const __m512i values = _mm512_loadu_si512(from);
    size = _mm512_abs_epi8(values), negative = _mm512_movepi8_mask(values);
  }
  FASTRNN_INLINE Sums add_products(Sums sum, const int8_t* weights) const {
    const __m512i w = _mm512_loadu_si512(weights);
    const __m512i with_sign = _mm512_mask_sub_epi8(w, negative, _mm512_setzero_si512(), w);
#if defined(__AVX512VNNI__)
    return bit_cast<Sums>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum), size, with_sign));
#else
    return sum + bit_cast<Sums>(_mm512_madd_epi16(_mm512_maddubs_epi16(size, with_sign), _mm512_set1_epi16(1)));
#endif
  }
};
#elif defined(__AVX2__)
struct Operand {
  __m256i values, size;

  explicit FASTRNN_INLINE Operand(const int8_t* from)
      : values(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), size(_mm256_abs_epi8(values)) {}
  FASTRNN_INLINE Sums add_products(Sums sum, const int8_t* weights) const {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w, values));
    return sum + bit_cast<Sums>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};
#else
struct Operand {
  typedef int16_t Pairs __attribute__((vector_size(kVectorBytes)));
  Pairs even, odd;

  static FASTRNN_INLINE Pairs read(const int8_t* from) {
    Pairs pairs;
    __builtin_memcpy(&pairs, from, sizeof(pairs));
    return pairs;
  }
  explicit FASTRNN_INLINE Operand(const int8_t* from) : even(read(from) << 8 >> 8), odd(read(from) >> 8) {}
  FASTRNN_INLINE Sums add_products(Sums sum, const int8_t* weights) const {
    const Pairs w = read(weights);
    const Sums pairs = bit_cast<Sums>(even * (w << 8 >> 8) + odd * (w >> 8));
    return sum + (pairs << 16 >> 16) + (pairs >> 16);
  }
};
#endif

// Products of one row of activations with L rows of weights: a lane each. `a` has zeros up to a whole vector; what the
// weights hold there is the row behind, and must be readable. A function of its own, as multiply_tile.
inline __attribute__((noinline)) Sums multiply_int8(const int8_t* a, const int8_t* weights, int64_t depth) {
  constexpr int L = kLanes<float>;
  Sums sums[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) sums[i] = Sums{};
  for (int64_t k = 0; k < depth; k += kVectorBytes) {
    const Operand operand(a + k);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) sums[i] = operand.add_products(sums[i], weights + i * depth + k);
  }
  return sums_of_lanes<L>(sums);
}

FASTRNN_INLINE int64_t whole_vectors(int64_t bytes) { return ceil_div(bytes, kVectorBytes) * kVectorBytes; }

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

  // Rows `row` and on, `lanes` of them, times a row of activations, plus the bias.
  FASTRNN_INLINE Vec<float> product(int64_t row, int lanes, const int8_t* a, float scale) const {
    constexpr int64_t L = kLanes<float>;
    const bool inside = (row + L - 1) * depth + whole_vectors(depth) <= rows * depth;
    const int8_t* from = inside ? values + row * depth : tail + (row - tail_row) * depth;
    const Vec<float> sums = __builtin_convertvector(multiply_int8(a, from, depth), Vec<float>);
    const Vec<float> scaled = sums * (load_part(scales + row, lanes) * scale);
    return bias ? scaled + load_part(bias + row, lanes) : scaled;
  }
};

// A row as int8, with zeros up to a whole vector; returns its scale. A row so small that its scale would be no normal
// number counts as zeros.
FASTRNN_INLINE float quantize(const float* from, int64_t count, int8_t* to) {
  constexpr int L = kLanes<float>;
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
  if (!finite || scale < 1.17549435e-38f) return finite ? 0 : __builtin_nanf("");
  typedef int8_t Narrow __attribute__((vector_size(L)));
  constexpr float kRounder = ExpConstants<float>::rounder;
  for (int64_t i = 0; i < count; i += L) {
    const Vec<float> rounded = read(i) / scale + kRounder;  // to the nearest, ties to even
    const Narrow narrow = __builtin_convertvector(bit_cast<Bits<float>>(rounded), Narrow);
    __builtin_memcpy(to + i, &narrow, L);
  }
  return scale;
}

template <class Cell>
struct Int8Scan {
  static constexpr int L = kLanes<float>;
  static constexpr int G = Cell::kGates;
  static constexpr int64_t kChunkRows = 32;

  // Rows as int8, `ld` bytes apart: a copy for each thread, which costs less than to wait for each other's share.
  struct Rows {
    int8_t* values;
    float* scales;
    int64_t count, depth, ld;

    Rows(int64_t rows, int64_t width, int threads, Scratch& scratch)
        : values(scratch.take<int8_t>(threads * rows * whole_vectors(width))),
          scales(scratch.take<float>(threads * rows)), count(rows), depth(width), ld(whole_vectors(width)) {}
    Rows of(int thread) const {
      Rows own = *this;
      own.values += thread * count * ld, own.scales += thread * count;
      return own;
    }
    void fill(const float* from, int64_t rows) const {
      for (int64_t r = 0; r < rows; ++r) scales[r] = quantize(from + r * depth, depth, values + r * ld);
    }
    FASTRNN_INLINE Vec<float> times(const Int8Matrix& matrix, int64_t row, int lanes, int64_t r) const {
      return matrix.product(row, lanes, values + r * ld, scales[r]);
    }
  };

  const Int8Forward& args;
  const Sizes& z;
  const int64_t direction;
  const Steps steps;
  const int threads;
  Barrier& barrier;
  const bool projected;
  const Int8Matrix w_ih, w_hh, w_hr;
  const int64_t chunk;  // steps whose inputs are multiplied at once
  const Rows inputs, states, units;
  float *state, *next, *unprojected, *products, *cell_state;

  Int8Scan(const Int8Forward& a, int d, const int64_t* offsets, int team, Barrier& b, Scratch& scratch)
      : args(a), z(a.sizes), direction(d), steps{z.steps, z.batch, z.batch_sizes, offsets, d == 1}, threads(team),
        barrier(b), projected(a.weights[d].w_hr != nullptr),
        w_ih(a.weights[d].w_ih, a.weights[d].s_ih, a.weights[d].b_ih, G * z.hidden, z.inputs, scratch),
        w_hh(a.weights[d].w_hh, a.weights[d].s_hh, a.weights[d].b_hh, G * z.hidden, z.outputs, scratch),
        w_hr(projected ? a.weights[d].w_hr : a.weights[d].w_hh, a.weights[d].s_hr, nullptr, projected ? z.outputs : 1,
             projected ? z.hidden : 1, scratch),
        chunk(smaller(z.steps, larger<int64_t>(1, kChunkRows / z.batch))),
        inputs(chunk * z.batch, z.inputs, team, scratch), states(z.batch, z.outputs, team, scratch),
        units(projected ? z.batch : 0, z.hidden, team, scratch) {
    state = scratch.take<float>(z.batch * z.outputs);
    next = scratch.take<float>(z.batch * z.outputs);
    unprojected = scratch.take<float>(projected ? z.batch * z.hidden : 0);
    products = scratch.take<float>(ceil_div(z.hidden, L) * G * L * chunk * z.batch);
    cell_state = Cell::kHasCell ? args.cn + direction * z.batch * z.hidden : nullptr;
  }

  void run(int thread) const {
    const Part own = part(ceil_div(z.hidden, L), thread, threads);
    const Part own_outputs = part(ceil_div(z.outputs, L), thread, threads);
    const Rows x = inputs.of(thread), h = states.of(thread), u = units.of(thread);
    float *before = state, *after = next;
    if (thread == 0) {
      const int64_t size = z.batch * z.outputs, cells = z.batch * z.hidden;
      for (float* to : {state, next}) copy(to, args.h0 + direction * size, size);
      if (Cell::kHasCell) copy(cell_state, args.c0 + direction * cells, cells);
    }
    barrier.wait(threads);
    for (int64_t s = 0; s < z.steps; ++s) {
      if (s % chunk == 0) multiply_inputs(s, smaller(s + chunk, z.steps), own, x);
      const int64_t rows = steps.rows(s);
      h.fill(before, rows);
      for (int64_t block = own.begin; block < own.end; ++block) step(s, block, rows, h, before, after);
      barrier.wait(threads);
      if (projected) {
        u.fill(unprojected, rows);
        for (int64_t block = own_outputs.begin; block < own_outputs.end; ++block)
          for (int64_t r = 0; r < rows; ++r) {
            const int lanes = static_cast<int>(smaller<int64_t>(L, z.outputs - block * L));
            emit(s, r, block * L, u.times(w_hr, block * L, lanes, r), lanes, after);
          }
        barrier.wait(threads);
      }
      float* swap = before;
      before = after;
      after = swap;
    }
  }

  float* product_at(int64_t block, int64_t row_in_chunk) const {
    return products + (block * chunk * z.batch + row_in_chunk) * G * L;
  }

  void multiply_inputs(int64_t s, int64_t end, Part own, const Rows& x) const {
    const int64_t first = steps.first_row(s, end), rows = steps.rows_between(s, end);
    x.fill(args.x + first * z.inputs, rows);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - block * L));
      for (int64_t r = 0; r < rows; ++r)
        for (int gate = 0; gate < G; ++gate)
          store(product_at(block, r) + gate * L, x.times(w_ih, gate * z.hidden + block * L, lanes, r));
    }
  }

  // One step of L units: gates, c and h of all rows.
  void step(int64_t s, int64_t block, int64_t rows, const Rows& state, const float* before, float* after) const {
    const int64_t block_start = s / chunk * chunk, unit = block * L;
    const int64_t first = steps.offset(s) - steps.first_row(block_start, smaller(block_start + chunk, z.steps));
    const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - unit));
    for (int64_t r = 0; r < rows; ++r) {
      Vec<float> a[G], b[G], saved_values[Cell::kSaved + 1], c{}, h{};
      for (int gate = 0; gate < G; ++gate) {
        a[gate] = load(product_at(block, first + r) + gate * L);
        b[gate] = state.times(w_hh, gate * z.hidden + unit, lanes, r);
      }
      if (Cell::kReadsState) h = load_part(before + r * z.outputs + unit, lanes);
      if (Cell::kHasCell) c = load_part(cell_state + r * z.hidden + unit, lanes);
      Cell::open(a, b);
      h = Cell::close(a, b, h, c, saved_values);
      if (Cell::kHasCell) store_part(cell_state + r * z.hidden + unit, c, lanes);
      if (projected)
        store_part(unprojected + r * z.hidden + unit, h, lanes);
      else
        emit(s, r, unit, h, lanes, after);
    }
  }

  // h of some outputs of row r, to all that want it.
  FASTRNN_INLINE void emit(int64_t s, int64_t r, int64_t column, Vec<float> h, int lanes, float* after) const {
    store_part(after + r * z.outputs + column, h, lanes);
    store_part(args.y + ((steps.offset(s) + r) * z.directions + direction) * z.outputs + column, h, lanes);
    if (r >= steps.rows(s + 1)) store_part(args.hn + (direction * z.batch + r) * z.outputs + column, h, lanes);
  }
};

template <class Cell>
bool run_int8(const Int8Forward& args, Team& team) {
  const Sizes& z = args.sizes;
  Scratch scratch;
  Barrier barriers[2];
  const double work = double(Cell::kGates) * z.hidden * (z.inputs + z.outputs) * z.rows * z.directions;
  const double step = double(Cell::kGates) * z.hidden * z.outputs * z.rows / z.steps;
  const int threads = work < kCallWork ? 1 : team.size();
  const bool side_by_side = z.directions == 2 && threads % 2 == 0;
  const int own = step < 4 * kStepWork || z.hidden <= kLanes<float> ? 1 : side_by_side ? threads / 2 : threads;
  const TeamPlan team_plan{own, side_by_side, false};
  const int64_t* offsets = make_offsets(z, scratch);
  Int8Scan<Cell> first(args, 0, offsets, own, barriers[0], scratch);
  if (z.directions == 1) return run_scans<Int8Scan<Cell>>(team, &first, nullptr, team_plan);
  Int8Scan<Cell> second(args, 1, offsets, own, barriers[1], scratch);
  return run_scans(team, &first, &second, team_plan);
}

template <class Cell>
void forward_int8_cell(const Int8Forward& args) {
  Team team(args.threads);
  while (!run_int8<Cell>(args, team)) {
  }
}

inline void forward_int8(const Int8Forward& args) {
  switch (args.mode) {
    case Mode::rnn_tanh: return forward_int8_cell<Rnn<float, false>>(args);
    case Mode::rnn_relu: return forward_int8_cell<Rnn<float, true>>(args);
    case Mode::gru: return forward_int8_cell<Gru<float>>(args);
    case Mode::lstm: return forward_int8_cell<Lstm<float>>(args);
  }
}
