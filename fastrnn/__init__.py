"""Drop-in RNN, LSTM and GRU for PyTorch on fused kernels: torch.nn's modules, arguments and results, in less time."""

import importlib
from typing import TYPE_CHECKING, Any

from fastrnn import backends
from fastrnn.backends import BackendError, use_backend
from fastrnn.building import in_place_of_torch
from fastrnn.cell_modules import GRUCell, LSTMCell, RNNCell
from fastrnn.choices import use_tuning
from fastrnn.convert import convert, quantize_dynamic, revert
from fastrnn.functional import gru, jordan_rnn, lstm, rnn
from fastrnn.jordan import JordanRNN
from fastrnn.modules import GRU, LSTM, RNN
from fastrnn.quantized import (
    QuantizedGRU,
    QuantizedGRUCell,
    QuantizedLSTM,
    QuantizedLSTMCell,
    QuantizedRNN,
    QuantizedRNNCell,
)

if TYPE_CHECKING:
    from fastrnn import cell, cells, diagnostics, init, interop
    from fastrnn.network import Network, NetworkCell
    from fastrnn.quantized_network import QuantizedNetwork, QuantizedNetworkCell
    from fastrnn.streaming import Stream, stream
    from fastrnn.tuning import TuningCase, tune

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
    "QuantizedNetwork",
    "QuantizedNetworkCell",
    "QuantizedRNN",
    "QuantizedRNNCell",
    "RNNCell",
    "Stream",
    "TuningCase",
    "backends",
    "cell",
    "cells",
    "convert",
    "diagnostics",
    "gru",
    "in_place_of_torch",
    "init",
    "interop",
    "jordan_rnn",
    "lstm",
    "quantize_dynamic",
    "revert",
    "rnn",
    "stream",
    "tune",
    "use_backend",
    "use_tuning",
]


# What many programs never ask for is imported when one does: any cell and its compiler, and what knows of them.
_LATER = {
    **dict.fromkeys(("cell", "cells", "diagnostics", "init", "interop"), None),
    **dict.fromkeys(("Network", "NetworkCell"), "network"),
    **dict.fromkeys(("Stream", "stream"), "streaming"),
    **dict.fromkeys(("TuningCase", "tune"), "tuning"),
    **dict.fromkeys(("QuantizedNetwork", "QuantizedNetworkCell"), "quantized_network"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = importlib.import_module(f"fastrnn.{_LATER[name] or name}")
    return getattr(found, name) if _LATER[name] else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
