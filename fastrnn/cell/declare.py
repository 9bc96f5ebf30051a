"""What a cell declares: its matrices, vectors and numbers, its states, and what comes with a step or a sequence."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from fastrnn.cell.functions import CellError
from fastrnn.cell.kinds import Dense, Kind

HIDDEN = "hidden_size"


def _gates(names: str) -> tuple[str, ...]:
    gates = tuple(names.split())
    for gate in gates:
        if not gate.isidentifier():
            raise CellError(f"a gate's name is an identifier, got {gate!r}")
    if len(set(gates)) != len(gates):
        raise CellError(f"gates: expected different names, got {names!r}")
    return gates


class Declared:
    """A parameter, or several, of a cell; its attribute's name in the class is its ``name``."""

    name = ""

    def __init__(self, gates: str = "", size: str = HIDDEN) -> None:
        self.gates, self.size = _gates(gates), size

    def __set_name__(self, owner: type, name: str) -> None:
        if self.name and self.name != name:
            raise CellError(f"{owner.__name__}: {self.name} and {name} are one declaration; declare each by itself")
        self.name = name

    @property
    def blocks(self) -> int:
        """The number of gates; a declaration without gates' names is one block."""
        return max(1, len(self.gates))


class Matrix(Declared):
    """A matrix with a block of rows for each gate; ``self.W(v)`` in a step is its product with v, and its bias added.

    Args:
        gates: the names of the gates, in the order of their blocks of ``size`` rows: ``self.W(v).i`` is gate i.
            Without names the product itself is the value.
        size: the name of the number of units of a gate.
        bias: whether there is one, of (G*Z,); a module made with ``bias=False`` has none at all.
        kind: of :mod:`fastrnn.cell.kinds`; dense by default.
    """

    def __init__(self, gates: str = "", size: str = HIDDEN, *, bias: bool = True, kind: Kind | None = None) -> None:
        super().__init__(gates, size)
        self.bias, self.kind = bias, Dense() if kind is None else kind


class Input(Matrix):
    """A matrix on x, or on what is computed from x alone.  The parameters of a cell's first one are ``weight_ih`` and
    ``bias_ih``; those of others have their attribute's name, as ``weight_V``."""


class Recurrent(Matrix):
    """A matrix on any named value: a state, r * h, an output.  The parameters of a cell's first one are ``weight_hh``
    and ``bias_hh``; those of others have their attribute's name, as ``weight_U_n``."""


class Vector(Declared):
    """A learned number for each unit, of each gate if it has gates; the parameter, (G*Z,), has its attribute's name.

    Args:
        gates: as of a :class:`Matrix`; ``self.p.i`` is the part of gate i.
        size: the name of its number of units.
        init: the number that fills it at first; by default it is drawn as torch.nn draws biases.
    """

    def __init__(self, gates: str = "", size: str = HIDDEN, *, init: float | None = None) -> None:
        super().__init__(gates, size)
        self.init = init


class Scalar(Declared):
    """One learned number, which begins as ``init``."""

    def __init__(self, init: float = 0.0) -> None:
        super().__init__()
        self.init = init


class State:
    """Says the number of units of the state of the same name, where it is not ``hidden_size``."""

    def __init__(self, size: str = HIDDEN) -> None:
        self.size = size


class StepInput:
    """Says of a keyword of ``step`` that it comes with every step, as a span of time or a mask: (T, B, size), or, of
    size None, one number a row, (T, B).  No gradient stops at it."""

    def __init__(self, size: str | None = None) -> None:
        self.size = size


class SequenceInput:
    """Says of a keyword of ``step`` that it is the same at every step of a sequence: (B, size), or (B,)."""

    def __init__(self, size: str | None = None) -> None:
        self.size = size


class Cell:
    """A recurrent cell, written once as its equations.

    A subclass declares its parameters as attributes and writes one step, ``step(self, x, h, ...)``, of named values:
    the arguments behind x are the states before the step, and the dict that it returns holds all of them after it, by
    name.  Keyword-only arguments are what else comes with a step (:class:`StepInput`, which is the default) or with a
    sequence (:class:`SequenceInput`).  Any other attribute is a constant: ``CoRNN(dt=0.1)`` is the cell with another
    one.

    Attributes:
        output: the name, in that dict, of what the layer above sees; by default the first state.
        square: whether input_size must be hidden_size, so that x may meet states unit by unit.

    Raises:
        CellError: at definition, for what is not of the language; the message has the line and the names.
    """

    output: ClassVar[str | None] = None
    square: ClassVar[bool] = False

    def __init__(self, **constants: Any) -> None:
        for name, value in constants.items():
            known = inspect.getattr_static(type(self), name, None)
            if known is None or isinstance(known, (Declared, State, StepInput, SequenceInput)) or name == "step":
                raise CellError(f"{type(self).__name__} has no constant {name!r}")
            setattr(self, name, value)

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in vars(cls) and not abstract:
            from fastrnn.cell.trace import trace

            try:
                trace(cls())
            except NameError:  # a function that the file defines further down: the first use traces again
                return

    def parts(self) -> Parts:
        """The declarations, found by name."""
        return Parts(self)

    def step(self, x: Any, *states: Any) -> dict[str, Any]:
        """The equations of one step.  ``self`` stands for the cell with its declarations bound: to symbols while it is
        traced, to functions of tensors where it is called with tensors."""
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), tuple(sorted((name, repr(value)) for name, value in vars(self).items()))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Parts:
    """A cell's declarations, found by name.

    Attributes:
        states: each state's name and that of its size, in the order of the arguments of ``step``.
        extras: each keyword of ``step`` and its declaration.
        output: the name of the output in what ``step`` returns.
        matrices, vectors, scalars: the declarations, by attribute.
        names: for each matrix, the ending of its parameters' names: "ih", "hh" or its own name.
    """

    def __init__(self, cell: Cell) -> None:
        cls = type(cell)
        declared: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            declared.update(vars(base))
        # What an instance sets as a constant stands in the place of the class's.
        parameters = list(inspect.signature(cls.step).parameters.values())[1:]
        plain = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(plain) < 2 or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise CellError(f"{cls.__name__}.step: expected (self, x, state, ...), got {inspect.signature(cls.step)}")

        def size_of(name: str, kind: type) -> Any:
            found = declared.get(name)
            return found if isinstance(found, kind) else None

        self.x = plain[0].name
        self.states = {p.name: (size_of(p.name, State) or State()).size for p in plain[1:]}
        self.extras: dict[str, StepInput | SequenceInput] = {
            p.name: size_of(p.name, StepInput) or size_of(p.name, SequenceInput) or StepInput()
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
        }
        self.output = cls.output or next(iter(self.states))
        self.matrices = {name: each for name, each in declared.items() if isinstance(each, Matrix)}
        self.vectors = {name: each for name, each in declared.items() if isinstance(each, Vector)}
        self.scalars = {name: each for name, each in declared.items() if isinstance(each, Scalar)}
        for name, each in declared.items():
            if isinstance(each, State) and name not in self.states:
                raise CellError(f"{cls.__name__}: {name} is declared as a state, and step has no such argument")
            if isinstance(each, (StepInput, SequenceInput)) and name not in self.extras:
                raise CellError(f"{cls.__name__}: {name} is declared, and step has no such keyword")
        first = {
            kind: next((n for n, m in self.matrices.items() if isinstance(m, kind)), None)
            for kind in (Input, Recurrent)
        }
        self.names = {
            name: "ih" if name == first[Input] else "hh" if name == first[Recurrent] else name for name in self.matrices
        }
        kinds = getattr(cell, "kinds", None) or {}
        self.kinds: dict[str, Kind] = {name: kinds.get(name, each.kind) for name, each in self.matrices.items()}
