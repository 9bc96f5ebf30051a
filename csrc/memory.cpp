// The memory of calls: what each thread keeps and what all share, what stays with weights or with a stream.
#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "assumptions.h"
#include "runtime.h"

namespace fastrnn {
namespace {

// What a thread keeps for its own calls: enough for steps and for small layers.
constexpr size_t kOwnBytes = size_t{2} << 20;
// What large calls of all threads together leave for those to come.
constexpr size_t kSharedBytes = size_t{256} << 20;
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

struct Block {
  char* memory;
  size_t size;
};

// Blocks that wait for a large call of whatever thread, the oldest first. Nobody waits for the lock: who finds it
// taken, as a forked child may for ever, turns to the system.
class SharedBlocks {
 public:
  // At least so many bytes, the last used of those that fit best; no memory where the system has none.
  Block borrow(size_t bytes) {
    if (const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock) {
      Block* best = nullptr;
      for (Block* block = blocks_; block != blocks_ + count_; ++block)
        if (block->size >= bytes && block->size / 2 <= bytes && (!best || block->size <= best->size)) best = block;
      if (best) return remove(best);
    }
    return {static_cast<char*>(allocate(bytes)), bytes};
  }

  void keep(Block block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block.size > kSharedBytes) return give_back(block.memory);
    while (count_ == kMost || bytes_ + block.size > kSharedBytes) give_back(remove(blocks_).memory);
    blocks_[count_++] = block;
    bytes_ += block.size;
  }

 private:
  static constexpr int kMost = 64;

  Block remove(Block* which) {
    const Block block = *which;
    std::copy(which + 1, blocks_ + count_--, which);
    bytes_ -= block.size;
    return block;
  }

  std::mutex mutex_;
  Block blocks_[kMost];
  int count_ = 0;
  size_t bytes_ = 0;
};

SharedBlocks& shared_blocks() {
  static auto* const blocks = new SharedBlocks;  // never destroyed: threads may end after all else
  return *blocks;
}

struct Pool {
  char* block = nullptr;  // what is taken from: the thread's own, or what the call has borrowed for all that is small
  size_t size = 0, used = 0, wanted = 0;
  Block own{nullptr, 0};
  std::vector<Block> borrowed;  // of a call that outgrew the thread's own
  ~Pool() { give_back(own.memory); }

  void* borrow(size_t bytes) {
    borrowed.push_back({nullptr, 0});  // first, since it throws where there is no memory for it
    Block& last = borrowed.back();
    last = shared_blocks().borrow(std::max(bytes, kOwnBytes));
    if (!last.memory) throw std::bad_alloc();
    if (bytes < kOwnBytes) block = last.memory, size = last.size, used = bytes;
    return last.memory;
  }

  // After a call of `wanted` bytes.
  void close() {
    for (const Block& each : borrowed)
      if (each.memory) shared_blocks().keep(each);
    borrowed.clear();
    if (wanted > own.size && wanted <= kOwnBytes) {
      give_back(own.memory);
      own = {static_cast<char*>(allocate(wanted)), wanted};
      if (!own.memory) own.size = 0;
    }
    block = own.memory, size = own.size;
  }
};

thread_local Pool pool;

std::atomic<bool> apart_by_assumption{false};

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

void assume_apart(bool apart) { apart_by_assumption.store(apart, std::memory_order_relaxed); }

Scratch::Scratch() : kept_(apart_by_assumption.load(std::memory_order_relaxed) ? new Blocks : nullptr) {
  pool.used = pool.wanted = 0;
}

Scratch::Scratch(Kept) : kept_(new Blocks) {}

Scratch::~Scratch() {
  if (kept_) {
    for (void* memory : *kept_) give_back(memory);
    delete kept_;
    return;
  }
  if (pool.wanted > pool.own.size) pool.close();
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
  return pool.borrow(bytes);
}

}  // namespace fastrnn
