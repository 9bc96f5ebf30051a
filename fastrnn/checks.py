"""Whether shapes, dtypes and devices make a network: kernels read memory as these say it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.cells import CELLS


class Sizes(NamedTuple):
    """What a network is: inputs I, hidden units H, outputs P (H, or the projection), layers, directions."""

    inputs: int
    hidden: int
    outputs: int
    num_layers: int
    directions: int


class Misplaced(RuntimeError):
    """The tensors of a call are on several devices."""


@functools.lru_cache(maxsize=1024)
def weight_shapes(mode: str, sizes: Sizes, count: int) -> tuple[tuple[int, ...], ...] | None:
    """Shapes of the flat list of ``count`` parameters; None where there is no network of so many."""
    inputs, hidden, outputs, num_layers, directions = sizes
    each, rest = divmod(count, num_layers * directions)
    cell = CELLS[mode]
    counts = (3, 6) if cell.output else (2, 3, 4, 5) if mode == "LSTM" else (2, 4)
    projected = each in (3, 5, 6)
    if rest or each not in counts or not projected and hidden != outputs:
        return None
    rows = len(cell.gates) * hidden
    shapes: list[tuple[int, ...]] = []
    for layer in range(num_layers):
        own = [(rows, inputs if layer == 0 else outputs * directions), (rows, outputs)]
        own += [(rows,), (rows,)] * (each >= 4) + [(outputs, hidden)] * projected + [(outputs,)] * (each == 6)
        shapes += own * directions
    return tuple(shapes)


def misfit(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
) -> Exception | None:
    """The error to raise where shapes, dtypes or devices do not fit."""
    if batch_sizes is None:
        rows = x.shape[1]
    else:
        total = x.shape[0]
        if batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
            return RuntimeError("'batch_sizes' should be a 1-D int64 tensor on the CPU")
        lengths = batch_sizes.tolist()
        rows = lengths[0] if lengths else 0
        if sum(lengths) != total or lengths != sorted(lengths, reverse=True) or (lengths and lengths[-1] < 1):
            return RuntimeError(f"batch_sizes must be positive, non-increasing and sum up to {total}, got {lengths}")
    return shapes_misfit(mode, x, rows, h0, c0, weights, sizes, weight_shapes(mode, sizes, len(weights)))


def shapes_misfit(
    mode: str,
    x: Tensor,
    rows: int,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    expected: tuple[tuple[int, ...], ...] | None,
) -> Exception | None:
    """:func:`misfit` without the values of ``batch_sizes``, which a compiler does not know; ``rows`` is B, ``expected``
    the weights' shapes."""
    tokens = x.dtype is torch.int64
    inputs = sizes.inputs if tokens else x.shape[-1]
    if x.shape[0] == 0:
        return RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if inputs != sizes.inputs:
        return RuntimeError(f"input.size(-1) must be equal to input_size. Expected {sizes.inputs}, got {inputs}")
    if expected is None:
        return RuntimeError(f"{sizes} is not a network of parameters {[list(weight.shape) for weight in weights]}")
    dtype, device = weights[0].dtype if tokens else x.dtype, x.device
    for weight, shape in zip(weights, expected, strict=True):
        if weight.shape != shape:
            return RuntimeError(f"Expected a parameter of size {shape}, got {list(weight.shape)}")
        if weight.dtype is not dtype:
            return ValueError(f"RNN input dtype ({dtype}) does not match weight dtype ({weight.dtype})")
        if weight.device != device:
            return Misplaced(f"Input and parameter tensors are not at the same device: {x.device}, {weight.device}")
    count = sizes.num_layers * sizes.directions
    for name, state, units in (("hidden[0]", h0, sizes.outputs), ("hidden[1]", c0, sizes.hidden)):
        if state is None:
            continue
        if state.shape != (count, rows, units):
            return RuntimeError(f"Expected {name} size {(count, rows, units)}, got {list(state.shape)}")
        if state.dtype is not dtype:
            return RuntimeError(f"Input and {name} dtypes are not the same: {dtype}, {state.dtype}")
        if state.device != device:
            return Misplaced(f"Input and {name} tensors are not at the same device: {x.device}, {state.device}")
    return None
