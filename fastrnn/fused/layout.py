"""Where a cell's arrays are: what can be said before a call, and the operands of a call as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastrnn.cell.int8 import Int8
from fastrnn.compiler.arrays import is_product_of_x
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Address
from fastrnn.fused.layer import Operands


class _Layout(NamedTuple):
    """What can be said of a cell's arrays before a call.

    Attributes:
        sizes: for each size, where its number of units is seen: "states" or "groups" and a number, or "rows" or
            "columns" of a matrix; and by what the length there is to be divided, or, of columns, multiplied.
        groups: the array, kind, size and blocks of each group.
        biases: the matrices whose products add a bias.
        emitted: the size of each thing that the loop emits.
        workspace: the arrays that backward reads, with size and blocks; and
        workspace_ahead: those of a loop that makes the products of x.
        gradients: for each group whose gradient backward writes as it is wanted, the array and the first block.
    """

    sizes: dict[str, tuple[str, Any, int]]
    groups: tuple[tuple[str, str, str | None, int], ...]
    biases: frozenset[str]
    emitted: tuple[str, ...]
    workspace: tuple[tuple[str, str, int], ...]
    workspace_ahead: tuple[tuple[str, str, int], ...]
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
    for name in loop.matrices:
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
    workspace = tuple((name, str(a.size), a.blocks) for name, a in arrays if name.startswith(("history:", "saved:")))
    made = {group.array for group in compiled.groups if is_product_of_x(group)}
    arrays = compiled.keeping_ahead.arrays.items()
    stored = tuple((name, str(a.size), a.blocks) for name, a in arrays if name in made)
    biases = frozenset(name for name, matrix in parts.matrices.items() if matrix.bias)
    emitted = tuple(str(node.size) for node in loop.emitted)
    gradients = tuple(_in_one_piece(compiled, number) for number in range(len(groups)))
    return _Layout(sizes, tuple(groups), biases, emitted, workspace, workspace + stored, gradients)


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
            if tensor is not None:
                found[size] = tensor.shape[-1] // blocks
            else:  # a product of x that is yet to be made
                matrix = given.matrices[next(iter(compiled.groups[index].nodes.values())).about[0]]
                found[size] = matrix.shape[0] // blocks
        else:
            rows, columns = given.matrices[index].shape
            found[size] = rows // blocks if kind == "rows" else columns * blocks
    if given.x is not None:
        found[compiled.loop.traced.parts.x_size] = given.x.shape[-1]
    return found


def side_by_side(addresses: Sequence[Address | None]) -> bool:
    """Whether blocks follow one another in one array."""
    first = addresses[0]
    return first is not None and all(
        each is not None and each.array == first.array and each.block == first.block + k
        for k, each in enumerate(addresses)
    )


def dense(tensor: Tensor) -> Tensor:
    """A tensor as engines address one: itself, or a copy without gaps."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def inputs(compiled: Compiled, given: Operands, sizes: dict[str, int]) -> dict[str, Any]:
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
        places[array] = dense(tensor)
    for name, matrix in given.matrices.items():
        if isinstance(matrix, Int8):
            places[f"matrix:{name}"] = Int8(dense(matrix.values), dense(matrix.scales))
        else:
            places[f"matrix:{name}"] = dense(matrix)
    if given.x is not None:
        places["x"] = dense(given.x)
    for name in given.matrices:
        if name not in own.biases:
            continue
        bias = given.biases.get(name)
        if bias is None:
            bias = given.states[0].new_zeros(given.matrices[name].shape[0])
        places[f"bias:{name}"] = dense(bias)
    return places
