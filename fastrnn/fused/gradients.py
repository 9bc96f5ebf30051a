"""The gradients of what a loop reads, from what its backward program writes of every step: views, sums, and products
over the rows of all steps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Address
from fastrnn.fused.layer import Operands, Steps
from fastrnn.fused.layout import layout, side_by_side


def history_of(compiled: Compiled, name: str, emitted: Sequence[Tensor], workspace: dict[str, Tensor]) -> Tensor:
    """The values of a state behind every step."""
    node = compiled.loop.next[name]
    return emitted[compiled.loop.emitted.index(node)] if node in compiled.loop.emitted else workspace[f"history:{name}"]


def of_group(
    compiled: Compiled, number: int, block: Any, results: dict[str, Tensor], sizes: dict[str, int], tensor: Tensor
) -> Tensor | None:
    """The gradient of a group's tensor."""
    group = compiled.groups[number]
    node = next(iter(group.nodes.values()))
    whole = layout(compiled).gradients[number]
    if whole is not None:
        array, first = whole
        units = sizes[str(node.size)]
        return results[array].narrow(-1, first * units, group.blocks * units)
    found = [compiled.input_gradients.get((number, k), []) for k in range(group.blocks)]
    if not any(found):
        return None
    blocks = []
    for own in found:
        terms = [block(address) if node.size else block(address).sum(-1, keepdim=True) for address in own]
        blocks.append(
            functools.reduce(torch.add, terms) if terms else torch.zeros_like(tensor.chunk(group.blocks, -1)[0])
        )
    whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)
    return whole.sum_to_size(tensor.shape) if whole.dim() >= tensor.dim() and whole.shape != tensor.shape else whole


def of_matrices(
    compiled: Compiled, steps: Steps, given: Operands, results: dict[str, Tensor], sizes: dict[str, int],
    histories: dict[str, Tensor], emitted: Sequence[Tensor], workspace: dict[str, Tensor],
) -> tuple[list[Tensor | None], list[Tensor | None]]:  # fmt: skip
    """The gradients of matrices and biases: products over the rows of all steps."""
    loop, parts = compiled.loop, compiled.loop.traced.parts
    matrices: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    first_of = dict(zip(loop.states, given.states, strict=True))
    for (name, operand), gates in compiled.product_gradients.items():
        declared, heads = parts.matrices[name], parts.kinds[name].heads
        units, runs = sizes[declared.size], _runs(gates)
        if operand.op == "state":
            pieces = _before(steps, histories[operand.about], first_of[operand.about], len(gates) * units)
        else:
            pieces = [(slice(None), _rows_of(compiled, operand, emitted, workspace, histories, sizes))]
        fresh, whole = name not in matrices, len(gates) == declared.blocks
        if fresh:
            matrices[name] = (torch.empty_like if whole else torch.zeros_like)(given.matrices[name])
            if name in given.biases:
                biases[name] = (torch.empty_like if whole else torch.zeros_like)(given.biases[name])
        for run in runs:
            start, own = gates[run[0]], slice(run[0] * units, (run[-1] + 1) * units)
            grad = results[str(start.array)].narrow(-1, start.block * units, len(run) * units)
            for number, (where, values) in enumerate(pieces):
                _add_outer(matrices[name][own], grad[where], values, len(run), heads, fresh and number == 0)
            if name in given.biases and fresh:
                torch.sum(grad, 0, out=biases[name][own])
            elif name in given.biases:
                biases[name][own] += grad.sum(0)
    return [matrices.get(name) for name in given.matrices], [biases.get(name) for name in given.biases]


def _runs(gates: dict[int, Address]) -> list[list[int]]:
    """Gates that follow one another in the matrix and in the gradients."""
    found: list[list[int]] = []
    for number in sorted(gates):
        last = found[-1][-1] if found else None
        if last is not None and number == last + 1 and side_by_side([gates[last], gates[number]]):
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _add_outer(to: Tensor, grad: Tensor, values: Tensor, gates: int, heads: int, fresh: bool) -> None:
    """Adds the sum over rows of grad's units times values' columns, block by block of the heads; what is ``fresh``
    holds nothing yet."""
    if heads == 1:
        if fresh:
            torch.mm(grad.t(), values, out=to)
        else:
            to.addmm_(grad.t(), values)
        return
    own = grad.unflatten(-1, (gates, heads, -1))
    found = torch.einsum("nghz,nhk->ghzk", own, values.unflatten(-1, (heads, -1))).flatten(0, 2)
    to.copy_(found if fresh else to + found)


def _before(steps: Steps, history: Tensor, first: Tensor, width: int) -> list[tuple[Any, Tensor]]:
    """The rows of a state before each step, in pieces: which rows of the steps, and their values.

    Two pieces cost one more pass over the result of their products, of ``width`` rows; one piece a copy of all values.
    """
    batch = steps.batch
    if steps.sizes is None:
        few = len(history) <= width
        if steps.reverse:
            rest = history[batch:]
            return (
                [(slice(None), torch.cat([rest, first]))]
                if few
                else [(slice(None, -batch), rest), (slice(-batch, None), first)]
            )
        rest = history[:-batch]
        return (
            [(slice(None), torch.cat([first, rest]))]
            if few
            else [(slice(batch, None), rest), (slice(None, batch), first)]
        )
    sizes = steps.sizes.tolist()
    starts = [0, *itertools.accumulate(sizes)]
    index = []
    for t, size in enumerate(sizes):
        other = t + 1 if steps.reverse else t - 1
        there = sizes[other] if 0 <= other < len(sizes) else 0
        index += [starts[other] + r if r < there else len(history) + r for r in range(size)]
    return [(slice(None), torch.cat([history, first])[torch.tensor(index, device=history.device)])]


def _rows_of(
    compiled: Compiled, operand: Any, emitted: Sequence[Tensor], workspace: dict[str, Tensor],
    histories: dict[str, Tensor], sizes: dict[str, int],
) -> Tensor:  # fmt: skip
    """The values of a product's operand at every step."""
    loop = compiled.loop
    if operand in loop.emitted:
        return emitted[loop.emitted.index(operand)]
    for name, node in loop.next.items():
        if node is operand:
            return histories[name]
    same = [node for node in compiled.saving.values if node.size == operand.size]
    units = sizes[str(operand.size)]
    return workspace[f"saved:{operand.size}"].narrow(-1, same.index(operand) * units, units)
