"""One direction of a layer of any cell: what runs before the time loop, the loop, and what runs behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.cell.equations import dense, multiply
from fastrnn.cell.evaluate import evaluate
from fastrnn.cell.graph import Node
from fastrnn.compiler.program import Compiled


class Steps(NamedTuple):
    """The rows of a direction's steps, and their order.

    Attributes:
        count: T.
        batch: B, the rows of the first step.
        rows: N, the rows of all steps.
        sizes: (T,) int64 on the CPU, never increasing, down to at least 1; None where every step has B rows.
        reverse: whether the last step comes first.
    """

    count: int
    batch: int
    rows: int
    sizes: Tensor | None = None
    reverse: bool = False


class Operands(NamedTuple):
    """What a loop reads: a tensor for each group of inputs, (N, columns), (B, columns), (columns,) or (); the states
    before it, (B, size); the matrices and biases of its products, by name."""

    groups: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    matrices: dict[str, Tensor]
    biases: dict[str, Tensor]


# What runs the loop: what it emits at every step, each (N, size), and the states behind it, (B, size).
Scan = Callable[[Compiled, Steps, Operands], tuple[list[Tensor], list[Tensor]]]


def direction(
    scan: Scan,
    compiled: Compiled,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    steps: Steps,
    states: Sequence[Tensor],
    extras: Mapping[str, Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """One direction of a layer.

    Args:
        scan: what runs the loop.
        compiled: the cell.
        parameters: the direction's, by name.
        x: (N, I), rows in order of their step.
        steps: how many rows each step has.
        states: (B, size) each.
        extras: (N, size) or (N,) of a step, (B, size) or (B,) of a sequence.

    Returns:
        The output, (N, size), and the states behind the last step of each row.
    """
    loop, parts = compiled.loop, compiled.loop.traced.parts
    known: dict[Node, Any] = {}
    nodes = loop.traced.graph.nodes
    if not x.is_floating_point() and any(arg.op == "x" and node.op != "product" for node in nodes for arg in node.args):
        x = F.one_hot(x, states[0].shape[-1])  # it meets states unit by unit, and has as many
        x = x.to(states[0].dtype)
    for node in nodes:
        if node.op == "x":
            known[node] = x
        elif node.op in ("step_input", "sequence_input"):
            tensor = extras[node.about]
            known[node] = tensor.unsqueeze(-1) if node.size is None else tensor
        elif node.op == "parameter":
            known[node] = _block(parts, parameters, *node.about)
    names = dict.fromkeys(node.about[0] for node in nodes if node.op == "product")
    matrices = {
        name: dense(parts.kinds[name], parts.matrices[name].blocks, parts.names[name], parameters) for name in names
    }
    biases = {
        name: parameters[f"bias_{parts.names[name]}"]
        for name in names
        if parts.matrices[name].bias and f"bias_{parts.names[name]}" in parameters
    }
    whole: dict[tuple[str, int], Tensor] = {}

    def all_gates(matrix: str, v: Tensor) -> Tensor:
        key = matrix, id(v)
        if key not in whole:
            blocks = parts.matrices[matrix].blocks
            whole[key] = multiply(v, matrices[matrix], biases.get(matrix), blocks, parts.kinds[matrix].heads)
        return whole[key]

    def product(matrix: str, gate: str | None, v: Tensor) -> Tensor:
        found = all_gates(matrix, v)
        return (
            found
            if gate is None
            else found.chunk(parts.matrices[matrix].blocks, -1)[parts.matrices[matrix].gates.index(gate)]
        )

    groups = []
    for group in compiled.groups:
        node = next(iter(group.nodes.values()))
        if node.op == "product":
            operand = node.args[0]
            known |= evaluate([operand], known, product)
            groups.append(all_gates(node.about[0], known[operand]))
        else:
            known |= evaluate([node], known, product)
            groups.append(known[node])
    used = dict.fromkeys(node.about[0] for node in loop.nodes if node.op == "product")
    operands = Operands(
        tuple(groups),
        tuple(states),
        {name: matrices[name] for name in used},
        {name: biases[name] for name in used if name in biases},
    )
    emitted, ends = _in_wide(scan, compiled, steps, operands)
    output = loop.traced.output
    if output in loop.emitted:
        return emitted[loop.emitted.index(output)], ends
    for node, tensor in zip(loop.emitted, emitted, strict=True):
        known[node] = tensor
    return evaluate([output], known, product)[output], ends


def _block(parts: Any, parameters: Mapping[str, Tensor], name: str, gate: str | None) -> Any:
    """A learned vector or number, or one gate's part of it."""
    declared = parts.vectors.get(name) or parts.scalars.get(name)
    if declared is None:  # of a diagonal matrix
        declared = next(
            each
            for matrix, each in parts.matrices.items()
            if name in (f"weight_{parts.names[matrix]}", f"bias_{parts.names[matrix]}")
        )
    if name not in parameters:
        return 0.0  # the bias of a module that has none
    return parameters[name] if gate is None else parameters[name].chunk(declared.blocks)[declared.gates.index(gate)]


def _in_wide(scan: Scan, compiled: Compiled, steps: Steps, operands: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """Runs the loop in float32 where tensors are narrower; states and outputs keep their dtype."""
    dtype = operands.states[0].dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return scan(compiled, steps, operands)
    wide = Operands(
        tuple(each.float() if isinstance(each, Tensor) else each for each in operands.groups),
        tuple(state.float() for state in operands.states),
        {name: each.float() for name, each in operands.matrices.items()},
        {name: each.float() for name, each in operands.biases.items()},
    )
    emitted, ends = scan(compiled, steps, wide)
    return [each.to(dtype) for each in emitted], [each.to(dtype) for each in ends]


def scan_by_torch(compiled: Compiled, steps: Steps, operands: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """The loop in plain torch, step by step: differentiable as often as you like, on any device."""
    loop, parts = compiled.loop, compiled.loop.traced.parts
    sizes = [steps.batch] * steps.count if steps.sizes is None else steps.sizes.tolist()
    fixed: dict[Node, Any] = {}
    by_step: list[tuple[Node, Sequence[Tensor]]] = []
    by_row: list[tuple[Node, Tensor]] = []
    for group, tensor in zip(compiled.groups, operands.groups, strict=True):
        for block, node in group.nodes.items():
            own = tensor if group.blocks == 1 else tensor.chunk(group.blocks, -1)[block]
            if loop.inputs[node] == "step":
                by_step.append((node, own.split(sizes)))
            elif loop.inputs[node] == "sequence":
                by_row.append((node, own))
            else:
                fixed[node] = own

    def product(matrix: str, gate: str | None, v: Tensor) -> Tensor:
        declared = parts.matrices[matrix]
        found = multiply(
            v, operands.matrices[matrix], operands.biases.get(matrix), declared.blocks, parts.kinds[matrix].heads
        )
        return found if gate is None else found.chunk(declared.blocks, -1)[declared.gates.index(gate)]

    names = list(loop.states)
    emitted: list[list[Tensor]] = [[] for _ in loop.emitted]
    now = [state[:0] for state in operands.states] if steps.reverse else list(operands.states)
    ended = [state[:0] for state in operands.states]
    order = reversed(range(len(sizes))) if steps.reverse else range(len(sizes))
    for t in order:
        count = sizes[t]
        if steps.reverse:
            now = [torch.cat([s, first[len(s) : count]]) for s, first in zip(now, operands.states, strict=True)]
        else:
            ended = [torch.cat([s[count:], end]) for s, end in zip(now, ended, strict=True)]
            now = [s[:count] for s in now]
        known = (
            fixed | {node: tensors[t] for node, tensors in by_step} | {node: tensor[:count] for node, tensor in by_row}
        )
        known |= {loop.states[name]: state for name, state in zip(names, now, strict=True)}
        found = evaluate([*loop.next.values(), *loop.emitted], known, product)
        now = [found[loop.next[name]] for name in names]
        for rows, node in zip(emitted, loop.emitted, strict=True):
            rows.append(found[node].expand(count, -1))
    if steps.reverse:
        for rows in emitted:
            rows.reverse()
    return [torch.cat(rows) for rows in emitted], [torch.cat(pair) for pair in zip(now, ended, strict=True)]
