// Packed weights that live as long as the memory of the parameter they were packed for.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "runtime.h"

namespace fastrnn {

// Claims for one call what is kept for an nn.Parameter whose numbers stand at `place`, for which there is nothing at
// first. Nothing is claimed for other objects, which may be gone after the call, nor while another thread has it. What
// is kept under a place is a guess that its fingerprints confirm, so it does no harm if other memory stands there now.
// Construct and destroy with the GIL.
class WeightCacheClaim {
 public:
  WeightCacheClaim(pybind11::handle weight, uintptr_t place);
  ~WeightCacheClaim() {
    if (kept_) kept_->release();
  }
  WeightCacheClaim(const WeightCacheClaim&) = delete;
  WeightCacheClaim& operator=(const WeightCacheClaim&) = delete;
  WeightCache* get() const { return kept_.get(); }

 private:
  std::shared_ptr<WeightCache> kept_;
};

// For how many parameters something is kept.
size_t weight_cache_count();

}  // namespace fastrnn
