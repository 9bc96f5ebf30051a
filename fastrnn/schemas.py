"""One layer as two operators of torch.library: their schemas, what they run, and shapes without values.

``fastrnn::layer`` and ``fastrnn::layer_backward`` call the functions of a backend (:mod:`fastrnn.backends`) of the same
meaning; what may be None there is an empty tensor of shape (0,), or an empty list, in what an operator returns.  Their
derivatives are in :mod:`fastrnn.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import Saved, load
from fastrnn.checks import is_tokens
from fastrnn.modes import CELLS

library: torch.library.Library = torch.library.Library("fastrnn", "FRAGMENT")
library.define(
    "layer(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] weights, str mode, str backend, bool save)"
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor gates, Tensor cells, Tensor hidden)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "layer_backward(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] weights, Tensor gates, Tensor cells,"
    " Tensor hidden, Tensor? grad_y, Tensor? grad_hn, Tensor? grad_cn, Tensor? grad_cells, str mode,"
    " str backend, bool need_x, bool need_state, bool need_weights)"
    " -> (Tensor grad_x, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
layer_op: Callable[..., Any] = torch.ops.fastrnn.layer.default
backward_op: Callable[..., Any] = torch.ops.fastrnn.layer_backward.default

Gradients = tuple[Tensor, Tensor, Tensor, list[Tensor]]


def _forward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], mode: str,
    backend: str, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    y, hn, cn, saved = load(backend).forward(mode, x, batch_sizes, h0, c0, weights, save)
    return y, hn, cn, *(saved or (h0.new_empty(0) for _ in Saved._fields))


def _backward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], gates: Tensor,
    cells: Tensor, hidden: Tensor, grad_y: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None,
    grad_cells: Tensor | None, mode: str, backend: str, need_x: bool, need_state: bool, need_weights: bool,
) -> Gradients:  # fmt: skip
    # An operator runs with autograd's dispatch keys switched off, and `reference` differentiates its own equations.
    autograd = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    # A backward called inside autocast differentiates what ran outside of it.
    with autograd, torch._C._DisableAutocast():
        found = load(backend).backward(
            mode, x, batch_sizes, h0, c0, weights, Saved(gates, cells, hidden), grad_y, grad_hn, grad_cn, grad_cells,
            need_x, need_state, need_weights,
        )  # fmt: skip
    return _or_empty(found.x, h0), _or_empty(found.h0, h0), _or_empty(found.c0, h0), found.weights or []


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _fake_forward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], mode: str,
    backend: str, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    cell, (directions, rows, outputs) = CELLS[mode], h0.shape
    lead = x.shape if is_tokens(x) else x.shape[:-1]
    hidden_size = weights[1].shape[0] // len(cell.gates)
    steps = lead[0] if batch_sizes is not None else lead[0] * lead[1]
    wide = torch.float32 if h0.dtype in (torch.bfloat16, torch.float16) else h0.dtype
    y = h0.new_empty(*lead, directions * outputs)
    cn = h0.new_empty(0) if c0 is None else h0.new_empty(directions, rows, hidden_size)
    gates, cells, hidden = h0.new_empty(0), h0.new_empty(0), h0.new_empty(0)
    if save:
        hidden = h0.new_empty(directions, steps, outputs)
        if cell.saved:
            gates = h0.new_empty(directions, steps, len(cell.saved) * hidden_size)
        if cell.has_cell_state or cell.output:
            cells = h0.new_empty(directions, steps, hidden_size, dtype=wide)
    return y, h0.new_empty(directions, rows, outputs), cn, gates, cells, hidden


def _fake_backward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], gates: Tensor,
    cells: Tensor, hidden: Tensor, grad_y: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None,
    grad_cells: Tensor | None, mode: str, backend: str, need_x: bool, need_state: bool, need_weights: bool,
) -> Gradients:  # fmt: skip
    return (
        h0.new_empty(x.shape if need_x else 0),
        h0.new_empty(h0.shape if need_state else 0),
        h0.new_empty(c0.shape if need_state and c0 is not None else 0),
        [weight.new_empty(weight.shape) for weight in weights] if need_weights else [],
    )


for _name, _run, _fake in (("layer", _forward, _fake_forward), ("layer_backward", _backward, _fake_backward)):
    library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastrnn::{_name}", _fake, lib=library)
