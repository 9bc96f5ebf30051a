"""What is summed up behind a backward loop, from what it wrote of every step: the gradients of matrices and biases, and
of x where the loop made its products."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.cell.graph import Node
from fastrnn.compiler.arrays import Array, history_of, is_product_of_x
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Address
from fastrnn.fused.layer import Operands, Steps


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
        name, operand: the matrix, and where the values are that it multiplied, "x" or an array.
        size, heads: the name of the units of a gate, and the parts of a block-diagonal matrix.
        fresh: whether it is the first product of this matrix.
        whole: whether all of its gates have a gradient.
        runs: the gates.
    """

    name: str
    operand: Address
    size: str
    heads: int
    fresh: bool
    whole: bool
    runs: tuple[Run, ...]

    @property
    def blocks(self) -> int:
        return sum(run.count for run in self.runs)


@dataclass(frozen=True, eq=False)
class Behind:
    """What an engine sums up behind a backward loop.

    Attributes:
        products: the gradients of ``matrix:NAME``, into ``gradient of matrix:NAME``.
        biases: the matrices whose bias has a gradient, in ``gradient of bias:NAME``.
        x: whether that of x is wanted, in ``gradient of x``.
    """

    products: tuple[ProductGradient, ...]
    biases: frozenset[str]
    x: bool

    def places(self, given: Operands) -> dict[str, Tensor]:
        """Memory for all of it."""
        found: dict[str, Tensor] = {}
        for each in self.products:
            if each.fresh:
                make = torch.empty_like if each.whole else torch.zeros_like
                own = {"matrix": given.matrices[each.name]}
                own |= {"bias": given.biases[each.name]} if each.name in self.biases else {}
                for kind, like in own.items():
                    found[f"gradient of {kind}:{each.name}"] = make(like, memory_format=torch.contiguous_format)
        if self.x and given.x is not None:
            found["gradient of x"] = torch.empty_like(given.x, memory_format=torch.contiguous_format)
        return found


def behind(compiled: Compiled, given: Operands, need_x: bool) -> Behind:
    """What is to be summed up behind a cell's loop."""
    of_x, biases = given.x is not None, tuple(given.biases)
    key = f"behind {of_x} {need_x} {biases}"
    if key not in compiled.memo:
        products = product_gradients(compiled, of_x)
        reaches = any(each.operand == Address("x") for each in products)
        own = frozenset(each.name for each in products if each.name in biases)
        compiled.memo[key] = Behind(products, own, need_x and of_x and reaches)
    return compiled.memo[key]


def arrays_behind(compiled: Compiled, own: Behind) -> dict[str, Array]:
    """The arrays that this reads and writes, by name, as a program's."""
    parts, columns, states = compiled.loop.traced.parts, compiled.loop.traced.columns, compiled.loop.states
    found: dict[str, Array] = {}
    for each in own.products:
        declared, array = parts.matrices[each.name], str(each.operand.array)
        matrix = Array("matrix", declared.size, declared.blocks, columns[each.name], each.heads)
        found[f"gradient of matrix:{each.name}"] = matrix
        if each.name in own.biases:
            found[f"gradient of bias:{each.name}"] = Array("unit", declared.size, declared.blocks)
        if array == "x":
            found["x"] = Array("step", parts.x_size)
            found |= {"gradient of x": found["x"], f"matrix:{each.name}": matrix} if own.x else {}
        elif array.startswith("before:"):
            found[array] = Array("neighbour", states[array.removeprefix("before:")].size, offset=1)
        else:
            found[array] = compiled.keeping.arrays[array]
    return found


def product_gradients(compiled: Compiled, of_x: bool) -> tuple[ProductGradient, ...]:
    """Those of a loop's products, and ``of_x`` those that it makes of x."""
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
        at = _address(compiled, operand)
        made.append(ProductGradient(name, at, declared.size, heads, fresh, whole, tuple(_runs(gates))))
    return tuple(made)


def _runs(gates: dict[int, Address]) -> list[Run]:
    found: list[Run] = []
    for number in sorted(gates):
        last, array, block = found[-1] if found else None, str(gates[number].array), gates[number].block
        if last and (last.row, last.array, last.block) == (number - last.count, array, block - last.count):
            found[-1] = last._replace(count=last.count + 1)
        else:
            found.append(Run(number, array, block, 1))
    return found


def _address(compiled: Compiled, operand: Node) -> Address:
    """Where backward finds the values of a product's operand at every step."""
    loop = compiled.loop
    if operand.op == "x":
        return Address("x")
    if operand.op == "state":
        return Address(f"before:{operand.about}")
    for name, node in loop.next.items():
        if node is operand:
            return Address(history_of(loop, name))
    if operand in loop.emitted:
        return Address(f"out:{loop.emitted.index(operand)}")
    same = [node for node in compiled.saving.values if node.size == operand.size]
    return Address(f"saved:{operand.size}", same.index(operand))


def sum_behind(compiled: Compiled, steps: Steps, own: Behind, places: dict[str, Any], sizes: dict[str, int]) -> None:
    """All of it by torch's products, for engines that have none.  ``steps`` are in the order of the backward loop."""
    forward = steps._replace(reverse=not steps.reverse)
    sums: dict[tuple[str, int, int], Tensor] = {}  # W x and U h of an added pair have the same gradient
    reached_x = False
    for each in own.products:
        units, array = sizes[each.size], str(each.operand.array)
        if array.startswith("before:"):
            pieces = _before(forward, places[array]["history"], places[array]["initial"], each.blocks * units)
        else:
            values = places[array]
            if each.operand.array != "x":
                columns = sizes[str(compiled.keeping.arrays[array].size)]
                values = values.narrow(1, each.operand.block * columns, columns)
            pieces = [(None, values)]
        for row, gradients, block, count in each.runs:
            grad = places[gradients].narrow(1, block * units, count * units)
            to = places[f"gradient of matrix:{each.name}"].narrow(0, row * units, count * units)
            for number, (where, values) in enumerate(pieces):
                rows = grad if where is None else grad[where]
                _add_outer(to, rows, values, count, each.heads, each.fresh and number == 0)
            if each.name in own.biases:
                if (key := (gradients, block, count)) not in sums:
                    sums[key] = grad.sum(0)
                to = places[f"gradient of bias:{each.name}"].narrow(0, row * units, count * units)
                if each.fresh:
                    to.copy_(sums[key])
                else:
                    to += sums[key]
            if own.x and array == "x":
                matrix = places[f"matrix:{each.name}"].narrow(0, row * units, count * units)
                _add_back(places["gradient of x"], grad, matrix, count, each.heads, not reached_x)
                reached_x = True


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


def _add_back(to: Tensor, grad: Tensor, matrix: Tensor, gates: int, heads: int, fresh: bool) -> None:
    """Adds grad times a matrix's rows, block by block of the heads."""
    if heads == 1:
        if fresh:
            torch.mm(grad, matrix, out=to)
        else:
            to.addmm_(grad, matrix)
        return
    grad, matrix = grad.unflatten(-1, (gates, heads, -1)), matrix.unflatten(0, (gates, heads, -1))
    found = torch.einsum("nghz,ghzk->nhk", grad, matrix).flatten(1)
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
