"""Fused kernels that Numba compiles at first use: the same equations where there is no C++ core.

Thin: it hands the kernels of :mod:`fastrnn.kernels.numba_scan` dense tensors and a workspace, and starts them on
the threads that torch itself uses.  Numba is imported when the backend is first asked for.  bfloat16 and float16 run in
float32.  Interface: :mod:`fastrnn.backends`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.backends import Backward, Forward, Saved, numba_company, numba_start
from fastrnn.backends.numba_plan import Plan, Shape, plan, starts_of
from fastrnn.checks import is_tokens
from fastrnn.modes import CELLS, split_weights
from fastrnn.storage import require_memory

MODES = tuple(CELLS)
TOKENS = True
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@functools.cache
def unavailable() -> str | None:
    try:
        import numba  # noqa: F401
    except Exception as error:  # Numba refuses a NumPy too new for it with an error of its own at import
        return f"Numba cannot be imported ({error}); pip install 'fastrnn[numba]'"
    return None if sys.byteorder == "little" else "its exponential reads the bits of little-endian numbers"


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {device}"
    return None if dtype in DTYPES else f"it serves floating point dtypes of 16 to 64 bits, not {dtype}"


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of a tensor as a kernel reads them.  Never the tensor itself: ``tensor.data = other`` in another
    thread would take its memory away during the call."""
    return tensor.detach().to(dtype).contiguous()


def _plan(
    mode: str,
    which: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    weights: Sequence[Tensor],
    *wanted: bool,
) -> tuple[Plan, torch.dtype, tuple[Tensor, Tensor]]:
    """The plan of a call, the dtype that its kernel runs in, and the steps' sizes and starts."""
    dtype = torch.float64 if h0.dtype is torch.float64 else torch.float32
    directions, batch, outputs = h0.shape
    gate_rows, inputs = weights[0].shape
    first = x.shape[0]
    steps, rows = (first, first * batch) if batch_sizes is None else (batch_sizes.shape[0], first)
    tokens, threads = is_tokens(x), numba_start.threads()
    meeting = min(threads, numba_company.most_in_company())
    shape = Shape(steps, batch, rows, inputs, gate_rows, outputs, directions, len(weights), tokens, threads, meeting)
    found = plan(mode, which, dtype, shape, *wanted)
    return found, dtype, found.even_steps if batch_sizes is None else starts_of(batch_sizes)


def forward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    save: bool,
) -> Forward:
    """See :mod:`fastrnn.backends`.

    Raises:
        IndexError: a token is not within 0 .. I - 1.
    """
    require_memory(x, batch_sizes, h0, c0, *weights)
    plan, dtype, (sizes, starts) = _plan(mode, "forward", x, batch_sizes, h0, weights, save)
    narrow, (directions, batch, outputs) = h0.dtype, h0.shape
    steps, rows, inputs, tokens = plan.shape.steps, plan.shape.rows, plan.shape.inputs, plan.shape.tokens
    hidden = plan.hidden
    lead = (steps, batch) if batch_sizes is None else (rows,)
    x = _checked(x, inputs) if tokens else _dense(x, dtype)
    h0, c0 = _dense(h0, dtype), None if c0 is None else _dense(c0, dtype)
    weights = [_dense(weight, dtype) for weight in weights]
    empty = h0.new_empty
    y, hn, cn = empty(*lead, directions * outputs), torch.empty_like(h0), None if c0 is None else torch.empty_like(c0)
    gates = cells = states = None
    if save:
        gates = empty(directions, rows, plan.saved_gates * hidden) if plan.saved_gates else None
        cells = empty(directions, rows, hidden) if cn is not None or CELLS[mode].output else None
        states = empty(directions, rows, outputs)
    work = empty(plan.workspace_size)
    kept = gates if plan.in_place else None
    for d in range(directions if batch else 0):
        plan.run(d, weights, (work, sizes, starts, x, h0, c0, y, hn, cn, kept, cells, states))
        if gates is not None and kept is None:
            gates[d] = plan.to_saved(work)

    def result(tensor: Tensor | None) -> Tensor:
        if tensor is None:
            return empty(0, dtype=narrow)
        return tensor if dtype is narrow else tensor.to(narrow)

    saved = Saved(result(gates), result(None) if cells is None else cells, result(states)) if save else None
    return Forward(result(y), result(hn), result(cn), saved)


def _checked(tokens: Tensor, inputs: int) -> Tensor:
    if tokens.numel():
        lowest, highest = (int(extreme) for extreme in tokens.aminmax())
        if lowest < 0 or highest >= inputs:
            wrong = lowest if lowest < 0 else highest
            raise IndexError(f"x: expected tokens from 0 to {inputs - 1}, got {wrong}")
    return tokens.detach().contiguous()


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
    require_memory(x, batch_sizes, h0, c0, *weights, *saved, grad_y, grad_hn, grad_cn, grad_cells)
    wanted = (need_x, need_state, need_weights)
    plan, dtype, (sizes, starts) = _plan(mode, "backward", x, batch_sizes, h0, weights, *wanted)
    narrow, (directions, batch, outputs) = h0.dtype, h0.shape
    lead, rows, inputs, hidden, padded = x.shape, plan.shape.rows, plan.shape.inputs, plan.hidden, plan.padded
    wide, depth = plan.wide, plan.gates * plan.padded
    named: Tensor | None = None
    if plan.shape.tokens:
        named, x = torch.unique(x, return_inverse=True)
        x = x.contiguous()
    else:
        x = _dense(x, dtype)
    h0 = _dense(h0, dtype)
    weights = [_dense(weight, dtype) for weight in weights]
    dy, d_cells = (None if grad is None else _dense(grad, dtype) for grad in (grad_y, grad_cells))
    gates, cells, states = (_dense(tensor, dtype) for tensor in saved)
    dh0 = torch.zeros_like(h0) if grad_hn is None else _dense(grad_hn, dtype).clone()
    dc0 = None
    if c0 is not None:
        c0 = _dense(c0, dtype)
        dc0 = torch.zeros_like(c0) if grad_cn is None else _dense(grad_cn, dtype).clone()
    empty = h0.new_empty
    work = empty(plan.workspace_size)
    dx: Tensor | None = None
    grads: list[Tensor] = []
    for d, weight in enumerate(split_weights(weights, directions)):
        own_gates = None
        if plan.saved_gates:
            own_gates = gates[d] if plan.in_place else plan.from_saved(gates[d])
        dh = F.pad(dh0[d], (0, wide(outputs) - outputs))
        own_dx = empty(rows, wide(inputs)) if need_x else None
        dw_ih = dw_hh = db_ih = db_hh = dw_hr = db_hr = None
        if need_weights:
            dw_ih = empty(depth, wide(inputs)) if named is None else h0.new_zeros(len(named), depth)
            dw_hh = empty(depth, wide(outputs))
            db_ih, db_hh = (None, None) if weight.b_ih is None else (empty(depth), empty(depth))
            dw_hr = None if weight.w_hr is None else empty(wide(outputs), wide(hidden))
            db_hr = None if weight.b_hr is None else empty(wide(outputs))
        if batch:
            given = (work, sizes, starts, x, h0, c0, own_gates, cells, states, dy, d_cells, dh, dc0)
            plan.run(d, weights, (*given, own_dx, dw_ih, dw_hh, dw_hr, db_ih, db_hh, db_hr))
        dh0[d] = dh[:, :outputs]
        if own_dx is not None:
            own_dx = own_dx[:, :inputs]
            dx = own_dx if dx is None else dx.add_(own_dx)
        if named is not None and dw_ih is not None:
            grads.append(plan.by_column(dw_ih, named, narrow))
            dw_ih = None
        for grad, columns in ((dw_ih, inputs), (dw_hh, outputs), (db_ih, 1), (db_hh, 1)):
            if grad is not None:  # without the rows and columns that only fill panels
                own_rows = grad.view(plan.gates, padded, -1)[:, :hidden, :columns]
                grads.append(own_rows.flatten(0, 1 if grad.dim() > 1 else 2))
        if dw_hr is not None:
            grads.append(dw_hr[:outputs, :hidden])
        if db_hr is not None:
            grads.append(db_hr[:outputs])
    if not batch:
        for grad in grads:
            grad.zero_()

    def result(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(narrow).contiguous().detach()

    dx = None if dx is None else dx.reshape(lead)
    own_grads = [grad.to(narrow).contiguous().detach() for grad in grads] if need_weights else None
    states = (dh0.to(narrow), result(dc0)) if need_state else (None, None)
    return Backward(result(dx), *states, own_grads)
