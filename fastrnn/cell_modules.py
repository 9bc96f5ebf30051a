"""`RNNCell`, `LSTMCell` and `GRUCell`: torch.nn's as layers of one step; the plan is that of :mod:`fastrnn.modules`."""

# pyright: reportPrivateImportUsage=false
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn.functional import Sizes, first_states, plan, watched
from fastrnn.modules import hand_over, is_state
from fastrnn.scripting import copied

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _step(module: Any, base: type[Any], mode: str, input: Any, hx: Any) -> Any:
    """The forward of a cell module, ours or that of ``base``, its class in torch.nn."""
    if watched() or not isinstance(input, Tensor) or input.is_nested:
        return base.forward(module, input, hx)
    rank = input.dim()
    if rank not in (1, 2) or not is_state(hx, mode, rank):
        return base.forward(module, input, hx)
    lead = (1,) if rank == 2 else (1, 1)  # what makes (B, I) and (I,) a layer's (1, B, I)
    x = input.expand(*lead, *input.shape)
    parameters, hidden = module._parameters, module.hidden_size
    weights = [parameters[name] if name in parameters else getattr(module, name) for name in _NAMES]
    weights = [weight for weight in weights if weight is not None]
    sizes = Sizes(module.input_size, hidden, hidden, 1, 1)
    if hx is None:
        h0, c0 = first_states(mode, x, None, sizes)
    else:
        h0, c0 = hx if mode == "LSTM" else (hx, None)
        h0 = h0.expand(*lead, *h0.shape)
        c0 = c0 if c0 is None else c0.expand(*lead, *c0.shape)
    road = plan(mode, x, None, h0, c0, weights, sizes)
    if road is None or isinstance(road, Exception):
        return hand_over(module, base, input, hx, road)
    _, hn, cn = road(mode, x, None, h0, c0, weights)
    out = (input.shape[0], hidden) if rank == 2 else (hidden,)
    return hn.view(out) if c0 is None else (hn.view(out), cn.view(out))


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
            return _step(self, nn.RNNCell, mode, input, hx)
        return self._torch_forward(input, hx)

    _torch_forward = copied(nn.RNNCell.forward)


class LSTMCell(nn.LSTMCell):
    """:class:`torch.nn.LSTMCell` on fastrnn's kernels; its equations are in :mod:`fastrnn.cells`.

    ``LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.  Arguments, parameters, results and
    errors are torch.nn's.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next ``(h, c)``, (B, H) or (H,) each, from ``input`` (B, I) or (I,) and the state ``hx``, zeros by
        default."""
        if not torch.jit.is_scripting():
            return _step(self, nn.LSTMCell, "LSTM", input, hx)
        return self._torch_forward(input, hx)

    _torch_forward = copied(nn.LSTMCell.forward)


class GRUCell(nn.GRUCell):
    """:class:`torch.nn.GRUCell` on fastrnn's kernels; its equations are in :mod:`fastrnn.cells`.

    ``GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.  Arguments, parameters, results and
    errors are torch.nn's.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state, (B, H) or (H,), from ``input`` (B, I) or (I,) and the state ``hx``, zeros by default."""
        if not torch.jit.is_scripting():
            return _step(self, nn.GRUCell, "GRU", input, hx)
        return self._torch_forward(input, hx)

    _torch_forward = copied(nn.GRUCell.forward)
