"""From a graph to phases: which products a step has to wait for, and what is computed behind each.

A phase is *product or mean -> pointwise*: its results need whole rows of what earlier phases wrote, so threads that
share the units of a row meet before it.  What stands behind no product runs in the first phase that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastrnn.cell.graph import COLLECTIVE, COMPARISONS, Node, ancestors


class Address(NamedTuple):
    """Block ``block``, as many columns as its size has units, of an array; array None: result ``block`` of the part."""

    array: str | None
    block: int = 0


class Term(NamedTuple):
    """``blocks`` blocks of the operand from ``operand`` on, times a matrix whose rows begin at block ``row``: the rows
    are the result's units, or, ``transposed``, the operand's."""

    operand: Address
    blocks: int
    matrix: str
    row: int
    transposed: bool


@dataclass
class Result:
    """A sum of products, with a bias or none; or, without terms, the mean of ``mean`` over each of its heads."""

    node: Node
    terms: list[Term] = field(default_factory=list)
    mean: Address | None = None
    bias: Address | None = None
    heads: int = 1


@dataclass
class Part:
    """What a phase computes of values of one size.

    Attributes:
        size: the name of their number of units.
        results: the products and means before the pointwise function.
        loads: what the function reads, and where it lies.
        body: what it computes, in order.
        stores: what it writes, and where; a sum over rows or steps is added to what is there.
    """

    size: str
    results: list[Result] = field(default_factory=list)
    loads: dict[Node, Address] = field(default_factory=dict)
    body: list[Node] = field(default_factory=list)
    stores: list[tuple[Node, Address]] = field(default_factory=list)


class Schedule(NamedTuple):
    """The phases of a step, each of parts by size; ``rows``: the arrays that hand values on to a later phase."""

    phases: list[list[Part]]
    rows: dict[str, str]


def schedule(
    roots: Sequence[tuple[Node, Address]],
    leaves: Mapping[Node, Address],
    readable: Callable[[Address], bool],
    result: Callable[[Node, Callable[[Node], Address]], Result],
    ahead: Mapping[Node, Result] | None = None,
) -> Schedule:
    """The phases that compute ``roots``.

    Args:
        roots: what a step stores, and where.
        leaves: what it reads, and where.
        readable: whether what was stored at an address can be read again in the same step.
        result: the product or mean of a collective node, given the addresses of what it reads.
        ahead: products that wait for nothing of the step, which are among the leaves, too; each is a result of every
            part that reads it.
    """
    ahead = ahead or {}
    nodes = [node for node in ancestors([node for node, _ in roots], leaves) if node.op != "const"]
    level: dict[Node, int] = {}
    for node in nodes:
        read = () if node in leaves else [arg for arg in node.args if arg.op != "const"]
        level[node] = max((level[arg] for arg in read), default=0) + (node.op in COLLECTIVE and node not in leaves)
    depth = max(level.values(), default=0)
    phase = _phases(nodes, roots, leaves, level, depth)

    stored: dict[Node, Address] = {}
    for node, address in roots:
        if readable(address):
            stored.setdefault(node, address)
    rows: dict[str, str] = {}
    parts: dict[tuple[int, str], Part] = {}

    def part(number: int, size: str) -> Part:
        return parts.setdefault((number, size), Part(size))

    def address_of(node: Node) -> Address:
        """Where later phases, and products, read a node."""
        if node in leaves:
            return leaves[node]
        if node not in stored:
            assert node.size is not None
            name = f"row:{len(rows)}"
            rows[name] = node.size
            stored[node] = Address(name)
            part(phase[node], node.size).stores.append((node, stored[node]))
        return stored[node]

    def compute(node: Node, where: Part, number: int) -> None:
        """Makes a node known to a part of a phase."""
        if node.op == "const" or node in where.loads or node in where.body:
            return
        if node in ahead:
            where.results.append(ahead[node])
            where.loads[node] = Address(None, len(where.results) - 1)
        elif node in leaves:
            where.loads[node] = leaves[node]
        elif node.size is None or node.op in COMPARISONS or phase[node] == number and node.op not in COLLECTIVE:
            for arg in node.args:
                compute(arg, where, number)
            where.body.append(node)
        elif phase[node] == number:
            where.loads[node] = Address(None, next(i for i, own in enumerate(where.results) if own.node is node))
        else:
            where.loads[node] = address_of(node)

    for node in nodes:
        if node.op in COLLECTIVE and node not in leaves:
            assert node.size is not None
            part(phase[node], node.size).results.append(result(node, address_of))
    for node, address in roots:
        size = node.size
        assert size is not None
        if node not in ahead:
            part(phase.get(node, depth), size).stores.append((node, address))
    for number in reversed(range(depth + 1)):  # a later phase adds to what an earlier one stores
        for size in dict.fromkeys(size for at, size in parts if at == number):
            own = parts[number, size]
            for node, _ in own.stores:
                compute(node, own, number)
            own.body.sort(key=lambda node: node.index)
    for node, address in roots:
        if node in ahead:  # where it is made anyway, if it is
            assert node.size is not None
            where = min((at for at, own in parts.items() if node in own.loads), default=(depth, node.size))
            part(*where).stores.append((node, address))
            compute(node, part(*where), where[0])
    return Schedule(
        [found for n in range(depth + 1) if (found := [p for (at, _), p in parts.items() if at == n])], rows
    )


def _phases(
    nodes: Sequence[Node],
    roots: Sequence[tuple[Node, Address]],
    leaves: Mapping[Node, Address],
    level: Mapping[Node, int],
    depth: int,
) -> dict[Node, int]:
    """The phase that computes each node: that of the last product it stands behind; what stands behind none, the first
    that needs it."""
    latest: dict[Node, int] = {}

    def needs(node: Node, number: int) -> None:
        latest[node] = min(number, latest.get(node, number))

    early = any(
        level[node] == 1 and any(arg not in leaves for arg in node.args)
        for node in nodes
        if node.op in COLLECTIVE and node not in leaves
    )
    first = 0 if early else min(1, depth)
    for node, _ in roots:
        needs(node, max(first, level.get(node, 0)))
    found: dict[Node, int] = {}
    for node in reversed(nodes):
        if node in leaves:
            continue
        found[node] = level[node] if level[node] else latest[node]
        for arg in node.args:
            if arg.op != "const":
                needs(arg, found[node] - (node.op in COLLECTIVE))
    return found
