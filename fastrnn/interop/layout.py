"""What the libraries share: which parameters a module has, and the order of gates in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastrnn import options
from fastrnn.kinds import kind

if TYPE_CHECKING:
    import numpy


def require_layers(module: Any, function: str) -> None:
    """Raises unless ``module`` is an RNN, LSTM or GRU, torch.nn's or ours, whose equations the other library has."""
    if kind(module) not in ("RNN", "LSTM", "GRU"):
        raise TypeError(f"{function} expects an RNN, LSTM or GRU, got {type(module).__name__}")
    if module.proj_size:
        raise ValueError(f"{function} expects an LSTM without projection, got proj_size={module.proj_size}")
    options.refuse(module, f"{function} has no place for")


def ends(module: nn.RNNBase) -> list[str]:
    """What the names of parameters end in, one for each layer and direction, in the order of ``parameters()``."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{suffix}" for layer in range(module.num_layers) for suffix in suffixes]


def reorder(tensor: Tensor, have: Sequence[str], want: Sequence[str]) -> Tensor:
    """The blocks of rows, one a gate, in another order.  What cannot be cut so stays, for ``write`` to refuse."""
    if tensor.dim() == 0 or len(tensor) % len(have) or not len(tensor):
        return tensor
    blocks = dict(zip(have, tensor.chunk(len(have)), strict=True))
    return torch.cat([blocks[gate] for gate in want])


def write(module: nn.RNNBase, values: dict[str, Tensor]) -> None:
    """Copies values into the module's parameters, all or none: shapes are checked before the first is written."""
    own = dict(module.named_parameters(recurse=False))
    for name, value in values.items():
        if name not in own:
            raise ValueError(f"{name} is no parameter of its own but computed from others, so nothing can be copied in")
        expected = own[name].shape
        if value.shape != expected:
            raise ValueError(f"{name}: expected values of shape {tuple(expected)}, got {tuple(value.shape)}")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def as_tensor(array: Any, label: str) -> Tensor:
    """An array of numbers, NumPy's or of what torch makes a tensor, in its own dtype and on the CPU."""
    if isinstance(array, Tensor):
        return array.detach()
    dtype = str(getattr(array, "dtype", ""))
    try:
        if dtype == "bfloat16":  # of ml_dtypes, which torch does not know
            return torch.tensor(array.astype("float32"), device="cpu").to(torch.bfloat16)
        found = torch.tensor(array.copy() if dtype else array, device="cpu")  # a copy has no negative strides
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        got = f"{type(array).__name__} of {dtype}" if dtype else type(array).__name__
        raise TypeError(f"{label}: expected an array of real numbers, got {got}") from error
    if found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"{label}: expected an array of real numbers, got {found.dtype}")
    return found


def as_array(tensor: Tensor) -> numpy.ndarray:
    """A tensor for NumPy, which has no bfloat16: that becomes float32."""
    wide = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return wide.cpu().contiguous().resolve_neg().numpy()
