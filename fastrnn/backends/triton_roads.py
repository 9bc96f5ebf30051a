"""How a scan runs on a device: its rows, its road, its launches.

A road is how a kernel's work is laid out.  One table, :func:`road`, chooses it from the shape and the device.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.backends import Saved
from fastrnn.cells import CELLS

# Triton reads it when a kernel is defined; that is, once.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


class Rows(NamedTuple):
    """How the rows of all steps lie in memory.  ``offsets`` (T + 1,), the first row of each step, and ``last`` (B,),
    the row of each sequence's last step, both int64 on the device, are None where each step has all rows."""

    steps: int
    sequences: int
    total: int
    offsets: Tensor | None
    last: Tensor | None

    @classmethod
    def of(cls, x: Tensor, batch_sizes: Tensor | None) -> Rows:
        if batch_sizes is None:
            return cls(x.shape[0], x.shape[1], x.shape[0] * x.shape[1], None, None)
        steps, sequences = len(batch_sizes), int(batch_sizes[0])
        offsets = torch.cat([batch_sizes.new_zeros(1), batch_sizes.cumsum(0)])
        ids = torch.arange(sequences)
        lengths = steps - torch.searchsorted(batch_sizes.flip(0), ids, right=True)
        last = offsets[lengths - 1] + ids
        return cls(steps, sequences, x.shape[0], offsets.to(x.device), last.to(x.device))

    def first_of(self, direction: int) -> slice | Tensor:
        """The rows (B,) of the sequences' first steps in this direction."""
        if direction == 0:
            return slice(0, self.sequences)
        return slice(self.total - self.sequences, self.total) if self.last is None else self.last

    def before(self, values: Tensor, initial: Tensor, direction: int) -> Tensor:
        """``values`` (N, F) one step earlier in this direction, and ``initial`` (B, F) at each sequence's first step."""
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


class Road(NamedTuple):
    """Block sizes and launch of one kernel: ROWS x UNITS a program, DEPTH of the product at a time, and whether one
    cooperative launch takes all steps (or each step is a launch of its own)."""

    rows: int
    units: int
    depth: int
    warps: int
    stages: int
    whole: bool


def road(x: Tensor, sequences: int, hidden_size: int) -> Road:
    if INTERPRETED:  # programs run one after another: few, large, and no barrier between them
        return Road(16, 64, 64, 4, 1, whole=False)
    return Road(16, 32, 64, 4, 3, whole=False)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device.  NumPy, under the interpreter, would warn where a GPU computes inf - inf."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    import numpy

    return numpy.errstate(all="ignore")


def _precision(x: Tensor) -> str:
    if x.dtype != torch.float32 or x.device.type != "cuda" or torch.version.hip:
        return "ieee"
    if hasattr(torch.backends.cudnn, "rnn"):  # torch 2.9 and later, where reading allow_tf32 may raise
        return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def launch_forward(
    mode: str,
    rows: Rows,
    a: Tensor,
    recurrent: Tensor,
    b_n: Tensor | None,
    h0: Tensor,
    c: Tensor | None,
    states: Tensor,
    last: Tensor,
    gates: Tensor,
    cells: Tensor,
    save: bool,
) -> None:
    from fastrnn.kernels.triton_scan import scan_forward

    flags = dict(CELL=mode, GATES=len(CELLS[mode].gates), SAVE=save, HAS_C=c is not None, HAS_BN=b_n is not None)
    _launch(scan_forward, rows, recurrent, (a, recurrent, b_n, h0, c, states, last, gates, cells), flags)


def launch_backward(
    mode: str,
    rows: Rows,
    recurrent: Tensor,
    saved: Saved,
    h0: Tensor,
    c0: Tensor | None,
    dy: Tensor | None,
    dhn: Tensor | None,
    carry: Tensor,
) -> Tensor:
    """``dy`` (D, N, H), ``dhn`` (D, B, H), ``carry`` as the kernel has it -> pre-activation gradients (D, N, G'*H)."""
    from fastrnn.kernels.triton_scan_backward import scan_backward

    cell, directions, hidden_size = CELLS[mode], len(recurrent), recurrent.shape[-1]
    stored = max(len(cell.gates), len(cell.saved))
    grads = recurrent.new_empty(directions, rows.total, stored * hidden_size)
    c0 = None if c0 is None else c0.to(torch.float32).contiguous()
    h0, hidden = h0.contiguous(), saved.hidden.contiguous()
    dy = None if dy is None else dy.transpose(0, 1).contiguous()
    dhn = None if dhn is None else dhn.contiguous()
    flags = dict(CELL=mode, GATES=len(cell.gates), SAVED=len(cell.saved), GRADS=stored)
    flags |= dict(HAS_DY=dy is not None, HAS_DHN=dhn is not None)
    tensors = (grads, recurrent, saved.gates, saved.cells, hidden, h0, c0, dy, dhn, carry)
    _launch(scan_backward, rows, recurrent, tensors, flags)
    return grads


def _launch(kernel: Any, rows: Rows, recurrent: Tensor, tensors: tuple[Tensor | None, ...], flags: dict[str, Any]) -> None:
    """The scan of all steps, on the device and current stream of ``recurrent`` (D, G*H, H)."""
    import triton.language as tl

    if rows.total == 0:
        return
    directions, _, hidden_size = recurrent.shape
    operand = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[recurrent.dtype]
    chosen = road(recurrent, rows.sequences, hidden_size)
    grid = (-(-hidden_size // chosen.units), -(-rows.sequences // chosen.rows), directions)
    at_once = rows.steps if chosen.whole else 1
    with _on(recurrent.device):
        arrived = recurrent.new_zeros(directions * grid[1], dtype=torch.int64)
        for begin in range(0, rows.steps, at_once):
            kernel[grid](
                *tensors,
                rows.offsets,
                arrived,
                begin,
                begin + at_once,
                rows.steps,
                rows.sequences,
                rows.total,
                H=hidden_size,
                ROWS=chosen.rows,
                UNITS=chosen.units,
                DEPTH=chosen.depth,
                PACKED=rows.offsets is not None,
                OPERAND=tl.float32 if INTERPRETED else operand,
                PRECISION=_precision(recurrent),
                POLL="atomic" if INTERPRETED or torch.version.hip else "load",
                num_warps=chosen.warps,
                num_stages=chosen.stages,
                **(dict(launch_cooperative_grid=True) if chosen.whole else {}),
                **flags,
            )
