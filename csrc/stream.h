// A model that runs step by step: layers one upon the other, perhaps an embedding before and a linear layer behind.
//
// A handle owns its packed weights, its state, x and y; a step takes no memory. One thread at a time.
#pragma once

#include <vector>

#include "runtime.h"
#include "stream_file.h"

namespace fastrnn {

class Stream {
 public:
  // Of the bytes of a file, which may go afterwards; all rows begin with the initial states. Throws StreamError and
  // std::bad_alloc.
  Stream(const void* bytes, size_t size, int64_t batch);
  ~Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int64_t batch() const { return batch_; }
  int64_t inputs() const { return inputs_; }
  int64_t vocabulary() const { return vocabulary_; }
  int64_t outputs() const { return outputs_; }
  bool narrow() const { return narrow_; }  // x and y are bfloat16, else float
  double work() const { return work_; }    // multiply-adds of a step of all rows
  int64_t state_size() const { return state_size_; }

  // What a step reads, (B, I), and what it writes, (B, O).
  void* x() const { return x_; }
  const void* y() const { return y_; }
  // Puts the vectors of B tokens into x; false, and nothing done, where one is none of the vocabulary.
  bool look_up(const int64_t* tokens);
  void step() {
    for (const Part& part : parts_) part.prepared.step(part.prepared.self);
  }

  // Sets some rows, from 0 to B - 1, back to the initial states.
  void reset(const int64_t* rows, int64_t count);
  void reset_all();
  // Of each layer h (B, P), then c (B, H) of those that have one.
  void get_state(float* to) const;
  void set_state(const float* from);

 private:
  // A layer, or the linear one, which has no state.
  struct Part {
    Prepared prepared;
    int64_t h_size, c_size;  // numbers in a row
    const float *h, *c;      // the initial states; null for zeros
  };

  template <class S>
  void prepare(const StreamModel& model);
  void* take(int64_t count, size_t item);
  const float* keep(const float* from, int64_t count);

  Scratch memory_{Scratch::kept};
  std::vector<Part> parts_;
  int64_t batch_, inputs_, vocabulary_, outputs_ = 0, state_size_ = 0;
  bool narrow_;
  double work_ = 0;
  size_t row_bytes_ = 0;  // of x
  char *x_ = nullptr, *y_ = nullptr, *embedding_ = nullptr;
  float* state_ = nullptr;  // for `reset`
};

}  // namespace fastrnn
