// Packed weights that outlive a call, for a module that runs again without training.
//
// They are known by their numbers: before each use a fingerprint is taken of a panel's weights, and the panel is packed
// again where it is not the one of the weights that were packed. So a change is seen that bumps no version counter
// (through `.data`, NumPy or another process), for one reading of the weights, a fraction of what packing takes.

// The fingerprint: 64 bits. Numbers of 64 bits, each lane's a chain of its own, take in a word after the other by
//   s = multiply(rotate(s, 16)) + word        multiply: each half of 32 bits by an odd constant
// and are then folded into one chain, and that into one number by the same kind of steps.
//
// Every step maps states to states and words to states one to one, so a single changed word always shows. What changed
// in a state stays there until another change happens to undo it. Multiplication carries a changed bit upwards only, of
// which changes of signs alone would make nothing but sums of two to the 31st, which cancel in pairs; the rotation
// brings the upper half of a word below the other, so the difference becomes a number that depends on the state and on
// the constant, and after five words on all bits of both. Another change then undoes it with the chance with which two
// numbers of 64 bits are equal. (The one exception is the word next in a chain, 256 bytes or so behind, if of the first
// no more than half changed: one change of it in 2^32, which that of the first tells, undoes the first.)
struct Fingerprint {
  static constexpr int kChains = 8;  // side by side, since one multiplication waits for the one before
  static constexpr uint32_t kOdd = 0x9e3779b1;
  Words chains[kChains] = {};

  FASTRNN_INLINE void add(const void* weights, int64_t bytes) {
    constexpr int64_t kStride = kChains * kVectorBytes;
    const char* from = static_cast<const char*>(weights);
    for (; bytes >= kStride; bytes -= kStride, from += kStride) mix(from);
    if (!bytes) return;
    char rest[kStride] = {};
    __builtin_memcpy(rest, from, static_cast<size_t>(bytes));
    mix(rest);
  }

  FASTRNN_INLINE void mix(const char* from) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      Words words;
      __builtin_memcpy(&words, from + i * kVectorBytes, sizeof(words));
      chains[i] = stirred(chains[i]) + words;
    }
  }

  static FASTRNN_INLINE Words stirred(Words state) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // a rotation takes three instructions there, a shuffle one
    const int64_t low = 0x0504030201000706, high = 0x0d0c0b0a09080f0e;
    const __m256i order = _mm256_set_epi64x(high, low, high, low);
    return bit_cast<Words>(_mm256_shuffle_epi8(bit_cast<__m256i>(state), order)) * kOdd;
#else
    typedef uint64_t Lanes __attribute__((vector_size(kVectorBytes)));
    const Lanes lanes = bit_cast<Lanes>(state);
    return bit_cast<Words>(lanes << 16 | lanes >> 48) * kOdd;
#endif
  }

  uint64_t sum() const {
    Words folded = chains[0];
    for (int i = 1; i < kChains; ++i) folded = stirred(folded) + chains[i];
    uint64_t lanes[kVectorBytes / 8], all = 0;
    __builtin_memcpy(lanes, &folded, sizeof(lanes));
    for (const uint64_t lane : lanes) all = spread(all + lane);
    return all;
  }

  // One to one, and every bit of the result depends on every bit. Source: the finalizer of MurmurHash3.
  static FASTRNN_INLINE uint64_t spread(uint64_t x) {
    x = (x ^ x >> 33) * 0xff51afd7ed558ccd;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53;
    return x ^ x >> 33;
  }
};

// What is known of the weights of a packed panel.
struct Mark {
  uint64_t fingerprint;
  bool known;  // whether there is a packed panel
};

// Where a scan takes the memory of its packed weights from: a Kept, or the scratch memory of the call.
struct Room {
  Kept* kept;
  Scratch& scratch;
  char* place = nullptr;
  Mark* marks = nullptr;  // one for each of `panels`, with a Kept

  // `layout` names all that the places of the packed numbers depend on.
  void open(int64_t bytes, int64_t panels, const int64_t (&layout)[Kept::kLayout]) {
    if (!kept) return;
    bool fresh = false;
    const int64_t size = bytes_of<Mark>(panels);
    place = kept->open(static_cast<size_t>(bytes + size), layout, &fresh);
    marks = reinterpret_cast<Mark*>(place);
    place += size;
    for (int64_t p = 0; fresh && p < panels; ++p) marks[p].known = false;
  }

  template <class S>
  S* take(int64_t count) {
    if (!kept) return scratch.take<S>(count);
    S* memory = reinterpret_cast<S*>(place);
    place += bytes_of<S>(count);
    return memory;
  }

  template <class S>
  static int64_t bytes_of(int64_t count) {
    return ceil_div(count * static_cast<int64_t>(sizeof(S)), 64) * 64;
  }
};
