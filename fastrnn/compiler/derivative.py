"""Reverse differentiation of a loop: the graph of one step backward.

Its leaves are values of the step forward ("value"), the gradient of each state after the step ("carry") and of what the
step emitted ("grad").  A node without a size, one number a row, has gradients that are still to be summed over units:
the sum is linear, so it is taken once, outside.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from fastrnn.cell.graph import COMPARISONS, Graph, Node
from fastrnn.compiler.normal import Loop


class Gradients(NamedTuple):
    """What one step backward computes.

    Attributes:
        graph: its nodes.
        states: the gradient of each state before the step, None where nothing reaches it.
        inputs: those of each input of the loop, one for every size of units that it met.
        products: for each product of the loop, (matrix, operand), the gradient of each of its gates that has one.
    """

    graph: Graph
    states: dict[str, Node | None]
    inputs: dict[Node, list[Node]]
    products: dict[tuple[str, Node], dict[str | None, Node]]


_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg,
}  # fmt: skip


class Scaled(NamedTuple):
    """A gradient as ``base * factor``, the factor of values alone (None for 1).

    So what a slope stands before is multiplied first, and the gradient last: the slope of a closed gate is 0, which
    leaves no product that could have overflowed to multiply.  And what reaches a value on two ways, g h - g n, is
    g (h - n), which keeps its digits where the two are nearly equal.
    """

    base: Node
    factor: Node | None = None

    @property
    def size(self) -> str | None:
        return self.base.size or (self.factor.size if self.factor else None)


class Build:
    """Makes nodes of a gradient, leaving out what is 1 or 0 by construction."""

    def __init__(self) -> None:
        self.graph: Graph = Graph()

    def const(self, value: float) -> Node:
        return self.graph.node("const", about=value)

    def value(self, node: Node) -> Node:
        """A value of the step forward."""
        return self.const(node.about) if node.op == "const" else self.graph.node("value", about=node, size=node.size)

    def op(self, name: str, *args: Node) -> Node:
        if name in _OF_NUMBERS and all(arg.op == "const" for arg in args):  # in double precision, wherever it runs
            return self.const(_OF_NUMBERS[name](*(arg.about for arg in args)))
        size = next((arg.size for arg in args if arg.size), None)
        return self.graph.node(name, args, size=size)

    def mul(self, a: Node, b: Node) -> Node:
        for one, other in ((a, b), (b, a)):
            if one.op == "const" and one.about in (1.0, -1.0):
                return other if one.about == 1.0 else self.op("neg", other)
        return self.op("mul", a, b)

    def add(self, a: Node, b: Node) -> Node:
        for one, other in ((b, a), (a, b)):
            if one.op == "neg":
                return self.op("sub", other, one.args[0])
        return self.op("add", a, b)

    def whole(self, g: Scaled) -> Node:
        """The gradient itself."""
        return g.base if g.factor is None else self.mul(g.base, g.factor)

    def times(self, g: Scaled, value: Node) -> Scaled:
        return Scaled(g.base, value if g.factor is None else self.mul(g.factor, value))

    def sum(self, a: Scaled, b: Scaled) -> Scaled:
        if a.base is not b.base:
            return Scaled(self.add(self.whole(a), self.whole(b)))
        one = self.const(1.0)
        return Scaled(a.base, self.add(a.factor or one, b.factor or one))


def local(build: Build, node: Node, g: Scaled) -> list[Scaled | None]:
    """The gradient of each argument of a pointwise node from its own, g."""
    op, (*args,) = node.op, (build.value(arg) for arg in node.args)
    one, zero, y = build.const(1.0), build.const(0.0), build.value(node)
    a, b = (args[0], args[1]) if len(args) > 1 else (args[0], args[0])
    if sum(arg.op != "const" for arg in args) > 1:  # several read it: multiplied once
        g = Scaled(build.whole(g))
    if op == "neg":
        return [build.times(g, build.const(-1.0))]
    if op == "exp":
        return [build.times(g, y)]
    if op == "tanh":
        return [build.times(g, build.op("sub", one, build.op("mul", y, y)))]
    if op == "sigmoid":
        return [build.times(g, build.op("mul", y, build.op("sub", one, y)))]
    if op == "softplus":
        return [build.times(g, build.op("sigmoid", a))]
    if op == "add":
        return [g, g]
    if op == "sub":
        return [g, build.times(g, build.const(-1.0))]
    if op == "mul":
        return [build.times(g, b), build.times(g, a)]
    if op in COMPARISONS:
        return [None, None]
    return [None if part is None else Scaled(part) for part in _unscaled(build, op, args, y, build.whole(g), zero)]


def _unscaled(build: Build, op: str, args: list[Node], y: Node, g: Node, zero: Node) -> list[Node | None]:
    """:func:`local` of what divides or chooses, to which the gradient itself comes."""
    a, b = (args[0], args[1]) if len(args) > 1 else (args[0], args[0])
    if op == "log":
        return [build.op("div", g, a)]
    if op == "relu":  # in this order a NaN has a slope, as torch's has
        return [build.op("where", build.op("ge", zero, y), zero, g)]
    if op == "abs":
        below = build.op("where", build.op("gt", zero, a), build.op("neg", g), zero)
        return [build.op("where", build.op("gt", a, zero), g, below)]
    if op == "sqrt":
        return [build.op("div", build.op("mul", g, build.const(0.5)), y)]
    if op == "div":
        quotient = build.op("div", g, b)
        return [quotient, build.op("neg", build.op("mul", quotient, y))]
    if op in ("maximum", "minimum"):
        half = build.op("mul", g, build.const(0.5))
        first, second = (a, b) if op == "maximum" else (b, a)

        def part(wins: Node, loses: Node) -> Node:
            return build.op(
                "where", build.op("gt", wins, loses), g, build.op("where", build.op("gt", loses, wins), zero, half)
            )

        return [part(first, second), part(second, first)]
    if op == "where":
        return [None, build.op("where", args[0], g, zero), build.op("where", args[0], zero, g)]
    raise NotImplementedError(f"{op} has no derivative")


def differentiate(loop: Loop) -> Gradients:
    """The gradients of one step of a loop."""
    build = Build()
    found: dict[Node, dict[str | None, Scaled]] = {}  # of each node, by the size of what is yet to be summed

    def add(node: Node, g: Scaled | None) -> None:
        if g is None or node.op == "const":
            return
        size = node.size or g.size
        own = found.setdefault(node, {})
        own[size] = build.sum(own[size], g) if size in own else g

    for name, node in loop.next.items():
        add(node, Scaled(build.graph.node("carry", about=name, size=node.size)))
    for index, node in enumerate(loop.emitted):
        add(node, Scaled(build.graph.node("grad", about=index, size=node.size)))
    products: dict[tuple[str, Node], dict[str | None, Node]] = {}

    def through_products(operand: Node) -> None:
        for (matrix, node), gates in products.items():
            if node is operand:
                declared = loop.traced.parts.matrices[matrix].gates or (None,)
                names = tuple(gate for gate in declared if gate in gates)
                args = [gates[gate] for gate in names]
                add(operand, Scaled(build.graph.node("transposed", args, (matrix, names), operand.size)))

    inside = set(loop.nodes)
    for node in sorted([*loop.inputs, *loop.nodes], key=lambda node: -node.index):
        if node in inside or loop.inputs.get(node) in ("step", "sequence"):
            through_products(node)
        if node not in inside or node.op in ("state", "const"):
            continue
        for g in list(found.get(node, {}).values()):
            if node.op == "product":
                matrix, gate = node.about
                products.setdefault((matrix, node.args[0]), {})[gate] = build.whole(g)
            elif node.op == "mean":
                add(node.args[0], Scaled(build.graph.node("mean", [build.whole(g)], node.about, node.size)))
            else:
                for arg, part in zip(node.args, local(build, node, g), strict=True):
                    add(arg, part)
    whole = {node: {size: build.whole(g) for size, g in own.items()} for node, own in found.items()}
    states = {name: whole.get(leaf, {}).get(leaf.size) for name, leaf in loop.states.items()}
    inputs = {node: list(whole[node].values()) for node in loop.inputs if node in whole}
    return Gradients(build.graph, states, inputs, products)
