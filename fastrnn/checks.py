"""Whether shapes, dtypes and devices make a network: kernels read memory as these say it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.dynamo import traced
from fastrnn.modes import CELLS

# What nn.Embedding takes.  Entries make int64 of them, and so nothing further in knows others.
TOKENS = torch.int64, torch.int32


def is_tokens(x: Tensor) -> bool:
    """Whether an input is tokens, which lack the last dimension of the one-hot rows that they stand for."""
    return x.dtype in TOKENS


class Sizes(NamedTuple):
    """What a network is: inputs I, hidden units H, outputs P (H, or the projection), layers, directions."""

    inputs: int
    hidden: int
    outputs: int
    num_layers: int
    directions: int


class Misplaced(RuntimeError):
    """The tensors of a call are on several devices."""


class Unfit(RuntimeError):
    """Sizes and parameters make no network, or a parameter is not where the others are; another thread may be about to
    change it.  torch.nn's functions do not always look: some read what is not there, some divide by zero, which ends
    the process, and none survives a change of what it reads."""


class Scattered(Misplaced, Unfit):
    """The parameters are on several devices."""


class Unpackable(RuntimeError, IndexError):
    """Parts of a PackedSequence do not fit: torch.nn meets them with errors of either kind."""


@functools.lru_cache(maxsize=1024)
def weight_shapes(mode: str, sizes: Sizes, count: int) -> tuple[tuple[int, ...], ...] | None:
    """Shapes of the flat list of ``count`` parameters; None where there is no network of so many."""
    inputs, hidden, outputs, num_layers, directions = sizes
    if min(sizes) < 1:
        return None
    each, rest = divmod(count, num_layers * directions)
    cell = CELLS[mode]
    counts = (3, 6) if cell.output else (2, 3, 4, 5) if cell.has_cell_state else (2, 4)
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
    kinds: bool = True,
) -> Exception | None:
    """The error to raise where shapes, or with ``kinds`` dtypes or devices, do not fit."""
    if problem := steps_misfit(x, batch_sizes):
        return problem
    rows = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    return shapes_misfit(mode, x, rows, h0, c0, weights, sizes, weight_shapes(mode, sizes, len(weights)), kinds)


def packed_rows(batch_sizes: Any, sorted_indices: Any = None, unsorted_indices: Any = None) -> Any:
    """The number of sequences B of a PackedSequence, which anybody may have made by hand; in a trace a tensor.

    Raises:
        TypeError: one of these is no tensor.
        Unpackable: ``batch_sizes`` is not (T,) int64 on the CPU with T >= 1, or indices are not (B,) integers.
    """
    if traced() or torch.compiler.is_compiling():  # graphs have shapes for it, not the values of batch_sizes
        first = batch_sizes[0] if sorted_indices is None else sorted_indices.shape[0]
        return first if traced() else int(first)
    if not isinstance(batch_sizes, Tensor):
        raise TypeError(f"batch_sizes of packed input must be a tensor, got {type(batch_sizes).__name__}")
    if batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu or not len(batch_sizes):
        raise Unpackable(
            "'batch_sizes' should be a 1-D int64 tensor on the CPU, a number for each step, got "
            f"{batch_sizes.dtype} of size {list(batch_sizes.shape)} on {batch_sizes.device}"
        )
    rows = int(batch_sizes[0])
    for name, index in (("sorted_indices", sorted_indices), ("unsorted_indices", unsorted_indices)):
        if index is None:
            continue
        if not isinstance(index, Tensor):
            raise TypeError(f"{name} of a PackedSequence must be a tensor or None, got {type(index).__name__}")
        if index.dtype not in (torch.int64, torch.int32) or index.shape != (rows,):
            got = f"{index.dtype} of size {list(index.shape)}"
            raise Unpackable(f"{name} of a PackedSequence must be {rows} integers, got {got}")
    return rows


def steps_misfit(x: Tensor, batch_sizes: Tensor | None) -> Exception | None:
    """The error to raise where the values of ``batch_sizes``, those of :func:`packed_rows`, do not fit."""
    if batch_sizes is None:
        return None
    total, lengths = x.shape[0], batch_sizes.tolist()
    if sum(lengths) != total or lengths != sorted(lengths, reverse=True) or lengths[-1] < 1:
        return RuntimeError(f"batch_sizes must be positive, non-increasing and sum up to {total}, got {lengths}")
    return None


def shapes_misfit(
    mode: str,
    x: Tensor,
    rows: int,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    expected: tuple[tuple[int, ...], ...] | None,
    kinds: bool = True,
) -> Exception | None:
    """:func:`misfit` without the values of ``batch_sizes``, which a compiler does not know; ``rows`` is B, ``expected``
    the weights' shapes."""
    tokens = is_tokens(x)
    inputs = sizes.inputs if tokens else x.shape[-1]
    if x.shape[0] == 0:
        return RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if inputs != sizes.inputs:
        return RuntimeError(f"input.size(-1) must be equal to input_size. Expected {sizes.inputs}, got {inputs}")
    if min(sizes) < 1:
        return Unfit(f"a network wants sizes of at least 1, got {sizes}")
    if expected is None:
        return Unfit(f"{sizes} is not a network of parameters {[list(weight.shape) for weight in weights]}")
    dtype, device = weights[0].dtype if tokens else x.dtype, x.device
    for weight, shape in zip(weights, expected, strict=True):
        if weight.shape != shape:
            return Unfit(f"Expected a parameter of size {shape}, got {list(weight.shape)}")
        if kinds and weight.dtype is not dtype:
            problem = f"RNN input dtype ({dtype}) does not match weight dtype ({weight.dtype})"
            return ValueError(problem) if weight is weights[0] else Unfit(problem)
        if kinds and weight.device != device:
            error = Scattered if any(w.device != weight.device for w in weights) else Misplaced
            return error(f"Input and parameter tensors are not at the same device: {x.device}, {weight.device}")
    count = sizes.num_layers * sizes.directions
    states = ("hidden[0]", h0, sizes.outputs), ("hidden[1]", c0, sizes.hidden)
    for name, state, units in states if CELLS[mode].has_cell_state else states[:1]:
        if state is None:
            return RuntimeError(f"Expected {name} to be a tensor, got None")
        if state.shape != (count, rows, units):
            return RuntimeError(f"Expected {name} size {(count, rows, units)}, got {list(state.shape)}")
        if kinds and state.dtype is not dtype:
            return RuntimeError(f"Input and {name} dtypes are not the same: {dtype}, {state.dtype}")
        if kinds and state.device != device:
            return Misplaced(f"Input and {name} tensors are not at the same device: {x.device}, {state.device}")
    return None
