"""The order of steps in plain torch: which rows begin, go on and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def over_steps(
    sizes: Sequence[int],
    states: Sequence[Tensor],
    reverse: bool,
    step: Callable[[int, list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """The states behind the last step of each row, (B, size) each.

    Args:
        sizes: the rows of each step, in the order of time, never increasing; the first is B.
        states: those before the first step, (B, size) each.
        reverse: whether the last step comes first, so that rows begin one by one; else they end so.
        step: of a step's number and the states of its rows those behind it.
    """
    now = [state[:0] for state in states] if reverse else list(states)
    ended = [state[:0] for state in states]  # forward: rows that have ended, longest first
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        count = sizes[t]
        if reverse:  # rows whose last step this is begin here
            now = [torch.cat([state, first[len(state) : count]]) for state, first in zip(now, states, strict=True)]
        else:  # rows that have no such step ended before it
            ended = [torch.cat([state[count:], end]) for state, end in zip(now, ended, strict=True)]
            now = [state[:count] for state in now]
        now = step(t, now)
    return [torch.cat(pair) for pair in zip(now, ended, strict=True)]
