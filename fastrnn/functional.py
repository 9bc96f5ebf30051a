"""`rnn`, `lstm`, `gru` and `jordan_rnn` over plain tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import by_torch
from fastrnn.backends import reference
from fastrnn.checks import Sizes, Unfit, is_tokens, packed_rows
from fastrnn.dynamo import observed
from fastrnn.modes import CELLS, TORCH_MODES
from fastrnn.paths import cast, casts, first_states, plan
from fastrnn.storage import require_memory
from fastrnn.walk import cell_states, walk


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """An Elman network, ``h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)`` or relu, over whole sequences.

    Args:
        input: (T, B, I), with ``batch_first`` (B, T, I); or the rows of a PackedSequence, (N, I), and its
            ``batch_sizes``.  Without the last dimension and int64 or int32: tokens from 0 to I - 1, which stand for
            one-hot rows.  Those are never built: a token's column of ``weight_ih`` is gathered.
        hx: the first state of each layer and direction, (num_layers * D, B, H); None is zeros.
        weights: torch's flat list: for each layer and direction ``weight_ih`` (H, I or D*H), ``weight_hh`` (H, H) and,
            for all or for none, ``bias_ih`` and ``bias_hh`` (H,).  ``nn.RNN._flat_weights`` is such a list.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        batch_sizes: (T,) int64 on the CPU, non-increasing: the rows at each step.
        num_layers: layers; each reads the output of the one before.
        bidirectional: D is 2 and the output holds both directions side by side, else D is 1.
        batch_first: whether input and output have the batch as their first dimension; states have it second always.
        dropout: in training, the probability to drop an element between two layers.
        training: whether dropout is at work.

    Returns:
        The output of the last layer, (T, B, D*H), (B, T, D*H) or (N, D*H), and the last states, shaped as ``hx``.

    Raises:
        ValueError: ``input`` is neither 2-D nor 3-D, or its dtype is not that of the weights.
        RuntimeError: a shape, dtype or device does not fit; the message has what was expected and what came.
        TypeError: an argument is not of tensors.
        IndexError: a token is not within 0 .. I - 1.
        BackendError: the backend asked for by name cannot serve.
    """
    modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
    if nonlinearity not in modes:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    mode, drop = modes[nonlinearity], dropout if training else 0.0
    y, hn, *_ = _network(mode, input, batch_sizes, hx, None, weights, num_layers, bidirectional, batch_first, drop)
    return y, hn


def lstm(
    input: Tensor,
    hx: Sequence[Tensor | None] | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    return_cell_states: bool = False,
) -> Any:
    """A long short-term memory over whole sequences; equations in :mod:`fastrnn.modes`.

    ``hx`` is ``(h0, c0)``, (num_layers * D, B, P) and (num_layers * D, B, H), or None, as either of them may be, for
    zeros; ``weights`` has 4*H rows a matrix and, with a projection to P units, ``weight_hr`` (P, H) last for each layer
    and direction.  Returns the output and ``(hn, cn)``, and with ``return_cell_states`` also c_t of the last layer at
    every step, shaped as the output with H in the place of P.  All else as in :func:`rnn`.
    """
    if hx is not None and len(hx) != 2:
        raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")
    h0, c0 = hx or (None, None)
    drop = dropout if training else 0.0
    y, hn, cn, cells = _network(
        "LSTM", input, batch_sizes, h0, c0, weights, num_layers, bidirectional, batch_first, drop, return_cell_states
    )
    return (y, (hn, cn), cells) if return_cell_states else (y, (hn, cn))


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """A gated recurrent unit over whole sequences; equations in :mod:`fastrnn.modes`.

    ``weights`` has 3*H rows a matrix.  All else as in :func:`rnn`.
    """
    drop = dropout if training else 0.0
    y, hn, *_ = _network("GRU", input, batch_sizes, hx, None, weights, num_layers, bidirectional, batch_first, drop)
    return y, hn


def jordan_rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    output_nonlinearity: str = "identity",
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """A Jordan network over whole sequences; equations and parameters in :class:`fastrnn.JordanRNN`.

    ``weights`` has for each layer and direction ``weight_ih`` (H, I or D*P), ``weight_hh`` (H, P), ``bias_ih`` and
    ``bias_hh`` (H,), ``weight_hr`` (P, H) and ``bias_hr`` (P,), with all three biases or none.  All else as in
    :func:`rnn`.
    """
    mode, drop = f"JORDAN_{nonlinearity}_{output_nonlinearity}".upper(), dropout if training else 0.0
    if mode not in CELLS:
        raise ValueError(f"Unknown nonlinearities '{nonlinearity}' and '{output_nonlinearity}'")
    y, hn, *_ = _network(mode, input, batch_sizes, hx, None, weights, num_layers, bidirectional, batch_first, drop)
    return y, hn


def _network(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Any,
    c0: Any,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    return_cells: bool = False,
) -> Sequence[Tensor]:
    for name, given in (("input", x), ("hx", h0), ("hx", c0), *(("weights", weight) for weight in weights)):
        if not isinstance(given, Tensor) and (given is not None or name != "hx"):
            raise TypeError(f"{mode}: expected {name} to be of tensors, got {type(given).__name__}")
    tokens = is_tokens(x)
    dims = (3 if batch_sizes is None else 2) - tokens
    if x.dim() != dims:
        raise ValueError(f"{mode}: Expected input to be {dims}D, got {x.dim()}D instead")
    if len(weights) < 2 or weights[0].dim() != 2 or weights[1].dim() != 2:
        raise RuntimeError(f"expected a flat list of parameters, got {[list(weight.shape) for weight in weights]}")
    require_memory(x, batch_sizes, h0, c0, *weights)
    turn = batch_first and batch_sizes is None
    x = x.transpose(0, 1) if turn else x
    x = x.long() if tokens else x
    gate_rows, outputs = weights[1].shape
    hidden = gate_rows // len(CELLS[mode].gates)
    sizes = Sizes(weights[0].shape[1], hidden, outputs, num_layers, 2 if bidirectional else 1)
    if min(sizes) < 1:
        raise Unfit(f"a network wants sizes of at least 1, got {sizes}")
    rows = x.shape[1] if batch_sizes is None else packed_rows(batch_sizes)
    autocast = torch._C._is_any_autocast_enabled()
    if h0 is None or c0 is None and CELLS[mode].has_cell_state:
        zeros = first_states(mode, x, rows, x.dtype if autocast and not tokens else weights[0].dtype, sizes)
        h0 = zeros[0] if h0 is None else h0
        c0 = zeros[1] if c0 is None else c0
    if autocast and (dtype := casts(mode, x, batch_sizes, sizes)):
        x, h0, c0, weights = cast(x, h0, c0, weights, dtype)
    seen = observed()
    path = None if seen else plan(mode, x, batch_sizes, h0, c0, weights, sizes, return_cells)
    if isinstance(path, Exception):
        raise path
    if path is None and not (seen or tokens or return_cells) and mode in TORCH_MODES:
        run = by_torch.call
    else:
        run = functools.partial(walk, path or reference.layer)
    y, hn, cn, cells = run(mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
    if return_cells:
        cells = cell_states(cells, y)
        cells = cells.transpose_(0, 1) if turn else cells
    return (y.transpose(0, 1) if turn else y), hn, cn, cells
