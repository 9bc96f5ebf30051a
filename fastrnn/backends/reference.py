"""The definitions in plain PyTorch: any device, any dtype, differentiable as often as you like.

The oracle's home (tests run it in float64) and the path for second derivatives and for torch.func, so nothing here is
written in place and nothing is fused.  Interface: :mod:`fastrnn.backends`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import Backward, Forward, Saved
from fastrnn.cell.declare import Cell, Parts
from fastrnn.cell.equations import multiply, split_gates
from fastrnn.cell.steps import over_steps
from fastrnn.cells.jordan import Jordan
from fastrnn.cells.lstm import ProjectedLSTM
from fastrnn.checks import is_tokens
from fastrnn.compiler.built_in import BUILT_IN
from fastrnn.dynamo import traced
from fastrnn.modes import CELLS, Weights, split_weights
from fastrnn.storage import require_memory

MODES = tuple(CELLS)
TOKENS = True


def unavailable() -> str | None:
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if dtype.is_floating_point else f"{dtype} is not a floating point dtype"


def definition(mode: str, projected: bool) -> Cell:
    """The cell of a mode."""
    if output := CELLS[mode].output:
        return Jordan(nonlinearity=mode.split("_")[1].lower(), output_nonlinearity=output)
    return ProjectedLSTM() if projected else BUILT_IN[mode]


_DEFINED: dict[tuple[str, bool], tuple[Cell, Parts]] = {
    (mode, projected): (own, own.parts())
    for mode, projected in [*((mode, cell.output is not None) for mode, cell in CELLS.items()), ("LSTM", True)]
    for own in [definition(mode, projected)]
}


def _bound(cell: Cell, parts: Parts, weights: Weights) -> Cell:
    """The cell as its step sees it, made so that torch.compile follows: a product of h is a function, and W hands on
    what the step is given for x, which is its rows of the product of all steps."""
    bound = object.__new__(type(cell))
    for name, constant in vars(cell).items():
        setattr(bound, name, constant)

    def product(name: str, weight: Tensor, bias: Tensor | None) -> Any:
        declared = parts.matrices[name]
        return lambda v: split_gates(declared, multiply(v, weight, bias, declared.blocks, 1))

    bound.W = functools.partial(split_gates, parts.matrices["W"])  # type: ignore[attr-defined]
    bound.U = product("U", weights.w_hh, weights.b_hh)  # type: ignore[attr-defined]
    if weights.w_hr is not None:
        bound.hr = product("hr", weights.w_hr, weights.b_hr)  # type: ignore[attr-defined]
    return bound


def _direction(
    mode: str, x: Tensor, sizes: list[int], states: Sequence[Tensor], weights: Weights, reverse: bool
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """One direction over packed rows: x (N, I) -> each state after every step, (rows of the step, its size), and after
    the last step of each row, (B, its size)."""
    cell, parts = _DEFINED[mode, weights.w_hr is not None]
    bound = _bound(cell, parts, weights)
    rows = multiply(x, weights.w_ih, weights.b_ih, blocks=len(CELLS[mode].gates), heads=1).split(sizes)
    found: dict[str, list[Tensor]] = {name: [x] * len(sizes) for name in parts.states}

    def step(t: int, now: list[Tensor]) -> list[Tensor]:
        after = type(cell).step(bound, rows[t], *now)  # type: ignore[arg-type]
        for name, every in found.items():
            every[t] = after[name]
        return [after[name] for name in parts.states]

    return found, over_steps(sizes, states, reverse, step)


def layer(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    watch: Callable[[list[list[Tensor]]], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer, as differentiable torch code: y, hn, cn, shaped as in :class:`fastrnn.backends.Forward`, and c of
    every step, (D, N, H), or (0,) for a cell without it.

    ``watch`` is given, for each direction, the very h that the next step reads, step by step in the order of x.
    """
    if traced():
        raise NotImplementedError(
            f"{mode}: these equations are a loop in Python, of which a trace would hold T, the number of steps of its "
            "example; trace fastrnn.LSTM, GRU or RNN, torch.export a fastrnn.JordanRNN, for one T"
        )
    require_memory(x, batch_sizes, h0, c0, *weights)
    sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
    rows = x.flatten(0, 1) if batch_sizes is None else x
    states = [h0] if c0 is None else [h0, c0]
    found, ends = zip(
        *(
            _direction(mode, rows, sizes, [each[d] for each in states], own, reverse=d == 1)
            for d, own in enumerate(split_weights(weights, h0.shape[0]))
        ),
        strict=True,
    )
    if watch is not None:
        watch([steps["h"] for steps in found])
    y = torch.cat([torch.cat(steps["h"]) for steps in found], -1)
    y = y.unflatten(0, x.shape[:2]) if batch_sizes is None else y
    hn, *others = (torch.stack(each) for each in zip(*ends, strict=True))
    if c0 is None:
        return y, hn, hn.new_empty(0), hn.new_empty(0)
    return y, hn, others[0], torch.stack([torch.cat(steps["c"]) for steps in found])


def forward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    save: bool,
) -> Forward:
    """See :mod:`fastrnn.backends`.  Of what it saves nothing is used: backward runs the equations again."""
    with torch.no_grad():
        y, hn, cn, cells = (each.detach() for each in layer(mode, x, batch_sizes, h0, c0, weights))
    if not save:
        return Forward(y, hn, cn, None)
    directions = h0.shape[0]
    cell, rows = CELLS[mode], y.shape[:-1].numel()
    hidden_size = weights[1].shape[0] // len(cell.gates)
    wide = torch.float32 if h0.dtype in (torch.bfloat16, torch.float16) else h0.dtype
    gates = h0.new_zeros((directions, rows, len(cell.saved) * hidden_size) if cell.saved else (0,))
    if cell.output:
        cells = h0.new_zeros(directions, rows, hidden_size)
    cells = cells.to(wide)
    return Forward(y, hn, cn, Saved(gates, cells, h0.new_zeros(directions, rows, h0.shape[2])))


def backward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    saved: Saved,
    grad_y: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    grad_cells: Tensor | None,
    need_x: bool,
    need_state: bool,
    need_weights: bool,
) -> Backward:
    """See :mod:`fastrnn.backends`."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor if is_tokens(tensor) else tensor.detach().requires_grad_()

    own_x, own_h0, own_c0 = leaf(x), leaf(h0), None if c0 is None else leaf(c0)
    own_weights = [leaf(weight) for weight in weights]
    with torch.enable_grad():
        outputs = layer(mode, own_x, batch_sizes, own_h0, own_c0, own_weights)
    seeds = (grad_y, grad_hn, grad_cn, None if grad_cells is None else grad_cells.to(h0.dtype))
    pairs = [(o, g) for o, g in zip(outputs, seeds, strict=True) if g is not None]
    inputs = [t for t in (own_x, own_h0, own_c0, *own_weights) if t is not None and t.requires_grad]
    if pairs:
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs], materialize_grads=True)
    else:
        found = tuple(torch.zeros_like(each) for each in inputs)
    grads = iter(found)
    dx = next(grads) if own_x.requires_grad else None
    dh0 = next(grads)
    dc0 = None if c0 is None else next(grads)
    if not need_state:
        dh0 = dc0 = None
    return Backward(dx if need_x else None, dh0, dc0, list(grads) if need_weights else None)
