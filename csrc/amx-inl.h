// Products of bfloat16 on the tile registers of AMX: 16 rows by 16 columns and 32 numbers of k in one instruction,
// eight times what AVX512-BF16 does in the time.
//
// A packed panel is what the instruction wants as it stands: pairs of k side by side. A tile of it is 16 groups of one
// vector's columns; a tile of A is 16 rows, or fewer, of 64 bytes. The instruction flushes denormals, as that of
// AVX512-BF16 does, and sums the even and the odd numbers of its 32 apart, so the last bits differ from those of other
// products: a call goes all one way (kernels.cpp), and its results do not depend on how its rows are cut.
#pragma once

#include "bfloat16-inl.h"

#if defined(__AMX_BF16__)

namespace fastrnn::FASTRNN_NAMESPACE {

constexpr int64_t kTileHeight = 16;  // rows of a tile, and groups of k
constexpr int64_t kTileBytes = 64;   // of a row of a tile

// The tile registers of a thread, from here on to the end of its work. To shape them takes as long as eight products,
// so they stay as they are until another height of rows is wanted. Sums of the first 16 rows are in 0 and 1, of the
// others in 2 and 3, A in 4 and 5, a panel in 6 and 7; with no more than 16 rows, sums in 0 to 3.
class TileRegisters {
 public:
  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() {
    if (height_) _tile_release();  // else the system would save them whenever it stops the thread
    height_ = 0;
  }

  static void shape(int64_t height) {
    if (height == height_) return;
    height_ = height;
    const int64_t first = smaller(height, kTileHeight), second = height > kTileHeight ? height - kTileHeight : first;
    const int64_t heights[8] = {first, first, second, second, first, second, kTileHeight, kTileHeight};
    alignas(64) struct {
      uint8_t palette = 1, others[15] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < 8; ++i) shapes.bytes[i] = kTileBytes, shapes.rows[i] = static_cast<uint8_t>(heights[i]);
    _tile_loadconfig(&shapes);
  }

 private:
  static inline thread_local int64_t height_ = 0;
};

#define FASTRNN_LOAD_SUM(tile, row, column)                                                        \
  do {                                                                                             \
    if (init)                                                                                      \
      _tile_loadd(tile, init + (row) * ld_init + (column) * 16, ld_init * int64_t(sizeof(float))); \
    else                                                                                           \
      _tile_zero(tile);                                                                            \
  } while (false)
#define FASTRNN_STORE_SUM(tile, row, column) _tile_stored(tile, c + ((row) * NV + (column)) * 16, NV * kTileBytes)
#define FASTRNN_LOAD_A(tile, row) _tile_loadd(tile, a + (row) * lda + k * 32, lda * 2)
#define FASTRNN_LOAD_PANEL(tile, column) _tile_loadd(tile, part + (column) * 32, NV * kTileBytes)

// c = init + a * panel for the rows of one or two tiles, the second 16 rows below the first, and `count` tiles of k.
// The processor fetches panels by itself as fast as they are multiplied: told to, it took a quarter longer.
template <int NV, bool kTwo>
__attribute__((noinline)) void multiply_on_tiles(const bfloat16* a, int64_t lda, int64_t count, const bfloat16* panel,
                                                 const float* init, int64_t ld_init, float* c) {
  asm volatile("" ::: "memory");                    // loads of tiles read what was stored before
  constexpr int64_t kStep = NV * kTileHeight * 32;  // numbers of a panel in a tile of k
  if constexpr (!kTwo) {
    FASTRNN_LOAD_SUM(0, 0, 0);
    if constexpr (NV > 1) FASTRNN_LOAD_SUM(1, 0, 1);
    if constexpr (NV > 2) FASTRNN_LOAD_SUM(2, 0, 2);
    if constexpr (NV > 3) FASTRNN_LOAD_SUM(3, 0, 3);
    for (int64_t k = 0; k < count; ++k) {
      const bfloat16* part = panel + k * kStep;
      FASTRNN_LOAD_A(4, 0);
      FASTRNN_LOAD_PANEL(6, 0);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (NV > 1) {
        FASTRNN_LOAD_PANEL(7, 1);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (NV > 2) {
        FASTRNN_LOAD_PANEL(6, 2);
        _tile_dpbf16ps(2, 4, 6);
      }
      if constexpr (NV > 3) {
        FASTRNN_LOAD_PANEL(7, 3);
        _tile_dpbf16ps(3, 4, 7);
      }
    }
    FASTRNN_STORE_SUM(0, 0, 0);
    if constexpr (NV > 1) FASTRNN_STORE_SUM(1, 0, 1);
    if constexpr (NV > 2) FASTRNN_STORE_SUM(2, 0, 2);
    if constexpr (NV > 3) FASTRNN_STORE_SUM(3, 0, 3);
  } else {
    for (int v = 0; v < NV; v += 2) {
      const bool pair = v + 1 < NV;
      FASTRNN_LOAD_SUM(0, 0, v);
      FASTRNN_LOAD_SUM(2, kTileHeight, v);
      if (pair) {
        FASTRNN_LOAD_SUM(1, 0, v + 1);
        FASTRNN_LOAD_SUM(3, kTileHeight, v + 1);
      }
      for (int64_t k = 0; k < count; ++k) {
        const bfloat16* part = panel + k * kStep;
        FASTRNN_LOAD_A(4, 0);
        FASTRNN_LOAD_PANEL(6, v);
        _tile_dpbf16ps(0, 4, 6);
        FASTRNN_LOAD_A(5, kTileHeight);
        _tile_dpbf16ps(2, 5, 6);
        if (pair) {
          FASTRNN_LOAD_PANEL(7, v + 1);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      FASTRNN_STORE_SUM(0, 0, v);
      FASTRNN_STORE_SUM(2, kTileHeight, v);
      if (pair) {
        FASTRNN_STORE_SUM(1, 0, v + 1);
        FASTRNN_STORE_SUM(3, kTileHeight, v + 1);
      }
    }
  }
}

// Any number of rows, and `count` tiles of k. Calls `expect(top, bottom)` before each one or two tiles of rows.
template <int NV, class Expect>
FASTRNN_INLINE void multiply_rows_on_tiles(const bfloat16* a, int64_t lda, int64_t rows, int64_t count,
                                           const bfloat16* panel, const float* init, int64_t ld_init, float* c,
                                           const Expect& expect) {
  const int64_t blocks = ceil_div(rows, 2 * kTileHeight), height = ceil_div(rows, blocks);  // of one shape but the last
  for (int64_t top = 0; top < rows; top += height) {
    const int64_t own = smaller(height, rows - top);
    TileRegisters::shape(own);
    expect(top, top + own);
    const auto multiply_block = own > kTileHeight ? multiply_on_tiles<NV, true> : multiply_on_tiles<NV, false>;
    multiply_block(a + top * lda, lda, count, panel, init ? init + top * ld_init : nullptr, ld_init, c + top * NV * 16);
  }
}

#undef FASTRNN_LOAD_SUM
#undef FASTRNN_STORE_SUM
#undef FASTRNN_LOAD_A
#undef FASTRNN_LOAD_PANEL

}  // namespace fastrnn::FASTRNN_NAMESPACE

#else

namespace fastrnn::FASTRNN_NAMESPACE {

struct TileRegisters {};

}  // namespace fastrnn::FASTRNN_NAMESPACE

#endif
