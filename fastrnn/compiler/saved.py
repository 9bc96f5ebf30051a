"""What a step keeps for its derivative, and what that computes again: the cheapest of all ways, a minimum cut.

A value costs a number written and read again if it is saved, and its own arithmetic if it is computed again, for which
in turn its arguments must be there.  So the gates of an LSTM are saved, and tanh(c) is not, since c is at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastrnn.cell.graph import COLLECTIVE, COMPARISONS, Graph, Node, ancestors
from fastrnn.compiler.derivative import Gradients
from fastrnn.compiler.normal import Loop

# In hundredths of what it costs to write and read a number: a tanh is some 25 instructions a vector, and a number that
# goes out to the far caches and back takes about twice as long.
SAVE, COSTLY, DIVISION, CHEAP = 100, 60, 30, 5
COSTS: dict[str, int] = dict(
    exp=COSTLY, log=COSTLY, tanh=COSTLY, sigmoid=COSTLY, softplus=COSTLY, div=DIVISION, sqrt=DIVISION
)
NEVER = 1_000_000
Vertex = tuple[str, Node | None]


class Saving(NamedTuple):
    """What is kept of every step.

    Attributes:
        histories: the states whose value after each step is kept.
        values: other nodes that are kept, in order.
    """

    histories: tuple[str, ...]
    values: tuple[Node, ...]


def needed(gradients: Gradients) -> list[Node]:
    """The values of the step forward that its derivative reads."""
    roots = [node for node in gradients.states.values() if node is not None]
    roots += [node for nodes in gradients.inputs.values() for node in nodes]
    roots += [node for gates in gradients.products.values() for node in gates.values()]
    return [node.about for node in ancestors(roots) if node.op == "value"]


def choose_saved(loop: Loop, gradients: Gradients) -> Saving:
    """The cheapest values to keep."""
    wanted = needed(gradients)
    operands = [operand for (_, operand), gates in gradients.products.items() if gates]
    histories = tuple(
        name
        for name, leaf in loop.states.items()
        if leaf in wanted or leaf in operands or loop.next[name] in operands or loop.next[name] in loop.emitted
    )
    at_hand = {
        *loop.inputs,
        *loop.emitted,
        *(loop.states[name] for name in histories),
        *(loop.next[name] for name in histories),
    }
    kept = [node for node in operands if node not in at_hand]  # their products' weights meet them again
    at_hand |= set(kept)
    chosen = values_to_save(wanted, at_hand)
    return Saving(histories, tuple(sorted({*kept, *chosen}, key=lambda node: node.index)))


def values_to_save(wanted: Iterable[Node], at_hand: set[Node]) -> set[Node]:
    """The cheapest values by which all that are ``wanted`` can be computed from those at hand."""
    return _cut([node for node in wanted if node not in at_hand and node.op != "const"], at_hand)


def _cut(wanted: Iterable[Node], at_hand: set[Node]) -> set[Node]:
    """Of a network with two vertices a value, "it must be there" and "it is computed again", the minimum cut."""
    wanted = list(wanted)
    flow: dict[Vertex, dict[Vertex, int]] = {}
    source: Vertex = ("source", None)
    sink: Vertex = ("sink", None)

    def edge(a: Vertex, b: Vertex, capacity: int) -> None:
        flow.setdefault(a, {})[b] = flow.get(a, {}).get(b, 0) + capacity
        flow.setdefault(b, {}).setdefault(a, 0)

    for node in ancestors(wanted, at_hand):
        if node in at_hand or node.op == "const":
            continue
        there, again = ("there", node), ("again", node)
        edge(there, again, SAVE if node.size and node.op not in COMPARISONS else NEVER)
        edge(again, sink, NEVER if node.op in (*COLLECTIVE, "state") else COSTS.get(node.op, CHEAP))
        for arg in node.args:
            if arg not in at_hand and arg.op != "const":
                edge(again, ("there", arg), NEVER)
    for node in wanted:
        edge(source, ("there", node), NEVER)

    def reached() -> dict[Vertex, Vertex]:
        """The vertices that the source still reaches, each with the one before it."""
        before: dict[Vertex, Vertex] = {source: source}
        waiting: list[Vertex] = [source]
        while waiting:
            vertex = waiting.pop(0)
            for other, capacity in flow.get(vertex, {}).items():
                if capacity > 0 and other not in before:
                    before[other] = vertex
                    waiting.append(other)
        return before

    while sink in (before := reached()):
        path: list[Vertex] = [sink]
        while path[-1] != source:
            path.append(before[path[-1]])
        edges = list(zip(path[1:], path, strict=False))
        amount = min(flow[a][b] for a, b in edges)
        for a, b in edges:
            flow[a][b] -= amount
            flow[b][a] += amount
    return {node for kind, node in before if kind == "there" and node is not None and ("again", node) not in before}


class Rebuilt:
    """The graph of a derivative in which values that are not at hand are computed again from those that are."""

    graph: Graph
    at_hand: set[Node]

    def __init__(self, at_hand: set[Node]) -> None:
        self.graph, self.at_hand = Graph(), at_hand
        self._made: dict[Node, Node] = {}

    def of(self, node: Node) -> Node:
        """The node of the new graph for one of the derivative's."""
        if node not in self._made:
            if node.op == "value":
                self._made[node] = self.value(node.about)
            else:
                self._made[node] = self.graph.node(node.op, [self.of(arg) for arg in node.args], node.about, node.size)
        return self._made[node]

    def value(self, node: Node) -> Node:
        """A value of the step forward, read where it is at hand."""
        if node in self.at_hand:
            return self.graph.node("value", about=node, size=node.size)
        return self.graph.node(node.op, [self.value(arg) for arg in node.args], node.about, node.size)
