"""How the rows of all steps of a batch lie in memory, padded or packed, and the rows one step away."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """``steps`` T, ``sequences`` B, ``total`` N.  ``offsets`` (T + 1,), the first row of each step, and ``last`` (B,),
    the row of each sequence's last step, both int64 on the device, are None where each step has all B rows."""

    steps: int
    sequences: int
    total: int
    offsets: Tensor | None
    last: Tensor | None

    @classmethod
    def of(cls, x: Tensor, batch_sizes: Tensor | None) -> Rows:
        """Of ``x`` and ``batch_sizes`` as :mod:`fastrnn.backends` has them."""
        if batch_sizes is None:
            return cls(x.shape[0], x.shape[1], x.shape[0] * x.shape[1], None, None)
        steps, sequences = len(batch_sizes), int(batch_sizes[0])
        offsets = torch.cat([batch_sizes.new_zeros(1), batch_sizes.cumsum(0)])
        ids = torch.arange(sequences, device="cpu")
        lengths = steps - torch.searchsorted(batch_sizes.flip(0), ids, right=True)
        last = offsets[lengths - 1] + ids
        return cls(steps, sequences, x.shape[0], offsets.to(x.device), last.to(x.device))

    def first(self, direction: int) -> slice | Tensor:
        """The rows (B,) of the sequences' first steps in this direction."""
        if direction == 0:
            return slice(0, self.sequences)
        return slice(self.total - self.sequences, self.total) if self.last is None else self.last

    def before(self, values: Tensor, initial: Tensor, direction: int) -> Tensor:
        """``values`` (N, F) one step earlier in this direction, ``initial`` (B, F) at each sequence's first step."""
        if self.offsets is None:
            kept = self.total - self.sequences
            parts = [initial, values[:kept]] if direction == 0 else [values[self.sequences :], initial]
            return torch.cat(parts)
        device, sizes = values.device, self.offsets.diff()
        step = torch.arange(self.steps, device=device).repeat_interleave(sizes, output_size=self.total)
        row = torch.arange(self.total, device=device) - self.offsets[step]
        other = step + (1 if direction else -1)
        inside = (other >= 0) & (other < self.steps)
        other = other.clamp(0, self.steps - 1)
        there = inside & (row < sizes[other])
        return torch.cat([values, initial])[torch.where(there, self.offsets[other], self.total) + row]
