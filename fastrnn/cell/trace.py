"""Runs a cell's step on symbols: the graph of its equations, checked."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from fastrnn.cell.declare import Cell, Input, Matrix, Parts, Vector, written
from fastrnn.cell.functions import CellError, Gates, Value, described, user_line
from fastrnn.cell.graph import COMPARISONS, Graph, Node, ancestors
from fastrnn.cell.kinds import Diagonal


class Traced(NamedTuple):
    """The graph of a cell.

    Attributes:
        cell, parts: what was traced.
        graph: all nodes.
        next: each state's node after the step, in the order of the states.
        output: the node that the layer above sees.
        columns: for each matrix that a step uses, the name of the size of its operand.
    """

    cell: Cell
    parts: Parts
    graph: Graph
    next: dict[str, Node]
    output: Node
    columns: dict[str, str]


class Binding:
    """What a step sees as ``self``: the declarations as ``bound`` has them, else the cell's own attributes, methods
    with this for their ``self``."""

    def __init__(self, cell: Cell, bound: dict[str, Any]) -> None:
        self.__dict__.update(bound)
        self.__dict__["cell"] = cell

    @property
    def __class__(self) -> Any:  # what super() in a step asks
        return type(self._defined())

    def __getattr__(self, name: str) -> Any:
        return attribute(self, self._defined(), name)

    def _defined(self) -> Any:
        return self.__dict__["cell"]._defined()


def attribute(binding: Any, cell: Cell, name: str) -> Any:
    """An attribute of a cell as a step sees it: a constant as it is, a method with the step's ``self``."""
    found = getattr(cell, name)
    return found.__func__.__get__(binding) if getattr(found, "__self__", None) is cell else found


@functools.lru_cache(maxsize=256)
def trace(cell: Cell) -> Traced:
    """The graph of a cell's step.

    Raises:
        CellError: what is not of the language, with the user's line.
    """
    parts, graph, columns = cell.parts(), Graph(), {}

    def parameter(name: str, gate: str | None, size: str | None) -> Value:
        return Value(graph, graph.node("parameter", about=(name, gate), size=size))

    def of_gates(declared: Any, make: Any) -> Any:
        if not declared.gates:
            return make(None)
        return Gates(declared.name, {gate: make(gate) for gate in declared.gates})

    def multiply(matrix: Matrix, v: Any) -> Any:
        line = user_line()
        if not isinstance(v, Value):
            raise CellError(f"{line}: {matrix.name} is applied to {described(v)}, not to a value")
        size = v.node.size
        if size is None:
            raise CellError(f"{line}: {matrix.name} is applied to a single number")
        if columns.setdefault(matrix.name, size) != size:
            raise CellError(
                f"{line}: {matrix.name} is applied to values of {columns[matrix.name]} and {size}, which are two sizes"
            )
        if isinstance(matrix, Input) and any(node.op == "state" for node in ancestors([v.node])):
            raise CellError(f"{line}: {matrix.name} is an Input and applied to a value of a state; make it a Recurrent")
        if v.node.op in COMPARISONS:
            raise CellError(f"{line}: {matrix.name} is applied to a comparison")
        ending, kind = parts.names[matrix.name], parts.kinds[matrix.name]
        if kind.square and size != matrix.size:
            raise CellError(f"{line}: {matrix.name} is {kind}: of {matrix.size}, and applied to a value of {size}")

        def gate_of(gate: str | None) -> Value:
            if isinstance(kind, Diagonal):
                product = parameter(f"weight_{ending}", gate, size) * v
                return product + parameter(f"bias_{ending}", gate, size) if matrix.bias else product
            return Value(graph, graph.node("product", [v.node], (matrix.name, gate), matrix.size, line))

        return of_gates(matrix, gate_of)

    def vector(declared: Vector) -> Any:
        return of_gates(declared, lambda gate: parameter(declared.name, gate, declared.size))

    bound: dict[str, Any] = {name: functools.partial(multiply, each) for name, each in parts.matrices.items()}
    bound |= {name: vector(each) for name, each in parts.vectors.items()}
    bound |= {name: parameter(name, None, None) for name in parts.scalars}
    bound |= {name: tuple(bound[own] for own in owns) for name, owns in parts.copies.items() if owns[0] in bound}

    def leaf(op: str, name: str, size: str | None) -> Value:
        return Value(graph, graph.node(op, about=name, size=size))

    states = [leaf("state", name, size) for name, size in parts.states.items()]
    extras = {
        name: leaf("step_input" if type(each).__name__ == "StepInput" else "sequence_input", name, each.size)
        for name, each in parts.extras.items()
    }
    found = type(cell).step(Binding(cell, bound), leaf("x", parts.x, parts.x_size), *states, **extras)  # type: ignore[arg-type]
    return _checked(cell, parts, graph, found, columns)


def _checked(cell: Cell, parts: Parts, graph: Graph, found: Any, columns: dict[str, str]) -> Traced:
    where, found = written(type(cell)), parts.one_by_one(found)
    wanted = dict.fromkeys((*parts.states, parts.output))
    if not isinstance(found, dict) or set(found) != set(wanted):
        got = ", ".join(map(str, found)) if isinstance(found, dict) else described(found)
        raise CellError(f"{where}: expected a dict of {', '.join(wanted)}, got {got}: every state has a next value")
    nodes = {}
    for key, value in found.items():
        size = parts.states.get(key)
        if not isinstance(value, Value):
            raise CellError(f"{where}: {key} is {described(value)}, not a value of units")
        node = value.node
        if node.size is None or node.op in COMPARISONS:
            kind = "comparison" if node.op in COMPARISONS else "single number"
            raise CellError(f"{where}: {key} is a {kind}, not a value of units")
        if size and node.size != size:
            raise CellError(f"{where}: state {key} has {size} and its next value {node.size}, which are two sizes")
        nodes[key] = node
    output = nodes[parts.output]
    return Traced(cell, parts, graph, {state: nodes[state] for state in parts.states}, output, columns)
