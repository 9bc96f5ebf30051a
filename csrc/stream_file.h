// The file of a model that runs step by step. Little-endian; every array begins at a multiple of 64.
//
//    0  "FRNNSTRM"
//    8  u32  version, 1
//   12  u32  CRC-32 (zlib's) of all bytes from 16 on
//   16  u64  bytes of the whole
//   24  u32  numbers: 0 float32, 1 bfloat16
//   28  u32  layers, 1 to 1024
//   32  u64  V, rows of the embedding; 0: there is none
//   40  u64  I, numbers in a row of x, or of the embedding
//   48  u64  O, outputs of the linear layer behind; 0: there is none
//   56  u32  1 where that has a bias
//   60  u32  0
//   64  each layer, 32 bytes:  u32 mode (cell_table.h); u32 flags, the sum of 1 weights of int8, 2 biases,
//       4 projection, 8 initial states, 16 with int8: w_ih is float32; u64 H; u64 P, which is H unless there is a
//       projection; u64 0
//
// Then the arrays: the embedding (V, I); of each layer w_ih (G*H, I), w_hh (G*H, P), b_ih (G*H), b_hh (G*H), w_hr (P,
// H), initial h (P) and c (H), those that it has; the linear layer's weight (O, P) and bias (O). Each matrix of int8
// comes behind the scales of its rows. Scales, initial states, and the biases of int8 layers are float32; all else is
// of the file's numbers. Numbers of int8 are from -127 to 127, and matrices no deeper than kInt8Depth.
#pragma once

#include <cstddef>
#include <exception>
#include <string>
#include <vector>

#include "../include/fastrnn_stream.h"
#include "scan.h"

namespace fastrnn {

struct StreamError : std::exception {
  fastrnn_status status;
  std::string text;

  StreamError(fastrnn_status of, std::string message) : status(of), text(std::move(message)) {}
  const char* what() const noexcept override { return text.c_str(); }
};

// Pointers into the bytes of a file; null for what there is not. Of int8 layers biases are floats.
struct StreamLayer {
  Mode mode;
  bool int8, float_inputs;  // the latter: w_ih is of floats among matrices of int8
  int64_t inputs, hidden, outputs;
  const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
  const float *s_ih, *s_hh, *s_hr;
  const float *h, *c;  // initial states
};

struct StreamModel {
  bool narrow;  // numbers are bfloat16
  int64_t vocabulary, inputs, linear_outputs;
  const void *embedding, *linear_weight, *linear_bias;
  std::vector<StreamLayer> layers;
};

// Checks every byte; `bytes` are aligned to 8. Throws StreamError.
StreamModel read_stream_file(const void* bytes, size_t size);

}  // namespace fastrnn
