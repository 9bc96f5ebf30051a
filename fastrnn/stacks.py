"""Layers one upon the other in one call of the C++ kernels, which may run them in a wavefront.

Where each layer alone is too small for the threads, one thread takes each layer and follows the one before it by a few
steps, forward and backward.  That takes layers of one direction, nothing between them (no dropout), and one autograd
Function for all, whose outputs are every layer's y, so that higher derivatives find their way through all layers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastrnn import ops, profiling, saving
from fastrnn.backends import Saved, cpp


def layers(
    mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor]
) -> Sequence[Tensor]:
    """All layers, differentiable: the last one's y, hn (L, B, P) and cn (L, B, H) or (0,) of all, and the last one's
    cells."""
    return _Stack.apply(mode, x, batch_sizes, h0, c0, *weights)[h0.shape[0] - 1 :]


def without_grad(
    cells: bool, mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    """The same without a derivative; the cells are there if asked for."""
    ys, hn, cn, saved = cpp.forward_stack(mode, x, batch_sizes, h0, c0, weights, cells)
    return ys[-1], hn, cn, saved[-1].cells if saved else cn


class _Stack(Function):
    """The derivative of all layers."""

    @staticmethod
    def forward(
        ctx: Any,
        mode: str,
        x: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor,
        c0: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ys, hn, cn, saved = cpp.forward_stack(mode, x, batch_sizes, h0, c0, weights, True)
        assert saved is not None
        ctx.mode, ctx.layers = mode, h0.shape[0]
        ctx.set_materialize_grads(False)
        if c0 is None:
            ctx.mark_non_differentiable(cn)
        gates, cells, hidden = zip(*saved, strict=True)
        needed, each = ctx.needs_input_grad, len(weights) // h0.shape[0]
        carried = ys[0].shape[0] > 1 if batch_sizes is None else batch_sizes.shape[0] > 1
        carried = carried or needed[3] or needed[4]
        held = saving.unread(len(weights), each, True, carried)
        held += () if needed[1] else (-len(weights),)  # the lowest layer's W_ih is for the gradient of x
        tensors = (x, batch_sizes, h0, c0, *ys[:-1], *gates, *cells, hidden[-1], *weights)
        held += () if any(needed[5 : 5 + each]) else (-len(tensors),)
        saving.save(ctx, tensors, held)
        return *ys, hn, cn, None if c0 is None else cells[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        if ops.by_equations(grads):
            saving.check_unread(ctx)
        count, (x, batch_sizes, h0, c0, *rest) = ctx.layers, saving.saved_by(ctx)
        below, rest = rest[: count - 1], rest[count - 1 :]
        gates, cells, last, weights = rest[:count], rest[count : 2 * count], rest[2 * count], rest[2 * count + 1 :]
        *seeds_below, grad_y, grad_hn, grad_cn, grad_cells = ops.resolved(*grads)
        hidden = [*(y.detach().view(1, -1, y.shape[-1]) for y in below), last]
        saved = [Saved(*of_layer) for of_layer in zip(gates, cells, hidden, strict=True)]
        each, needed = len(weights) // count, ctx.needs_input_grad
        need_x, need_state = needed[1], needed[3] or needed[4]
        need_weights = [any(needed[5 + i * each : 5 + (i + 1) * each]) for i in range(count)]
        plain = all(seed is None for seed in seeds_below) and not any(ops.is_batched(grad) for grad in grads)
        if plain and ops.undisturbed():
            run = functools.partial(
                cpp.backward_stack, ctx.mode, x, batch_sizes, h0, c0, weights, below, saved, grad_y, grad_hn, grad_cn,
                grad_cells, need_x, need_state, need_weights,
            )  # fmt: skip
            found = profiling.backward(ctx.mode, grad_y, x, weights, run) if profiling.profiling() else run()
            return None, found.x, None, found.h0, found.c0, *(found.weights or ())
        grad: Any = grad_y
        of_weights, of_h0, of_c0 = [], [], []
        for i in reversed(range(count)):
            own, one = slice(i * each, (i + 1) * each), slice(i, i + 1)
            states = h0[one], None if c0 is None else c0[one]
            ends = (None if seed is None else seed[one] for seed in (grad_hn, grad_cn))
            seeds = grad, *ends, grad_cells if i + 1 == count else None
            inputs = below[i - 1] if i else x, batch_sizes, *states, weights[own]
            needs = bool(i) or need_x, need_state, need_weights[i]
            found = ops.gradients("cpp", True, ctx.mode, *inputs, saved[i], seeds, *needs)
            grad = found.x
            if i and seeds_below[i - 1] is not None:
                grad = seeds_below[i - 1] if grad is None else grad + seeds_below[i - 1]
            of_weights[:0] = found.weights or [None] * each
            of_h0.insert(0, found.h0)
            of_c0.insert(0, found.c0)
        ends = (torch.cat(found) if need_state and found[0] is not None else None for found in (of_h0, of_c0))
        return None, grad, None, *ends, *of_weights
