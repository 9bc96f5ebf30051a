"""What the libraries share: which parameters a module has, and the order of gates in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn.cell import Cell, Input
from fastrnn.cell.trace import trace

if TYPE_CHECKING:
    import numpy

Gates = Sequence[str]
_ALONE = {"W": ("h",), "U": ("h",), "nh": ("n",)}  # the gate of a matrix that has one, and no name for it


class Slot(NamedTuple):
    """A parameter of a cell: its name, the array of another library in which its blocks stand, and their gates.

    Arrays are called as ONNX's: "W" of x, "R" of states, "Wb" and "Rb" their biases, "P" peepholes.
    """

    parameter: str
    array: str
    gates: Gates


def slots(cell: Cell) -> list[Slot]:
    """The parameters of one direction of a layer."""
    parts, found = trace(cell).parts, []
    for name, matrix in parts.matrices.items():
        array, gates = "W" if isinstance(matrix, Input) else "R", matrix.gates or _ALONE[name]
        found.append(Slot(f"weight_{parts.names[name]}", array, gates))
        found.append(Slot(f"bias_{parts.names[name]}", f"{array}b", gates))
    return found + [Slot(name, "P", vector.gates) for name, vector in parts.vectors.items()]


def ends(module: Any) -> list[str]:
    """What the names of parameters end in, one for each layer and direction, in the order of ``parameters()``."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{suffix}" for layer in range(module.num_layers) for suffix in suffixes]


def reorder(tensor: Tensor, have: Gates, want: Gates) -> Tensor:
    """The blocks of rows, one a gate, in another order.  What cannot be cut so stays, for ``write`` to refuse."""
    if tensor.dim() == 0 or len(tensor) % len(have) or not len(tensor):
        return tensor
    blocks = dict(zip(have, tensor.chunk(len(have)), strict=True))
    return torch.cat([blocks[gate] for gate in want])


def orders(gates: Gates, **others: Gates) -> dict[str, Gates]:
    """The order of gates in every array of a library that has one for all, but for ``others``."""
    return {**dict.fromkeys(("W", "R", "Wb", "Rb"), gates), **others}


def scatter(cell: Cell, end: str, arrays: Mapping[str, Tensor], order: Mapping[str, Gates]) -> dict[str, Tensor]:
    """Values for the parameters of one layer and direction, from arrays with their gates in these orders."""
    return {
        f"{slot.parameter}_{end}": reorder(arrays[slot.array], order[slot.array], slot.gates)
        for slot in slots(cell)
        if slot.array in arrays
    }


def gather(module: nn.Module, cell: Cell, end: str, order: Mapping[str, Gates]) -> dict[str, Tensor]:
    """The arrays of one layer and direction with their gates in these orders, the inverse of :func:`scatter`; a gate
    that the cell has not is zeros."""
    blocks: dict[str, dict[str, Tensor]] = {}
    for slot in slots(cell):
        tensor = getattr(module, f"{slot.parameter}_{end}", None)  # there may be no biases
        if tensor is not None:
            own = tensor.detach().chunk(len(slot.gates))
            blocks.setdefault(slot.array, {}).update(zip(slot.gates, own, strict=True))
    found = {}
    for array, own in blocks.items():
        zeros = torch.zeros_like(next(iter(own.values())))
        found[array] = torch.cat([own.get(gate, zeros) for gate in order[array]])
    return found


def write(module: nn.Module, values: dict[str, Tensor]) -> None:
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
