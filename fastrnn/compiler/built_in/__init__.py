"""The built-in cells, printed from their definitions for the engines that hold one cell each.

RNN, LSTM and GRU have engines whose only product is U h and whose gates' math is compiled in: C++, Numba's and
Triton's.  Those read their cells from three files that are printed here and checked in, so that a build needs no
compiler of cells: ``python -m fastrnn.compiler.built_in`` writes them, and a test holds that they are what is printed.

The way of a cell: ``pointwise`` makes two functions of its graph, ``expressions`` makes text of their nodes, and
``print_cpp``, ``print_numba`` and ``print_triton`` put that into the form that each engine calls.
"""

from __future__ import annotations

from fastrnn.cell.declare import Cell
from fastrnn.cells.gru import GRU
from fastrnn.cells.lstm import LSTM
from fastrnn.cells.rnn import RNN

# By the name that torch has for a cell's mode.
BUILT_IN: dict[str, Cell] = {
    "RNN_TANH": RNN(),
    "RNN_RELU": RNN(nonlinearity="relu"),
    "LSTM": LSTM(),
    "GRU": GRU(),
}
