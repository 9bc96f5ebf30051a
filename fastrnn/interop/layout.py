"""What the libraries share: which parameters a module has, and the order of gates in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def require_layers(module: Any, function: str) -> None:
    """Raises unless ``module`` is an RNN, LSTM or GRU, torch.nn's or ours, whose equations the other library has."""
    if not isinstance(module, nn.RNN | nn.LSTM | nn.GRU):
        raise TypeError(f"{function} expects an RNN, LSTM or GRU, got {type(module).__name__}")
    if module.proj_size:
        raise ValueError(f"{function} expects an LSTM without projection, got proj_size={module.proj_size}")


def ends(module: nn.RNNBase) -> list[str]:
    """What the names of parameters end in, one for each layer and direction, in the order of ``parameters()``."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{suffix}" for layer in range(module.num_layers) for suffix in suffixes]


def reorder(tensor: Tensor, have: Sequence[str], want: Sequence[str]) -> Tensor:
    """The blocks of rows, one a gate, in another order."""
    blocks = dict(zip(have, tensor.chunk(len(have)), strict=True))
    return torch.cat([blocks[gate] for gate in want])


def write(module: nn.RNNBase, values: dict[str, Tensor]) -> None:
    """Copies values into the module's parameters, all or none: shapes are checked before the first is written."""
    for name, value in values.items():
        expected = module.get_parameter(name).shape
        if value.shape != expected:
            raise ValueError(f"{name}: expected values of shape {tuple(expected)}, got {tuple(value.shape)}")
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(value)
