"""The loop of any cell in plain torch, step by step: what serves where no engine does, and what engines are held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.cell.equations import multiply
from fastrnn.cell.evaluate import evaluate
from fastrnn.cell.graph import Node
from fastrnn.cell.steps import over_steps
from fastrnn.compiler.program import Compiled
from fastrnn.fused.layer import Operands, Steps


def _of_rows(value: Tensor, count: int) -> Tensor:
    """A value of every row: some are the same for all."""
    return value if value.dim() > 1 else value.expand(count, -1)


def _all_gates(compiled: Compiled, given: Operands, name: str, v: Tensor) -> Tensor:
    parts = compiled.loop.traced.parts
    blocks, heads = parts.matrices[name].blocks, parts.kinds[name].heads
    return multiply(v, given.matrices[name], given.biases.get(name), blocks, heads)


def _with_products(compiled: Compiled, given: Operands) -> tuple[Tensor | None, ...]:
    """The groups, with those that are products of x."""
    assert given.x is not None
    return tuple(
        _all_gates(compiled, given, next(iter(group.nodes.values())).about[0], given.x) if own is None else own
        for group, own in zip(compiled.groups, given.groups, strict=True)
    )


def scan_by_torch(
    compiled: Compiled, steps: Steps, operands: Operands, watch: Callable[[list[list[Tensor]]], None] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The loop in plain torch, step by step: differentiable as often as you like, on any device.

    ``watch`` is given, for each step in the order of x, the very states that the next one reads.
    """
    loop, parts = compiled.loop, compiled.loop.traced.parts
    sizes = steps.lengths
    groups = _with_products(compiled, operands) if operands.x is not None else operands.groups
    fixed: dict[Node, Any] = {}
    by_step: list[tuple[Node, Sequence[Tensor]]] = []
    by_row: list[tuple[Node, Tensor]] = []
    for group, tensor in zip(compiled.groups, groups, strict=True):
        for block, node in group.nodes.items():
            assert tensor is not None
            own = tensor if group.blocks == 1 else tensor.chunk(group.blocks, -1)[block]
            if loop.inputs[node] == "step":
                by_step.append((node, own.split(sizes)))
            elif loop.inputs[node] == "sequence":
                by_row.append((node, own))
            else:
                fixed[node] = own

    def product(matrix: str, gate: str | None, v: Tensor) -> Tensor:
        declared, found = parts.matrices[matrix], _all_gates(compiled, operands, matrix, v)
        return found if gate is None else found.chunk(declared.blocks, -1)[declared.gates.index(gate)]

    emitted: dict[int, list[Tensor]] = {}
    behind: dict[int, list[Tensor]] = {}

    def step(t: int, now: list[Tensor]) -> list[Tensor]:
        count = sizes[t]
        known = fixed | {node: tensors[t] for node, tensors in by_step} | {node: own[:count] for node, own in by_row}
        known |= dict(zip(loop.states.values(), now, strict=True))
        found = evaluate([*loop.next.values(), *loop.emitted], known, product)
        emitted[t] = [_of_rows(found[node], count) for node in loop.emitted]
        behind[t] = [_of_rows(found[node], count) for node in loop.next.values()]
        return behind[t]

    ends = over_steps(sizes, operands.states, steps.reverse, step)
    order = range(len(sizes))
    if watch is not None:
        watch([behind[t] for t in order])
    return [torch.cat(rows) for rows in zip(*(emitted[t] for t in order), strict=True)], ends
