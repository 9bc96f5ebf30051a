"""What follows from the sizes of a call alone: made once, and kept for the next call of the same sizes.

One step of a small layer takes as long as the Python around it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.backends import numba_company, numba_start
from fastrnn.modes import CELLS, split_weights

# Below so many multiplications a call runs on the calling thread alone: waking the others takes microseconds.
SERIAL_WORK = 1 << 20
# From so many on, some slices of one thread, nobody leaves a call in company, nor is it planned for fewer threads: who
# sleeps because another one is late gives its CPU away, so that threads come to run at the same time.
COMPANY_WORK = 1 << 28
# Up to one row of all steps for so many inputs and outputs, within these limits, the weights are read where they lie;
# for more rows, copying them into panels pays.
DIRECT_COLUMNS, DIRECT_ROWS = 16, (4, 32)
# The same for the weights of tokens: up to so many tokens in the vocabulary for each in x.
DIRECT_TOKENS = 8
# Forward computes the gates of a block of steps at a time, of so many rows at most unless one step has more: memory
# that the second-level cache holds for small layers, and that does not grow with the number of steps.
BLOCK_ROWS = 512


class Shape(NamedTuple):
    """The sizes of a call.  ``parameters`` counts those of all directions, ``tokens`` says whether x holds tokens.

    ``threads`` that there are, and as many of them as may meet at every step: fewer in company."""

    steps: int
    batch: int
    rows: int
    inputs: int
    gate_rows: int
    outputs: int
    directions: int
    parameters: int
    tokens: bool
    threads: int
    meeting: int


def starts_of(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of each step and where they start."""
    sizes = sizes.contiguous()
    return sizes, sizes.cumsum(0) - sizes


class Plan:
    """The kernel ``forward`` or ``backward`` for one layer of a shape, and the memory that it works in.

    ``wanted`` is ``(save,)`` or ``(need_x, need_state, need_weights)``.
    """

    kernel: numba_start.Kernel
    shape: Shape
    gates: int
    slots: int

    def __init__(self, mode: str, which: str, dtype: torch.dtype, shape: Shape, *wanted: bool) -> None:
        self.kernel = kernel = numba_start.kernel(mode, which, dtype)
        from fastrnn.kernels.numba_barrier import words_of  # which imports Numba
        from fastrnn.kernels.numba_scan import MODE_BYTES, groups_of

        self.shape, self.gates, self.slots = shape, kernel.cell.gates, kernel.cell.slots
        self.hidden: int = shape.gate_rows // self.gates
        self.panels: int = -(-self.hidden // kernel.units)
        self.padded: int = self.panels * kernel.units
        self.saved_gates: int = len(CELLS[mode].saved)
        # Whether the kernels' gates, (panels, N, slots, U), are saved as they are; (N, slots, H) is, elsewhere.
        self.in_place: bool = self.saved_gates > 0 and self.padded == self.hidden
        numbers: Any = range(shape.parameters)
        places = split_weights(numbers, shape.directions)
        self.projected: bool = places[0].w_hr is not None
        self.places: list[list[int]] = [[-1 if k is None else int(k) for k in own] for own in places]
        # Of what is not packed, the steps' rows and where they start.
        self.even_steps: tuple[Tensor, Tensor] = starts_of(torch.full((shape.steps,), shape.batch, device="cpu"))
        work = shape.rows * shape.gate_rows * (shape.outputs + (0 if shape.tokens else shape.inputs))
        self.team: int = shape.threads if work > SERIAL_WORK else 1
        groups, members = groups_of(shape.batch, shape.gate_rows * shape.outputs, self.team)
        if which == "forward" and groups * members == 1:
            self.team = 1  # backward the products of all steps are shared out, whatever a step is
        self.stays: bool = work >= COMPANY_WORK
        if not self.stays:
            self.team = min(self.team, shape.meeting)
        self.block_steps: int = max(1, BLOCK_ROWS // max(1, shape.batch))
        # Of a pass whose gates are saved there is room for all.
        every_row = which == "backward" or wanted[0]
        self.block_rows: int = shape.rows if every_row else min(shape.rows, self.block_steps * shape.batch)
        workspaces = self._forward_workspaces(*wanted) if which == "forward" else self._backward_workspaces(*wanted)

        sizes = shape._asdict() | {"hidden": self.hidden, "projected": self.projected}
        sizes |= {"block_steps": self.block_steps, "block_rows": self.block_rows}
        sizes["team"] = self.team
        sizes["need_state"] = which == "backward" and wanted[1]
        self.workspace_size: int = 0  # values in all
        own = {"scratch": self.team * 8 * kernel.columns, "modes": self.team * MODE_BYTES // dtype.itemsize}
        own["barrier"] = 8 * words_of(self.team) // dtype.itemsize if self.team > 1 else 0
        for name, count in (own | workspaces).items():
            sizes[name] = self.workspace_size * dtype.itemsize if count else 0
            self.workspace_size += (count + 15) // 16 * 16  # each on cache lines of its own
        # Always as many start: a region of fewer makes the runtime end threads, which it starts again for the next one.
        self.started: int = shape.threads if self.team > 1 else 1
        self.modes: int = sizes["modes"]
        self.barrier: int = sizes["barrier"]
        own_gates = sizes.get("own_gates", 0) // dtype.itemsize
        self.gates_place: slice[int, int, None] = slice(own_gates, own_gates + workspaces.get("own_gates", 0))
        sizes |= numba_start.team_functions(self.team)
        heads = [sizes | {"direction": d} for d in range(shape.directions)]
        self.heads: list[bytes] = [
            struct.pack(f"{len(kernel.sizes)}q", *(head[name] for name in kernel.sizes)) for head in heads
        ]
        self.pack: Callable[..., bytes] = struct.Struct(f"{6 + len(kernel.addresses)}q").pack

    def wide(self, columns: int) -> int:
        """``columns``, up to whole panels."""
        return -(-columns // self.kernel.columns) * self.kernel.columns

    def _forward_workspaces(self, save: bool) -> dict[str, int]:
        """How many values the kernel forward wants in its workspace under each name."""
        rows, batch, inputs, outputs = self.shape.rows, self.shape.batch, self.shape.inputs, self.shape.outputs
        depth = self.gates * self.padded
        least, most = DIRECT_ROWS
        direct = rows <= max(least, min(most, (inputs + outputs) // DIRECT_COLUMNS))
        direct_inputs = rows * DIRECT_TOKENS <= inputs if self.shape.tokens else direct
        return {
            "own_gates": 0 if save and self.in_place else self.slots * self.padded * self.block_rows,
            "bias": self.slots * self.padded,
            "packed_ih": 0 if direct_inputs else depth * inputs,
            "packed_hh": 0 if direct else depth * outputs,
            "packed_hr": self.wide(outputs) * self.hidden if self.projected else 0,
            "full": batch * self.hidden if self.projected else 0,
            "short": batch * self.wide(outputs) if self.projected else 0,
        }

    def _backward_workspaces(self, need_x: bool, need_state: bool, need_weights: bool) -> dict[str, int]:
        """How many values the kernel backward wants in its workspace under each name."""
        rows, batch, hidden, wide = self.shape.rows, self.shape.batch, self.hidden, self.wide
        inputs, outputs = wide(self.shape.inputs), wide(self.shape.outputs)
        depth = self.gates * self.padded
        return {
            "d_gates": rows * self.slots * self.padded,
            "packed_hh": depth * outputs if need_state or self.shape.steps > 1 else 0,
            "packed_ih": depth * inputs if need_x else 0,
            "packed_hr": self.shape.outputs * wide(hidden) if self.projected else 0,
            "x_panels": rows * inputs if need_weights and not self.shape.tokens else 0,
            "h_panels": rows * outputs if need_weights else 0,
            "y_panels": rows * outputs if self.projected else 0,
            "full_panels": rows * wide(hidden) if self.projected else 0,
            "full": rows * hidden if self.projected else 0,
            "d_full": batch * wide(hidden) if self.projected else 0,
        }

    def run(self, direction: int, weights: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> None:
        """Runs the kernel for one direction.  ``tensors`` stand in the order of its table's addresses."""
        own = [weights[k].data_ptr() if k >= 0 else 0 for k in self.places[direction]]
        others = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        table, work = self.heads[direction] + self.pack(*own, *others), others[0]
        if self.barrier:
            numba_company.begin(work + self.barrier, self.team, self.stays)
        numba_start.start(self.kernel, self.started, table, work + self.modes)
        if self.barrier:
            numba_company.end(work + self.barrier, self.team)

    def to_saved(self, work: Tensor) -> Tensor:
        gates = work[self.gates_place].view(self.panels, self.shape.rows, self.slots, self.kernel.units)
        return gates.permute(1, 2, 0, 3).flatten(2)[..., : self.hidden].flatten(1)

    def from_saved(self, saved: Tensor) -> Tensor:
        gates = F.pad(saved.view(self.shape.rows, self.slots, self.hidden), (0, self.padded - self.hidden))
        return gates.view(self.shape.rows, self.slots, self.panels, self.kernel.units).permute(2, 0, 1, 3).contiguous()

    def by_column(self, grads: Tensor, named: Tensor, dtype: torch.dtype) -> Tensor:
        """The gradient of W_ih, (gates * H, I), from those of the columns of these tokens, (tokens, panels, gates, U).

        It is all that is as large as the vocabulary."""
        by_gate = grads.view(len(named), self.panels, self.gates, self.kernel.units).transpose(1, 2)
        by_token = by_gate.reshape(len(named), self.gates, self.padded)[..., : self.hidden].to(dtype).flatten(1)
        columns = by_token.new_zeros(by_token.shape[1], self.shape.inputs)
        return columns.index_copy_(1, named, by_token.t())


@functools.lru_cache(256)
def plan(mode: str, which: str, dtype: torch.dtype, shape: Shape, *wanted: bool) -> Plan:
    """The plan for calls of this shape."""
    return Plan(mode, which, dtype, shape, *wanted)
