"""Networks of any cell with weights of 8 bits, which :func:`fastrnn.quantize_dynamic` puts in.

8 bits is a kind of matrix (:mod:`fastrnn.cell.int8`), not another cell: equations, compiler and engine stay the same.
Dense matrices and those of :class:`fastrnn.cell.Heads` have it, on inputs and on states; but for the first layer's on
inputs where ``float_input`` says so (:mod:`fastrnn.quantized`).  All else stays float32: diagonals, vectors and
numbers, which are as few as the units; low rank, whose factors are few weights already; and antisymmetric matrices,
which are computed of their weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn.cell import Input
from fastrnn.cell.int8 import Int8, quantize
from fastrnn.cell.kinds import Dense, Heads
from fastrnn.dynamo import left_to_python
from fastrnn.narrow import Narrow, as_float, floats, stays_float
from fastrnn.network import Network, NetworkCell
from fastrnn.network.calls import OneStep, Sequences
from fastrnn.network.definition import Definition
from fastrnn.network.plain import plain_call, plain_step
from fastrnn.storage import require_memory


class _Narrow(Narrow, Definition):
    """What both modules share."""

    int8: bool = True
    runs_on: tuple[str, ...] = ("cpp", "reference")
    serves_options: bool = True

    def __init__(self, own: Definition, float_input: bool | None) -> None:
        sizes = {name: size for name, size in own.sizes.items() if name not in ("input_size", "hidden_size")}
        Definition.__init__(self, own.cell, own.input_size, own.hidden_size, own.bias, sizes)
        self._names = own._names
        kinds, endings = self.parts.kinds, self.parts.names
        dense = [name for name in self._traced.columns if isinstance(kinds[name], Dense | Heads)]
        self._narrow_names = [f"weight_{endings[name]}" for name in dense]
        self._input_names = [
            f"weight_{endings[name]}" for name in dense if isinstance(self.parts.matrices[name], Input)
        ]
        self.float_input: bool = stays_float(own, float_input)

    def _take(self, own: Definition, ending: str, first: bool = True) -> None:
        """The weights of one direction of one layer."""
        for name in self._names:
            tensor = floats(own, name + ending)
            if name in self._narrow_names:
                stays = first and self.float_input and name in self._input_names
                scales, values = as_float(tensor) if stays else quantize(tensor)
                self.register_buffer(_scale(name) + ending, scales)
                self.register_buffer(name + ending, values)
            else:
                self.register_buffer(name + ending, tensor.detach().clone())

    @property
    def drops(self) -> bool:
        """Nothing, since it does not train."""
        return False

    def first_parameter(self) -> Tensor:
        """A weight of float32, whose device is that of all."""
        return next(each for each in self.buffers() if each.is_floating_point())

    def of_direction(self, ending: str) -> dict[str, Any]:
        """The weights of one direction, by name without its ending."""
        own: Any = self._buffers
        found: dict[str, Any] = {name: own[name + ending] for name in self._names}
        scales = {name: own[_scale(name) + ending] for name in self._narrow_names}
        require_memory(*found.values(), *scales.values())
        return found | {name: Int8(found[name], s) for name, s in scales.items() if found[name].dtype is torch.int8}


def _scale(name: str) -> str:
    return name.replace("weight", "scale", 1)


class QuantizedNetwork(_Narrow, Sequences):
    """A :class:`fastrnn.Network` with weights of 8 bits: forward only, float32; see :mod:`fastrnn.quantized_network`.

    Built by :meth:`from_float` and :func:`quantize_dynamic`.  Arguments, results and errors of a call are those of the
    network that it was made from, in evaluation; results have no gradient.  It is no instance of ``Network``, as the
    other modules of 8 bits are none of their classes.  Its buffers, which make its ``state_dict``, are the network's
    parameters, those of dense matrices and of heads int8, as ``weight_ih_l0``, with their rows' scales, float32, as
    ``scale_ih_l0``; with ``float_input`` the first layer's on the input are float32, their scales 1.  The C++ kernels
    run it; without them, or where ``reference`` is asked for, the same equations, rounded alike, in plain torch.  No
    other backend does: a ``BackendError`` where one is asked for by name.
    """

    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    learn_initial_state: bool
    recompute: bool
    zoneout: dict[str, float]
    recurrent_dropout: float
    recurrent_dropout_per: str
    weight_dropout: float
    _float = Network

    def __init__(self, float_module: Network, float_input: bool | None = None) -> None:
        super().__init__(float_module, float_input)
        own = float_module
        self.num_layers, self.batch_first, self.bidirectional = own.num_layers, own.batch_first, own.bidirectional
        self.learn_initial_state, self.recompute, self.zoneout = own.learn_initial_state, False, dict(own.zoneout)
        self.dropout = self.recurrent_dropout = self.weight_dropout = 0.0
        self.recurrent_dropout_per = "sequence"
        for layer in range(own.num_layers):
            for end in ("", "_reverse")[: 1 + own.bidirectional]:
                self._take(own, f"_l{layer}{end}", layer == 0)
        for name in own.state_names if own.learn_initial_state else ():
            self.register_buffer(f"initial_{name}", floats(own, f"initial_{name}").detach().clone())

    def forward(self, input: Any, hx: Any = None, **others: Any) -> Any:
        """See :meth:`fastrnn.Network.forward`."""
        if not others and not torch.compiler.is_compiling() and (found := plain_call(self, input, hx)) is not None:
            return found
        self._check_that_kernels_may_run()
        with torch.no_grad(), torch._C._DisableAutocast():
            return super().forward(input, hx, **others)


class QuantizedNetworkCell(_Narrow, OneStep):
    """A :class:`fastrnn.NetworkCell` with weights of 8 bits: see :class:`QuantizedNetwork`; buffers have no ending."""

    _float = NetworkCell

    def __init__(self, float_module: NetworkCell, float_input: bool | None = None) -> None:
        super().__init__(float_module, float_input)
        self._take(float_module, "")

    def forward(self, input: Any, hx: Any = None, **extras: Any) -> Any:
        """See :meth:`fastrnn.NetworkCell.forward`."""
        if not (extras or torch.compiler.is_compiling()) and (found := plain_step(self, input, hx)) is not None:
            return found
        self._check_that_kernels_may_run()
        with torch.no_grad(), torch._C._DisableAutocast():
            return super().forward(input, hx, **extras)


left_to_python(QuantizedNetwork.forward)
left_to_python(QuantizedNetworkCell.forward)
