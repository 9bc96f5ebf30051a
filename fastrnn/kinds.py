"""What a module is, beside torch.nn's: the record of all classes, which everything that takes modules asks.

With the options that a module has on (:func:`fastrnn.options.on`) it says all that a module carries beyond torch.nn's.
So a neighbour, as `convert`, `quantize_dynamic`, :mod:`fastrnn.interop`, :mod:`fastrnn.init` or
:mod:`fastrnn.diagnostics`, neither passes a class by nor loses an option in silence: it serves or raises with the name.
"""

from __future__ import annotations

import functools
import sys
from typing import NamedTuple

from torch import nn

from fastrnn import cell_modules, compilable, jordan, modules, quantized


class Kind(NamedTuple):
    """The classes of one network, None where it has none: torch.nn's, ours, that for compilers, that of 8 bits."""

    theirs: type[nn.Module] | None
    ours: type[nn.Module]
    compilable: type[nn.Module] | None = None
    int8: type[nn.Module] | None = None


KINDS = {
    "RNN": Kind(nn.RNN, modules.RNN, compilable.RNN, quantized.QuantizedRNN),
    "LSTM": Kind(nn.LSTM, modules.LSTM, compilable.LSTM, quantized.QuantizedLSTM),
    "GRU": Kind(nn.GRU, modules.GRU, compilable.GRU, quantized.QuantizedGRU),
    "RNNCell": Kind(nn.RNNCell, cell_modules.RNNCell, int8=quantized.QuantizedRNNCell),
    "LSTMCell": Kind(nn.LSTMCell, cell_modules.LSTMCell, int8=quantized.QuantizedLSTMCell),
    "GRUCell": Kind(nn.GRUCell, cell_modules.GRUCell, int8=quantized.QuantizedGRUCell),
    "JordanRNN": Kind(None, jordan.JordanRNN),
}


def record() -> dict[str, Kind]:
    """All that a module can be: :data:`KINDS`, and the networks of any cell where somebody has imported them."""
    return KINDS | _of_any_cell() if "fastrnn.network" in sys.modules else KINDS


@functools.cache
def _of_any_cell() -> dict[str, Kind]:
    from fastrnn import network, quantized_network

    return {
        "Network": Kind(None, network.Network, int8=quantized_network.QuantizedNetwork),
        "NetworkCell": Kind(None, network.NetworkCell, int8=quantized_network.QuantizedNetworkCell),
    }


def kind(module: nn.Module) -> str | None:
    """Which network a module with weights of floats is, derived classes included: a key of :func:`record`, or None."""
    for name, (theirs, ours, compiled, _) in record().items():
        if isinstance(module, tuple(cls for cls in (theirs, ours, compiled) if cls)):
            return name
    return None
