"""NVIDIA and AMD GPUs, through the kernels of :mod:`fastrnn.kernels.triton_scan` and its mirror for backward.

The kernels see the recurrence alone: the input product before it and the products for the gradients of x and of the
weights after it are one product of torch's each.  A projection is folded away, with ``m = o * tanh(c)`` as the
recurrent state::

    gates = W_ih x + W_hh h_(t-1) = W_ih x + (W_hh W_hr) m_(t-1)         h = W_hr m, one product for all steps

but of one step alone, whose h_(t-1) is h0: that is what the kernel multiplies by W_hh.  There a product of both
directions, of m by W_hr and of x or of tokens by W_ih, is one launch, of :mod:`fastrnn.kernels.triton_one_step`.

A float32 product uses TF32 where torch's switch for its kind allows it: the recurrent one as
``torch.backends.cudnn.allow_tf32`` or ``cudnn.rnn.fp32_precision`` say (by default it may), all others, which are
torch's matrix products, as ``torch.set_float32_matmul_precision`` or ``torch.backends.cuda.matmul`` do (by default they
may not; cuDNN follows the switch for RNNs in these, too).

With ``TRITON_INTERPRET=1`` in the environment from the start, the same kernels serve CPU tensors, slowly.
Interface: :mod:`fastrnn.backends`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from fastrnn.backends import Backward, Forward, Saved
from fastrnn.backends.triton_launch import (
    INTERPRETED,
    launch_backward,
    launch_forward,
    launch_gather,
    launch_product,
    precision_of,
)
from fastrnn.backends.triton_paths import Chip, names_that_fit
from fastrnn.backends.triton_rows import Rows
from fastrnn.checks import is_tokens
from fastrnn.modes import CELLS, TORCH_MODES, Weights, split_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MODES = TORCH_MODES
TOKENS = True


def unavailable() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error}); install fastrnn[triton]"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6):
        return f"triton {triton.__version__} is too old; install triton>=3.6"
    if not (INTERPRETED or torch.cuda.is_available()):
        return "torch finds no GPU; TRITON_INTERPRET=1, set before Python starts, tries the kernels on the CPU"
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"its kernels run on a GPU, the tensors are on {device}"
    if dtype not in DTYPES:
        return f"{dtype} is none of {', '.join(str(served) for served in DTYPES)}"
    return None


def forward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    save: bool,
    path: str | None = None,
) -> Forward:
    """See :mod:`fastrnn.backends`; ``path`` is the name of one of :mod:`fastrnn.backends.triton_paths`, None the best
    by its table."""
    cell, own, rows = CELLS[mode], split_weights(weights, h0.shape[0]), Rows.of(x, batch_sizes)
    hidden_size, projections = own[0].w_hh.shape[0] // len(cell.gates), [w.w_hr for w in own if w.w_hr is not None]
    flat, tokens = _rows_of(x, rows)
    alone = rows.steps == 1
    folded = bool(projections) and not alone

    a = h0.new_empty(len(own), rows.total, len(cell.gates) * hidden_size)
    biases = [w.b_ih for w in own if w.b_ih is not None]
    if alone and tokens:
        launch_gather(flat, [w.w_ih for w in own], biases, a)
    elif projections and alone and len(own) == 2:
        launch_product(flat.expand(2, *flat.shape), [w.w_ih for w in own], biases, hidden=a)
    else:
        for d, w in enumerate(own):
            _input_product(flat, tokens, w, a[d])
    for d, w in enumerate(own if folded else []):
        first = rows.first(d)
        if isinstance(first, slice):
            a[d][first].addmm_(h0[d], w.w_hh.t())
        else:
            a[d].index_add_(0, first, h0[d] @ w.w_hh.t())
    start = h0.new_zeros(*h0.shape[:2], hidden_size) if folded else h0.contiguous()
    recurrent = _recurrent(own) if folded or not projections else [w.w_hh.contiguous() for w in own]
    biases = [w.b_hh.contiguous() for w in own if w.b_hh is not None]
    states = start, None if c0 is None else c0.contiguous()
    y, hn, cn, saved = launch_forward(mode, rows, a, recurrent, biases, *states, not projections, save, path)
    if folded:
        hidden, hn = (_times_each(values, [w_hr.t() for w_hr in projections]) for values in (saved.hidden, hn))
        y, saved = torch.cat(tuple(hidden), -1), saved._replace(hidden=hidden)
    elif projections:
        y, hn, hidden = h0.new_empty(rows.total, len(own) * h0.shape[2]), h0.new_empty(h0.shape), h0.new_empty(h0.shape)
        launch_product(saved.hidden, projections, [], y, hn, hidden if save else None)
        saved = saved._replace(hidden=hidden)
    y = y.view(*(x.shape if tokens else x.shape[:-1]), y.shape[-1]).detach()
    return Forward(y, hn, cn, saved if save else None)


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
    path: str | None = None,
) -> Backward:
    """See :mod:`fastrnn.backends` and :func:`forward`."""
    own, rows = split_weights(weights, h0.shape[0]), Rows.of(x, batch_sizes)
    hidden_size = own[0].w_hh.shape[0] // len(CELLS[mode].gates)
    dy = None if grad_y is None else grad_y.reshape(rows.total, len(own), h0.shape[-1]).transpose(0, 1)
    alone = rows.steps == 1
    dm, dmn = dy, grad_hn
    if projections := [w.w_hr for w in own if w.w_hr is not None]:
        if alone:  # h goes to both and nowhere else
            dy, grad_hn = grad_hn if dy is None else dy if grad_hn is None else dy + grad_hn, None
        dm, dmn = (None if g is None else _times_each(g, projections) for g in (dy, grad_hn))
    if grad_cn is None:
        carry = h0.new_zeros(len(own), rows.sequences, hidden_size, dtype=torch.float32)
    else:
        carry = grad_cn.to(torch.float32, copy=True).contiguous()
    if alone:  # the kernel multiplies by it, but no step is there for the product
        recurrent = [h0.new_empty(len(w.w_hh), hidden_size) for w in own]
    else:
        recurrent = [_as_stored(mode, w) for w in _recurrent(own)]
    d_ab = launch_backward(mode, rows, recurrent, saved, h0, c0, dm, dmn, grad_cells, carry, path)

    flat, tokens = _rows_of(x, rows)
    dh0 = torch.empty_like(h0, memory_format=torch.contiguous_format) if need_state else None
    dx = torch.empty_like(flat, memory_format=torch.contiguous_format) if need_x and not tokens else None
    grads: list[Tensor] = []
    m = None
    if need_weights and projections:
        m = (saved.gates[..., -hidden_size:] * saved.cells.tanh()).to(h0.dtype)
    for d, w in enumerate(own):
        width = w.w_hh.shape[0]
        d_a, d_b = d_ab[d, :, -width:], d_ab[d, :, :width]
        if dh0 is not None:
            torch.mm(d_b[rows.first(d)], _as_stored(mode, w.w_hh), out=dh0[d])
            if CELLS[mode].keeps_h:
                dh0[d].add_(carry[d])
        if dx is not None:
            dx.addmm_(d_a, w.w_ih, beta=min(d, 1))  # with 0, what was there is not read
        if need_weights:
            d_w = _token_gradient(d_a, flat, w.w_ih) if tokens else d_a.t() @ flat
            grads += [d_w, _as_gates(mode, rows.product_before(d_b, saved.hidden[d], h0[d], d))]
            if w.b_ih is not None:
                d_bias = d_a.sum(0)
                # Where both sides have the same gates, the two gradients are equal.
                grads += [d_bias, d_bias.clone() if width == d_ab.shape[2] else _as_gates(mode, d_b.sum(0))]
            if m is not None:
                grads.append(_gradient_of_h(rows, d, w, d_b, dy, grad_hn).t() @ m[d])
    dc0 = None if c0 is None else carry.to(h0.dtype, copy=True)
    states = (dh0, dc0) if need_state else (None, None)
    return Backward(None if dx is None else dx.view(x.shape), *states, grads if need_weights else None)


def on_path(name: str) -> SimpleNamespace:
    """This backend's forward and backward on one path."""
    return SimpleNamespace(
        forward=functools.partial(forward, path=name), backward=functools.partial(backward, path=name)
    )


def paths(mode: str, h0: Tensor, hidden_size: int, directions: int) -> list[str]:
    """The names of the paths that serve a layer of such tensors on their device."""
    chip, precision = Chip.of(h0.device), precision_of(h0)
    return list(names_that_fit(chip, mode, h0.shape[1], hidden_size, directions, h0.dtype, precision))


def _rows_of(x: Tensor, rows: Rows) -> tuple[Tensor, bool]:
    """The rows of all steps, (N, I), or of tokens (N,); and whether they are tokens."""
    tokens = is_tokens(x)
    return (x.reshape(rows.total) if tokens else x.reshape(rows.total, x.shape[-1])), tokens


def _input_product(flat: Tensor, tokens: bool, w: Weights, out: Tensor) -> None:
    """W_ih x + b_ih (N, G*H)."""
    if tokens:
        _gather(flat, w, out)
    elif w.b_ih is None:
        torch.mm(flat, w.w_ih.t(), out=out)
    else:
        torch.addmm(w.b_ih, flat, w.w_ih.t(), out=out)


def _gather(tokens: Tensor, w: Weights, out: Tensor) -> None:
    """The same of tokens: of a one-hot row, the product is a column of W_ih."""
    columns = w.w_ih.t()
    # A gather out of columns reads a sector of memory an element: many rows repay a copy, which takes the bias along.
    if few := len(tokens) < len(columns):
        torch.index_select(columns, 0, tokens, out=out)
    else:
        table = out.new_empty(columns.shape)
        table.copy_(columns) if w.b_ih is None else torch.add(columns, w.b_ih, out=table)
        torch.index_select(table, 0, tokens, out=out)
    if few and w.b_ih is not None:
        out += w.b_ih


def _token_gradient(d_a: Tensor, tokens: Tensor, w_ih: Tensor) -> Tensor:
    """Gradient of W_ih: of each column, the sum over the rows where it was gathered, in float32.

    As that of an embedding it is the same in every run, where index_add_ is so only on request.
    """
    wide = torch.ops.aten.embedding_dense_backward(d_a.float(), tokens, w_ih.shape[1], -1, False)
    return wide.t().to(w_ih.dtype).contiguous()


def _recurrent(own: list[Weights]) -> list[Tensor]:
    """(G*H, H) of each direction: what the gates take of the last h, or of the last m where there is a projection."""
    return [w.w_hh.contiguous() if w.w_hr is None else w.w_hh @ w.w_hr for w in own]


def _times_each(values: Tensor, matrices: list[Tensor]) -> Tensor:
    found = values.new_empty(*values.shape[:2], matrices[0].shape[1])
    for d, matrix in enumerate(matrices):
        torch.mm(values[d], matrix, out=found[d])
    return found


# Of a GRU the backward kernel stores b_n, r, z, n: the side of the state and that of the input are one block each.
def _as_stored(mode: str, weight: Tensor) -> Tensor:
    cell = CELLS[mode]
    return weight.roll(len(weight) // len(cell.gates) * cell.apart, 0) if cell.apart else weight


def _as_gates(mode: str, grad: Tensor) -> Tensor:
    cell = CELLS[mode]
    return grad.roll(-(len(grad) // len(cell.gates)) * cell.apart, 0) if cell.apart else grad


def _gradient_of_h(rows: Rows, d: int, w: Weights, d_b: Tensor, dy: Tensor | None, grad_hn: Tensor | None) -> Tensor:
    """Of a layer with a projection: h of each step goes to y and to the next step's gates, or at a row's last step to
    hn."""
    if rows.steps == 1 and dy is not None:  # hn's is in it
        return dy[d]
    last = d_b.new_zeros(rows.sequences, w.w_hh.shape[1]) if grad_hn is None else grad_hn[d]
    dh = rows.before(d_b @ w.w_hh, last, 1 - d)
    return dh if dy is None else dh + dy[d]
