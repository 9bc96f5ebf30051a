"""`rnn`, `lstm` and `gru` over plain tensors: checks arguments, walks layers and directions, drops out between them.

A *road* is what runs one layer: a backend's forward where no derivative is wanted, else the operator of
:mod:`fastrnn.ops`, or the equations themselves (:func:`fastrnn.backends.reference.layer`) under torch.func and
forward-mode derivatives, which no fused kernel serves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastrnn import ops
from fastrnn.backends import BackendError, choose, load, reference, requested
from fastrnn.cells import CELLS

# (mode, x, batch_sizes, h0, c0, weights) -> y, hn, cn of one layer, shaped as in fastrnn.backends.Forward
Road = Callable[[str, Tensor, Tensor | None, Tensor, Tensor | None, Sequence[Tensor]], Sequence[Tensor]]
# A road that `plan` gives in the current thread, whatever the backend: how fastrnn.diagnostics sees every state.
watching_road: ContextVar[Road | None] = ContextVar("fastrnn_watching_road", default=None)


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
            ``batch_sizes``.  Without the last dimension and int64: tokens from 0 to I - 1, which stand for one-hot
            rows.  Those are never built: a token's column of ``weight_ih`` is gathered.
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
        IndexError: a token is not within 0 .. I - 1.
        BackendError: the backend asked for by name cannot serve.
    """
    modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
    if nonlinearity not in modes:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    mode, drop = modes[nonlinearity], dropout if training else 0.0
    y, hn, _ = _network(mode, input, batch_sizes, hx, None, weights, num_layers, bidirectional, batch_first, drop)
    return y, hn


def lstm(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A long short-term memory over whole sequences; equations in :mod:`fastrnn.cells`.

    ``hx`` is ``(h0, c0)``, (num_layers * D, B, P) and (num_layers * D, B, H), or None for zeros; ``weights`` has 4*H
    rows a matrix and, with a projection to P units, ``weight_hr`` (P, H) last for each layer and direction.  Returns
    the output and ``(hn, cn)``.  All else as in :func:`rnn`.
    """
    if hx is not None and len(hx) != 2:
        raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")
    h0, c0 = hx or (None, None)
    drop = dropout if training else 0.0
    y, hn, cn = _network("LSTM", input, batch_sizes, h0, c0, weights, num_layers, bidirectional, batch_first, drop)
    return y, (hn, cn)


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
    """A gated recurrent unit over whole sequences; equations in :mod:`fastrnn.cells`.

    ``weights`` has 3*H rows a matrix.  All else as in :func:`rnn`.
    """
    drop = dropout if training else 0.0
    y, hn, _ = _network("GRU", input, batch_sizes, hx, None, weights, num_layers, bidirectional, batch_first, drop)
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
    y, hn, _ = _network(mode, input, batch_sizes, hx, None, weights, num_layers, bidirectional, batch_first, drop)
    return y, hn


class Sizes(NamedTuple):
    """What a network is: inputs I, hidden units H, outputs P (H, or the projection), layers, directions."""

    inputs: int
    hidden: int
    outputs: int
    num_layers: int
    directions: int


def _network(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
) -> Sequence[Tensor]:
    dims = (3 if batch_sizes is None else 2) - (x.dtype == torch.int64)
    if x.dim() != dims:
        raise ValueError(f"{mode}: Expected input to be {dims}D, got {x.dim()}D instead")
    if len(weights) < 2 or weights[0].dim() != 2 or weights[1].dim() != 2:
        raise RuntimeError(f"expected a flat list of parameters, got {[list(weight.shape) for weight in weights]}")
    turn = batch_first and batch_sizes is None
    x = x.transpose(0, 1) if turn else x
    gate_rows, outputs = weights[1].shape
    hidden = gate_rows // len(CELLS[mode].gates)
    sizes = Sizes(weights[0].shape[1], hidden, outputs, num_layers, 2 if bidirectional else 1)
    if h0 is None:
        h0, c0 = first_states(mode, x, batch_sizes, weights[0].dtype, sizes)
    road = None if watched() else plan(mode, x, batch_sizes, h0, c0, weights, sizes)
    if isinstance(road, Exception):
        raise road
    y, hn, cn = walk(road or reference.layer, mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
    return (y.transpose(0, 1) if turn else y), hn, cn


def watched() -> bool:
    """Whether somebody looks on who wants to see torch's own operators: torch.compile, tracing, a dispatch mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def first_states(
    mode: str, x: Tensor, batch_sizes: Tensor | None, dtype: torch.dtype, sizes: Sizes
) -> tuple[Tensor, Tensor | None]:
    """Zeros: h0 (num_layers * D, B, P), and c0 (num_layers * D, B, H) for a cell that has it."""
    rows = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    count = sizes.num_layers * sizes.directions
    h0 = x.new_zeros(count, rows, sizes.outputs, dtype=dtype)
    if not CELLS[mode].has_cell_state:
        return h0, None
    return h0, h0 if sizes.hidden == sizes.outputs else x.new_zeros(count, rows, sizes.hidden, dtype=dtype)


def plan(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
) -> Road | Exception | None:
    """What runs a layer on these tensors here and now; None where torch's own functions do; or the error to raise.

    ``x`` is (T, B, I), or with ``batch_sizes`` (N, I).

    Raises:
        BackendError: a backend was asked for by name, and it or any kernel cannot serve.
    """
    tensors = (x, h0, *weights) if c0 is None else (x, h0, c0, *weights)
    negative = False  # stored with the wrong sign, as the imaginary part of a conjugate is; only operators know of it
    for tensor in tensors:
        if type(tensor) is not Parameter:
            if type(tensor) is not Tensor:
                return _torch_or_error(f"it got a {type(tensor).__name__}, not a plain Tensor")
            if tensor.layout is not torch.strided:
                return _torch_or_error(f"it got a tensor of layout {tensor.layout}")
            negative = negative or tensor.is_neg()
    if torch._C._is_any_autocast_enabled():
        return _torch_or_error("autocast is on")
    if problem := _misfit(mode, x, batch_sizes, h0, c0, weights, sizes):
        return problem
    if (watching := watching_road.get()) is not None:
        return watching
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return reference.layer
    name = choose(x.device, h0.dtype, mode, x.dtype is torch.int64)
    if name is None:
        return None
    if negative or torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return functools.partial(ops.layer, name)
    return functools.partial(_without_grad, load(name).forward)


def _torch_or_error(reason: str) -> None:
    if name := requested():
        raise BackendError(f"fastrnn backend {name!r} was asked for by name but cannot serve: {reason}")


def _without_grad(
    forward: Callable,
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:
    return forward(mode, x, batch_sizes, h0, c0, weights, False)[:3]


def walk(
    road: Road,
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    dropout: float,
) -> Sequence[Tensor]:
    """Every layer in turn, on a road that :func:`plan` gave: the last layer's y, and hn and cn of all.

    Dropout draws from the global generator in the order and the shapes of torch.nn, so that one seed gives one mask.
    """
    if sizes.num_layers == 1:
        return road(mode, x, batch_sizes, h0, c0, weights)
    directions, count = sizes.directions, len(weights) // sizes.num_layers
    hns, cns = [], []
    for layer in range(sizes.num_layers):
        if dropout and layer:
            x = torch.dropout(x, dropout, True)
        own = slice(layer * directions, (layer + 1) * directions)
        states = h0[own], None if c0 is None else c0[own]
        x, hn, cn = road(mode, x, batch_sizes, *states, weights[layer * count : (layer + 1) * count])
        hns.append(hn)
        cns.append(cn)
    return x, torch.cat(hns), torch.cat(cns)


@functools.lru_cache(maxsize=1024)
def _weight_shapes(mode: str, sizes: Sizes, count: int) -> tuple[tuple[int, ...], ...] | None:
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


def _misfit(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
) -> Exception | None:
    """The error to raise where shapes, dtypes or devices do not fit; kernels read memory as these say it is."""
    tokens = x.dtype is torch.int64
    inputs = sizes.inputs if tokens else x.shape[-1]
    if batch_sizes is None:
        steps, rows = x.shape[:2]
    else:
        total = x.shape[0]
        if batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
            return RuntimeError("'batch_sizes' should be a 1-D int64 tensor on the CPU")
        lengths = batch_sizes.tolist()
        steps, rows = len(lengths), lengths[0] if lengths else 0
        if sum(lengths) != total or lengths != sorted(lengths, reverse=True) or (lengths and lengths[-1] < 1):
            return RuntimeError(f"batch_sizes must be positive, non-increasing and sum up to {total}, got {lengths}")
    if steps == 0:
        return RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if inputs != sizes.inputs:
        return RuntimeError(f"input.size(-1) must be equal to input_size. Expected {sizes.inputs}, got {inputs}")
    expected = _weight_shapes(mode, sizes, len(weights))
    if expected is None:
        return RuntimeError(f"{sizes} is not a network of parameters {[list(weight.shape) for weight in weights]}")
    dtype, device = weights[0].dtype if tokens else x.dtype, x.device
    for weight, shape in zip(weights, expected, strict=True):
        if weight.shape != shape:
            return RuntimeError(f"Expected a parameter of size {shape}, got {list(weight.shape)}")
        if weight.dtype is not dtype:
            return ValueError(f"RNN input dtype ({dtype}) does not match weight dtype ({weight.dtype})")
        if weight.device != device:
            return RuntimeError(f"Input and parameter tensors are not at the same device: {x.device}, {weight.device}")
    count = sizes.num_layers * sizes.directions
    for name, state, units in (("hidden[0]", h0, sizes.outputs), ("hidden[1]", c0, sizes.hidden)):
        if state is None:
            continue
        if state.shape != (count, rows, units):
            return RuntimeError(f"Expected {name} size {(count, rows, units)}, got {list(state.shape)}")
        if state.dtype is not dtype:
            return RuntimeError(f"Input and {name} dtypes are not the same: {dtype}, {state.dtype}")
        if state.device != device:
            return RuntimeError(f"Input and {name} tensors are not at the same device: {x.device}, {state.device}")
    return None
