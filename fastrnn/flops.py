"""How many operations the operators of :mod:`fastrnn.ops` count as for torch.utils.flop_counter.FlopCounterMode.

As torch counts: 2 m n k for a matrix product, nothing for what goes unit by unit.  A layer of N rows in all steps, B of
them in a batch, I inputs, H units, P outputs and G gates a unit, for each direction::

    forward    2 N G H (I + P)  + 2 N P H                  the last where h is projected
    backward   2 N G H (I + P)  + 2 N P H                  gradients of the weights, where they are wanted
             + 2 N G H I                                    of x
             + 2 (N - B) G H P  + 2 N P H                  of the states; N in place of N - B for that of h0

Of tokens no input product is counted, which gathers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Shape = Sequence[int]


def _sizes(x: Shape, batch_sizes: Shape | None, h0: Shape, weights: Sequence[Shape]) -> tuple[int, int, int, int, int]:
    """Rows in all steps, rows of a batch, and the numbers of one direction's W_ih, W_hh and W_hr."""
    directions, batch, outputs = h0
    rows = x[0] if batch_sizes is not None else x[0] * x[1]
    tokens = len(x) == (1 if batch_sizes is not None else 2)
    count = len(weights) // directions
    w_ih, w_hh = weights[0], weights[1]
    projected = weights[2 if count == 3 else 4] if count in (3, 5, 6) else (0, 0)
    return rows, batch, 0 if tokens else w_ih[0] * w_ih[1], w_hh[0] * w_hh[1], projected[0] * projected[1]


def layer(
    x: Shape, batch_sizes: Shape | None, h0: Shape, c0: Shape | None, weights: Sequence[Shape], *_: Any, **__: Any
) -> int:
    """Of ``fastrnn::layer``."""
    rows, _batch, inputs, recurrent, projected = _sizes(x, batch_sizes, h0, weights)
    return 2 * h0[0] * rows * (inputs + recurrent + projected)


def layer_backward(
    x: Shape, batch_sizes: Shape | None, h0: Shape, c0: Shape | None, weights: Sequence[Shape], *rest: Any, **__: Any
) -> int:
    """Of ``fastrnn::layer_backward``."""
    need_x, need_state, need_weights = rest[-3:]
    rows, batch, inputs, recurrent, projected = _sizes(x, batch_sizes, h0, weights)
    carried = rows if need_state else rows - batch
    total = carried * recurrent + rows * projected
    total += rows * (inputs + recurrent + projected) if need_weights else 0
    total += rows * inputs if need_x else 0
    return 2 * h0[0] * total


FORMULAS: dict[str, Callable[..., int]] = {"layer": layer, "layer_backward": layer_backward}


def tell_counters() -> None:
    """Gives torch's counters these formulas, those at work now as well; they copy what is known when they are made.

    Not at import: the counter imports Triton, which takes longer than all else.
    """
    counter: Any = sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    for name, formula in FORMULAS.items():
        packet = getattr(torch.ops.fastrnn, name)
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(formula)
        for mode in _get_current_dispatch_mode_stack():
            own = getattr(getattr(mode, "counter", mode), "flop_registry", None)  # early torch: the mode itself counts
            if own is not None:
                own.setdefault(packet, counter.flop_registry[packet])
