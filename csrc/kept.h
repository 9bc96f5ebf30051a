// Packed weights that live as long as the parameter they were packed for.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "runtime.h"

namespace fastrnn {

// Claims for one call what is kept for an nn.Parameter, for which there is nothing at first. Nothing is claimed for
// other objects, which may be gone after the call, nor while another thread has it. Construct and destroy with the GIL.
class KeptFor {
 public:
  explicit KeptFor(pybind11::handle weight);
  ~KeptFor() {
    if (kept_) kept_->release();
  }
  KeptFor(const KeptFor&) = delete;
  KeptFor& operator=(const KeptFor&) = delete;
  Kept* get() const { return kept_.get(); }

 private:
  std::shared_ptr<Kept> kept_;
};

// How many parameters something is kept for.
size_t kept_count();

}  // namespace fastrnn
