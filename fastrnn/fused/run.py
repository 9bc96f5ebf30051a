"""What every engine's loop has around it: its arrays, its derivative, and the gradients of matrices behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastrnn.compiler.arrays import history_of
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Address
from fastrnn.fused.behind import Behind, behind
from fastrnn.fused.gradients import of_group
from fastrnn.fused.layer import Operands, Steps
from fastrnn.fused.layout import dense, inputs, layout, sizes_of
from fastrnn.fused.reference import scan_by_torch
from fastrnn.saving import save, saved_by

# Runs a program of a cell, "backward" or one of PROGRAMS, over all steps.  Its arguments are the compiled cell, the
# program's name, the steps in the program's order, the number of units that each name stands for, where each array is,
# a tensor of the dtype and on the device of all, and what "backward" sums up behind the loop.  Arrays are dense
# tensors; a neighbour's is a dict of ``history`` and ``initial``, a state's of ``initial`` and ``final``, each a tensor
# or None, and of rows there is none.
Run = Callable[[Compiled, str, Steps, dict[str, int], dict[str, Any], Tensor, Behind | None], None]

# Forward programs, by whether they keep what backward reads, and whether they make the products of x.
PROGRAMS = {
    (False, False): "forward",
    (False, True): "ahead",
    (True, False): "keeping",
    (True, True): "keeping_ahead",
}


def scan_with(run: Run, compiled: Compiled, steps: Steps, given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """The loop on an engine; see :data:`fastrnn.fused.layer.Scan`."""
    if steps.batch == 0 or steps.count == 0:
        return scan_by_torch(compiled, steps, given)
    like = given.states[0]
    if any(isinstance(each, (int, float)) for each in given.groups):  # computed of constants alone
        groups = (like.new_tensor(each) if isinstance(each, (int, float)) else each for each in given.groups)
        given = given._replace(groups=tuple(groups))
    tensors: Any = (given.x, *given.groups, *given.states, *given.matrices.values(), *given.biases.values())
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        names = tuple(given.matrices), tuple(given.biases)
        found = _Scan.apply(run, compiled, steps, names, *tensors)
    else:
        found, _ = run_forward(run, compiled, steps, given, False)
    count = len(compiled.loop.emitted)
    return list(found[:count]), list(found[count:])


def unpack(compiled: Compiled, names: Any, tensors: Sequence[Any], x: Tensor | None = None) -> Operands:
    """The operands that stand in a flat list of tensors; and x, where the loop makes the products of x."""
    groups, states = len(compiled.groups), len(compiled.loop.states)
    matrices = groups + states
    biases = matrices + len(names[0])
    return Operands(
        tuple(tensors[:groups]),
        tuple(tensors[groups:matrices]),
        dict(zip(names[0], tensors[matrices:biases], strict=True)),
        dict(zip(names[1], tensors[biases:], strict=True)),
        x,
    )


def run_forward(
    run: Run, compiled: Compiled, steps: Steps, given: Operands, keep: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the loop emits and its states at the end; and, to ``keep``, the arrays that backward reads."""
    own, sizes = layout(compiled), sizes_of(compiled, given)
    places, like, rows = inputs(compiled, given, sizes), given.states[0], steps.rows
    emitted = [like.new_empty(rows, sizes[size]) for size in own.emitted]
    ends = [torch.empty_like(state, memory_format=torch.contiguous_format) for state in given.states]
    for k, tensor in enumerate(emitted):
        places[f"out:{k}"] = tensor
    for name, state, end in zip(compiled.loop.states, given.states, ends, strict=True):
        places[f"state:{name}"] = dict(initial=dense(state), final=end)
    kept = () if not keep else own.workspace if given.x is None else own.workspace_ahead
    workspace = {name: like.new_empty(rows, blocks * sizes[size]) for name, size, blocks in kept}
    which = PROGRAMS[keep, given.x is not None]
    run(compiled, which, steps, sizes, places | workspace, like, None)
    return [*emitted, *ends], workspace


class _Scan(Function):
    """The loop, differentiable; of x, where it makes the products of x, and the operands in a flat list."""

    @staticmethod
    def forward(
        ctx: Any, run: Run, compiled: Compiled, steps: Steps, names: Any, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        x, *operands = tensors
        found, workspace = run_forward(run, compiled, steps, unpack(compiled, names, operands, x), True)
        emitted = found[: len(compiled.loop.emitted)]
        ctx.about, ctx.workspace = (run, compiled, steps, names, len(tensors)), tuple(workspace)
        save(ctx, [*tensors, *emitted, *workspace.values()])
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        run, compiled, steps, names, count = ctx.about
        saved = saved_by(ctx)
        tensors, emitted = saved[:count], saved[count : count + len(compiled.loop.emitted)]
        needed = ctx.needs_input_grad[4:]
        if all(grad is None for grad in grads):
            return (None,) * (4 + count)
        if torch.is_grad_enabled():
            return (None, None, None, None, *_again(compiled, steps, names, tensors, grads, needed))
        workspace = dict(zip(ctx.workspace, saved[count + len(emitted) :], strict=True))
        given = unpack(compiled, names, tensors[1:], tensors[0])
        found = run_backward(run, compiled, steps, given, emitted, workspace, grads, needed[0])
        return (None, None, None, None, *(grad if need else None for grad, need in zip(found, needed, strict=True)))


def _again(
    compiled: Compiled,
    steps: Steps,
    names: Any,
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again: through the loop in plain torch."""
    with torch.enable_grad():
        own: Any = [
            each.view_as(each) if need and each is not None else each
            for each, need in zip(tensors, needed, strict=True)
        ]
        emitted, ends = scan_by_torch(compiled, steps, unpack(compiled, names, own[1:], own[0]))
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
    workspace: dict[str, Tensor],
    grads: Sequence[Tensor | None],
    need_x: bool = False,
) -> list[Tensor | None]:
    """The gradient of x, where there is one and it is asked for, and of each operand, in the order of a flat list."""
    loop, program = compiled.loop, compiled.backward
    sizes, like, rows = sizes_of(compiled, given), given.states[0], steps.rows
    places = inputs(compiled, given, sizes) | workspace | {f"out:{k}": tensor for k, tensor in enumerate(emitted)}
    for name in compiled.saving.histories:
        first = given.states[list(loop.states).index(name)]
        places[f"before:{name}"] = dict(history=places[history_of(loop, name)], initial=dense(first))
    for k, node in enumerate(loop.emitted):
        grad = grads[k]
        places[f"grad:{k}"] = like.new_zeros(rows, sizes[str(node.size)]) if grad is None else dense(grad)
    ends = grads[len(loop.emitted) :]
    of_states: list[Tensor | None] = []
    for name, state, grad in zip(loop.states, given.states, ends, strict=True):
        reaches = compiled.gradients.states[name] is not None
        of_states.append(torch.empty_like(state, memory_format=torch.contiguous_format) if reaches else None)
        places[f"carry:{name}"] = dict(initial=None if grad is None else dense(grad), final=of_states[-1])
    results: dict[str, Tensor] = {}
    for name, array in program.arrays.items():
        if name.startswith("stream:"):
            results[name] = like.new_empty(rows, array.blocks * sizes[str(array.size)])
        elif name.startswith("sum:"):
            lead = (steps.batch,) if array.kind == "sequence" else ()
            results[name] = like.new_zeros(*lead, sizes[str(array.size)])
    own = behind(compiled, given, need_x)
    sums = own.places(given)
    order = steps._replace(reverse=not steps.reverse)
    run(compiled, "backward", order, sizes, places | results | sums, like, own)

    def block(address: Address) -> Tensor:
        units = sizes[str(program.arrays[str(address.array)].size)]
        return results[str(address.array)].narrow(-1, address.block * units, units)

    groups = [
        None if tensor is None else of_group(compiled, number, block, results, sizes, tensor)
        for number, tensor in enumerate(given.groups)
    ]
    of_matrices = (sums.get(f"gradient of matrix:{name}") for name in given.matrices)
    of_biases = (sums.get(f"gradient of bias:{name}") for name in given.biases)
    return [sums.get("gradient of x"), *groups, *of_states, *of_matrices, *of_biases]
