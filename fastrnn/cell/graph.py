"""The graph that a step is traced into: nodes, each a named operation on other nodes, equal ones made once.

A node stands for a tensor of one row and one step.  Its ``size`` is the name of its number of units ("hidden_size",
say), or None for a single number, which goes with any size.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

# Of numbers alone, unit by unit; the number of arguments that each takes.
POINTWISE = {
    "neg": 1, "exp": 1, "log": 1, "tanh": 1, "sigmoid": 1, "relu": 1, "softplus": 1, "abs": 1, "sqrt": 1,
    "add": 2, "sub": 2, "mul": 2, "div": 2, "maximum": 2, "minimum": 2,
    "gt": 2, "ge": 2, "where": 3,
}  # fmt: skip
COMPARISONS = ("gt", "ge")  # which are no numbers: they are not kept, but computed again where they are asked for
LEAVES = ("const", "x", "state", "step_input", "sequence_input", "parameter", "carry", "grad")
# What needs all units of its argument: W v, its transpose, and the mean over the units of each head.
COLLECTIVE = ("product", "transposed", "mean")


class Node:
    """One operation of a graph; made by :meth:`Graph.node`, compared by identity.

    Attributes:
        op: a key of :data:`POINTWISE`, or one of :data:`LEAVES` or :data:`COLLECTIVE`.
        args: the nodes it reads.
        about: what else it is: the number of a "const", the name of a leaf, (matrix, gate) of a "product",
            (matrix, gates of the arguments) of a "transposed", the number of heads of a "mean".
        size: the name of its number of units, or None.
        index: its place in its graph, behind those of its arguments.
        line: where the user wrote it, as "file:line".
    """

    about: Any
    args: tuple[Node, ...]
    index: int
    line: str
    op: str
    size: str | None

    __slots__ = ("about", "args", "index", "line", "op", "size")

    def __init__(self, op: str, args: tuple[Node, ...], about: Any, size: str | None, index: int, line: str) -> None:
        self.op, self.args, self.about, self.size, self.index, self.line = op, args, about, size, index, line

    def __repr__(self) -> str:
        about = "" if self.about is None else f" {self.about}"
        return f"%{self.index} = {self.op}{about}({', '.join(f'%{arg.index}' for arg in self.args)})"


class Graph:
    """Nodes in the order in which they were made, which is one in which they can be computed."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._made: dict[Any, Node] = {}

    def node(
        self, op: str, args: Iterable[Node] = (), about: Any = None, size: str | None = None, line: str = ""
    ) -> Node:
        """The node of this operation, the one made before if there is one."""
        args = tuple(args)
        key = op, args, type(about), about, size
        if key not in self._made:
            self._made[key] = Node(op, args, about, size, len(self.nodes), line)
            self.nodes.append(self._made[key])
        return self._made[key]


def ancestors(roots: Iterable[Node], stop: Container[Node] = ()) -> list[Node]:
    """These nodes and all that they are computed from, in the order in which they can be computed; what those in
    ``stop`` are computed from is left out."""
    found: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(() if node in stop else node.args)
    return sorted(found, key=lambda node: node.index)


def marked(nodes: Iterable[Node], is_source: Any) -> set[Node]:
    """Those of ``nodes``, which stand in order, that are a source or computed from one."""
    found: set[Node] = set()
    for node in nodes:
        if is_source(node) or any(arg in found for arg in node.args):
            found.add(node)
    return found
