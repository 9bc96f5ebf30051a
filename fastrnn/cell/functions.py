"""The functions that equations are written in: of a traced value they make a node, of a tensor the tensor.

All work unit by unit, but :func:`mean`, :func:`layer_norm` and :func:`rms_norm`, which need a whole row.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from fastrnn.cell.graph import Graph, Node

Number = (int, float)


class CellError(TypeError):
    """A definition that says what the language does not know; the message names the cell, the line and the names."""


class Value:
    """A named value of a step while it is traced: arithmetic on it makes nodes."""

    __slots__ = ("graph", "node")
    __array_ufunc__ = None  # numpy's numbers leave the operators to this class

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
        kind = "gates" if self.node.op == "product" else "attributes"
        raise CellError(f"{user_line()}: a value has no {kind}, and so no {name!r}; {KNOWN}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        raise CellError(f"{user_line()}: torch's {name} is not of the language; {KNOWN}")


def user_line() -> str:
    """Where, outside of this package, the code stands that is running."""
    frame, own = sys._getframe(1), __file__.rpartition("cell")[0]
    while frame.f_back is not None and frame.f_code.co_filename.startswith((own + "cell", own + "compiler")):
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
        elif isinstance(arg, Number):  # a bool is a number, too
            values.append(Value(graph, graph.node("const", about=float(arg), line=line)))
        else:
            raise CellError(
                f"{line}: {op} of a {type(arg).__name__}; a cell reads numbers, its own parameters, x and states"
            )
    if op == "where" and values[0].node.op not in ("gt", "ge"):
        raise CellError(f"{line}: the condition of where is a comparison, as a > b")
    if op != "where" and any(value.node.op in ("gt", "ge") for value in values):
        raise CellError(f"{line}: {op} of a comparison, which is for where alone")
    return Value(graph, graph.node(op, [value.node for value in values], None, _common_size(op, values, line), line))


def _unary(op: str, function: Any, equation: str) -> Any:
    def apply(v: Any) -> Any:
        if isinstance(v, Value):
            return _apply(op, v)
        return function(torch.as_tensor(v))

    apply.__name__ = apply.__qualname__ = op
    apply.__doc__ = f"{equation}, unit by unit."
    return apply


neg = _unary("neg", torch.neg, "-v")
exp = _unary("exp", torch.exp, "e^v")
log = _unary("log", torch.log, "The natural logarithm of v")
tanh = _unary("tanh", torch.tanh, "tanh(v)")
sigmoid = _unary("sigmoid", torch.sigmoid, "1 / (1 + e^-v)")
relu = _unary("relu", torch.relu, "max(v, 0), which keeps a NaN")
softplus = _unary("softplus", lambda v: torch.logaddexp(v, v.new_zeros(())), "log(1 + e^v)")
abs = _unary("abs", torch.abs, "\\|v\\|")
sqrt = _unary("sqrt", torch.sqrt, "The square root of v")


def maximum(a: Any, b: Any) -> Any:
    """The larger of both, unit by unit; a NaN stays; where both are equal each has half of the gradient."""
    if isinstance(a, Value) or isinstance(b, Value):
        return _apply("maximum", a, b)
    like = a if isinstance(a, Tensor) else b
    return torch.maximum(torch.as_tensor(a).to(like), torch.as_tensor(b).to(like))


def minimum(a: Any, b: Any) -> Any:
    """The smaller of both, unit by unit; a NaN stays; where both are equal each has half of the gradient."""
    if isinstance(a, Value) or isinstance(b, Value):
        return _apply("minimum", a, b)
    like = a if isinstance(a, Tensor) else b
    return torch.minimum(torch.as_tensor(a).to(like), torch.as_tensor(b).to(like))


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the comparison ``condition`` holds, else b, unit by unit."""
    for each in (condition, a, b):
        if isinstance(each, Value) and each.node.op == "product":
            matrix, gate = each.node.about
            raise CellError(
                f"{user_line()}: where of a product, of {matrix}{'.' + gate if gate else ''}; where chooses between "
                "numbers that are computed in any case, and skips no product: put it around the operand"
            )
    return _choose(condition, a, b)


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if any(isinstance(each, Value) for each in (condition, a, b)):
        return _apply("where", condition, a, b)
    return torch.where(condition, a, b)


def clip(v: Any, low: float, high: float) -> Any:
    """v within [low, high], unit by unit."""
    return minimum(maximum(v, low), high)


def leaky_relu(v: Any, slope: float = 0.01) -> Any:
    """v where it is positive, else slope v."""
    return _choose(v > 0, v, slope * v)


def hard_sigmoid(v: Any, alpha: float = 1 / 6, beta: float = 0.5) -> Any:
    """alpha v + beta within [0, 1]; by default that of torch.nn.Hardsigmoid."""
    return clip(alpha * v + beta, 0.0, 1.0)


def softsign(v: Any) -> Any:
    """v / (1 + \\|v\\|)."""
    return v / (1 + abs(v))


def silu(v: Any) -> Any:
    """v sigmoid(v)."""
    return v * sigmoid(v)


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
    "leaky_relu", "hard_sigmoid", "softsign", "silu", "mean", "layer_norm", "rms_norm",
)  # fmt: skip
KNOWN = f"known are + - * / > >= < <= and, from fastrnn.cell, {', '.join(FUNCTIONS)}"
