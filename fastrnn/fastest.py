"""Torch's own function or which path of ours: the answer of :mod:`fastrnn.choices` for a call, measured where asked."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn import choices, ops, trials
from fastrnn.backends import load, reference
from fastrnn.checks import Sizes
from fastrnn.choices import TORCH
from fastrnn.walk import Path, by_torch_path, walk, without_grad


def rivalled(h0: Tensor, steps: int) -> bool:
    """Whether torch has a fused function beside ours: cuDNN's, but beyond its number of steps."""
    return h0.is_cuda and torch.backends.cudnn.enabled and steps <= 65_535


def fastest(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    training: bool,
) -> str:
    """TORCH or the name of a backend, by :mod:`fastrnn.choices`; measured first where that is switched on."""
    layer = load("triton")
    served = layer.paths(mode, h0, sizes.hidden, sizes.directions)
    rows, steps = h0.shape[1], x.shape[0] if batch_sizes is None else len(batch_sizes)
    kind = choices.Kind(
        mode, str(h0.dtype).removeprefix("torch."), layer.precision_of(h0) == "tf32", sizes.num_layers,
        sizes.directions, batch_sizes is not None, sizes.hidden, sizes.outputs, choices.bucket(rows),
        choices.bucket(steps), training,
    )  # fmt: skip

    def network(path: Path, x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor) -> Sequence[Tensor]:
        return walk(path, mode, x, batch_sizes, h0, c0, weights, sizes, 0.0)[:3]

    def own(backend: str) -> Path:
        if training:
            return functools.partial(ops.layer, backend, False, True)
        return functools.partial(without_grad, load(backend).forward, False)

    def measure() -> choices.Choice | None:
        names = [f"triton_{name}" for name in served]
        candidates = {TORCH: functools.partial(network, by_torch_path)}
        candidates |= {name: functools.partial(network, own(name)) for name in names}
        exact = functools.partial(network, reference.layer)
        return trials.measure(kind, candidates, exact, (x, h0, c0, *weights))

    tunes = choices.tuning() and rows > 0 and steps > 0
    found = choices.table(h0.device).get(kind, measure if tunes else None)
    # Of the sizes that a kind stands for, the path may serve some alone.
    return found.winner if found and found.winner.removeprefix("triton_") in served else TORCH
