"""`RNNCell`, `LSTMCell` and `GRUCell`: torch.nn's as layers of one step; the plan is that of :mod:`fastrnn.running`."""

# pyright: reportPrivateImportUsage=false
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import one_step, profiling
from fastrnn.backends.cpp import fast_path
from fastrnn.checks import Sizes
from fastrnn.dynamo import observed
from fastrnn.modes import CELLS
from fastrnn.paths import autocast_dtype, cast, first_states, leave_to_torch, plan
from fastrnn.running import hand_over, is_state, theirs
from fastrnn.scripting import copied
from fastrnn.storage import require_memory
from fastrnn.walk import is_by_torch

# Layouts of tensors that cannot be seen in the shape of a layer's.
UNVIEWED = torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc, torch._mkldnn  # type: ignore[attr-defined]
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def step(
    module: Any, base: type[Any], mode: str, input: Any, hx: Any, planned: Callable[..., Any] | None = None
) -> Any:
    """The forward of a cell module, ours or that of ``base``, its class in torch.nn.

    ``planned``, in the place of :func:`fastrnn.paths.plan`, finds a path for ``module._flat_weights``, even while
    somebody looks on.
    """
    ours = planned is None
    if ours and not torch.compiler.is_compiling():
        if (result := fast_path(module.__dict__, input, hx, mode)) is not None:
            return result
        if torch.is_grad_enabled() and (result := one_step.of_cell(module, mode, input, hx)) is not None:
            return result
    if (ours and observed()) or not isinstance(input, Tensor) or input.is_nested:
        return theirs(module, base, input, hx)
    for tensor in (input, *_states(hx)):
        if isinstance(tensor, Tensor) and tensor.layout in UNVIEWED:
            leave_to_torch(f"it got a tensor of layout {tensor.layout}")
            return theirs(module, base, input, hx)
    rank = input.dim()
    numbers = input.is_floating_point() or not ours  # to torch.nn's cells, integers are no tokens but a wrong dtype
    if rank not in (1, 2) or not numbers or not is_state(hx, mode, rank):
        if rank == 1 and mode[:3] != "RNN" and any(_crashes(state, module) for state in _states(hx)):
            raise RuntimeError(f"{type(module).__name__}: Expected hidden to be 1D for input of 1D, got 2D instead")
        return theirs(module, base, input, hx)
    x = _as_layer(input, rank)
    weights, hidden = _weights(module) if ours else module._flat_weights, module.hidden_size
    sizes = Sizes(module.input_size, hidden, hidden, 1, 1)
    if hx is None:
        h0, c0 = first_states(mode, x, x.shape[1], x.dtype, sizes)
    else:
        h0, c0 = hx if CELLS[mode].has_cell_state else (hx, None)
        h0, c0 = _as_layer(h0, rank), c0 if c0 is None else _as_layer(c0, rank)
    # torch.nn's other cells are not cast: their products are, each by itself
    if torch._C._is_any_autocast_enabled() and mode[:3] == "RNN" and x.is_cpu and (dtype := autocast_dtype(x)):
        require_memory(x, h0, c0, *weights)
        x, h0, c0, weights = cast(x, h0, c0, weights, dtype)
    path = (planned or plan)(mode, x, None, h0, c0, weights, sizes)
    if (
        path is None or isinstance(path, Exception) or is_by_torch(path)
    ):  # torch.nn's cells have a function of their own
        return hand_over(module, base, input, hx, path if isinstance(path, Exception) else None)
    if not torch.compiler.is_compiling() and profiling.profiling():
        run = functools.partial(path, mode, x, None, h0, c0, weights)
        _, hn, cn, _ = profiling.forward(mode, x, h0, weights, run)
    else:
        _, hn, cn, _ = path(mode, x, None, h0, c0, weights)
    states = (hn,) if c0 is None else (hn, cn)
    for each in states:
        for _ in range(3 - rank):  # not into views, which could not be changed in place everywhere
            each.squeeze_(0)
    return states[0] if c0 is None else states


def _states(hx: Any) -> tuple[Any, ...]:
    return tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)


def _crashes(state: Any, module: Any) -> bool:
    """Whether torch.nn's cells take this state for one sequence and then read memory that is not theirs."""
    return isinstance(state, Tensor) and state.dim() == 2 and state.shape[0] == module.hidden_size


def _weights(module: Any) -> list[Tensor]:
    parameters = module._parameters
    found = (parameters[name] if name in parameters else getattr(module, name) for name in _NAMES)
    return [weight for weight in found if weight is not None]


def _as_layer(tensor: Tensor, rank: int) -> Tensor:
    """(B, I), or (I,) of rank 1, as the (1, B, I) of a layer of one step."""
    return tensor.unsqueeze(0) if rank == 2 else tensor.unsqueeze(0).unsqueeze(0)


class RNNCell(nn.RNNCell):
    """:class:`torch.nn.RNNCell` on fastrnn's kernels: ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or relu.

    ``RNNCell(input_size, hidden_size, bias=True, nonlinearity='tanh', device=None, dtype=None)``.  Arguments,
    parameters, results and errors are torch.nn's.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state, (B, H) or (H,), from ``input`` (B, I) or (I,) and the state ``hx``, zeros by default."""
        if not torch.jit.is_scripting():
            modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
            mode = modes.get(self.nonlinearity)
            if mode is None:
                return nn.RNNCell.forward(self, input, hx)
            return step(self, nn.RNNCell, mode, input, hx)
        return self._torch_forward(input, hx)

    _torch_forward = copied(nn.RNNCell.forward)


class LSTMCell(nn.LSTMCell):
    """:class:`torch.nn.LSTMCell` on fastrnn's kernels; its equations are in :mod:`fastrnn.modes`.

    ``LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.  Arguments, parameters, results and
    errors are torch.nn's.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next ``(h, c)``, (B, H) or (H,) each, from ``input`` (B, I) or (I,) and the state ``hx``, zeros by
        default."""
        if not torch.jit.is_scripting():
            return step(self, nn.LSTMCell, "LSTM", input, hx)
        return self._torch_forward(input, hx)

    _torch_forward = copied(nn.LSTMCell.forward)


class GRUCell(nn.GRUCell):
    """:class:`torch.nn.GRUCell` on fastrnn's kernels; its equations are in :mod:`fastrnn.modes`.

    ``GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.  Arguments, parameters, results and
    errors are torch.nn's.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state, (B, H) or (H,), from ``input`` (B, I) or (I,) and the state ``hx``, zeros by default."""
        if not torch.jit.is_scripting():
            return step(self, nn.GRUCell, "GRU", input, hx)
        return self._torch_forward(input, hx)

    _torch_forward = copied(nn.GRUCell.forward)
