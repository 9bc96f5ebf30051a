"""What every engine's loop has around it: its arrays, its derivative, and the gradients of matrices behind it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Address
from fastrnn.fused.layer import Operands, Steps, scan_by_torch

# Runs a cell's program "forward", "keeping" or "backward" over all steps.  Its arguments are the compiled cell, the
# program's name, the steps in the program's order, the number of units that each name stands for, where each array is,
# and a tensor of the dtype and on the device of all.  Arrays are dense tensors; a neighbour's is a dict of ``history``
# and ``initial``, a state's of ``initial`` and ``final``, each a tensor or None, and of rows there is none.
Run = Callable[[Compiled, str, Steps, dict[str, int], dict[str, Any], Tensor], None]


def scan_with(run: Run, compiled: Compiled, steps: Steps, given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """The loop on an engine; see :data:`fastrnn.fused.layer.Scan`."""
    if steps.batch == 0 or steps.count == 0:
        return scan_by_torch(compiled, steps, given)
    like = given.states[0]
    if any(isinstance(each, (int, float)) for each in given.groups):  # computed of constants alone
        groups = (like.new_tensor(each) if isinstance(each, (int, float)) else each for each in given.groups)
        given = given._replace(groups=tuple(groups))
    tensors: Any = (*given.groups, *given.states, *given.matrices.values(), *given.biases.values())
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        names = tuple(given.matrices), tuple(given.biases)
        found = _Scan.apply(run, compiled, steps, names, *tensors)
    else:
        found, _ = run_forward(run, compiled, steps, given, False)
    count = len(compiled.loop.emitted)
    return list(found[:count]), list(found[count:])


def unpack(compiled: Compiled, names: Any, tensors: Sequence[Tensor]) -> Operands:
    """The operands that stand in a flat list of tensors."""
    each = iter(tensors)
    groups = tuple(itertools.islice(each, len(compiled.groups)))
    states = tuple(itertools.islice(each, len(compiled.loop.states)))
    return Operands(groups, states, {name: next(each) for name in names[0]}, {name: next(each) for name in names[1]})


class _Layout(NamedTuple):
    """What can be said of a cell's arrays before a call.

    Attributes:
        sizes: for each size, where its number of units is seen: "states" or "groups" and a number, or "rows" or
            "columns" of a matrix; and by what the length there is to be divided, or, of columns, multiplied.
        groups: the array, kind, size and blocks of each group.
        biases: the matrices whose products add a bias.
        emitted: the size of each thing that the loop emits.
        kept: the arrays that backward reads, with size and blocks.
        gradients: for each group whose gradient backward writes as it is wanted, the array and the first block.
    """

    sizes: dict[str, tuple[str, Any, int]]
    groups: tuple[tuple[str, str, str | None, int], ...]
    biases: frozenset[str]
    emitted: tuple[str, ...]
    kept: tuple[tuple[str, str, int], ...]
    gradients: tuple[tuple[str, int] | None, ...]


def layout(compiled: Compiled) -> _Layout:
    """What can be said of a cell's arrays before a call."""
    if "layout" not in compiled.memo:
        compiled.memo["layout"] = _make_layout(compiled)
    return compiled.memo["layout"]


def _make_layout(compiled: Compiled) -> _Layout:
    loop, parts = compiled.loop, compiled.loop.traced.parts
    sizes: dict[str, tuple[str, Any, int]] = {}
    for number, leaf in enumerate(loop.states.values()):
        sizes.setdefault(str(leaf.size), ("states", number, 1))
    matrices = dict.fromkeys(node.about[0] for node in loop.nodes if node.op == "product")
    for name in matrices:
        declared = parts.matrices[name]
        sizes.setdefault(declared.size, ("rows", name, declared.blocks))
        sizes.setdefault(loop.traced.columns[name], ("columns", name, parts.kinds[name].heads))
    groups = []
    for number, group in enumerate(compiled.groups):
        node = next(iter(group.nodes.values()))
        groups.append((group.array, loop.inputs[node], node.size, group.blocks))
        if node.size:
            sizes.setdefault(node.size, ("groups", number, group.blocks))
    arrays = compiled.keeping.arrays.items()
    kept = tuple((name, str(a.size), a.blocks) for name, a in arrays if name.startswith(("history:", "saved:")))
    biases = frozenset(name for name, matrix in parts.matrices.items() if matrix.bias)
    emitted = tuple(str(node.size) for node in loop.emitted)
    gradients = tuple(_in_one_piece(compiled, number) for number in range(len(groups)))
    return _Layout(sizes, tuple(groups), biases, emitted, kept, gradients)


def _in_one_piece(compiled: Compiled, number: int) -> tuple[str, int] | None:
    """The array and the first block of a group's gradient, if its blocks follow one another there."""
    group = compiled.groups[number]
    found = [compiled.input_gradients.get((number, k), []) for k in range(group.blocks)]
    if any(len(own) != 1 for own in found) or not next(iter(group.nodes.values())).size:
        return None
    first = found[0][0]
    return (str(first.array), first.block) if side_by_side([own[0] for own in found]) else None


def sizes_of(compiled: Compiled, given: Operands) -> dict[str, int]:
    """The number of units that each name stands for."""
    found = {}
    for size, (kind, index, blocks) in layout(compiled).sizes.items():
        if kind == "states":
            found[size] = given.states[index].shape[-1]
        elif kind == "groups":
            tensor = given.groups[index]
            if tensor is None:  # a product of x that is yet to be made
                tensor = given.matrices[next(iter(compiled.groups[index].nodes.values())).about[0]].t()
            found[size] = tensor.shape[-1] // blocks
        else:
            rows, columns = given.matrices[index].shape
            found[size] = rows // blocks if kind == "rows" else columns * blocks
    if given.x is not None:
        found[compiled.loop.traced.parts.x_size] = given.x.shape[-1]
    return found


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _inputs(compiled: Compiled, given: Operands, sizes: dict[str, int]) -> dict[str, Any]:
    """The arrays that both programs read."""
    places: dict[str, Any] = {}
    own = layout(compiled)
    for (array, kind, size, blocks), tensor in zip(own.groups, given.groups, strict=True):
        if tensor is None:
            continue
        if size is not None and tensor.shape[-1:] != (blocks * sizes[size],):
            tensor = tensor.expand(*tensor.shape[:-1], blocks * sizes[size])
        elif size is None and kind != "number":
            tensor = tensor.reshape(-1)
        places[array] = _dense(tensor)
    for name, matrix in given.matrices.items():
        places[f"matrix:{name}"] = _dense(matrix)
    if given.x is not None:
        places["x"] = _dense(given.x)
    for name in given.matrices:
        if name not in own.biases:
            continue
        bias = given.biases.get(name)
        zeros = given.matrices[name].new_zeros
        places[f"bias:{name}"] = zeros(given.matrices[name].shape[0]) if bias is None else _dense(bias)
    return places


def run_forward(
    run: Run, compiled: Compiled, steps: Steps, given: Operands, keep: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the loop emits and its states at the end; and, to ``keep``, the arrays that backward reads."""
    own, sizes = layout(compiled), sizes_of(compiled, given)
    places, like, rows = _inputs(compiled, given, sizes), given.states[0], steps.rows
    emitted = [like.new_empty(rows, sizes[size]) for size in own.emitted]
    ends = [torch.empty_like(state, memory_format=torch.contiguous_format) for state in given.states]
    for k, tensor in enumerate(emitted):
        places[f"out:{k}"] = tensor
    for name, state, end in zip(compiled.loop.states, given.states, ends, strict=True):
        places[f"state:{name}"] = dict(initial=_dense(state), final=end)
    kept = {name: like.new_empty(rows, blocks * sizes[size]) for name, size, blocks in own.kept} if keep else {}
    which = "keeping" if keep else "forward" if given.x is None else "ahead"
    run(compiled, which, steps, sizes, places | kept, like)
    return [*emitted, *ends], kept


class _Scan(Function):
    """The loop, differentiable."""

    @staticmethod
    def forward(
        ctx: Any, run: Run, compiled: Compiled, steps: Steps, names: Any, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        found, kept = run_forward(run, compiled, steps, unpack(compiled, names, tensors), True)
        emitted = found[: len(compiled.loop.emitted)]
        ctx.about, ctx.kept = (run, compiled, steps, names, len(tensors)), tuple(kept)
        ctx.save_for_backward(*tensors, *emitted, *kept.values())
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        run, compiled, steps, names, count = ctx.about
        saved = ctx.saved_tensors
        tensors, emitted = saved[:count], saved[count : count + len(compiled.loop.emitted)]
        needed = ctx.needs_input_grad[4:]
        if all(grad is None for grad in grads):
            return (None,) * (4 + count)
        if torch.is_grad_enabled():
            return (None, None, None, None, *_again(compiled, steps, names, tensors, grads, needed))
        kept = dict(zip(ctx.kept, saved[count + len(emitted) :], strict=True))
        found = run_backward(run, compiled, steps, unpack(compiled, names, tensors), emitted, kept, grads)
        return (None, None, None, None, *(grad if need else None for grad, need in zip(found, needed, strict=True)))


def _again(
    compiled: Compiled,
    steps: Steps,
    names: Any,
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again: through the loop in plain torch."""
    with torch.enable_grad():
        own = [each.view_as(each) if need else each for each, need in zip(tensors, needed, strict=True)]
        emitted, ends = scan_by_torch(compiled, steps, unpack(compiled, names, own))
        pairs = [
            (out, grad)
            for out, grad in zip((*emitted, *ends), grads, strict=True)
            if grad is not None and out.requires_grad
        ]
        wanted = [each for each, need in zip(own, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
    return [next(found) if need else None for need in needed]


def run_backward(
    run: Run,
    compiled: Compiled,
    steps: Steps,
    given: Operands,
    emitted: Sequence[Tensor],
    kept: dict[str, Tensor],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradient of each operand, in the order of a flat list."""
    loop, program = compiled.loop, compiled.backward
    sizes, like, rows = sizes_of(compiled, given), given.states[0], steps.rows
    places = _inputs(compiled, given, sizes) | kept | {f"out:{k}": tensor for k, tensor in enumerate(emitted)}
    histories = {name: _history(compiled, name, emitted, kept) for name in compiled.saving.histories}
    for name, history in histories.items():
        first = given.states[list(loop.states).index(name)]
        places[f"before:{name}"] = dict(history=history, initial=_dense(first))
    for k, node in enumerate(loop.emitted):
        grad = grads[k]
        places[f"grad:{k}"] = like.new_zeros(rows, sizes[str(node.size)]) if grad is None else _dense(grad)
    ends = grads[len(loop.emitted) :]
    of_states: list[Tensor | None] = []
    for name, state, grad in zip(loop.states, given.states, ends, strict=True):
        reaches = compiled.gradients.states[name] is not None
        of_states.append(torch.empty_like(state, memory_format=torch.contiguous_format) if reaches else None)
        places[f"carry:{name}"] = dict(initial=None if grad is None else _dense(grad), final=of_states[-1])
    results: dict[str, Tensor] = {}
    for name, array in program.arrays.items():
        if name.startswith("stream:"):
            results[name] = like.new_empty(rows, array.blocks * sizes[str(array.size)])
        elif name.startswith("sum:"):
            lead = (steps.batch,) if array.kind == "sequence" else ()
            results[name] = like.new_zeros(*lead, sizes[str(array.size)])
    run(compiled, "backward", steps._replace(reverse=not steps.reverse), sizes, places | results, like)

    def block(address: Address) -> Tensor:
        units = sizes[str(program.arrays[str(address.array)].size)]
        return results[str(address.array)].narrow(-1, address.block * units, units)

    of_groups = [
        _of_group(compiled, number, block, results, sizes, tensor)
        for number, tensor in enumerate(given.groups)
        if tensor is not None  # as none is where a derivative is wanted
    ]
    of_matrices, of_biases = _of_matrices(compiled, steps, given, results, sizes, histories, emitted, kept)
    return [*of_groups, *of_states, *of_matrices, *of_biases]


def _history(compiled: Compiled, name: str, emitted: Sequence[Tensor], kept: dict[str, Tensor]) -> Tensor:
    node = compiled.loop.next[name]
    return emitted[compiled.loop.emitted.index(node)] if node in compiled.loop.emitted else kept[f"history:{name}"]


def side_by_side(addresses: Sequence[Address | None]) -> bool:
    """Whether blocks follow one another in one array."""
    first = addresses[0]
    return first is not None and all(
        each is not None and each.array == first.array and each.block == first.block + k
        for k, each in enumerate(addresses)
    )


def _of_group(
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


def _of_matrices(
    compiled: Compiled, steps: Steps, given: Operands, results: dict[str, Tensor], sizes: dict[str, int],
    histories: dict[str, Tensor], emitted: Sequence[Tensor], kept: dict[str, Tensor],
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
            pieces = [(slice(None), _rows_of(compiled, operand, emitted, kept, histories, sizes))]
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
    compiled: Compiled, operand: Any, emitted: Sequence[Tensor], kept: dict[str, Tensor],
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
    return kept[f"saved:{operand.size}"].narrow(-1, same.index(operand) * units, units)
