"""What a cell declares: its matrices, vectors and numbers, its states, and what comes with a step or a sequence."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastrnn.cell.functions import CellError, user_line
from fastrnn.cell.kinds import Dense, Kind

HIDDEN = "hidden_size"


def _gates(names: str) -> tuple[str, ...]:
    gates = tuple(names.split())
    for gate in gates:
        if not gate.isidentifier():
            raise CellError(f"{user_line()}: a gate's name is an identifier, got {gate!r}")
    if len(set(gates)) != len(gates):
        raise CellError(f"{user_line()}: gates: expected different names, got {names!r}")
    return gates


def written(cls: type) -> str:
    """Where a cell's step is written, for a message."""
    code = inspect.unwrap(cls.step).__code__  # type: ignore[attr-defined]
    return f"{code.co_filename}:{code.co_firstlineno}: {cls.__name__}.step"


class Declared:
    """A parameter, or several, of a cell; its attribute's name in the class is its ``name``.

    With ``copies``, the name of a constant, there are as many as it says, each with parameters of its own:
    ``self.U[0]`` is the first, and ``weight_U_0`` its matrix.
    """

    gates: tuple[str, ...]
    size: str
    copies: str | None

    name: str = ""

    def __init__(self, gates: str = "", size: str = HIDDEN, copies: str | None = None) -> None:
        self.gates, self.size, self.copies = _gates(gates), size, copies

    if TYPE_CHECKING:  # in a step ``self.W`` is what multiplies, and ``self.p`` a value, or gates of it

        def __get__(self, cell: Any, owner: Any) -> Any: ...

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    @property
    def blocks(self) -> int:
        """The number of gates; a declaration without gates' names is one block."""
        return max(1, len(self.gates))

    def named(self, name: str) -> Declared:
        """A copy of another name."""
        own = copy.copy(self)
        own.name = name
        return own


class Matrix(Declared):
    """A matrix with a block of rows for each gate; ``self.W(v)`` in a step is its product with v, and its bias added.

    Args:
        gates: the names of the gates, in the order of their blocks of ``size`` rows: ``self.W(v).i`` is gate i.
            Without names the product itself is the value.
        size: the name of the number of units of a gate.
        bias: whether there is one, of (G*Z,); a module made with ``bias=False`` has none at all.
        kind: of :mod:`fastrnn.cell.kinds`; dense by default.
        copies: the name of the constant that says how many there are, where they are several.
    """

    bias: bool
    kind: Kind

    def __init__(
        self,
        gates: str = "",
        size: str = HIDDEN,
        *,
        bias: bool = True,
        kind: Kind | None = None,
        copies: str | None = None,
    ) -> None:
        super().__init__(gates, size, copies)
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
        copies: as of a :class:`Matrix`.
    """

    def __init__(
        self, gates: str = "", size: str = HIDDEN, *, init: float | None = None, copies: str | None = None
    ) -> None:
        super().__init__(gates, size, copies)
        self.init = init


class Scalar(Declared):
    """One learned number, which begins as ``init``."""

    def __init__(self, init: float = 0.0) -> None:
        super().__init__()
        self.init = init


class State:
    """Says the number of units of the state of the same name, where it is not ``hidden_size``.

    With ``copies``, the name of a constant, it stands for as many states: ``step(self, x, h, *past)`` takes them as a
    tuple, and the dict that it returns has one under the same name.
    """

    size: str
    copies: str | None

    def __init__(self, size: str = HIDDEN, *, copies: str | None = None) -> None:
        self.size, self.copies = size, copies


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
        kinds: the kind of a matrix, by its attribute, where it is not the declared one, as in
            ``SLSTM(kinds={"U": Heads(8)})``.

    Raises:
        CellError: at definition, for what is not of the language; the message has the line and the names.
    """

    output: ClassVar[str | None] = None
    square: ClassVar[bool] = False
    kinds: Mapping[str, Kind] = {}

    def __init__(self, **constants: Any) -> None:
        for name, value in constants.items():
            known = inspect.getattr_static(type(self), name, None)
            if known is None or isinstance(known, (Declared, State, StepInput, SequenceInput)) or name == "step":
                raise CellError(f"{user_line()}: {type(self).__name__} has no constant {name!r}")
            setattr(self, name, value)

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        library = cls.__module__.startswith("fastrnn.cells.")  # known to be right: an import need not wait for a trace
        if "step" in vars(cls) and not abstract and not library:
            from fastrnn.cell.trace import trace

            try:
                trace(cls())
            except NameError:  # a function that the file defines further down: the first use traces again
                return

    def parts(self) -> Parts:
        """The declarations, found by name."""
        return Parts(self)

    def _defined(self) -> Cell:
        """The cell whose declarations and constants a step sees: this one, or the one within."""
        return self

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
        x, x_size: the name of x in ``step``, and that of its size.
        states: each state's name and that of its size, in the order of the arguments of ``step``.
        extras: each keyword of ``step`` and its declaration.
        output: the name of the output in what ``step`` returns.
        matrices, vectors, scalars: the declarations, by attribute.
        names: for each matrix, the ending of its parameters' names: "ih", "hh" or its own name.
        kinds: for each matrix, its kind.
        copies: for each declaration or state of several copies, their names.
    """

    x: str
    copies: dict[str, tuple[str, ...]]

    def __init__(self, cell: Cell) -> None:
        cls, self.copies = type(cell), {}
        declared: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            declared.update(vars(base))
        self._read_step(cell, declared)
        self.output: str = cls.output or next(iter(self.states))
        self.matrices: dict[str, Matrix] = self._all(cell, declared, Matrix)
        self.vectors: dict[str, Vector] = self._all(cell, declared, Vector)
        self.scalars: dict[str, Scalar] = self._all(cell, declared, Scalar)
        declared_as = {own: name for name, owns in self.copies.items() for own in owns}
        first = {
            kind: next((n for n, m in self.matrices.items() if isinstance(m, kind) and n not in declared_as), None)
            for kind in (Input, Recurrent)
        }
        self.names: dict[str, str] = {
            name: "ih" if name == first[Input] else "hh" if name == first[Recurrent] else name for name in self.matrices
        }
        attributes = {name: declared_as.get(name, name) for name in self.matrices}
        if unknown := [name for name in cell.kinds if name not in attributes.values()]:
            raise CellError(f"{written(cls)}: kinds has {unknown[0]!r}, and the cell no such matrix")
        self.kinds: dict[str, Kind] = {
            name: cell.kinds.get(attributes[name], each.kind) for name, each in self.matrices.items()
        }
        for name, kind in self.kinds.items():
            if not kind.gated and len(self.matrices[name].gates) > 1:
                raise CellError(f"{written(cls)}: {name} is {kind}, which has one gate")

    def _read_step(self, cell: Cell, declared: dict[str, Any]) -> None:
        """Finds x, states and extras in the signature of ``step``."""
        cls = type(cell)
        parameters = list(inspect.signature(cls.step).parameters.values())[1:]
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
        if (
            len(plain) < 2
            or plain[0].kind is plain[0].VAR_POSITIONAL
            or any(p.kind is p.VAR_KEYWORD for p in parameters)
        ):
            raise CellError(f"{written(cls)}: expected (self, x, state, ...), got {inspect.signature(cls.step)}")

        def found(name: str, *kinds: type) -> Any:
            return declared[name] if isinstance(declared.get(name), kinds) else None

        self.x, self.x_size = plain[0].name, HIDDEN if cell.square else "input_size"
        self.states: dict[str, str] = {}
        for p in plain[1:]:
            state = found(p.name, State) or State()
            if (state.copies is not None) != (p.kind is p.VAR_POSITIONAL):
                raise CellError(f"{written(cls)}: *{p.name} and {p.name} = State(copies=...) go together")
            self.states |= dict.fromkeys(self._copies(cell, p.name, state), state.size)
        self.extras: dict[str, StepInput | SequenceInput] = {
            p.name: found(p.name, StepInput, SequenceInput) or StepInput()
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
        }
        for name, each in declared.items():
            if isinstance(each, State) and name not in (*self.states, *self.copies):
                raise CellError(f"{written(cls)}: {name} is declared as a state, and step has no such argument")
            if isinstance(each, (StepInput, SequenceInput)) and name not in self.extras:
                raise CellError(f"{written(cls)}: {name} is declared, and step has no such keyword")

    def _copies(self, cell: Cell, name: str, each: Declared | State) -> tuple[str, ...]:
        """The names under which a declaration is known: its own, or those of its copies."""
        if each.copies is None:
            return (name,)
        count = getattr(cell, each.copies, None)
        if not isinstance(count, int) or count < 1:
            wanted = f"expected {each.copies} to be an integer of at least 1, got {count!r}"
            raise CellError(f"{written(type(cell))}: {name} has {each.copies} copies: {wanted}")
        self.copies[name] = tuple(f"{name}_{k}" for k in range(count))
        return self.copies[name]

    def _all(self, cell: Cell, declared: dict[str, Any], kind: type) -> dict[str, Any]:
        found = {name: each for name, each in declared.items() if isinstance(each, kind)}
        for name, each in found.items():
            if each.name != name:
                raise CellError(f"{written(type(cell))}: {each.name} and {name} are one declaration; make two")
        several = [(own, each) for name, each in found.items() for own in self._copies(cell, name, each)]
        for own, each in several:
            if own != each.name and own in found:
                raise CellError(f"{written(type(cell))}: a copy of {each.name} and another declaration are both {own}")
        return {own: each.named(own) for own, each in several}

    def one_by_one(self, found: Any) -> Any:
        """What ``step`` returned, with the tuple of each state of several copies taken apart."""
        if not isinstance(found, dict):
            return found
        parts: dict[str, Any] = {}
        for name, value in found.items():
            if name in self.copies and isinstance(value, (tuple, list)):
                parts |= {f"{name}_{k}": each for k, each in enumerate(value)}
            else:
                parts[name] = value
        return parts
