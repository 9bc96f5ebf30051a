"""Normal form: what of a step runs before the time loop, within it and behind it.

*Hoist*: products of x alone are one product over all steps, before the loop.  *Sink*: products that feed no state are
one behind it.  What a step computes of parameters alone is computed once.  The rest is the loop.
"""

from __future__ import annotations

from typing import NamedTuple

from fastrnn.cell.graph import COLLECTIVE, Node, ancestors, marked
from fastrnn.cell.trace import Traced


class Loop(NamedTuple):
    """The part of a cell's graph that runs once a step.

    Attributes:
        traced: the cell.
        inputs: what comes from outside, each node with where it lies: "step", "sequence", "unit" or "number".
        states: the leaf of each state, by name; and
        next: its value after the step.
        emitted: what the outside reads of every step: the output itself, or what the sunk products read.
        nodes: all nodes of the loop in order, without the inputs.
    """

    traced: Traced
    inputs: dict[Node, str]
    states: dict[str, Node]
    next: dict[str, Node]
    emitted: tuple[Node, ...]
    nodes: tuple[Node, ...]

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of the matrices of its products."""
        return tuple(dict.fromkeys(node.about[0] for node in self.nodes if node.op == "product"))

    @property
    def depth(self) -> int:
        """The number of products and means of a step that wait for one another."""
        level: dict[Node, int] = dict.fromkeys(self.inputs, 0)
        for node in self.nodes:
            level[node] = max((level[arg] for arg in node.args), default=0) + (node.op in COLLECTIVE)
        return max(level.values(), default=0)


def place(node: Node, known: dict[Node, str]) -> str:
    """Where a node's values lie: one for all rows ("unit", "number"), for each row ("sequence"), or row and step."""
    if node.op in ("x", "step_input"):
        return "step"
    if node.op == "sequence_input":
        return "sequence"
    if node.op == "state":
        return "loop"
    order = ("unit", "sequence", "step", "loop")
    found = max((known[arg] for arg in node.args), key=order.index, default="unit")
    return found


def normal_form(traced: Traced, every_state: bool = False) -> Loop:
    """The loop of a cell; with ``every_state`` it emits all states as well."""
    everything = ancestors([*traced.next.values(), traced.output])
    lies: dict[Node, str] = {}
    for node in everything:
        lies[node] = place(node, lies)
    feeding = set(ancestors(traced.next.values()))
    only_output = [node for node in everything if node not in feeding]
    sunk = marked(only_output, lambda node: node.op == "product" and lies[node] == "loop")
    if traced.output in sunk:
        read = [arg for node in everything if node in sunk for arg in node.args]
        emitted = tuple(dict.fromkeys(arg for arg in read if arg not in sunk and lies[arg] == "loop"))
    else:
        emitted = (traced.output,)
    if every_state:
        emitted = tuple(dict.fromkeys((*emitted, *traced.next.values())))

    inputs: dict[Node, str] = {}
    nodes: set[Node] = set()
    waiting = [*traced.next.values(), *emitted]
    while waiting:
        node = waiting.pop()
        if node in nodes or node in inputs:
            continue
        if node.op != "const" and lies[node] == "unit":
            inputs[node] = "unit" if node.size else "number"
        elif lies[node] in ("step", "sequence") and (not node.args or node.op in COLLECTIVE):
            inputs[node] = lies[node]
        else:
            nodes.add(node)
            waiting.extend(node.args)
    states = {node.about: node for node in traced.graph.nodes if node.op == "state"}
    return Loop(
        traced,
        dict(sorted(inputs.items(), key=lambda item: item[0].index)),
        {name: states[name] for name in traced.parts.states},
        traced.next,
        emitted,
        tuple(sorted(nodes | set(states.values()), key=lambda node: node.index)),
    )
