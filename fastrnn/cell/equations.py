"""The definition called with tensors: the oracle of every kernel, and what runs where none does.

Plain torch, out of place, so it is differentiable as often as you like and takes torch.func's transforms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.cell import int8
from fastrnn.cell.declare import Cell, Matrix, Parts
from fastrnn.cell.functions import CellError, Gates
from fastrnn.cell.int8 import Int8
from fastrnn.cell.kinds import Diagonal, Kind
from fastrnn.cell.steps import over_steps
from fastrnn.cell.trace import Binding

Parameters = Mapping[str, Tensor]


def parameter_shapes(
    parts: Parts, columns: Mapping[str, str], sizes: Mapping[str, int], bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a cell, by name, in the order of a module's parameters: matrices, then biases,
    then vectors and numbers.

    Args:
        parts: the cell's declarations.
        columns: the name of the size of each matrix's operand, as a trace knows it.
        sizes: the number of units that each name stands for.
        bias: whether matrices have their biases.

    Raises:
        CellError: two declarations make parameters of one name.
    """
    found: list[tuple[str, tuple[int, ...]]] = []
    used = {name: each for name, each in parts.matrices.items() if name in columns}
    for name, each in used.items():
        shapes = parts.kinds[name].shapes(each.blocks, sizes[each.size], sizes[columns[name]])
        found += [(n.replace("weight", f"weight_{parts.names[name]}", 1), shape) for n, shape in shapes.items()]
    for name, each in used.items():
        if each.bias and bias:
            found.append((f"bias_{parts.names[name]}", (each.blocks * sizes[each.size],)))
    found += [(name, (each.blocks * sizes[each.size],)) for name, each in parts.vectors.items()]
    found += [(name, ()) for name in parts.scalars]
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CellError(f"two parameters are called {twice}; give a declaration another name")
    return dict(found)


def dense(kind: Kind, gates: int, ending: str, parameters: Parameters) -> Tensor:
    """The matrix (G*Z, K / heads) that a kind makes of its parameters."""
    own = {
        name.replace(f"weight_{ending}", "weight", 1): tensor
        for name, tensor in parameters.items()
        if name in (f"weight_{ending}", f"weight_{ending}_u", f"weight_{ending}_v")
    }
    assert not isinstance(kind, Diagonal)
    return kind.matrix(gates, **own)


def multiply(v: Tensor, matrix: Tensor | Int8, bias: Tensor | None, blocks: int, heads: int) -> Tensor:
    """v (..., K) times a matrix (G*Z, K / heads) of ``blocks`` G gates: (..., G*Z).  Of integers (...), which are
    tokens, the same of their one-hot rows, columns of the matrix."""
    if type(matrix) is Int8:
        return int8.multiply(v, matrix, bias, blocks, heads)
    assert isinstance(matrix, Tensor)
    if not v.is_floating_point():
        if heads == 1:
            found = F.embedding(v, matrix.t())
            return found if bias is None else found + bias
        v = F.one_hot(v, matrix.shape[1] * heads).to(matrix.dtype)
    if heads == 1:
        return F.linear(v, matrix, bias)
    rows = matrix.unflatten(0, (blocks, heads, -1))
    found = torch.einsum("...hk,ghzk->...ghz", v.unflatten(-1, (heads, -1)), rows).flatten(-3)
    return found if bias is None else found + bias


def split_gates(declared: Any, v: Tensor) -> Any:
    """The gates of a declaration, which lie side by side in v (..., G*Z), by name; v where it has none."""
    if not declared.gates:
        return v
    return Gates(declared.name, dict(zip(declared.gates, v.chunk(declared.blocks, -1), strict=True)))


def bind(cell: Cell, parts: Parts, parameters: Parameters) -> Binding:
    """What a step sees as ``self`` when it is called with tensors."""
    bound: dict[str, Any] = {}

    def product(matrix: Matrix) -> Any:
        ending, kind = parts.names[matrix.name], parts.kinds[matrix.name]
        bias = parameters.get(f"bias_{ending}") if matrix.bias else None
        if isinstance(kind, Diagonal):
            weight = parameters[f"weight_{ending}"]

            def by_unit(v: Tensor) -> Any:
                found = torch.cat([v] * matrix.blocks, -1) * weight
                return split_gates(matrix, found if bias is None else found + bias)

            return by_unit
        whole = dense(kind, matrix.blocks, ending, parameters)
        return lambda v: split_gates(matrix, multiply(v, whole, bias, matrix.blocks, kind.heads))

    for name, each in parts.matrices.items():
        if any(f"weight_{parts.names[name]}{part}" in parameters for part in ("", "_u")):
            bound[name] = product(each)
    bound |= {name: split_gates(each, parameters[name]) for name, each in parts.vectors.items()}
    bound |= {name: parameters[name] for name in parts.scalars}
    bound |= {name: tuple(bound[own] for own in owns) for name, owns in parts.copies.items() if owns[0] in bound}
    return Binding(cell, bound)


def direction(
    cell: Cell,
    parts: Parts,
    parameters: Parameters,
    x: Tensor,
    batch_sizes: Sequence[int] | None,
    states: Sequence[Tensor],
    extras: Mapping[str, Tensor],
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """One direction of a layer, step by step.

    Args:
        cell, parts, parameters: the definition, and one direction's parameters by name.
        x: (T, B, I), or with ``batch_sizes`` the rows of a PackedSequence, (N, I).
        batch_sizes: the rows of each step, never increasing; None where every step has B.
        states: the states before the first step, each (B, its size).
        extras: what comes with a step, (T, B, size) or (T, B), packed (N, size) or (N,); with a sequence, (B, size) or
            (B,).
        reverse: whether the last step comes first.

    Returns:
        The output, (T, B, size) or (N, size), and the states behind the last step of each row.
    """
    bound, step = bind(cell, parts, parameters), type(cell).step
    sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else list(batch_sizes)
    flat = 0 if batch_sizes is not None else 1

    def by_step(tensor: Tensor) -> Sequence[Tensor]:
        return (tensor.flatten(0, 1) if flat else tensor).split(sizes)

    rows = by_step(x)
    of_step, of_sequence = {}, {}
    for name, tensor in extras.items():
        single = parts.extras[name].size is None
        tensor = tensor.unsqueeze(-1) if single else tensor
        (of_step if type(parts.extras[name]).__name__ == "StepInput" else of_sequence)[name] = tensor
    by_steps = {name: by_step(tensor) for name, tensor in of_step.items()}
    outputs: dict[int, Tensor] = {}

    def at(t: int, now: list[Tensor]) -> list[Tensor]:
        own = {name: tensor[: sizes[t]] for name, tensor in of_sequence.items()}
        own |= {name: tensors[t] for name, tensors in by_steps.items()}
        found = parts.one_by_one(step(bound, rows[t], *now, **own))  # type: ignore[arg-type]
        found = {name: value.expand(sizes[t], -1) for name, value in found.items()}  # some are the same for all rows
        outputs[t] = found[parts.output]
        return [found[name] for name in parts.states]

    ends = over_steps(sizes, states, reverse, at)
    y = torch.cat([outputs[t] for t in range(len(sizes))])
    return y.unflatten(0, x.shape[:2]) if flat else y, ends
