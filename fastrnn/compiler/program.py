"""A cell's programs, forward and backward: the phases that read and write the arrays of :mod:`.arrays`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastrnn.cell.declare import Cell
from fastrnn.cell.graph import Node, ancestors
from fastrnn.cell.naming import cell_of, key_of
from fastrnn.cell.trace import Traced, trace
from fastrnn.compiler.arrays import (
    Array,
    Group,
    Program,
    by_size,
    groups_of,
    history_of,
    inputs_of,
    is_product_of_x,
    matrices_of,
    number_of,
)
from fastrnn.compiler.derivative import Gradients, differentiate
from fastrnn.compiler.normal import Loop, normal_form
from fastrnn.compiler.saved import Rebuilt, Saving, choose_saved
from fastrnn.compiler.schedule import Address, Part, Result, Term, schedule


@dataclass(frozen=True, eq=False)
class Compiled:
    """All that is derived from a cell.

    Attributes:
        key: the cell as text, see :mod:`fastrnn.cell.naming`; and how it was compiled, see :func:`compiled_of`.
        loop, gradients, saving: of :mod:`.normal`, :mod:`.derivative` and :mod:`.saved`.
        groups: the arrays of the loop's inputs.
        forward: the program without derivative.
        ahead: the same with the products of x in it, for engines that make them for some steps at a time.
        keeping: the one that keeps what backward reads.
        keeping_ahead: the same with the products of x in it; it stores those that backward reads.
        backward: the derivative's.
        input_gradients: where backward writes the gradients of each group's inputs, by the number of the group and the
            block; several are to be summed, and those of one number a row or in all are to be summed over units, too.
        product_gradients: where it writes those of the gates of each product, by (matrix, operand) and the gate's
            number.
        memo: what others derive of all this and keep; made before a call, since Dynamo looks into no cache.
    """

    key: str
    loop: Loop
    gradients: Gradients
    saving: Saving
    groups: tuple[Group, ...]
    forward: Program
    ahead: Program
    keeping: Program
    keeping_ahead: Program
    backward: Program
    input_gradients: dict[tuple[int, int], list[Address]]
    product_gradients: dict[tuple[str, Node], dict[int, Address]]
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def traced(self) -> Traced:
        return self.loop.traced


EVERY_STATE = "every state of "


def compiled_of(key: str) -> Compiled:
    """The cell, compiled as it was, that a key names."""
    return compile_cell(cell_of(key.removeprefix(EVERY_STATE)), key.startswith(EVERY_STATE))


@functools.lru_cache(maxsize=256)
def compile_cell(cell: Cell, every_state: bool = False) -> Compiled:
    """The programs of a cell; with ``every_state`` its loop emits all states of every step.

    Raises:
        CellError: what the language does not know.
    """
    loop = normal_form(trace(cell), every_state)
    gradients = differentiate(loop)
    saving = choose_saved(loop, gradients)
    groups = groups_of(loop)
    forward, keeping = _forward(loop, groups, None), _forward(loop, groups, saving)
    of_x = tuple(group for group in groups if is_product_of_x(group))
    ahead = _forward(loop, groups, None, of_x)
    backward, of_inputs, of_products = _backward(loop, gradients, saving, groups)
    keeping_ahead = _forward(loop, groups, saving, of_x, backward)
    return Compiled(
        EVERY_STATE * every_state + key_of(cell),
        loop,
        gradients,
        saving,
        groups,
        forward,
        ahead,
        keeping,
        keeping_ahead,
        backward,
        of_inputs,
        of_products,
    )


def _forward(
    loop: Loop, groups: tuple[Group, ...], saving: Saving | None, within: tuple[Group, ...] = (),
    backward: Program | None = None,
) -> Program:  # fmt: skip
    """The program; with the products of the groups ``within`` made by it, from x, and stored where ``backward`` reads
    them."""
    program = Program()
    leaves = inputs_of(program, loop, tuple(group for group in groups if group not in within))
    inner = {node: Address("x") for group in within for node in group.nodes.values()}
    if inner:
        program.arrays["x"] = Array("step", next(iter(inner)).args[0].size)
    roots: list[tuple[Node, Address]] = []
    for name, leaf in loop.states.items():
        program.arrays[f"state:{name}"] = Array("state", leaf.size)
        leaves[leaf] = Address(f"state:{name}")
        roots.append((loop.next[name], Address(f"state:{name}")))
    for index, node in enumerate(loop.emitted):
        program.arrays[f"out:{index}"] = Array("step", node.size)
        roots.append((node, Address(f"out:{index}")))
    if saving:
        for name in saving.histories:
            if loop.next[name] not in loop.emitted:
                program.arrays[f"history:{name}"] = Array("step", loop.states[name].size)
                roots.append((loop.next[name], Address(f"history:{name}")))
        for name, nodes in by_size(saving.values).items():
            program.arrays[f"saved:{name}"] = Array("step", name, len(nodes))
            roots += [(node, Address(f"saved:{name}", block)) for block, node in enumerate(nodes)]
    for group in within if backward else ():
        assert backward is not None
        if group.array in backward.arrays:
            program.arrays[group.array] = backward.arrays[group.array]
            read = {address for phase in backward.phases for part in phase for address in part.loads.values()}
            own = [(node, Address(group.array, block)) for block, node in group.nodes.items()]
            roots += [(node, address) for node, address in own if address in read]
    products = [node for node in (*loop.nodes, *inner) if node.op == "product"]
    matrices_of(program, loop, [node.about[0] for node in products], biases=True)

    def result(node: Node, address: Callable[[Node], Address]) -> Result:
        if node.op == "mean":
            return Result(node, mean=address(node.args[0]), heads=node.about)
        matrix, gate = node.about
        declared, kind, block = (
            loop.traced.parts.matrices[matrix],
            loop.traced.parts.kinds[matrix],
            number_of(loop, matrix, gate),
        )
        bias = Address(f"bias:{matrix}", block) if declared.bias else None
        return Result(
            node, [Term(address(node.args[0]), 1, f"matrix:{matrix}", block, False)], bias=bias, heads=kind.heads
        )

    # A state's array gives the value before the step, whatever was stored.
    ahead = {node: result(node, lambda _: Address("x")) for node in inner}
    readable = lambda address: not str(address.array).startswith("state:")  # noqa: E731
    found = schedule(roots, leaves | inner, readable, result, ahead)
    program.phases = found.phases
    program.arrays |= {name: Array("row", size) for name, size in found.rows.items()}
    return program


def _streams(
    loop: Loop, gradients: Gradients, saving: Saving, groups: tuple[Group, ...]
) -> tuple[dict[str, tuple[Node, ...]], Rebuilt]:
    """The gradients that are wanted of every step, in an order in which those of one product stand side by side; and
    the graph that they belong to."""
    at_hand = {*loop.inputs, *loop.emitted, *saving.values}
    at_hand |= {loop.next[name] for name in saving.histories} | {loop.states[name] for name in saving.histories}
    rebuilt = Rebuilt(at_hand)
    wanted: list[Node] = []
    for group in groups:
        for _, node in sorted(group.nodes.items()):
            if loop.inputs[node] == "step":
                wanted += [rebuilt.of(g) for g in gradients.inputs.get(node, ())]
    for (matrix, _), gates in gradients.products.items():
        declared = loop.traced.parts.matrices[matrix].gates or (None,)
        wanted += [rebuilt.of(gates[gate]) for gate in declared if gate in gates]
    return by_size(list(dict.fromkeys(wanted))), rebuilt


def _backward(
    loop: Loop, gradients: Gradients, saving: Saving, groups: tuple[Group, ...]
) -> tuple[Program, dict[tuple[int, int], list[Address]], dict[tuple[str, Node], dict[int, Address]]]:
    program = Program()
    streams, rebuilt = _streams(loop, gradients, saving, groups)
    addresses = inputs_of(program, loop, groups)
    roots: list[tuple[Node, Address]] = []
    place: dict[Node, Address] = {}
    for size, nodes in streams.items():
        program.arrays[f"stream:{size}"] = Array("step", size, len(nodes))
        for block, node in enumerate(nodes):
            place[node] = Address(f"stream:{size}", block)
            roots.append((node, place[node]))
    for index, node in enumerate(loop.emitted):
        program.arrays[f"grad:{index}"] = Array("step", node.size)
        program.arrays[f"out:{index}"] = Array("step", node.size)
        addresses[node] = Address(f"out:{index}")
    for name in saving.histories:
        node, size, history = loop.next[name], loop.states[name].size, history_of(loop, name)
        program.arrays.setdefault(history, Array("step", size))
        addresses[node] = Address(history)
        program.arrays[f"before:{name}"] = Array("neighbour", size, offset=1)
        addresses[loop.states[name]] = Address(f"before:{name}")
    for size, nodes in by_size(saving.values).items():
        program.arrays[f"saved:{size}"] = Array("step", size, len(nodes))
        addresses |= {
            node: Address(f"saved:{size}", block) for block, node in enumerate(nodes) if node not in addresses
        }
    for name, g in gradients.states.items():
        program.arrays[f"carry:{name}"] = Array("state", loop.states[name].size)
        # Of a state that no step reads, only the last value has a gradient.
        zero = rebuilt.graph.node("const", about=0.0, size=loop.states[name].size)
        roots.append((zero if g is None else rebuilt.of(g), Address(f"carry:{name}")))
    of_inputs: dict[tuple[int, int], list[Address]] = {}
    for number, group in enumerate(groups):
        for block, node in sorted(group.nodes.items()):
            found = gradients.inputs.get(node, [])
            if loop.inputs[node] == "step":
                of_inputs[number, block] = [place[rebuilt.of(g)] for g in found]
                continue
            kind = "sequence" if loop.inputs[node] == "sequence" else "total"
            of_inputs[number, block] = [Address(f"sum:{number}:{block}:{g.size}") for g in found]
            for g, address in zip(found, of_inputs[number, block], strict=True):
                program.arrays[str(address.array)] = Array(kind, g.size)
                roots.append((rebuilt.of(g), address))
    of_products = {
        (matrix, operand): {number_of(loop, matrix, gate): place[rebuilt.of(g)] for gate, g in gates.items()}
        for (matrix, operand), gates in gradients.products.items()
    }
    matrices_of(program, loop, [matrix for matrix, _ in gradients.products], biases=False)

    def result(node: Node, address: Callable[[Node], Address]) -> Result:
        if node.op == "mean":
            return Result(node, mean=address(node.args[0]), heads=node.about)
        matrix, gates = node.about
        heads = loop.traced.parts.kinds[matrix].heads
        terms: list[Term] = []
        for gate, arg in zip(gates, node.args, strict=True):
            operand, row = address(arg), number_of(loop, matrix, gate)
            last = terms[-1] if terms else None
            joins = (
                last
                and heads == 1
                and (operand.array, operand.block, row)
                == (last.operand.array, last.operand.block + last.blocks, last.row + last.blocks)
            )
            if last and joins:
                terms[-1] = last._replace(blocks=last.blocks + 1)
            else:
                terms.append(Term(operand, 1, f"matrix:{matrix}", row, True))
        return Result(node, terms, heads=heads)

    leaves: dict[Node, Address] = {}
    for node in ancestors([node for node, _ in roots]):
        if node.op == "value":
            leaves[node] = addresses[node.about]
        elif node.op in ("carry", "grad"):
            leaves[node] = Address(f"{node.op}:{node.about}")
    found = schedule(roots, leaves, lambda address: str(address.array).startswith("stream:"), result)
    program.phases = found.phases
    program.arrays |= {name: Array("row", size) for name, size in found.rows.items()}
    used = {address.array for phase in program.phases for part in phase for address in _addresses(part)}
    program.arrays = {name: array for name, array in program.arrays.items() if name in used}
    return program, of_inputs, of_products


def _addresses(part: Part) -> list[Address]:
    found = [*part.loads.values(), *(address for _, address in part.stores)]
    for result in part.results:
        found += [address for address in (result.mean, result.bias) if address]
        for term in result.terms:
            found += [term.operand, Address(term.matrix)]
    return found
