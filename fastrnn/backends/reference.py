"""The equations in plain PyTorch: any device, any dtype, differentiable as often as you like.

The oracle's home (tests run it in float64) and the path for second derivatives and for torch.func, so nothing here is
written in place and nothing is fused.  Interface: :mod:`fastrnn.backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.backends import Backward, Forward, Saved
from fastrnn.checks import is_tokens
from fastrnn.dynamo import traced
from fastrnn.modes import CELLS, Weights, split_weights
from fastrnn.storage import require_memory

MODES = tuple(CELLS)
TOKENS = True


def unavailable() -> str | None:
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if dtype.is_floating_point else f"{dtype} is not a floating point dtype"


def lstm_cell(a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (a + b).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, -1), b.chunk(3, -1)
    z = (a_z + b_z).sigmoid()
    n = (a_n + (a_r + b_r).sigmoid() * b_n).tanh()
    return (1 - z) * n + z * h, c


def tanh_cell(a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return (a + b).tanh(), c


def relu_cell(a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return (a + b).relu(), c


STEP = {"LSTM": lstm_cell, "GRU": gru_cell, "TANH": tanh_cell, "RELU": relu_cell}
OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, or of tokens the same of their one-hot rows: the columns of ``weight`` that they name."""
    if not is_tokens(x):
        return F.linear(x, weight, bias)
    columns = F.embedding(x, weight.t())
    return columns if bias is None else columns + bias


def _direction(
    mode: str, x: Tensor, sizes: list[int], h0: Tensor, c0: Tensor, weights: Weights, reverse: bool
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """One direction over packed rows: x (N, I) -> h of every step, (rows of the step, P), hn (B, P), cn (B, H), c of
    every step, (rows of the step, H)."""
    step = STEP[mode] if mode in STEP else STEP[mode.split("_")[1]]
    output = OUTPUT.get(CELLS[mode].output or "")
    w_ih, w_hh, b_ih, b_hh, w_hr, b_hr = weights
    inputs = linear(x, w_ih, b_ih).split(sizes)
    outputs: list[Tensor] = []
    cells: list[Tensor] = []
    final_h, final_c = h0[:0], c0[:0]  # forward: rows that have ended, longest first
    h, c = (h0[:0], c0[:0]) if reverse else (h0, c0)
    for a in reversed(inputs) if reverse else inputs:
        rows = a.shape[0]
        if reverse:  # rows whose last step this is begin here
            h, c = torch.cat([h, h0[len(h) : rows]]), torch.cat([c, c0[len(c) : rows]])
        else:  # rows that have no such step ended before it
            final_h, final_c = torch.cat([h[rows:], final_h]), torch.cat([c[rows:], final_c])
            h, c = h[:rows], c[:rows]
        h, c = step(a, F.linear(h, w_hh, b_hh), h, c)
        if w_hr is not None:
            h = F.linear(h, w_hr, b_hr)
            h = h if output is None else output(h)
        outputs.append(h)
        cells.append(c)
    if reverse:
        outputs.reverse()
        cells.reverse()
    return outputs, torch.cat([h, final_h]), torch.cat([c, final_c]), cells


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
    states = h0 if c0 is None else c0  # a cell without c carries a tensor that nothing reads
    ends = [
        _direction(mode, rows, sizes, h0[d], states[d], own, reverse=d == 1)
        for d, own in enumerate(split_weights(weights, h0.shape[0]))
    ]
    if watch is not None:
        watch([end[0] for end in ends])
    y = torch.cat([torch.cat(end[0]) for end in ends], -1)
    y = y.unflatten(0, x.shape[:2]) if batch_sizes is None else y
    hn = torch.stack([end[1] for end in ends])
    if c0 is None:
        return y, hn, hn.new_empty(0), hn.new_empty(0)
    cells = torch.stack([torch.cat(end[3]) for end in ends])
    return y, hn, torch.stack([end[2] for end in ends]), cells


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
