"""The gradients of what a loop reads, from what its backward program writes of every step: views, sums, and products
over the rows of all steps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.cell.graph import Node
from fastrnn.compiler.arrays import is_product_of_x
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Address
from fastrnn.fused.layer import Operands, Steps
from fastrnn.fused.layout import layout


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


class Run(NamedTuple):
    """Gates of a product that follow one another in the matrix and in the gradients: ``count`` blocks from ``row`` on
    of the matrix, from ``block`` on of the array."""

    row: int
    array: str
    block: int
    count: int


class ProductGradient(NamedTuple):
    """Where backward writes the gradients of a product's gates.

    Attributes:
        name, operand: the matrix and what it multiplies.
        size, heads: the name of the units of a gate, and the parts of a block-diagonal matrix.
        fresh: whether it is the first product of this matrix.
        whole: whether all of its gates have a gradient.
        runs: the gates.
    """

    name: str
    operand: Node
    size: str
    heads: int
    fresh: bool
    whole: bool
    runs: tuple[Run, ...]

    @property
    def blocks(self) -> int:
        return sum(run.count for run in self.runs)


def product_gradients(compiled: Compiled, of_x: bool) -> tuple[ProductGradient, ...]:
    """Those of a loop's products, and ``of_x`` those that it makes of x."""
    key = f"product_gradients {of_x}"
    if key not in compiled.memo:
        parts, found = compiled.loop.traced.parts, dict(compiled.product_gradients)
        for number, group in enumerate(compiled.groups if of_x else ()):
            if is_product_of_x(group):
                gates = {k: own[0] for k in group.nodes if (own := compiled.input_gradients.get((number, k)))}
                node = next(iter(group.nodes.values()))
                found |= {(node.about[0], node.args[0]): gates} if gates else {}
        seen: set[str] = set()
        made = []
        for (name, operand), gates in found.items():
            declared, heads, fresh = parts.matrices[name], parts.kinds[name].heads, name not in seen
            seen.add(name)
            whole = len(gates) == declared.blocks
            made.append(ProductGradient(name, operand, declared.size, heads, fresh, whole, tuple(_runs(gates))))
        compiled.memo[key] = tuple(made)
    return compiled.memo[key]


def _runs(gates: dict[int, Address]) -> list[Run]:
    found: list[Run] = []
    for number in sorted(gates):
        last, array, block = found[-1] if found else None, str(gates[number].array), gates[number].block
        if last and (last.row, last.array, last.block) == (number - last.count, array, block - last.count):
            found[-1] = last._replace(count=last.count + 1)
        else:
            found.append(Run(number, array, block, 1))
    return found


def of_matrices(
    compiled: Compiled, steps: Steps, given: Operands, results: dict[str, Tensor], sizes: dict[str, int],
    histories: dict[str, Tensor], emitted: Sequence[Tensor], workspace: dict[str, Tensor],
) -> tuple[list[Tensor | None], list[Tensor | None]]:  # fmt: skip
    """The gradients of matrices and biases: products over the rows of all steps."""
    matrices: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    sums: dict[tuple[str, int, int], Tensor] = {}  # W x and U h of an added pair have the same gradient
    for each in product_gradients(compiled, given.x is not None):
        name, operand, units = each.name, each.operand, sizes[each.size]
        if operand.op == "x":
            assert given.x is not None
            pieces = [(None, given.x)]
        elif operand.op == "state":
            first = given.states[list(compiled.loop.states).index(operand.about)]
            pieces = _before(steps, histories[operand.about], first, each.blocks * units)
        else:
            pieces = [(None, _rows_of(compiled, operand, emitted, workspace, histories, sizes))]
        if each.fresh:
            make = torch.empty_like if each.whole else torch.zeros_like
            matrices[name] = make(given.matrices[name], memory_format=torch.contiguous_format)
            if name in given.biases:
                biases[name] = make(given.biases[name], memory_format=torch.contiguous_format)
        for row, array, block, count in each.runs:
            grad = results[array].narrow(1, block * units, count * units)
            own = matrices[name].narrow(0, row * units, count * units)
            for number, (where, values) in enumerate(pieces):
                rows = grad if where is None else grad[where]
                _add_outer(own, rows, values, count, each.heads, each.fresh and number == 0)
            if name not in given.biases:
                continue
            if (key := (array, block, count)) not in sums:
                sums[key] = grad.sum(0)
            own = biases[name].narrow(0, row * units, count * units)
            if each.fresh:
                own.copy_(sums[key])
            else:
                own += sums[key]
    return [matrices.get(name) for name in given.matrices], [biases.get(name) for name in given.biases]


def of_x(compiled: Compiled, given: Operands, results: dict[str, Tensor], sizes: dict[str, int]) -> Tensor | None:
    """The gradient of x, of which a loop makes its products itself."""
    found: Tensor | None = None
    for each in product_gradients(compiled, True):
        units = sizes[each.size]
        for row, array, block, count in each.runs if each.operand.op == "x" else ():
            grad = results[array].narrow(1, block * units, count * units)
            rows = given.matrices[each.name].narrow(0, row * units, count * units)
            if each.heads > 1:
                grad = grad.unflatten(-1, (count, each.heads, -1))
                own = torch.einsum("nghz,ghzk->nhk", grad, rows.unflatten(0, (count, each.heads, -1))).flatten(1)
                found = own if found is None else found.add_(own)
            else:
                found = torch.mm(grad, rows) if found is None else found.addmm_(grad, rows)
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

    Two pieces cost one more pass over the result of their products, of ``width`` rows; one, of all rows (None), a copy
    of all values.
    """
    batch = steps.batch
    if steps.sizes is None:
        few = len(history) <= width
        if steps.reverse:
            rest = history[batch:]
            return (
                [(None, torch.cat([rest, first]))]
                if few
                else [(slice(None, -batch), rest), (slice(-batch, None), first)]
            )
        rest = history[:-batch]
        return [(None, torch.cat([first, rest]))] if few else [(slice(batch, None), rest), (slice(None, batch), first)]
    sizes = steps.sizes.tolist()
    starts = [0, *itertools.accumulate(sizes)]
    index = []
    for t, size in enumerate(sizes):
        other = t + 1 if steps.reverse else t - 1
        there = sizes[other] if 0 <= other < len(sizes) else 0
        index += [starts[other] + r if r < there else len(history) + r for r in range(size)]
    return [(None, torch.cat([history, first])[torch.tensor(index, device=history.device)])]


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
