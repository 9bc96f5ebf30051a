"""What became of a cell: its phases, what they read and write, what is saved, and what a step costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fastrnn.cell.graph import Node, ancestors
from fastrnn.compiler.arrays import Program
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Part

# Operations that a pointwise function of a tanh, say, is counted as: those of its polynomial and its division.
WEIGHTS: dict[str, int] = dict(exp=20, log=20, tanh=20, sigmoid=20, softplus=20)


def explain(compiled: Compiled, sizes: Mapping[str, int]) -> str:
    """The account of a cell, with the numbers of units that ``sizes`` gives to names."""
    loop, traced = compiled.loop, compiled.loop.traced
    states = ", ".join(f"{name} ({leaf.size})" for name, leaf in loop.states.items())
    lines = [f"{traced.cell!r}: states {states}; output {traced.parts.output}; depth {loop.depth}"]
    lines.append(
        "before the loop: " + (", ".join(group.array.partition(":")[2] for group in compiled.groups) or "nothing")
    )
    if traced.output not in loop.emitted:
        lines.append("behind the loop: the output, of what the loop emits")
    names = named(compiled.saving.values, {node: f"{name}'" for name, node in loop.next.items()})
    kept = [*compiled.saving.histories, *(names[node] for node in compiled.saving.values)]
    lines.append(f"saved of each step: {', '.join(kept) or 'nothing'}{', with' if names else ''}")
    for node, name in names.items():
        lines.append(f"    {name} = {equation(node, {own: other for own, other in names.items() if own is not node})}")
    for title, program in (("forward", compiled.keeping), ("backward", compiled.backward)):
        flops, read, written = cost(program, sizes)
        numbers = ", ".join(f"{name} {size}" for name, size in sizes.items())
        lines.append(f"{title}: {len(program.phases)} phases; a row and step, with {numbers}: {flops:,} flops,")
        lines.append(
            f"    {read:,} numbers read, {written:,} written, beside {weights(program, sizes):,} weights a step"
        )
        for number, phase in enumerate(program.phases):
            for part in phase:
                lines += [f"    phase {number}, {part.size}: {line}" for line in _part(part)]
    return "\n".join(lines)


def _part(part: Part) -> list[str]:
    found = []
    for result in part.results:
        if result.mean:
            found.append(f"mean of {result.mean.array}, {result.heads} heads")
        for term in result.terms:
            matrix, kind = term.matrix.partition(":")[2], "^T" if term.transposed else ""
            rows = f"{term.row}" if term.blocks == 1 else f"{term.row} to {term.row + term.blocks - 1}"
            found.append(f"product of {matrix}{kind}, gate {rows}, with {term.operand.array}")
    read = dict.fromkeys(str(address.array) for address in part.loads.values() if address.array)
    written = dict.fromkeys(str(address.array) for _, address in part.stores)
    return [*found, f"{len(part.body)} operations; reads {', '.join(read)}; writes {', '.join(written)}"]


def named(nodes: Sequence[Node], known: Mapping[Node, str]) -> dict[Node, str]:
    """Names, in order, for these nodes and for what they read more than once, so that no formula repeats another: those
    that are ``known``, else v1, v2 and so on."""
    everything = ancestors(nodes)
    uses = Counter(arg for node in everything for arg in set(node.args))
    found: dict[Node, str] = {}
    for node in everything:
        simple = not node.args or node.op == "product" and not node.args[0].args
        if node in nodes or uses[node] > 1 and not simple:
            found[node] = known.get(node) or f"v{len(found) + 1}"
    return found


def equation(node: Node, names: Mapping[Node, str]) -> str:
    """A node as text, down to products, leaves and what has a name."""
    if node in names:
        return names[node]
    signs = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">="}
    if node.op == "const":
        return f"{node.about:g}"
    if node.op == "product":
        matrix, gate = node.about
        return f"{matrix}({equation(node.args[0], names)})" + (f".{gate}" if gate else "")
    if not node.args:
        return node.about if isinstance(node.about, str) else ".".join(filter(None, node.about))
    if node.op in signs:
        return f"({equation(node.args[0], names)} {signs[node.op]} {equation(node.args[1], names)})"
    return f"{node.op}({', '.join(equation(arg, names) for arg in node.args)})"


def weights(program: Program, sizes: Mapping[str, int]) -> int:
    """The numbers of all matrices that a step multiplies with."""
    arrays = [array for array in program.arrays.values() if array.kind == "matrix"]
    return sum(a.blocks * sizes[str(a.size)] * sizes[str(a.columns)] // a.heads for a in arrays)


def cost(program: Program, sizes: Mapping[str, int]) -> tuple[int, int, int]:
    """Flops of a row and step, and the numbers of arrays that it reads and writes."""
    flops = read = written = 0
    for part in (part for phase in program.phases for part in phase):
        units = sizes[part.size]
        for result in part.results:
            for term in result.terms:
                array = program.arrays[str(term.operand.array)]
                flops += 2 * units * term.blocks * sizes[str(array.size)] // result.heads
            flops += 2 * units if result.mean else 0
        flops += units * sum(WEIGHTS.get(node.op, 1) for node in part.body)
        kinds = {name: array.kind for name, array in program.arrays.items()}
        read += units * sum(kinds.get(str(a.array)) not in (None, "unit", "number") for a in part.loads.values())
        written += units * len(part.stores)
    return flops, read, written
