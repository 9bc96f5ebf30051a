"""A path around a path: steps in chunks, of which only inputs and first states are kept for backward.

Forward runs chunk after chunk and keeps nothing of its gates; backward runs each chunk's forward once more, and then
its backward.  With about sqrt(T) steps in each, what is kept is the input and sqrt(T) states, and gates take the room
of one chunk.

Source: Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost" (2016); Gruslys, Munos, Danihelka,
Lanctot, Graves, "Memory-efficient backpropagation through time" (2016).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import ops, saving
from fastrnn.checks import is_tokens
from fastrnn.sequences import steps_and_columns, take
from fastrnn.storage import require_memory
from fastrnn.walk import Path

# A chunk has at least so many rows, since each packs the weights and adds up their gradients anew.  A step of training
# took, over one that keeps its gates (LSTM and GRU, H = 128 and 256), 1.4 times as long in one chunk, 1.4 to 1.5 in
# chunks of 2048 rows, 1.5 to 1.6 of 1024, 1.6 to 1.7 of 512.
CHUNK_ROWS = 2048


def around(path: Any) -> Any:
    """What :func:`fastrnn.paths.plan` gave, in chunks where it records a derivative of a kernel."""
    inner = path
    while isinstance(inner, functools.partial):
        if inner.func is ops.layer:
            return functools.partial(layer, path)
        inner = inner.args[0] if inner.args else None  # what it is wrapped in switches autocast off
    return path


def layer(
    path: Path, mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    """One layer on ``path``, its directions one after the other and each in chunks."""
    require_memory(x, batch_sizes, h0, c0, *weights)
    # Backward reads biases again, where without recomputation they may be changed in place before it.
    weights = [weight if weight.dim() > 1 else weight.clone() for weight in weights]
    bounds = _bounds(x, batch_sizes, h0.shape[1])
    if len(bounds) == 1:
        return _again(path, mode, batch_sizes, x, h0, c0, weights)
    directions = h0.shape[0]
    each = len(weights) // directions
    ends = []
    for d in range(directions):
        own, states = weights[d * each : (d + 1) * each], (h0[d : d + 1], None if c0 is None else c0[d : d + 1])
        run = functools.partial(_reversed, path) if d else path
        rest = (*states, own, bounds, d == 1)
        chunk = functools.partial(_again, run, mode)
        ends.append(_padded(chunk, x, *rest) if batch_sizes is None else _packed(chunk, x, batch_sizes, *rest))
    if directions == 1:
        return ends[0]
    y, hn, cn, cells = zip(*ends, strict=True)
    return torch.cat(y, -1), torch.cat(hn), torch.cat(cn), torch.cat(cells)


def _bounds(x: Tensor, batch_sizes: Tensor | None, rows: int) -> list[tuple[int, int]]:
    """First step and end of each chunk, in order."""
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    mean = rows if batch_sizes is None else x.shape[0] / steps
    length = max(math.isqrt(steps), math.ceil(CHUNK_ROWS / max(1, mean)))
    count = math.ceil(steps / length)
    return [(k * steps // count, (k + 1) * steps // count) for k in range(count)]


def _again(
    path: Path, mode: str, batch_sizes: Tensor | None, x: Tensor, h0: Tensor, c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    given = [tensor for tensor in (x, h0, c0, *weights) if tensor is not None]
    before = saving.versions(given)

    def run(x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor) -> Sequence[Tensor]:
        saving.check_unchanged(given, before)
        return path(mode, x, batch_sizes, h0, c0, weights)

    # Nothing random runs inside a layer; dropout stands between layers.
    from torch.utils.checkpoint import checkpoint  # early torch takes 0.3 s to import it

    return checkpoint(run, x, h0, c0, *weights, use_reentrant=False, preserve_rng_state=False)


def _reversed(
    path: Path, mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    """The reverse direction alone: each sequence is read from its end, what comes out stands where it was."""
    if batch_sizes is None:
        y, hn, cn, cells = path(mode, x.flip(0), None, h0, c0, weights)
        if c0 is not None:
            cells = cells.unflatten(1, x.shape[:2]).flip(1).flatten(1, 2)
        return y.flip(0), hn, cn, cells
    step, column = steps_and_columns(batch_sizes)
    sizes = column.bincount()  # of each sequence
    starts = batch_sizes.cumsum(0) - batch_sizes
    turned = (starts[sizes[column] - 1 - step] + column).to(x.device)
    rows = x[turned] if is_tokens(x) else take(x, turned, turned)
    y, hn, cn, cells = path(mode, rows, batch_sizes, h0, c0, weights)
    if c0 is not None:
        cells = take(cells[0], turned, turned).unsqueeze(0)
    return take(y, turned, turned), hn, cn, cells


Chunk = Callable[..., Sequence[Tensor]]


def _padded(
    run: Chunk, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], bounds: list[tuple[int, int]],
    reverse: bool,
) -> Sequence[Tensor]:  # fmt: skip
    h, c, cn, found = h0, c0, h0.new_empty(0), []
    for start, end in reversed(bounds) if reverse else bounds:
        y, h, cn, cells = run(None, x[start:end], h, c, weights)
        c = None if c0 is None else cn
        found.append((y, cells))
    ys, all_cells = zip(*(reversed(found) if reverse else found), strict=True)
    if c0 is None:
        return torch.cat(ys), h, h.new_empty(0), h.new_empty(0)
    return torch.cat(ys), h, cn, torch.cat(all_cells, 1)


def _packed(
    run: Chunk, x: Tensor, batch_sizes: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor],
    bounds: list[tuple[int, int]], reverse: bool,
) -> Sequence[Tensor]:  # fmt: skip
    sizes = batch_sizes.tolist()
    starts = [0, *batch_sizes.cumsum(0).tolist()]
    states = [h0] if c0 is None else [h0, c0]
    now = [state[:, :0] if reverse else state for state in states]
    ended: list[list[Tensor]] = []
    found = []
    for start, end in reversed(bounds) if reverse else bounds:
        rows = sizes[start]
        if reverse:  # sequences that end in this chunk begin here
            now = [torch.cat([one, first[:, one.shape[1] : rows]], 1) for one, first in zip(now, states, strict=True)]
        else:  # sequences that have no such step ended before it
            ended.append([one[:, rows:] for one in now])
            now = [one[:, :rows] for one in now]
        part = x[starts[start] : starts[end]]
        y, *now, cells = run(batch_sizes[start:end], part, now[0], None if c0 is None else now[1], weights)
        now = now[: len(states)]
        found.append((y, cells))
    ys, all_cells = zip(*(reversed(found) if reverse else found), strict=True)
    if not reverse:
        now = [torch.cat(parts, 1) for parts in zip(now, *reversed(ended), strict=True)]
    if c0 is None:
        return torch.cat(ys), now[0], h0.new_empty(0), h0.new_empty(0)
    return torch.cat(ys), *now, torch.cat(all_cells, 1)
