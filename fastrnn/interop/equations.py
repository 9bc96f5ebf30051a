"""Which network a module, a layer of Keras or a node of ONNX is: one description as data, and the module that it makes.

What torch.nn has is one of its modules, all else a :class:`fastrnn.Network` of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from torch import nn

from fastrnn import cells, options
from fastrnn.cell import Cell
from fastrnn.interop import cells as chosen
from fastrnn.interop.cells import Activation
from fastrnn.kinds import kind
from fastrnn.modules import GRU, LSTM, RNN
from fastrnn.network import Network

# A module with the parameters of layers: one of torch.nn, of ours or a Network.
Layers = TypeVar("Layers", bound=nn.Module)


class Equations(NamedTuple):
    """A recurrent network as other libraries tell one from another.

    Attributes:
        kind: "RNN", "LSTM" or "GRU".
        activations: f of an RNN, f and g of a GRU, f, g and h of an LSTM, as of :mod:`fastrnn.interop.cells`.
        peepholes: of an LSTM, whether its gates see the memory.
        coupled: of an LSTM, whether it forgets as much as it takes in.
        reset_after: of a GRU, whether the reset gate multiplies the recurrent product and not its operand.
        clip: the bound of what products give to activations.
    """

    kind: str
    activations: tuple[Activation, ...]
    peepholes: bool = False
    coupled: bool = False
    reset_after: bool = True
    clip: float = math.inf


_RNN = Equations("RNN", (("tanh",),))
_RELU = _RNN._replace(activations=(("relu",),))
_LSTM = Equations("LSTM", (("sigmoid",), ("tanh",), ("tanh",)))
_GRU = Equations("GRU", (("sigmoid",), ("tanh",)))

# torch's own: what it calls them, their equations, the class that has them and its arguments, and the cell they are.
_MODES: dict[str, tuple[Equations, Callable[..., Any], Cell]] = {
    "RNN_TANH": (_RNN, RNN, cells.RNN()),
    "RNN_RELU": (_RELU, partial(RNN, nonlinearity="relu"), cells.RNN(nonlinearity="relu")),
    "LSTM": (_LSTM, LSTM, cells.LSTM()),
    "GRU": (_GRU, GRU, cells.GRU()),
}
# With every choice at its default; those that a cell of the class holds are read from it.
_CHOSEN: dict[type[Cell], Equations] = {
    chosen.ChosenRNN: _RNN,
    chosen.ChosenLSTM: _LSTM,
    chosen.ChosenPeepholeLSTM: _LSTM._replace(peepholes=True),
    chosen.ChosenCoupledLSTM: _LSTM._replace(coupled=True),
    chosen.ChosenCoupledPeepholeLSTM: _LSTM._replace(peepholes=True, coupled=True),
    chosen.ChosenGRU: _GRU,
    chosen.ChosenResetBeforeGRU: _GRU._replace(reset_after=False),
}
_NUMBERS = {"hard_sigmoid": (1 / 6, 0.5), "leaky_relu": (0.01,)}  # the defaults of fastrnn.cell's functions


def _named(name: str) -> Activation:
    return name, *_NUMBERS.get(name, ())


def _gated(cell: Any) -> tuple[Activation, ...]:
    return _named(cell.gate_nonlinearity), _named(cell.nonlinearity)


_LIBRARY: dict[type[Cell], Callable[[Any], Equations]] = {
    cells.RNN: lambda cell: _RNN._replace(activations=(_named(cell.nonlinearity),)),
    cells.LSTM: lambda cell: _LSTM,
    cells.PeepholeLSTM: lambda cell: Equations("LSTM", (*_gated(cell), _named(cell.nonlinearity)), peepholes=True),
    cells.CoupledLSTM: lambda cell: _LSTM._replace(coupled=True),
    cells.GRU: lambda cell: _GRU,
    cells.ResetBeforeGRU: lambda cell: Equations("GRU", _gated(cell), reset_after=False),
}


def equations_of(cell: Cell) -> Equations | None:
    """The equations of a cell that another library may have; None of any other, subclasses included."""
    if cell.kinds:
        return None
    if type(cell) in _LIBRARY:
        return _LIBRARY[type(cell)](cell)
    found: Any = cell
    base = _CHOSEN.get(type(cell))
    return base and base._replace(activations=found.activations, clip=found.clip)


_PLAIN = {equations_of(cell): cell for cell in (cells.PeepholeLSTM(), cells.CoupledLSTM(), cells.ResetBeforeGRU())}


def cell_of(equations: Equations) -> Cell:
    """The cell with these equations, of the library where it has one."""
    if equations in _PLAIN:
        return _PLAIN[equations]
    for cls, base in _CHOSEN.items():
        if base._replace(activations=equations.activations, clip=equations.clip) == equations:
            choices = dict(activations=equations.activations, clip=equations.clip)
            return cls(**{name: value for name, value in choices.items() if value != getattr(base, name)})
    raise ValueError(f"no cell has {equations}")


def make(equations: Equations, input_size: int, hidden_size: int, **arguments: Any) -> Any:
    """A module of one layer with these equations: torch's class, ours, where there is one, else a Network."""
    for own, cls, _ in _MODES.values():
        if own == equations:
            return cls(input_size, hidden_size, **arguments)
    return Network(cell_of(equations), input_size, hidden_size, **arguments)


def described(module: Any, function: str) -> tuple[Cell, Equations]:
    """The cell of a module, of torch.nn, ours or a Network, and its equations, which another library may have.

    Raises:
        TypeError: it is none of these, or a Network of another cell; the message has ``function``.
        ValueError: a projection, or an option that is on and changes its numbers.
    """
    if isinstance(module, Network):
        found = equations_of(module.cell)
        if found is None:
            raise TypeError(f"{function} expects a Network of a cell that Keras or ONNX has, got {module.cell!r}")
        if module.zoneout:
            raise ValueError(f"{function} expects a Network without zoneout, got zoneout={module.zoneout}")
        cell = module.cell
    elif kind(module) in ("RNN", "LSTM", "GRU"):
        if module.proj_size:
            raise ValueError(f"{function} expects an LSTM without projection, got proj_size={module.proj_size}")
        found, _, cell = _MODES[module.mode]
    else:
        raise TypeError(f"{function} expects an RNN, LSTM or GRU, or a Network of one, got {type(module).__name__}")
    options.refuse(module, f"{function} has no place for")
    return cell, found
