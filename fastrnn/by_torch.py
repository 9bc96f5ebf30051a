"""torch's own functions as a path: the whole network in one call, as cuDNN wants it, and differentiable twice.

cuDNN's backward has no derivative.  So the derivative of a call is recorded as one node, which holds torch's own graph
for a first backward, and for one that shall be differentiated itself (``create_graph=True``) runs the network again on
a path that can be: ours.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.backends.cudnn.rnn import get_cudnn_mode

from fastrnn.checks import Sizes
from fastrnn.ops import is_batched, needs_grad

# (x, h0, c0 or None, *weights) -> y, hn and, of a cell that has it, cn
Network = Callable[..., Sequence[Tensor]]


def call(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    dropout: float,
) -> Sequence[Tensor]:
    """:func:`fastrnn.walk.walk` by torch's function: y, hn, cn or (0,), and (0,) in the place of the cell states.

    Shapes, dtypes and errors are those of ``torch._VF.lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu``.
    """
    function: Any = getattr(torch._VF, mode.lower())
    state = h0 if c0 is None else (h0, c0)
    biases = len(weights) // (sizes.num_layers * sizes.directions) >= 4
    # Where this is false cuDNN keeps nothing for a backward; dropout is there in training alone.
    records = needs_grad(x, h0, c0, *weights)
    network = list(weights), biases, sizes.num_layers, dropout, records or dropout > 0, sizes.directions == 2
    steps = (x, state) if batch_sizes is None else (x, batch_sizes, state)
    y, hn, *cn = function(*steps, *network, *((False,) if batch_sizes is None else ()))
    return y, hn, cn[0] if cn else hn.new_empty(0), hn.new_empty(0)


def flatten(module: Any) -> None:
    """Lays the parameters of a bfloat16 ``nn.RNNBase`` on CUDA into one piece of memory, as cuDNN wants them.  torch's
    own ``flatten_parameters`` does so for other dtypes, and leaves cuDNN to gather these anew in every call."""
    weights = module._flat_weights
    if not (len(weights) == len(module._flat_weights_names) and _flattens(weights)):
        return
    each = len(weights) // (module.num_layers * (2 if module.bidirectional else 1))
    sizes = module.hidden_size, module.proj_size, module.num_layers
    with torch.no_grad(), torch.cuda.device_of(weights[0]):
        torch._cudnn_rnn_flatten_weight(
            weights, each, module.input_size, get_cudnn_mode(module.mode), *sizes, module.batch_first,
            bool(module.bidirectional),
        )  # fmt: skip


def _flattens(weights: Sequence[Any]) -> bool:
    """Whether these are what :func:`flatten` is for; parameters that share memory stay as they are, as torch has it."""
    return (
        all(isinstance(weight, Tensor) and weight.is_cuda and weight.dtype is torch.bfloat16 for weight in weights)
        and torch.backends.cudnn.enabled
        and torch._use_cudnn_rnn_flatten_weight()
        and len({weight.data_ptr() for weight in weights}) == len(weights)
    )


def twice(first: Network, again: Network, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor]) -> Any:
    """What ``first`` gives, differentiable once by its own graph and more often by that of ``again``, which gives the
    same."""
    return _Twice.apply(first, again, x, h0, c0, *weights)


class _Twice(Function):
    @staticmethod
    def forward(ctx: Any, first: Network, again: Network, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.first, ctx.again = first, again
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.graph = _record(first, tensors, ctx.needs_input_grad[2:])
        return tuple(out.detach() for out in ctx.graph[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed, tensors = ctx.needs_input_grad[2:], ctx.saved_tensors
        if torch.is_grad_enabled() or any(is_batched(grad) for grad in grads):  # by vmap, which no kernel sees through
            # Of the tensors themselves, whose derivatives are wanted; as views, so that a tensor given twice is two.
            with torch.enable_grad():
                own = zip(tensors, needed, strict=True)
                leaves = [t.view_as(t) if t is not None and need else t for t, need in own]
                graph = leaves, ctx.again(*leaves)
        else:
            # Freed by its first use; a second backward, which retain_graph allows, runs the network again.
            graph = ctx.graph or _record(ctx.first, tensors, needed)
            ctx.graph = None
        leaves, outputs = graph
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        wanted: Any = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        if not pairs:
            return (None,) * (2 + len(needed))
        outs, seeds = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outs, wanted, seeds, create_graph=torch.is_grad_enabled(), allow_unused=True))
        return (None, None, *(next(found) if need else None for need in needed))


def _record(
    first: Network, tensors: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple[list[Tensor | None], Sequence[Tensor]]:
    """The inputs as leaves of a graph of their own, and what the network makes of them."""
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip(tensors, needed, strict=True)
    ]
    with torch.enable_grad():
        return leaves, first(*leaves)
