"""The functions that equations are written in: of a traced value they make a node, of a tensor the tensor.

All work unit by unit, but :func:`mean`, :func:`layer_norm` and :func:`rms_norm`, which need a whole row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastrnn.cell.graph import COMPARISONS, Graph, Node


class CellError(TypeError):
    """A definition that says what the language does not know; the message names the cell, the line and the names."""


class Value:
    """A named value of a step while it is traced: arithmetic on it makes nodes."""

    graph: Graph
    node: Node

    __slots__ = ("graph", "node")

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node

    def __add__(self, other: Any) -> Value:
        return _apply("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return _apply("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return _apply("sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return _apply("sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return _apply("mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return _apply("mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return _apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return _apply("div", other, self)

    def __neg__(self) -> Value:
        return _apply("neg", self)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return _apply("abs", self)

    def __gt__(self, other: Any) -> Value:
        return _apply("gt", self, other)

    def __ge__(self, other: Any) -> Value:
        return _apply("ge", self, other)

    def __lt__(self, other: Any) -> Value:
        return _apply("gt", other, self)

    def __le__(self, other: Any) -> Value:
        return _apply("ge", other, self)

    def __bool__(self) -> bool:
        raise CellError(f"{user_line()}: a value has no truth while a cell is traced; write where(condition, a, b)")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python and numpy ask of any object
            raise AttributeError(name)
        kind = "gates" if self.node.op == "product" else "attributes"
        raise CellError(f"{user_line()}: a value has no {kind}, and so no {name!r}; {KNOWN}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        raise CellError(f"{user_line()}: torch's {name} is not of the language; {KNOWN}")

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        op = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div"}.get(function.__name__)
        if op is None or method != "__call__" or kwargs:
            raise CellError(f"{user_line()}: numpy's {function.__name__} is not of the language; {KNOWN}")
        return _apply(op, *args)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise CellError(f"{user_line()}: numpy's {function.__name__} is not of the language; {KNOWN}")


class Gates:
    """The gates of one product, or of a vector, by name."""

    def __init__(self, what: str, gates: dict[str, Any]) -> None:
        self.__dict__["_what"] = what
        self.__dict__.update(gates)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CellError(f"{user_line()}: {self._what} has no gate {name!r}, only {', '.join(self._names())}")

    def _names(self) -> list[str]:
        return [gate for gate in self.__dict__ if gate != "_what"]


def _refuse(cls: type, operation: str, method: str) -> None:
    def refused(self: Any, *args: Any) -> Any:
        if isinstance(self, Gates):
            raise CellError(f"{user_line()}: {operation} of {described(self)}; take one of them, as {_example(self)}")
        raise CellError(f"{user_line()}: {operation} of a value is not of the language; {KNOWN}")

    setattr(cls, method, refused)


_OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**", "mod": "%", "floordiv": "//", "matmul": "@",
    "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>", "divmod": "divmod",
}  # fmt: skip
_OTHERS = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "neg": "-", "pos": "+", "abs": "abs",
    "invert": "~", "getitem": "[...]", "iter": "a loop over the units", "len": "len", "contains": "in", "bool": "truth",
    "float": "a number", "int": "a number", "index": "a number", "complex": "a number", "round": "round",
    "array": "an array of numpy", "call": "a call",
}  # fmt: skip
# What Python would do of itself with such an object, comparing identities say, would be another result in silence.
for _name, _sign in (_OPERATORS | {f"r{name}": sign for name, sign in _OPERATORS.items()} | _OTHERS).items():
    for _cls in (Value, Gates):
        if f"__{_name}__" not in vars(_cls):
            _refuse(_cls, _sign, f"__{_name}__")


def described(v: Any) -> str:
    """What v is, for a message."""
    return f"the gates {', '.join(v._names())} of {v._what}" if isinstance(v, Gates) else f"a {type(v).__name__}"


def _example(v: Gates) -> str:
    return f"{v._what}(...).{v._names()[0]}"


def user_line() -> str:
    """Where, outside of this package, the code stands that is running."""
    own = os.path.dirname(__file__) + os.sep
    frame, compiler = sys._getframe(1), os.path.join(os.path.dirname(os.path.dirname(__file__)), "compiler") + os.sep
    while frame.f_back is not None and frame.f_code.co_filename.startswith((own, compiler)):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _common_size(op: str, values: list[Value], line: str) -> str | None:
    sizes = dict.fromkeys(value.node.size for value in values if value.node.size is not None)
    if len(sizes) > 1:
        raise CellError(f"{line}: {op} of values of {' and '.join(sizes)}, which are two sizes")
    return next(iter(sizes), None)


def _apply(op: str, *args: Any) -> Value:
    line = user_line()
    graph = next(arg.graph for arg in args if isinstance(arg, Value))
    values = []
    for arg in args:
        if isinstance(arg, Value):
            values.append(arg)
        elif isinstance(arg, Real):  # of Python or of numpy; a bool is one, too
            values.append(Value(graph, graph.node("const", about=float(arg), line=line)))
        else:
            raise CellError(f"{line}: {op} of {described(arg)}; a cell reads numbers, its own parameters, x and states")
    if op == "where" and values[0].node.op not in COMPARISONS:
        raise CellError(f"{line}: the condition of where is a comparison, as a > b")
    if op != "where" and any(value.node.op in COMPARISONS for value in values):
        raise CellError(f"{line}: {op} of a comparison, which is for where alone")
    return Value(graph, graph.node(op, [value.node for value in values], None, _common_size(op, values, line), line))


def _unary(op: str, function: Any, equation: str) -> Any:
    def apply(v: Any) -> Any:
        if isinstance(v, Value):
            return _apply(op, v)
        if not isinstance(v, (Tensor, Real)):
            raise CellError(f"{user_line()}: {op} of {described(v)}; a cell's functions take one value")
        if isinstance(v, Real):  # a constant of the definition, which stays a number
            return function(torch.tensor(float(v), dtype=torch.float64, device="cpu")).item()
        return function(v)

    apply.__name__ = apply.__qualname__ = op
    apply.__doc__ = f"{equation}, unit by unit."
    return apply


neg: Callable[[Any], Any] = _unary("neg", torch.neg, "-v")
exp: Callable[[Any], Any] = _unary("exp", torch.exp, "e^v")
log: Callable[[Any], Any] = _unary("log", torch.log, "The natural logarithm of v")
tanh: Callable[[Any], Any] = _unary("tanh", torch.tanh, "tanh(v)")
sigmoid: Callable[[Any], Any] = _unary("sigmoid", torch.sigmoid, "1 / (1 + e^-v)")
relu: Callable[[Any], Any] = _unary("relu", torch.relu, "max(v, 0), which keeps a NaN")
softplus: Callable[[Any], Any] = _unary("softplus", lambda v: torch.logaddexp(v, v.new_zeros(())), "log(1 + e^v)")
abs: Callable[[Any], Any] = _unary("abs", torch.abs, "\\|v\\|")
sqrt: Callable[[Any], Any] = _unary("sqrt", torch.sqrt, "The square root of v")


def maximum(a: Any, b: Any) -> Any:
    """The larger of both, unit by unit; a NaN stays; where both are equal each has half of the gradient."""
    if isinstance(a, Value) or isinstance(b, Value):
        return _apply("maximum", a, b)
    return torch.maximum(*_alike(a, b))


def minimum(a: Any, b: Any) -> Any:
    """The smaller of both, unit by unit; a NaN stays; where both are equal each has half of the gradient."""
    if isinstance(a, Value) or isinstance(b, Value):
        return _apply("minimum", a, b)
    return torch.minimum(*_alike(a, b))


def _alike(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors of one dtype, to which a number is rounded at once: by way of float32 it would be another."""
    like = a if isinstance(a, Tensor) else b
    first, second = (torch.as_tensor(each, dtype=like.dtype, device=like.device) for each in (a, b))
    return first, second


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the comparison ``condition`` holds, else b, unit by unit."""
    for each in (condition, a, b):
        if isinstance(each, Value) and each.node.op == "product":
            matrix, gate = each.node.about
            raise CellError(
                f"{user_line()}: where of a product, of {matrix}{'.' + gate if gate else ''}; where chooses between "
                "numbers that are computed in any case, and skips no product: put it around the operand"
            )
    return choose(condition, a, b)


def choose(condition: Any, a: Any, b: Any) -> Any:
    """:func:`where` of any value, a product too."""
    if any(isinstance(each, Value) for each in (condition, a, b)):
        return _apply("where", condition, a, b)
    return torch.where(condition, a, b)


def clip(v: Any, low: float, high: float) -> Any:
    """v within [low, high], unit by unit."""
    return minimum(maximum(v, low), high)


def leaky_relu(v: Any, slope: float = 0.01) -> Any:
    """v where it is positive, else slope v."""
    return choose(v > 0, v, slope * v)


def hard_sigmoid(v: Any, alpha: float = 1 / 6, beta: float = 0.5) -> Any:
    """alpha v + beta within [0, 1]; by default that of torch.nn.Hardsigmoid."""
    return clip(alpha * v + beta, 0.0, 1.0)


def softsign(v: Any) -> Any:
    """v / (1 + \\|v\\|)."""
    return v / (1 + abs(v))


def silu(v: Any) -> Any:
    """v sigmoid(v)."""
    return v * sigmoid(v)


def identity(v: Any) -> Any:
    """v itself."""
    return v


ACTIVATIONS = {
    each.__name__: each for each in (identity, tanh, sigmoid, relu, softplus, hard_sigmoid, leaky_relu, softsign, silu)
}


def activation(name: str) -> Any:
    """The function of that name, for a constant that says which: ``activation(self.nonlinearity)(v)``."""
    if name not in ACTIVATIONS:
        raise CellError(f"{user_line()}: {name!r} is no activation; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def mean(v: Any, heads: int = 1) -> Any:
    """The mean over the units of each of ``heads`` equal parts of a row, at each of its units."""
    if not isinstance(v, Value):
        parts = v.unflatten(-1, (heads, -1))
        return parts.mean(-1, keepdim=True).expand_as(parts).flatten(-2)
    if not isinstance(heads, int) or heads < 1:
        raise CellError(f"{user_line()}: mean: expected a number of heads of at least 1, got {heads!r}")
    if v.node.size is None:
        raise CellError(f"{user_line()}: mean of a single number")
    return Value(v.graph, v.graph.node("mean", [v.node], heads, v.node.size, user_line()))


def layer_norm(*values: Any, eps: float = 1e-5, heads: int = 1) -> Any:
    """(v - m) / sqrt(s + eps) with m the mean over a row and s that of (v - m)^2; source: Ba et al., "Layer
    normalization" (2016).

    Of several values, the gates of a product say, m and s are over all of them, and a tuple is returned.  With
    ``heads`` they are over each of as many equal parts of the units.
    """
    m = _mean_of(values, heads)
    centred = [v - m for v in values]
    scale = 1 / sqrt(_mean_of([v * v for v in centred], heads) + eps)
    found = tuple(v * scale for v in centred)
    return found[0] if len(values) == 1 else found


def rms_norm(*values: Any, eps: float = 1e-6, heads: int = 1) -> Any:
    """v / sqrt(s + eps) with s the mean of v^2 over a row; source: Zhang and Sennrich, "Root mean square layer
    normalization" (2019).  Several values and ``heads`` as in :func:`layer_norm`."""
    scale = 1 / sqrt(_mean_of([v * v for v in values], heads) + eps)
    found = tuple(v * scale for v in values)
    return found[0] if len(values) == 1 else found


def _mean_of(values: Any, heads: int) -> Any:
    total = mean(values[0], heads)
    for v in values[1:]:
        total = total + mean(v, heads)
    return total / len(values) if len(values) > 1 else total


FUNCTIONS = (
    "neg", "exp", "log", "tanh", "sigmoid", "relu", "softplus", "abs", "sqrt", "maximum", "minimum", "where", "clip",
    "leaky_relu", "hard_sigmoid", "softsign", "silu", "identity", "activation", "mean", "layer_norm", "rms_norm",
)  # fmt: skip
KNOWN = f"known are + - * / > >= < <= and, from fastrnn.cell, {', '.join(FUNCTIONS)}"
