// The memory of calls: what each thread keeps, what stays with weights or with a stream.
#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "runtime.h"

namespace fastrnn {
namespace {

// What is larger goes back to the system after each call.
constexpr size_t kKeptBytes = size_t{64} << 20;
constexpr size_t kAlign = 64, kHugePage = size_t{2} << 20;

// Memory of a multiple of kAlign. In huge pages where there are such and it fills one: prefetchers stop at the end of
// a page, and weights larger than L2 stream half as fast again without a stop every 4 KiB.
void* allocate(size_t bytes) {
  const bool huge = bytes >= kHugePage;
  const size_t align = huge ? kHugePage : kAlign;
#if defined(_WIN32)
  return _aligned_malloc(bytes, align);
#else
  void* memory = nullptr;
  if (posix_memalign(&memory, align, bytes)) return nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // advice: a system without them says no
#endif
  return memory;
#endif
}

void give_back(void* memory) {
#if defined(_WIN32)
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

struct Pool {
  char* block = nullptr;
  size_t size = 0, used = 0, wanted = 0;
  std::vector<void*> overflow;  // of a call that outgrew the block, which is grown after it
  ~Pool() { give_back(block); }
};

thread_local Pool pool;

// Memory of its own, noted in `list`.
void* take_apart(std::vector<void*>& list, size_t bytes) {
  list.push_back(nullptr);  // first, since it throws where there is no memory for it
  void*& memory = list.back();
  memory = allocate(bytes);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

WeightCache::~WeightCache() { give_back(block_); }

char* WeightCache::open(size_t bytes, const int64_t (&layout)[kLayout], bool* fresh) {
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  *fresh = bytes != size_ || !std::equal(layout, layout + kLayout, layout_);
  if (!*fresh) return block_;
  give_back(block_);
  size_ = 0;
  block_ = static_cast<char*>(allocate(bytes));
  if (!block_) throw std::bad_alloc();
  size_ = bytes;
  std::copy(layout, layout + kLayout, layout_);
  return block_;
}

struct Scratch::Blocks : std::vector<void*> {};

Scratch::Scratch() : kept_(nullptr) { pool.used = pool.wanted = 0; }

Scratch::Scratch(Kept) : kept_(new Blocks) {}

Scratch::~Scratch() {
  if (kept_) {
    for (void* memory : *kept_) give_back(memory);
    delete kept_;
    return;
  }
  for (void* memory : pool.overflow) give_back(memory);
  pool.overflow.clear();
  if (pool.wanted > pool.size && pool.wanted <= kKeptBytes) {
    give_back(pool.block);
    pool.block = static_cast<char*>(allocate(pool.wanted));
    pool.size = pool.block ? pool.wanted : 0;
  }
}

void* Scratch::take_bytes(int64_t count, size_t item) {
  if (count < 0 || static_cast<size_t>(count) > PTRDIFF_MAX / item) throw std::bad_alloc();
  size_t bytes = static_cast<size_t>(count) * item;
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  if (kept_) return take_apart(*kept_, bytes);
  pool.wanted += bytes;
  if (pool.used + bytes <= pool.size) {
    void* memory = pool.block + pool.used;
    pool.used += bytes;
    return memory;
  }
  return take_apart(pool.overflow, bytes);
}

}  // namespace fastrnn
