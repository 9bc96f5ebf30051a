"""The loop of a cell as two operators of torch.library, for graphs: their schemas, shapes and derivative.

``fastrnn::scan`` and ``fastrnn::scan_backward`` are what torch.compile and torch.export hold of a fused loop.  A cell
is named by a key that a later process resolves by import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.compiler.program import Compiled, compiled_of
from fastrnn.fused.engines import run_of
from fastrnn.fused.layer import Operands, Steps
from fastrnn.fused.layout import layout, sizes_of
from fastrnn.fused.run import run_backward, run_forward, unpack

_library = torch.library.Library("fastrnn", "FRAGMENT")
_STEPS = "SymInt count, SymInt batch, SymInt rows, Tensor? batch_sizes, bool reverse"
_library.define(
    f"scan(Tensor[] tensors, {_STEPS}, str cell, bool biased, bool keep) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"scan_backward(Tensor[] tensors, Tensor[] emitted, Tensor[] workspace, Tensor?[] grads, {_STEPS}, str cell,"
    " bool biased) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def names_of(compiled: Compiled, biased: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The matrices and biases whose tensors stand behind the states in a flat list."""
    matrices, declared = compiled.loop.matrices, compiled.loop.traced.parts.matrices
    return matrices, tuple(name for name in matrices if biased and declared[name].bias)


def _forward(
    tensors: Sequence[Tensor], count: int, batch: int, rows: int, batch_sizes: Tensor | None, reverse: bool, cell: str,
    biased: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    compiled = compiled_of(cell)
    steps = Steps(count, batch, rows, batch_sizes, reverse)
    given = unpack(compiled, names_of(compiled, biased), tensors)
    found, workspace = run_forward(run_of(tensors[0].device), compiled, steps, given, keep)
    return [*found, *workspace.values()]


def _fake_forward(
    tensors: Sequence[Tensor], count: int, batch: int, rows: int, batch_sizes: Tensor | None, reverse: bool, cell: str,
    biased: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    compiled = compiled_of(cell)
    given = unpack(compiled, names_of(compiled, biased), tensors)
    sizes, like = sizes_of(compiled, given), given.states[0]
    found = [like.new_empty(rows, sizes[str(node.size)]) for node in compiled.loop.emitted]
    found += [state.new_empty(state.shape) for state in given.states]
    if keep:
        found += [like.new_empty(rows, blocks * sizes[size]) for _, size, blocks in layout(compiled).workspace]
    return found


def _backward(
    tensors: Sequence[Tensor], emitted: Sequence[Tensor], workspace: Sequence[Tensor], grads: Sequence[Tensor | None],
    count: int, batch: int, rows: int, batch_sizes: Tensor | None, reverse: bool, cell: str, biased: bool,
) -> list[Tensor]:  # fmt: skip
    compiled = compiled_of(cell)
    steps = Steps(count, batch, rows, batch_sizes, reverse)
    arrays = dict(zip((name for name, *_ in layout(compiled).workspace), workspace, strict=True))
    given = unpack(compiled, names_of(compiled, biased), tensors)
    _, *found = run_backward(run_of(tensors[0].device), compiled, steps, given, emitted, arrays, grads)
    return [
        torch.zeros_like(tensor) if grad is None else grad.reshape(tensor.shape).contiguous()
        for tensor, grad in zip(tensors, found, strict=True)
    ]


def _fake_backward(tensors: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


for _name, _run, _fake in (("scan", _forward, _fake_forward), ("scan_backward", _backward, _fake_backward)):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastrnn::{_name}", _fake, lib=_library)


def _setup(ctx: Any, inputs: Any, output: Sequence[Tensor]) -> None:
    tensors, *about, keep = inputs
    compiled = compiled_of(about[5])
    emitted = len(compiled.loop.emitted)
    ends = len(compiled.loop.states)
    ctx.about, ctx.counts, ctx.keep = about, (len(tensors), emitted, ends), keep
    ctx.save_for_backward(*tensors, *output[:emitted], *output[emitted + ends :])
    ctx.set_materialize_grads(False)


def _derivative(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    count, emitted, ends = ctx.counts
    saved = ctx.saved_tensors
    if not ctx.keep:
        raise RuntimeError("fastrnn::scan saved nothing to differentiate by: call it with keep=True")
    tensors, outputs, workspace = saved[:count], saved[count : count + emitted], saved[count + emitted :]
    seeds = [None if grad is None else grad.contiguous() for grad in grads[: emitted + ends]]
    found = torch.ops.fastrnn.scan_backward(tensors, outputs, workspace, seeds, *ctx.about)
    return (found, *(None,) * 8)


torch.library.register_autograd("fastrnn::scan", _derivative, setup_context=_setup, lib=_library)


def scan(compiled: Compiled, steps: Steps, given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """The loop as an operator; see :data:`fastrnn.fused.layer.Scan`."""
    tensors = [*given.groups, *given.states, *given.matrices.values(), *given.biases.values()]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    found = torch.ops.fastrnn.scan(tensors, *steps, compiled.key, bool(given.biases), keep)
    emitted, states = len(compiled.loop.emitted), len(compiled.loop.states)
    return list(found[:emitted]), list(found[emitted : emitted + states])
