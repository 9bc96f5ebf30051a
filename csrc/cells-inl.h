// The cells, each as data and two pointwise functions over vectors. The equations stand in fastrnn/modes.py.
//
// forward: `a` is the input's share of the gates and `b` the state's, each with its bias. In two halves, since the
// whole is a chain of some 200 cycles and a processor sees too few instructions ahead to work on the next vector
// meanwhile: `open` puts the gates that are ready into `b`, `close` does the rest. backward: from the gradient of h and
// the gradient that flows along the time axis outside the product (`carry`: of c for the LSTM, through z for the GRU),
// the gradients of the gates and the carry of the step before. kSides counts the columns of gate gradients kept: those
// of `b` are the first kGates of them, those of `a` the last kGates. A gate's slope meets what the gate multiplies
// before it meets a gradient: a closed gate's is 0, which leaves no product that could have overflowed to multiply.

template <class S>
struct Lstm {
  static constexpr int kGates = 4, kSaved = 4, kSides = 4, kVectors = 4;
  static constexpr bool kHasCell = true, kReadsState = false, kHasCarry = true;
  using V = Vec<S>;

  static FASTRNN_INLINE void open(const V* a, V* b) {
    for (int gate : {0, 1, 3}) b[gate] = sigmoid<S>(a[gate] + b[gate]);
    b[2] = tanh<S>(a[2] + b[2]);
  }

  static FASTRNN_INLINE V close(const V*, const V* b, V, V& c, V* saved) {
    const V i = b[0], f = b[1], g = b[2], o = b[3];
    c = f * c + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    return o * tanh<S>(c);
  }

  static FASTRNN_INLINE void backward(const V* saved, V, V, V c, V c_before, V grad_h, V& carry, V* grad) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V t = tanh<S>(c);
    const V grad_c = carry + grad_h * o * (S(1) - t * t);
    grad[0] = grad_c * g * (i * (S(1) - i));
    grad[1] = grad_c * (c_before * (f * (S(1) - f)));
    grad[2] = grad_c * i * (S(1) - g * g);
    grad[3] = grad_h * t * (o * (S(1) - o));
    carry = grad_c * f;
  }

  // Row of weight_hh that column k of the gate gradients of `b` belongs to; those of `a` stand in weight_ih's order.
  static FASTRNN_INLINE int64_t row_hh(int64_t k, int64_t) { return k; }
};

template <class S>
struct Gru {
  // WeightCache gate gradients: b_n, r, z, a_n. So the columns of `a` and those of `b` are each contiguous.
  static constexpr int kGates = 3, kSaved = 4, kSides = 4, kVectors = 3;
  static constexpr bool kHasCell = false, kReadsState = true, kHasCarry = true;
  using V = Vec<S>;

  static FASTRNN_INLINE void open(const V* a, V* b) {
    for (int gate : {0, 1}) b[gate] = sigmoid<S>(a[gate] + b[gate]);
  }

  static FASTRNN_INLINE V close(const V* a, const V* b, V h, V&, V* saved) {
    const V r = b[0], z = b[1], n = tanh<S>(a[2] + r * b[2]);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = b[2];
    return z * h + (n - z * n);
  }

  static FASTRNN_INLINE void backward(const V* saved, V, V h_before, V, V, V grad_h, V& carry, V* grad) {
    const V r = saved[0], z = saved[1], n = saved[2], b_n = saved[3];
    grad_h += carry;
    const V grad_n = grad_h * (S(1) - z) * (S(1) - n * n);
    grad[0] = grad_n * r;
    grad[1] = grad_n * (b_n * (r * (S(1) - r)));
    grad[2] = grad_h * ((h_before - n) * (z * (S(1) - z)));
    grad[3] = grad_n;
    carry = grad_h * z;
  }

  static FASTRNN_INLINE int64_t row_hh(int64_t k, int64_t hidden) { return k < hidden ? k + 2 * hidden : k - hidden; }
};

template <class S, bool kRelu>
struct Rnn {
  static constexpr int kGates = 1, kSaved = 0, kSides = 1, kVectors = 4;
  static constexpr bool kHasCell = false, kReadsState = false, kHasCarry = false;
  using V = Vec<S>;

  static FASTRNN_INLINE void open(const V*, V*) {}

  static FASTRNN_INLINE V close(const V* a, const V* b, V, V&, V*) {
    const V sum = a[0] + b[0];
    if constexpr (kRelu) return sum < S(0) ? V{} : sum;  // keeps a NaN
    return tanh<S>(sum);
  }

  static FASTRNN_INLINE void backward(const V*, V h, V, V, V, V grad_h, V&, V* grad) {
    if constexpr (kRelu)
      grad[0] = h <= S(0) ? V{} : grad_h;
    else
      grad[0] = grad_h * (S(1) - h * h);
  }

  static FASTRNN_INLINE int64_t row_hh(int64_t k, int64_t) { return k; }
};
