"""What a program is made of: arrays by name, phases, and the groups of a loop's inputs.

An array is what an engine addresses: of all rows and steps ("step"), of the step before or after in the same order
("neighbour"), of the rows of a batch ("state", "row", "sequence"), of units ("unit", "total", "number") or a "matrix".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from fastrnn.cell.graph import Node
from fastrnn.compiler.normal import Loop
from fastrnn.compiler.schedule import Address, Part


@dataclass(frozen=True)
class Array:
    """What a program addresses.

    Attributes:
        kind: "step", "neighbour", "state", "row", "sequence", "unit", "number", "total" or "matrix".
        size: the name of the units of a block; None for one number a row, or one in all.
        blocks: how many blocks stand side by side.
        columns: of a matrix, the name of the size of its columns; and
        heads: into how many parts they are divided.
        offset: of a neighbour, the step beside this one, in the program's order: -1 or 1.
    """

    kind: str
    size: str | None
    blocks: int = 1
    columns: str | None = None
    heads: int = 1
    offset: int = 0


@dataclass
class Program:
    """Phases over arrays."""

    arrays: dict[str, Array] = field(default_factory=dict)
    phases: list[list[Part]] = field(default_factory=list)


class Group(NamedTuple):
    """Inputs of a loop that are gates of one product, in one array, or a single node (gate None of itself)."""

    array: str
    nodes: dict[int, Node]
    blocks: int


def groups_of(loop: Loop) -> tuple[Group, ...]:
    found: dict[object, Group] = {}
    for index, (node, kind) in enumerate(loop.inputs.items()):
        if node.op == "product":
            matrix, gate = node.about
            blocks = loop.traced.parts.matrices[matrix].blocks
            key = kind, matrix, node.args[0]
            group = found.setdefault(key, Group(f"{kind}:{len(found)}:{matrix}", {}, blocks))
            group.nodes[number_of(loop, matrix, gate)] = node
        else:
            name = (
                node.about
                if isinstance(node.about, str)
                else "_".join(filter(None, node.about))
                if node.op == "parameter"
                else node.op
            )
            found[index] = Group(f"{kind}:{len(found)}:{name}", {0: node}, 1)
    return tuple(found.values())


def inputs_of(program: Program, loop: Loop, groups: tuple[Group, ...]) -> dict[Node, Address]:
    """The arrays of a loop's inputs, and where each lies."""
    leaves: dict[Node, Address] = {}
    for group in groups:
        node = next(iter(group.nodes.values()))
        program.arrays[group.array] = Array(loop.inputs[node], node.size, group.blocks)
        leaves |= {node: Address(group.array, block) for block, node in group.nodes.items()}
    return leaves


def matrices_of(program: Program, loop: Loop, names: list[str], biases: bool) -> None:
    parts, columns = loop.traced.parts, loop.traced.columns
    for name in dict.fromkeys(names):
        declared, kind = parts.matrices[name], parts.kinds[name]
        program.arrays[f"matrix:{name}"] = Array("matrix", declared.size, declared.blocks, columns[name], kind.heads)
        if biases and declared.bias:
            program.arrays[f"bias:{name}"] = Array("unit", declared.size, declared.blocks)


def is_product_of_x(group: Group) -> bool:
    """Whether a group is a product of x itself."""
    return all(node.op == "product" and node.args[0].op == "x" for node in group.nodes.values())


def is_learned(group: Group) -> bool:
    """Whether a group is a learned vector, a gate of one, or a number."""
    return all(node.op == "parameter" for node in group.nodes.values())


def history_of(loop: Loop, state: str) -> str:
    """The array of a state's values behind every step: of what is emitted, where it is that, else its own."""
    node = loop.next[state]
    return f"out:{loop.emitted.index(node)}" if node in loop.emitted else f"history:{state}"


def by_size(nodes: tuple[Node, ...] | list[Node]) -> dict[str, tuple[Node, ...]]:
    """Nodes of each size."""
    found: dict[str, tuple[Node, ...]] = {}
    for node in nodes:
        assert node.size is not None
        found[node.size] = (*found.get(node.size, ()), node)
    return found


def number_of(loop: Loop, matrix: str, gate: str | None) -> int:
    """The place of a gate among those of its matrix."""
    return loop.traced.parts.matrices[matrix].gates.index(gate) if gate else 0
