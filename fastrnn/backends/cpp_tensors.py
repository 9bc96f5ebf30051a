"""What a layer's call of :mod:`fastrnn._core` is made of: dense tensors, sizes, and room for results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import Saved
from fastrnn.checks import is_tokens
from fastrnn.modes import CELLS, OUTPUTS, TORCH_MODES
from fastrnn.storage import require_memory

# mode -> the numbers of fastrnn::Mode in csrc/cell_table.h, which has torch's in their order, and of
# fastrnn::Activation in csrc/scan.h
_MODES = {mode: (number, 0) for number, mode in enumerate(TORCH_MODES)}
_MODES |= {
    f"JORDAN_{kind}_{output.upper()}": (k, g)
    for k, kind in enumerate(("TANH", "RELU"))
    for g, output in enumerate(OUTPUTS)
}

# What ``_core`` calls a layer: see there.
Layer = dict[str, int | Tensor | None]


def layer_sizes(mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, w_ih: Tensor) -> Layer:
    """The sizes of a layer, as :mod:`fastrnn._core` takes them."""
    directions, batch, outputs = h0.shape
    gate_rows, inputs = w_ih.shape
    hidden = gate_rows // len(CELLS[mode].gates)
    if batch_sizes is None:
        steps, rows = x.shape[0], x.shape[0] * batch
    else:
        steps, rows = batch_sizes.shape[0], x.shape[0]
    threads = torch.get_num_threads()
    number, activation = _MODES[mode]
    return {
        "mode": number, "activation": activation, "threads": threads, "steps": steps, "batch": batch, "rows": rows,
        "inputs": inputs, "hidden_size": hidden, "outputs": outputs, "directions": directions,
        "batch_sizes": batch_sizes,
    }  # fmt: skip


def room(
    mode: str, x: Tensor, h0: Tensor, weights: Sequence[Tensor], save: bool, hidden: bool = True
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Where a layer's y goes, and what it saves, by the fields of :class:`fastrnn.backends.Saved`."""
    directions, _, outputs = h0.shape
    lead = x.shape if is_tokens(x) else x.shape[:-1]
    y = h0.new_empty((*lead, directions * outputs))
    if not save:
        return y, dict.fromkeys(Saved._fields)
    cell, rows = CELLS[mode], y.numel() // y.shape[-1]
    hidden_size = weights[0].shape[0] // len(cell.gates)
    gates = h0.new_empty((directions, rows, len(cell.saved) * hidden_size)) if cell.saved else None
    cells = None
    if cell.has_cell_state or cell.output:
        wide = torch.float32 if h0.dtype is torch.bfloat16 else h0.dtype
        cells = h0.new_empty((directions, rows, hidden_size), dtype=wide)
    all_h = h0.new_empty((directions, rows, outputs)) if hidden else None
    return y, {"gates": gates, "cells": cells, "hidden": all_h}


def saved(like: Tensor, saved: dict[str, Tensor | None]) -> Saved:
    return Saved(**{name: like.new_empty(0) if t is None else t for name, t in saved.items()})


def inputs(
    mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor],
    narrow: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What a layer reads, forward and backward, as :mod:`fastrnn._core` takes it."""
    layer = layer_sizes(mode, x, batch_sizes, h0, weights[0])
    own = [operand(w, narrow) for w in weights]
    return {
        "layer": layer, "x": operand(x, narrow), "tokens": is_tokens(x), "h0": dense(h0), "c0": dense(c0),
        "weights": own,
    }  # fmt: skip


def like(tensor: Tensor) -> Tensor:
    """Dense memory of this shape, uninitialised."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def dense(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Any:
    """The numbers as the kernels read them, dense and of this dtype or their own: the tensor itself where it is so, of
    whose memory the core takes care; else a copy."""
    if tensor is None or tensor.is_contiguous() and dtype in (None, tensor.dtype):
        return tensor
    require_memory(tensor)
    return tensor.to(dtype or tensor.dtype).contiguous()


def operand(tensor: Tensor, narrow: bool) -> Tensor:
    """x, a matrix of weights or a bias as the kernels read it: where products are ``narrow``, all but tokens and biases
    in bfloat16."""
    return dense(tensor, torch.bfloat16 if narrow and tensor.dim() > 1 and tensor.is_floating_point() else None)


def wide(tensor: Any) -> Any:
    """The tensor in float32; tokens and None as they are."""
    return dense(tensor, torch.float32) if tensor is not None and tensor.is_floating_point() else tensor


def seeds(
    grad_y: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None, grad_cells: Tensor | None
) -> dict[str, Tensor | None]:
    """The gradients of what a layer gave."""
    seeds = {"grad_y": grad_y, "grad_hn": grad_hn, "grad_cn": grad_cn, "grad_cells": grad_cells}
    return {name: dense(seed) for name, seed in seeds.items()}


def results(
    grad_x: Tensor | None, grad_h0: Tensor | None, grad_c0: Tensor | None, grad_weights: list[Tensor] | None
) -> dict[str, Any]:
    """Where the gradients of what a layer read go."""
    return {"grad_x": grad_x, "grad_h0": grad_h0, "grad_c0": grad_c0, "grad_weights": grad_weights}
