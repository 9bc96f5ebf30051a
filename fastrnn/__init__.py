"""Drop-in RNN, LSTM and GRU for PyTorch on fused kernels: torch.nn's modules, arguments and results, in less time."""

import importlib
from typing import TYPE_CHECKING, Any

from fastrnn import backends, cell, diagnostics, init, interop
from fastrnn.backends import BackendError, use_backend
from fastrnn.cell_modules import GRUCell, LSTMCell, RNNCell
from fastrnn.convert import convert, quantize_dynamic, revert
from fastrnn.functional import gru, jordan_rnn, lstm, rnn
from fastrnn.jordan import JordanRNN
from fastrnn.modules import GRU, LSTM, RNN
from fastrnn.network import Network, NetworkCell
from fastrnn.quantized import (
    QuantizedGRU,
    QuantizedGRUCell,
    QuantizedLSTM,
    QuantizedLSTMCell,
    QuantizedRNN,
    QuantizedRNNCell,
)

if TYPE_CHECKING:
    from fastrnn import cells

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BackendError",
    "GRUCell",
    "JordanRNN",
    "LSTMCell",
    "Network",
    "NetworkCell",
    "QuantizedGRU",
    "QuantizedGRUCell",
    "QuantizedLSTM",
    "QuantizedLSTMCell",
    "QuantizedRNN",
    "QuantizedRNNCell",
    "RNNCell",
    "backends",
    "cell",
    "cells",
    "convert",
    "diagnostics",
    "gru",
    "init",
    "interop",
    "jordan_rnn",
    "lstm",
    "quantize_dynamic",
    "revert",
    "rnn",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """The library of cells, imported when it is first asked for: each is traced then."""
    if name == "cells":
        return importlib.import_module("fastrnn.cells")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
