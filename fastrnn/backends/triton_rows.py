"""How the rows of all steps of a batch lie in memory, padded or packed, and the rows one step away."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
        sizes = tuple(batch_sizes.tolist())
        offsets, last = _on_device(sizes, x.device)
        if x.is_cuda:
            _hold(offsets, last)
        return cls(len(sizes), sizes[0], x.shape[0], offsets, last)

    def first(self, direction: int) -> slice | Tensor:
        """The rows (B,) of the sequences' first steps in this direction."""
        if direction == 0:
            return slice(0, self.sequences)
        return slice(self.total - self.sequences, self.total) if self.last is None else self.last

    def product_before(self, grads: Tensor, values: Tensor, initial: Tensor, direction: int) -> Tensor:
        """``grads`` (N, G) transposed times :meth:`before` of the others, (G, F)."""
        if self.offsets is not None:
            return grads.t() @ self.before(values, initial, direction)
        # What begins and what goes on are a product each, so that nothing is copied side by side.
        kept = self.total - self.sequences
        begins, goes_on = (slice(0, self.sequences), slice(self.sequences, None))
        if direction == 1:
            begins, goes_on, values = slice(kept, None), slice(0, kept), values[self.sequences :]
        found = grads[begins].t() @ initial
        return found.addmm_(grads[goes_on].t(), values[:kept]) if kept else found

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


@functools.lru_cache(maxsize=256)
def _on_device(sizes: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """``offsets`` and ``last`` of these batch sizes.  Copied once, for all streams: ``to`` returns when they are there,
    and a CUDA graph, which can hold no such copy, finds them from the call before it that warms up."""
    with torch.inference_mode(False):
        batch_sizes = torch.tensor(sizes, dtype=torch.int64, device="cpu")
        offsets = torch.cat([batch_sizes.new_zeros(1), batch_sizes.cumsum(0)])
        ids = torch.arange(sizes[0], device="cpu")
        lengths = len(sizes) - torch.searchsorted(batch_sizes.flip(0), ids, right=True)
        return offsets.to(device), (offsets[lengths - 1] + ids).to(device)


_captured: set[Tensor] = set()  # what graphs read: nobody else keeps it while they live


def _hold(*tensors: Tensor) -> None:
    """Keeps their memory until the current stream, or a graph that it captures, is done with them."""
    if torch.cuda.is_current_stream_capturing():
        _captured.update(tensors)
        return
    for tensor in tensors:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
