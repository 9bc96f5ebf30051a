"""The way of a call through layers and directions, on a path.

A *path* is what runs one layer: a backend's forward where no derivative is wanted (:func:`without_grad`), else the
operator of :mod:`fastrnn.ops`, or the equations themselves.  Torch's own function is a path, too, but runs all layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import by_torch, ops, profiling, stacks
from fastrnn.backends import choose, cpp
from fastrnn.checks import Sizes
from fastrnn.modes import CELLS

# (mode, x, batch_sizes, h0, c0, weights) -> y, hn, cn of one layer, shaped as in fastrnn.backends.Forward, and the
# cell states of all steps (D, N, H), which are of use only where they were asked for
Path = Callable[[str, Tensor, Tensor | None, Tensor, Tensor | None, Sequence[Tensor]], Sequence[Tensor]]


def without_autocast(path: Path, *layer: Any) -> Sequence[Tensor]:
    with torch._C._DisableAutocast():
        return path(*layer)


def without_grad(
    forward: Callable,
    cells: bool,
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:
    y, hn, cn, saved = forward(mode, x, batch_sizes, h0, c0, weights, cells)
    return y, hn, cn, cn if saved is None else saved.cells


def walk(
    path: Path,
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    dropout: float,
) -> Sequence[Tensor]:
    """Every layer in turn, on a path that :func:`fastrnn.paths.plan` gave: the last layer's y, hn and cn of all, and
    the last layer's cell states.

    Dropout draws from the global generator in the order and the shapes of torch.nn, so that one seed gives one mask.
    """
    if not torch.compiler.is_compiling() and profiling.profiling():
        layers = functools.partial(_walk, path, mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
        return profiling.forward(mode, x, h0, weights, layers)
    return _walk(path, mode, x, batch_sizes, h0, c0, weights, sizes, dropout)


def _walk(
    path: Path,
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    dropout: float,
) -> Sequence[Tensor]:
    if path is by_torch_path:
        return _torch_network(mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
    if is_by_torch(path):
        with torch._C._DisableAutocast():
            return _walk(by_torch_path, mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
    if sizes.num_layers == 1:
        return path(mode, x, batch_sizes, h0, c0, weights)
    if not dropout and (whole := _at_once(path, x, h0, weights, sizes)):
        return whole(mode, x, batch_sizes, h0, c0, weights)
    directions, count = sizes.directions, len(weights) // sizes.num_layers
    hns, cns = [], []
    for layer in range(sizes.num_layers):
        if dropout and layer:
            x = torch.dropout(x, dropout, True)
        own = slice(layer * directions, (layer + 1) * directions)
        states = h0[own], None if c0 is None else c0[own]
        x, hn, cn, cells = path(mode, x, batch_sizes, *states, weights[layer * count : (layer + 1) * count])
        hns.append(hn)
        cns.append(cn)
    return x, torch.cat(hns), torch.cat(cns), cells


def by_torch_path(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:
    """The path of torch's own function, which takes all layers at once: :func:`walk` runs the network in its place."""
    sizes = Sizes(x.shape[-1], weights[1].shape[0] // len(CELLS[mode].gates), h0.shape[-1], 1, h0.shape[0])
    return _torch_network(mode, x, batch_sizes, h0, c0, weights, sizes, 0.0)


def is_by_torch(path: Any) -> bool:
    """Whether what :func:`fastrnn.paths.plan` gave leaves the network to torch's own function."""
    return path is by_torch_path or (
        type(path) is functools.partial and path.func is without_autocast and path.args[0] is by_torch_path
    )


def _torch_network(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    dropout: float,
) -> Sequence[Tensor]:
    def first(x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor) -> Sequence[Tensor]:
        found = by_torch.call(mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
        return found[: 2 if c0 is None else 3]

    def again(x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor) -> Sequence[Tensor]:
        ours = functools.partial(ops.layer, choose(h0.device, h0.dtype, mode) or "reference", False, True)
        return walk(ours, mode, x, batch_sizes, h0, c0, weights, sizes, 0.0)[: 2 if c0 is None else 3]

    masked = dropout and sizes.num_layers > 1  # by a mask that torch draws, and nobody can draw again
    if masked or not ops.needs_grad(x, h0, c0, *weights):
        return by_torch.call(mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
    y, hn, *cn = by_torch.twice(first, again, x, h0, c0, weights)
    return y, hn, cn[0] if cn else hn.new_empty(0), hn.new_empty(0)


def _at_once(path: Any, x: Tensor, h0: Tensor, weights: Sequence[Tensor], sizes: Sizes) -> Path | None:
    """The path that runs all layers in one call, of a path that runs one; None where there is none."""
    if sizes.directions > 1 or type(path) is not functools.partial or h0.dtype not in cpp.STACKED:
        return None
    lowest = x, *weights[: len(weights) // sizes.num_layers]
    whole = None
    if path.func is without_grad and path.args[0] is cpp.forward:
        whole = functools.partial(stacks.without_grad, path.args[1])
    elif path.func is ops.layer and path.args[0] == "cpp" and path.args[2]:
        # else lower layers may have no derivative to wait for
        whole = stacks.layers if any(tensor.requires_grad for tensor in lowest) else None
    # Rows come last: in a graph, whose path is none of these, their number may be unknown.
    return whole if whole and h0.shape[1] else None


def cell_states(cells: Tensor, y: Tensor) -> Tensor:
    """The cell states (D, N, H) of a layer as its output stands: (T, B, D*H), or packed (N, D*H), in its dtype.

    A copy, which the user may change in place.
    """
    rows = cells[0] if cells.shape[0] == 1 else cells.transpose(0, 1).flatten(1)
    return rows.unflatten(0, y.shape[:-1]).to(y.dtype, copy=True)
