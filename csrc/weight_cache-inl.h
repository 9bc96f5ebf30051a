// Packed weights that outlive a call, for a module that runs again without training.
//
// They are known by their numbers: before each use a fingerprint is taken of a panel's weights, and the panel is packed
// again where it is not the one of the weights that were packed. So a change is seen that bumps no version counter
// (through `.data`, NumPy or another process), for one reading of the weights, a fraction of what packing takes.
#pragma once

#include "bfloat16-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// The fingerprint: 64 bits. Chains side by side take in a block of weights after the other, each by a step that first
// mixes what was there; at the end each is mixed with its place, and they are summed up.
//
// A step maps states to states and blocks to blocks one to one, so a single changed block always shows. What it changed
// in a state stays there until another change happens to undo it. Next in the chain that could only be a change of that
// very block by that very difference, which is one of many bits even where the first was one of one bit; after two or
// three blocks it is a matter of all bits of the state. Sums that do not mix lack that: a polynomial by an odd number
// modulo 2^32 carries a changed bit upwards only, so of changed signs, the highest bits, each pair cancels.
struct Fingerprint {
#if defined(__AES__)
  using State = __m128i;

  // A round of AES, one instruction: a table for each byte, exchange of bytes, mixing of four each. Source: FIPS 197.
  static FASTRNN_INLINE State taken_in(State state, State block) { return _mm_aesenc_si128(state, block); }
#else
  using State = Words;

  // The shift brings high bits down, the multiplication by an odd number low ones up.
  static FASTRNN_INLINE State taken_in(State state, State block) { return (state ^ state >> 15) * 0x9e3779b1u + block; }
#endif

  static constexpr int kChains = 8;  // as many as one step's latency is worth
  static constexpr int64_t kBlock = sizeof(State), kStride = kChains * kBlock;
  State chains[kChains] = {};

  FASTRNN_INLINE void add(const void* weights, int64_t bytes) {
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
      State block;
      __builtin_memcpy(&block, from + i * kBlock, sizeof(block));
      chains[i] = taken_in(chains[i], block);
    }
  }

  // By other means than the steps: what a step makes of one chain's difference may stand in the next chain.
  uint64_t sum() const {
    uint64_t lanes[kStride / 8], all = 0, place = 0;
    __builtin_memcpy(lanes, chains, sizeof(lanes));
    for (const uint64_t lane : lanes) all += spread(lane + (place += 0x9e3779b97f4a7c15));
    return all;
  }

  // One to one, and every bit of the result depends on every bit. Source: the finalizer of MurmurHash3.
  static FASTRNN_INLINE uint64_t spread(uint64_t x) {
    x = (x ^ x >> 33) * 0xff51afd7ed558ccd;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53;
    return x ^ x >> 33;
  }
};

inline uint64_t fingerprint(const void* weights, int64_t bytes) {
  Fingerprint print;
  print.add(weights, bytes);
  return print.sum();
}

// What is known of the weights of a packed panel.
struct PanelTag {
  uint64_t fingerprint;
  bool known;  // whether there is a packed panel
};

// Packs a panel if its weights, of which `take` takes the fingerprint, are others than those packed under this tag.
template <class Take, class Pack>
void pack_if_changed(PanelTag* tag, const Take& take, const Pack& pack) {
  if (!tag) return pack();
  const auto fingerprint = [&] {
    Fingerprint print;
    take(print);
    return print.sum();
  };
  const uint64_t now = fingerprint();
  if (tag->known && tag->fingerprint == now) return;
  pack();
  // Somebody may write the weights meanwhile; then nobody knows what was packed.
  *tag = {now, fingerprint() == now};
}

// Where a scan takes the memory of its packed weights from: a WeightCache, or the scratch memory of the call.
struct PackedMemory {
  WeightCache* cache;
  Scratch& scratch;
  char* place = nullptr;
  PanelTag* tags = nullptr;  // one for each of `panels`, with a WeightCache

  // `layout` names all that the places of the packed numbers depend on.
  void open(int64_t bytes, int64_t panels, const int64_t (&layout)[WeightCache::kLayout]) {
    if (!cache) return;
    bool fresh = false;
    const int64_t size = bytes_of<PanelTag>(panels);
    place = cache->open(static_cast<size_t>(bytes + size), layout, &fresh);
    tags = reinterpret_cast<PanelTag*>(place);
    place += size;
    for (int64_t p = 0; fresh && p < panels; ++p) tags[p].known = false;
  }

  template <class S>
  S* take(int64_t count) {
    if (!cache) return scratch.take<S>(count);
    S* memory = reinterpret_cast<S*>(place);
    place += bytes_of<S>(count);
    return memory;
  }

  template <class S>
  static int64_t bytes_of(int64_t count) {
    return ceil_div(count * static_cast<int64_t>(sizeof(S)), 64) * 64;
  }
};

}  // namespace fastrnn::FASTRNN_NAMESPACE
