// Packed weights that outlive a call, for a module that runs again without training.
//
// They are known by their numbers: a panel is packed again where the sums over its weights have changed since. So a
// change is seen that bumps no version counter (through `.data`, NumPy or another process), for one reading of the
// weights, which takes a fraction of what packing does.

// Sums of 32-bit words modulo 2^32, in each lane a polynomial of an odd number: one changed word always shows, several
// fail to with a chance of 2^-32 or less.
struct Mark {
  static constexpr int kSums = 8;  // chains side by side, since one multiplication waits for the one before
  Words sums[kSums];
  bool known;  // whether there is a packed panel

  FASTRNN_INLINE void add(const void* weights, int64_t bytes) {
    constexpr int64_t kStride = kSums * kVectorBytes;
    const char* from = static_cast<const char*>(weights);
    for (; bytes >= kStride; bytes -= kStride, from += kStride) mix(from);
    if (!bytes) return;
    char rest[kStride] = {};
    __builtin_memcpy(rest, from, static_cast<size_t>(bytes));
    mix(rest);
  }

  FASTRNN_INLINE void mix(const char* from) {
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) {
      Words words;
      __builtin_memcpy(&words, from + i * kVectorBytes, sizeof(words));
      sums[i] = sums[i] * 2654435761u + words;
    }
  }

  FASTRNN_INLINE bool operator==(const Mark& other) const {
    return known == other.known && __builtin_memcmp(sums, other.sums, sizeof(sums)) == 0;
  }
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
    place = kept->open(static_cast<size_t>(bytes) + static_cast<size_t>(panels) * sizeof(Mark), layout, &fresh);
    marks = reinterpret_cast<Mark*>(place);
    place += panels * sizeof(Mark);
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
