// Printed by `python -m fastrnn.compiler.built_in` from the definitions in fastrnn/cells: change those.
//
// What is to be known of a cell before its kernels run.
#pragma once

namespace fastrnn {

enum class Mode : int { rnn_tanh, rnn_relu, lstm, gru };

struct CellFacts {
  const char* name;  // torch's for the mode
  int gates;         // G, blocks of rows of w_ih and w_hh
  int saved;         // values a unit and step that backward reads, beside the states
  bool has_cell;     // whether there is a c beside h
  bool projects;     // whether h may be a projection: no gate meets h unit by unit
};

constexpr CellFacts kCells[] = {
    {"RNN_TANH", 1, 0, false, true},
    {"RNN_RELU", 1, 0, false, true},
    {"LSTM", 4, 4, true, true},
    {"GRU", 3, 4, false, false},
};

inline const CellFacts& facts(Mode mode) { return kCells[static_cast<int>(mode)]; }

}  // namespace fastrnn
