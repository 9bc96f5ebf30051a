// The layers that kernels.cpp runs, and what only each of them can catch.
#pragma once

#include <cstdint>
#include <vector>

#include "scan.h"

using fastrnn::Activation;
using fastrnn::Mode;

struct Case {
  const char* isolates;
  Mode mode;
  int64_t steps, batch, inputs, hidden;
  int directions = 1;
  int64_t projection = 0;
  std::vector<int64_t> batch_sizes = {};
  bool bias = true, gradients_of_x = true, gradients_of_weights = true, seeds = true;
  double spread = 1;                         // of x: a large one drives the gates to their ends
  Activation activation = Activation::none;  // of a Jordan network
  bool tokens = false;

  int64_t outputs() const { return projection ? projection : hidden; }
  int64_t rows() const {
    int64_t sum = 0;
    for (const int64_t size : batch_sizes) sum += size;
    return batch_sizes.empty() ? steps * batch : sum;
  }
};

const Case kCases[] = {
    {"the smallest layer", Mode::lstm, 1, 1, 1, 1},
    {"the smallest layer", Mode::gru, 1, 1, 1, 1},
    {"the smallest layer", Mode::rnn_tanh, 1, 1, 1, 1},
    {"the smallest layer", Mode::rnn_relu, 1, 1, 1, 1},
    {"less than a vector", Mode::lstm, 4, 3, 2, 3},
    {"less than a vector", Mode::gru, 4, 3, 2, 3},
    {"less than a vector", Mode::rnn_tanh, 4, 3, 2, 3},
    {"less than a vector", Mode::rnn_relu, 4, 3, 2, 3},
    {"whole vectors", Mode::lstm, 3, 8, 16, 32},
    {"whole vectors", Mode::gru, 3, 8, 16, 32},
    {"whole panels", Mode::rnn_tanh, 3, 8, 16, 128},
    {"one more than whole vectors", Mode::lstm, 3, 7, 5, 33},
    {"one more than whole vectors", Mode::gru, 3, 7, 5, 33},
    {"one more than whole panels", Mode::rnn_relu, 3, 7, 5, 65},
    {"two directions", Mode::lstm, 5, 3, 4, 9, 2},
    {"two directions", Mode::gru, 5, 3, 4, 9, 2},
    {"two directions", Mode::rnn_tanh, 5, 3, 4, 9, 2},
    {"packed", Mode::lstm, 5, 7, 3, 10, 2, 0, {7, 7, 4, 2, 1}},
    {"packed", Mode::gru, 5, 7, 3, 10, 2, 0, {7, 7, 4, 2, 1}},
    {"packed", Mode::rnn_tanh, 5, 7, 3, 10, 2, 0, {7, 7, 4, 2, 1}},
    {"packed, many rows end at once", Mode::lstm, 3, 30, 2, 3, 2, 0, {30, 1, 1}},
    {"packed in name only", Mode::gru, 3, 4, 2, 5, 1, 0, {4, 4, 4}},
    {"projection", Mode::lstm, 4, 5, 6, 19, 2, 7},
    {"projection to one unit, packed", Mode::lstm, 4, 5, 6, 19, 2, 1, {5, 3, 3, 1}},
    {"no bias", Mode::lstm, 3, 4, 5, 6, 2, 0, {}, false},
    {"no bias, projection", Mode::lstm, 3, 4, 5, 6, 2, 3, {}, false},
    {"no bias", Mode::gru, 3, 4, 5, 6, 2, 0, {}, false},
    {"no gradient of x", Mode::lstm, 3, 4, 5, 6, 2, 0, {}, true, false},
    {"no gradient of the weights", Mode::gru, 3, 4, 5, 6, 2, 0, {}, true, true, false},
    {"gradient of y alone", Mode::lstm, 3, 4, 5, 6, 2, 0, {}, true, true, true, false},
    {"gradient of y alone", Mode::gru, 3, 4, 5, 6, 2, 0, {}, true, true, true, false},
    {"saturated gates", Mode::lstm, 3, 4, 5, 18, 1, 0, {}, true, true, true, true, 1e3},
    {"saturated gates", Mode::gru, 3, 4, 5, 18, 1, 0, {}, true, true, true, true, 1e3},
    {"a panel cut in depth", Mode::lstm, 2, 1, 9000, 2},
    {"a panel cut in depth", Mode::gru, 2, 1, 9000, 2},
    {"as many rows as a panel is cut at", Mode::rnn_tanh, 3, 3000, 2, 1},
    {"steps taken one by one", Mode::gru, 90, 1, 3, 4, 2},
    {"one row, panels by pairs and one over", Mode::lstm, 12, 1, 30, 90},
    {"one row, panels by pairs", Mode::gru, 12, 1, 30, 64, 2},
    {"one row, panels of uneven widths", Mode::rnn_tanh, 12, 1, 30, 300},
    {"one row at last, a panel cut in depth", Mode::lstm, 5, 3, 40, 170, 2, 0, {3, 3, 2, 1, 1}},
    {"threads share units", Mode::lstm, 4, 6, 30, 70, 2},
    {"threads share units", Mode::gru, 4, 6, 30, 80, 2},
    {"threads share units, packed", Mode::gru, 4, 14, 20, 83, 1, 0, {14, 9, 9, 2}},
    {"threads share units", Mode::rnn_tanh, 3, 7, 40, 230},
    {"threads share rows", Mode::lstm, 4, 41, 10, 33},
    {"threads share rows", Mode::gru, 4, 41, 12, 40, 2},
    {"threads share rows", Mode::rnn_relu, 4, 79, 20, 50},
    {"threads share rows and units", Mode::lstm, 4, 9, 20, 130},
    {"threads share rows and units", Mode::gru, 4, 10, 20, 130},
    {"threads share rows and units", Mode::rnn_tanh, 4, 11, 20, 300},
    {"threads share rows and units, projection", Mode::lstm, 4, 10, 20, 140, 1, 50},
    {"tiles of 16 rows and 32 of k, and some over", Mode::lstm, 3, 37, 70, 100},
    {"tiles of 16 rows and 32 of k, and some over", Mode::gru, 3, 49, 40, 81, 2},
    {"tiles of 16 rows and 32 of k", Mode::rnn_tanh, 2, 32, 64, 128},
    {"tiles of 16 rows, packed", Mode::lstm, 4, 33, 33, 65, 2, 0, {33, 32, 17, 3}},
    {"tiles, a panel cut in depth", Mode::gru, 2, 17, 610, 40},
    {"tiles, projection", Mode::lstm, 3, 18, 35, 70, 2, 66},
    {"Jordan", Mode::rnn_tanh, 4, 5, 6, 19, 2, 7, {}, true, true, true, true, 1, Activation::sigmoid},
    {"Jordan, packed", Mode::rnn_relu, 4, 5, 6, 19, 2, 20, {5, 3, 3, 1}, true, true, true, true, 1, Activation::tanh},
    {"Jordan, no bias", Mode::rnn_tanh, 3, 4, 5, 6, 1, 6, {}, false, true, true, true, 1, Activation::relu},
    {"Jordan, threads share units", Mode::rnn_tanh, 3, 7, 40, 230, 1, 150},
    {"tokens", Mode::lstm, 4, 5, 6, 19, 2, 0, {5, 3, 3, 1}, true, false, true, true, 1, Activation::none, true},
    {"tokens, threads share units",
     Mode::gru,
     4,
     6,
     30,
     80,
     1,
     0,
     {},
     true,
     false,
     true,
     true,
     1,
     Activation::none,
     true},
    {"fewer tokens than kinds of them",
     Mode::gru,
     2,
     2,
     90,
     5,
     1,
     0,
     {},
     true,
     false,
     true,
     true,
     1,
     Activation::none,
     true},
};
