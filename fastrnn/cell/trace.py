"""Runs a cell's step on symbols: the graph of its equations, checked."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from fastrnn.cell.declare import Cell, Input, Matrix, Parts, Vector
from fastrnn.cell.functions import CellError, Value, user_line
from fastrnn.cell.graph import Graph, Node, ancestors
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


class Gates:
    """The gates of one product, or of a vector, by name."""

    def __init__(self, what: str, gates: dict[str, Any]) -> None:
        self.__dict__["_what"] = what
        self.__dict__.update(gates)

    def __getattr__(self, name: str) -> Any:
        known = [gate for gate in self.__dict__ if gate != "_what"]
        raise CellError(f"{user_line()}: {self._what} has no gate {name!r}, only {', '.join(known)}")


class Binding:
    """What a step sees as ``self``: the declarations as ``bound`` has them, else the cell's own attributes."""

    def __init__(self, cell: Cell, bound: dict[str, Any]) -> None:
        self.__dict__.update(bound)
        self.__dict__["cell"] = cell

    def __getattr__(self, name: str) -> Any:
        cell = self.__dict__["cell"]
        return getattr(getattr(cell, "inner", cell), name)


@functools.lru_cache(maxsize=256)
def trace(cell: Cell) -> Traced:
    """The graph of a cell's step.

    Raises:
        CellError: what is not of the language, with the user's line.
    """
    parts, graph, columns = cell.parts(), Graph(), {}
    x_size = "hidden_size" if cell.square else "input_size"

    def parameter(name: str, gate: str | None, size: str | None) -> Value:
        return Value(graph, graph.node("parameter", about=(name, gate), size=size))

    def of_gates(declared: Any, make: Any) -> Any:
        if not declared.gates:
            return make(None)
        return Gates(declared.name, {gate: make(gate) for gate in declared.gates})

    def multiply(matrix: Matrix, v: Any) -> Any:
        line = user_line()
        if not isinstance(v, Value):
            raise CellError(f"{line}: {matrix.name} is applied to a {type(v).__name__}, not to a value")
        size = v.node.size
        if size is None:
            raise CellError(f"{line}: {matrix.name} is applied to a single number")
        if columns.setdefault(matrix.name, size) != size:
            raise CellError(
                f"{line}: {matrix.name} is applied to values of {columns[matrix.name]} and {size}, which are two sizes"
            )
        if isinstance(matrix, Input) and any(node.op == "state" for node in ancestors([v.node])):
            raise CellError(f"{line}: {matrix.name} is an Input and applied to a value of a state; make it a Recurrent")
        if any(node.op in ("gt", "ge") for node in (v.node,)):
            raise CellError(f"{line}: {matrix.name} is applied to a comparison")
        ending = parts.names[matrix.name]

        def gate_of(gate: str | None) -> Value:
            if isinstance(parts.kinds[matrix.name], Diagonal):
                if size != matrix.size:
                    raise CellError(f"{line}: {matrix.name} is diagonal, with {matrix.size} on a value of {size}")
                product = parameter(f"weight_{ending}", gate, size) * v
                return product + parameter(f"bias_{ending}", gate, size) if matrix.bias else product
            return Value(graph, graph.node("product", [v.node], (matrix.name, gate), matrix.size, line))

        return of_gates(matrix, gate_of)

    def vector(declared: Vector) -> Any:
        return of_gates(declared, lambda gate: parameter(declared.name, gate, declared.size))

    bound: dict[str, Any] = {name: functools.partial(multiply, each) for name, each in parts.matrices.items()}
    bound |= {name: vector(each) for name, each in parts.vectors.items()}
    bound |= {name: parameter(name, None, None) for name in parts.scalars}

    def leaf(op: str, name: str, size: str | None) -> Value:
        return Value(graph, graph.node(op, about=name, size=size))

    states = [leaf("state", name, size) for name, size in parts.states.items()]
    extras = {
        name: leaf("step_input" if type(each).__name__ == "StepInput" else "sequence_input", name, each.size)
        for name, each in parts.extras.items()
    }
    found = type(cell).step(Binding(cell, bound), leaf("x", parts.x, x_size), *states, **extras)  # type: ignore[arg-type]
    return _checked(cell, parts, graph, found, columns)


def _checked(cell: Cell, parts: Parts, graph: Graph, found: Any, columns: dict[str, str]) -> Traced:
    name = type(cell).__name__
    wanted = dict.fromkeys((*parts.states, parts.output))
    if not isinstance(found, dict) or set(found) != set(wanted):
        got = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise CellError(f"{name}.step: expected a dict of {', '.join(wanted)}, got {got}: every state has a next value")
    nodes = {}
    for key, value in found.items():
        size = parts.states.get(key)
        if not isinstance(value, Value):
            raise CellError(f"{name}.step: {key} is a {type(value).__name__}, not a value of units")
        node = value.node
        if node.size is None or node.op in ("gt", "ge"):
            kind = "comparison" if node.size else "single number"
            raise CellError(f"{name}.step: {key} is a {kind}, not a value of units")
        if size and node.size != size:
            raise CellError(f"{name}.step: state {key} has {size} and its next value {node.size}, which are two sizes")
        nodes[key] = node
    output = nodes[parts.output]
    return Traced(cell, parts, graph, {state: nodes[state] for state in parts.states}, output, columns)
