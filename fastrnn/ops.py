"""One layer, differentiable: the derivatives of the operators of :mod:`fastrnn.schemas`.

The first derivative is a backend's; the derivative of that one, and so every higher one, comes from the equations
(:func:`fastrnn.backends.reference.layer`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
from torch.autograd import Function

from fastrnn import profiling
from fastrnn.backends import Backward, Saved, load, reference
from fastrnn.checks import is_tokens
from fastrnn.dynamo import observed
from fastrnn.flops import tell_counters
from fastrnn.saving import check_unread, save, saved_by, unread
from fastrnn.schemas import Gradients, backward_op, layer_op, library

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def layer(
    backend: str, cells: bool, eager: bool, mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor,
    c0: Tensor | None, weights: Sequence[Tensor],
) -> Outputs:  # fmt: skip
    """One layer on a backend, differentiable: y, hn, cn, shaped as in :class:`fastrnn.backends.Forward`, and the cell
    states of all steps, (D, N, H), which are there without gradients, too, where ``cells`` asks for them.

    ``eager``: nobody looks on who wants to see the operator, and the tensors' memory holds their values; so the backend
    is called without the dispatcher, which costs as much as a short sequence.
    """
    if eager and needs_grad(x, h0, c0, *weights):
        out = _Layer.apply(mode, backend, True, x, batch_sizes, h0, c0, *weights)
    else:
        if not torch.compiler.is_compiling():
            tell_counters()
        out = layer_op(x, batch_sizes, h0, c0, weights, mode, backend, cells or torch.is_grad_enabled())
    return out[0], out[1], out[2], out[4]


class _Layer(Function):
    """The derivative of ``fastrnn::layer``, which is not called itself where ``eager``."""

    @staticmethod
    def forward(
        ctx: Any,
        mode: str,
        backend: str,
        eager: bool,
        x: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor,
        c0: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        if eager:
            y, hn, cn, (gates, cells, hidden) = load(backend).forward(mode, x, batch_sizes, h0, c0, weights, True)
            out, hidden_outputs = (y, hn, cn, None, None if c0 is None else cells, None), ()
        else:
            with torch._C._AutoDispatchBelowAutograd():
                out = layer_op(x, batch_sizes, h0, c0, weights, mode, backend, True)
            _, _, cn, gates, cells, hidden = out
            hidden_outputs = (gates, hidden) if c0 is not None else (gates, cells, hidden)
        ctx.mode, ctx.backend, ctx.eager = mode, backend, eager
        ctx.set_materialize_grads(False)  # zeros in the place of gates, cells and hidden would be as large as they are
        ctx.mark_non_differentiable(*hidden_outputs if c0 is not None else (cn, *hidden_outputs))
        needed, steps = ctx.needs_input_grad, x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
        carried = not eager or steps > 1 or needed[5] or needed[6]  # in a graph, T is a symbol
        held = unread(
            len(weights), len(weights) // int(h0.shape[0]), needed[3], carried
        )  # D, in a graph, too, is known
        tensors: Any = (x, batch_sizes, h0, c0, gates, cells, hidden, *weights)
        held += () if any(needed[7:]) else (-len(tensors),)
        # `reference` runs the equations again, which read all.
        ctx.copies = [tensors[k].clone() for k in held] if backend == "reference" else []
        save(ctx, tensors, held)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        seeds = resolved(*grads[:3], grads[4])
        if all(seed is None for seed in seeds):
            return (None,) * len(ctx.needs_input_grad)
        tensors = saved_by(ctx)
        if by_equations(seeds):
            check_unread(ctx)
        else:
            for k, copy in zip(ctx.kept[1], ctx.copies, strict=False):
                tensors[k] = copy
        x, batch_sizes, h0, c0, gates, cells, hidden, *weights = tensors
        none = (None,) * len(weights)
        needed = ctx.needs_input_grad
        needs = needed[3], needed[5] or needed[6], any(needed[7:])
        inputs, saved = (x, batch_sizes, h0, c0, weights), Saved(gates, cells, hidden)
        found = gradients(ctx.backend, ctx.eager, ctx.mode, *inputs, saved, seeds, *needs)
        return (None, None, None, found.x, None, found.h0, found.c0, *(found.weights or none))


def gradients(
    backend: str,
    eager: bool,
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    saved: Saved,
    seeds: Sequence[Tensor | None],
    need_x: bool,
    need_state: bool,
    need_weights: bool,
) -> Backward:
    """The gradients of one layer's inputs from ``seeds``, those of y, hn, cn and the cells, in the backward of an
    autograd Function: differentiable where that shall be, and with many gradients in the place of one."""
    if any(is_batched(seed) for seed in seeds):
        with torch.enable_grad():
            inputs = [t.view_as(t) if t is not None and t.requires_grad else t for t in (x, h0, c0, *weights)]
        found: list[Any] = _by_equations(mode, batch_sizes, inputs, seeds)
        if not torch.is_grad_enabled():
            found = [None if grad is None else grad.clone() for grad in found]  # batched, it has no detach()
        return Backward(found[0], found[1], found[2], found[3:])
    if eager and undisturbed():
        run = functools.partial(load(backend).backward, mode, x, batch_sizes, h0, c0, weights, saved, *seeds)
        if profiling.profiling():
            own = functools.partial(run, need_x, need_state, need_weights)
            return profiling.backward(mode, seeds[0], x, weights, own)
        return run(need_x, need_state, need_weights)
    tell_counters()
    grad_x, grad_h0, grad_c0, grad_weights = backward_op(
        x, batch_sizes, h0, c0, weights, *saved, *seeds, mode, backend, need_x, need_state, need_weights
    )
    states = (grad_h0, None if c0 is None else grad_c0) if need_state else (None, None)
    return Backward(grad_x if need_x else None, *states, grad_weights if need_weights else None)


def by_equations(seeds: Sequence[Tensor | None]) -> bool:
    """Whether :func:`gradients` reads biases, too: it shall be differentiated, or with many gradients in the place of
    one."""
    return torch.is_grad_enabled() or any(is_batched(seed) for seed in seeds)


def undisturbed() -> bool:
    """Whether a backward is called as most are: no derivative of it is wanted, and nobody looks on."""
    return not (torch.is_grad_enabled() or torch._C._is_any_autocast_enabled() or observed())


class _LayerBackward(Function):
    """The derivative of ``fastrnn::layer_backward``, by the equations."""

    @staticmethod
    def forward(
        ctx: Any,
        mode: str,
        backend: str,
        need_x: bool,
        need_state: bool,
        need_weights: bool,
        batch_sizes: Tensor | None,
        gates: Tensor,
        cells: Tensor,
        hidden: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        *seeds, x, h0, c0 = tensors[:7]
        weights = tensors[7:]
        with torch._C._AutoDispatchBelowAutograd():
            grad_x, grad_h0, grad_c0, grad_weights = backward_op(
                x, batch_sizes, h0, c0, weights, gates, cells, hidden, *seeds, mode, backend, need_x,
                need_state, need_weights,
            )  # fmt: skip
        ctx.mode, ctx.need_x, ctx.need_state = mode, need_x, need_state
        ctx.set_materialize_grads(False)
        save(ctx, (batch_sizes, *tensors))
        return grad_x, grad_h0, grad_c0, *grad_weights

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        batch_sizes, *tensors = saved_by(ctx)
        with torch.enable_grad(), torch._C._DisableAutocast():
            own: list[Any] = [_alias(tensor) for tensor in tensors]
            grad_x, grad_h0, grad_c0, *rest = _by_equations(ctx.mode, batch_sizes, own[4:], own[:4])
            # As forward returned them: what was not needed has an empty tensor's place there, or, of weights, none.
            states = (grad_h0, grad_c0) if ctx.need_state else (None, None)
            first = (grad_x if ctx.need_x else None, *states, *rest)
            pairs = [(grad, given) for grad, given in zip(first, cotangents, strict=False) if given is not None]
            pairs = [(grad, given) for grad, given in pairs if grad is not None and grad.requires_grad]
            leaves = [tensor for tensor in own if tensor is not None and tensor.requires_grad]
            found: Iterator[Tensor | None] = iter(
                torch.autograd.grad(
                    [grad for grad, _ in pairs],
                    leaves,
                    [given for _, given in pairs],
                    create_graph=create_graph,
                    allow_unused=True,
                )
                if pairs
                else [None] * len(leaves)
            )
        return (None,) * 9 + tuple(
            next(found) if tensor is not None and tensor.requires_grad else None for tensor in own
        )


def _by_equations(
    mode: str,
    batch_sizes: Tensor | None,
    inputs: Sequence[Any],
    seeds: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The first derivative by the equations, with a graph: the gradients of the inputs x, h0, c0 and weights, None
    where one requires none, from the ``seeds`` grad_y, grad_hn, grad_cn and grad_cells."""
    x, h0, c0, *weights = inputs
    with torch.enable_grad(), torch._C._DisableAutocast():
        outputs = reference.layer(mode, x, batch_sizes, h0, c0, weights)
        pairs = [(out, seed) for out, seed in zip(outputs, seeds, strict=True) if seed is not None]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs],
                [tensor for tensor in inputs if tensor is not None and tensor.requires_grad],
                [seed for _, seed in pairs],
                create_graph=True,
                materialize_grads=True,
            )
        )
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def resolved(*seeds: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients whose memory holds their values: that of an imaginary part may hold them with the wrong sign."""
    return tuple(None if seed is None else seed.resolve_neg() for seed in seeds)


def is_batched(tensor: Tensor | None) -> bool:
    """Whether these are many gradients in the place of one, which no kernel sees through: those of vmap, or of
    ``is_grads_batched=True``."""
    return tensor is not None and (is_batchedtensor(tensor) or is_legacy_batchedtensor(tensor))


def _alias(tensor: Tensor | None) -> Tensor | None:
    """The same values as a tensor of its own in the graph: a derivative by it counts no path through other inputs."""
    if tensor is None or is_tokens(tensor):
        return tensor
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative by one of these is recorded."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _autograd_forward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], mode: str,
    backend: str, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    if needs_grad(x, h0, c0, *weights):
        return _Layer.apply(mode, backend, False, x, batch_sizes, h0, c0, *weights)
    with torch._C._AutoDispatchBelowAutograd():
        return layer_op(x, batch_sizes, h0, c0, weights, mode, backend, save)


def _autograd_backward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], gates: Tensor,
    cells: Tensor, hidden: Tensor, grad_y: Tensor | None, grad_hn: Tensor | None, grad_cn: Tensor | None,
    grad_cells: Tensor | None, mode: str, backend: str, need_x: bool, need_state: bool, need_weights: bool,
) -> Gradients:  # fmt: skip
    tensors = (grad_y, grad_hn, grad_cn, grad_cells, x, h0, c0, *weights)
    if needs_grad(*tensors):
        found = _LayerBackward.apply(
            mode, backend, need_x, need_state, need_weights, batch_sizes, gates, cells, hidden, *tensors
        )
        return found[0], found[1], found[2], list(found[3:])
    with torch._C._AutoDispatchBelowAutograd():
        return backward_op(
            x, batch_sizes, h0, c0, weights, gates, cells, hidden, grad_y, grad_hn, grad_cn, grad_cells, mode, backend,
            need_x, need_state, need_weights,
        )  # fmt: skip


library.impl("layer", _autograd_forward, "Autograd")
library.impl("layer_backward", _autograd_backward, "Autograd")
