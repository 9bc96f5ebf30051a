"""Fused kernels that Numba compiles at first use: the same equations where there is no C++ core.

Thin: it hands the kernels of :mod:`fastrnn.kernels.numba_scan` dense tensors and room to work in, and starts them on
the threads that torch itself uses.  Numba is imported when the backend is first asked for.  bfloat16 and float16 run in
float32.  Interface: :mod:`fastrnn.backends`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.backends import Backward, Forward, Saved, numba_start
from fastrnn.cells import CELLS, Weights, split_weights

MODES = tuple(CELLS)
TOKENS = False
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Below so many multiplications a call runs on the calling thread alone: waking the others takes microseconds.
SERIAL_WORK = 1 << 20
# Up to so many rows of all steps the weights are read where they lie; for more, copying them into panels pays.
DIRECT_ROWS = 4


@functools.cache
def unavailable() -> str | None:
    try:
        import numba  # noqa: F401
    except Exception as error:  # Numba refuses a NumPy too new for it with an error of its own at import
        return f"Numba cannot be imported ({error}); pip install 'fastrnn[numba]'"
    return None if sys.byteorder == "little" else "its exponential reads the bits of little-endian numbers"


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {device}"
    return None if dtype in DTYPES else f"it serves floating point dtypes of 16 to 64 bits, not {dtype}"


@functools.lru_cache(64)
def _even_steps(steps: int, batch: int) -> tuple[Tensor, Tensor]:
    return _steps(torch.full((steps,), batch, device="cpu"))


def _steps(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of each step and where they start."""
    sizes = sizes.contiguous()
    return sizes, sizes.cumsum(0) - sizes


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(dtype).contiguous()


class _Layer:
    """The sizes of a call and its inputs, dense and in the dtype that the kernels run in."""

    def __init__(
        self,
        mode: str,
        which: str,
        x: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor,
        c0: Tensor | None,
        weights: Sequence[Tensor],
    ) -> None:
        self.dtype = dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.itemsize = dtype.itemsize
        self.kernel = kernel = numba_start.kernel(mode, which, dtype)
        self.gates, self.slots, self.columns = kernel.cell.gates, kernel.cell.slots, kernel.columns
        self.directions, self.batch, self.outputs = h0.shape
        self.hidden = weights[0].shape[0] // self.gates
        self.panels = -(-self.hidden // kernel.units)
        self.padded = self.panels * kernel.units
        if batch_sizes is None:
            self.steps, _, self.inputs = x.shape
            self.rows = self.steps * self.batch
            self.sizes, self.starts = _even_steps(self.steps, self.batch)
        else:
            self.rows, self.inputs = x.shape
            self.sizes, self.starts = _steps(batch_sizes)
            self.steps = batch_sizes.shape[0]
        self.x, self.h0 = _dense(x, dtype), _dense(h0, dtype)
        self.c0 = None if c0 is None else _dense(c0, dtype)
        self.weights = split_weights([_dense(w, dtype) for w in weights], self.directions)
        work = self.rows * self.gates * self.hidden * (self.inputs + self.outputs)
        self.team = numba_start.threads() if work > SERIAL_WORK else 1

    def room(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape)

    def wide(self, columns: int) -> int:
        """``columns``, up to whole panels."""
        return -(-columns // self.columns) * self.columns

    def part(self, tensor: Tensor | None, d: int, distance: int | None = None) -> int:
        """Address of direction ``d`` in a tensor that begins with them, or has them at a distance; 0 for none."""
        if tensor is None:
            return 0
        each = tensor.numel() // self.directions if distance is None else distance
        return tensor.data_ptr() + d * each * self.itemsize

    def table(self, own: Weights, d: int) -> dict[str, int]:
        """What both kernels want to know of a direction."""
        pointers = {name: 0 if weight is None else weight.data_ptr() for name, weight in own._asdict().items()}
        return {
            "steps": self.steps, "batch": self.batch, "rows": self.rows, "inputs": self.inputs,
            "hidden": self.hidden, "outputs": self.outputs, "reverse": d, "projected": own.w_hr is not None,
            "sizes": self.sizes.data_ptr(), "starts": self.starts.data_ptr(),
            "x": self.x.data_ptr(), "h0": self.part(self.h0, d), **pointers,
            "team_size": 0, "thread_number": 0, "barrier": 0,
        }  # fmt: skip

    def work_room(self, values: dict[str, int], **counts: int) -> Tensor:
        """One tensor with room for all, so many values for each; their addresses go to ``values`` (0 for no room)."""
        places, end = [], 0
        for name, count in counts.items():
            places.append((name, end if count else None))
            end += (count + 15) // 16 * 16  # each on cache lines of its own
        buffer = self.room(end)
        start = buffer.data_ptr()
        for name, place in places:
            values[name] = 0 if place is None else start + place * self.itemsize
        return buffer

    # The kernels' gates are (panels, N, slots, U).  Where the units do not fill the last panel, (N, slots, H) is saved.
    def to_saved(self, gates: Tensor) -> Tensor:
        gates = gates.view(self.panels, self.rows, self.slots, self.kernel.units)
        return gates.permute(1, 2, 0, 3).flatten(2)[..., : self.hidden].flatten(1)

    def from_saved(self, saved: Tensor) -> Tensor:
        gates = F.pad(saved.view(self.rows, self.slots, self.hidden), (0, self.padded - self.hidden))
        return gates.view(self.rows, self.slots, self.panels, self.kernel.units).permute(2, 0, 1, 3).contiguous()


def forward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    save: bool,
) -> Forward:
    """See :mod:`fastrnn.backends`."""
    layer = _Layer(mode, "forward", x, batch_sizes, h0, c0, weights)
    directions, rows, hidden, outputs, room = layer.directions, layer.rows, layer.hidden, layer.outputs, layer.room
    y, hn = room(*x.shape[:-1], directions * outputs), room(*h0.shape)
    cn = None if layer.c0 is None else layer.c0.detach().clone()
    kept = len(CELLS[mode].saved) if save else 0
    gates = room(directions, rows, kept * hidden) if kept else None
    cells = room(directions, rows, hidden) if save and (cn is not None or CELLS[mode].output) else None
    states = room(directions, rows, outputs) if save else None
    padded, gates_room = layer.padded, layer.slots * layer.padded * rows
    direct = rows <= DIRECT_ROWS
    packed = 0 if direct else layer.gates * padded
    for d, own in enumerate(layer.weights):
        projected = own.w_hr is not None
        values = layer.table(own, d)
        in_place = kept and padded == hidden
        buffer = layer.work_room(
            values, gates=0 if in_place else gates_room, bias=layer.slots * padded,
            packed_ih=packed * layer.inputs, packed_hh=packed * outputs,
            packed_hr=layer.wide(outputs) * hidden if projected else 0,
            full=layer.batch * hidden if projected else 0,
            short=layer.batch * layer.wide(outputs) if projected else 0, scratch=layer.team * 8 * layer.columns,
        )  # fmt: skip
        if in_place:
            values["gates"] = layer.part(gates, d)
        values.update(
            y=layer.part(y, d, outputs), y_row=directions * outputs, hn=layer.part(hn, d),
            cn=layer.part(cn, d), states=layer.part(states, d), cells=layer.part(cells, d),
            direct=direct,
        )  # fmt: skip
        if layer.batch:
            layer.kernel.run(layer.team, values)
        if gates is not None and not in_place:
            gates[d] = layer.to_saved(buffer[:gates_room])
        del buffer

    def narrow(tensor: Tensor | None) -> Tensor:
        if tensor is None:
            return x.new_empty(0)
        return tensor if tensor.dtype == x.dtype else tensor.to(x.dtype)

    saved = Saved(narrow(gates), room(0) if cells is None else cells, narrow(states)) if save else None
    return Forward(narrow(y), narrow(hn), narrow(cn), saved)


def backward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    saved: Saved,
    grad_y: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    grad_cells: Tensor | None,
    need_x: bool,
    need_weights: bool,
) -> Backward:
    """See :mod:`fastrnn.backends`."""
    layer = _Layer(mode, "backward", x, batch_sizes, h0, c0, weights)
    rows, batch, hidden, outputs, inputs = layer.rows, layer.batch, layer.hidden, layer.outputs, layer.inputs
    room, wide, part, padded = layer.room, layer.wide, layer.part, layer.padded
    dy = None if grad_y is None else _dense(grad_y, layer.dtype)
    d_cells = None if grad_cells is None else _dense(grad_cells, layer.dtype)
    gates, cells, states = (_dense(t, layer.dtype) for t in saved)
    dh0 = torch.zeros_like(layer.h0) if grad_hn is None else _dense(grad_hn, layer.dtype).clone()
    dc0 = layer.c0
    if dc0 is not None:
        dc0 = torch.zeros_like(dc0) if grad_cn is None else _dense(grad_cn, layer.dtype).clone()
    dx: Tensor | None = None
    grads: list[Tensor] = []
    depth = layer.gates * padded
    for d, own in enumerate(layer.weights):
        biased, projected = need_weights and own.b_ih is not None, own.w_hr is not None
        own_gates = None
        if CELLS[mode].saved:
            own_gates = gates[d] if padded == hidden else layer.from_saved(gates[d])
        dh = F.pad(dh0[d], (0, wide(outputs) - outputs))
        own_dx = room(rows, wide(inputs)) if need_x else None
        dw_ih = room(depth, wide(inputs)) if need_weights else None
        dw_hh = room(depth, wide(outputs)) if need_weights else None
        dw_hr = room(wide(outputs), wide(hidden)) if need_weights and projected else None
        db_ih, db_hh = (room(depth), room(depth)) if biased else (None, None)
        db_hr = room(wide(outputs)) if need_weights and own.b_hr is not None else None
        values = layer.table(own, d)
        buffer = layer.work_room(
            values, d_gates=rows * layer.slots * padded, packed_hh=depth * wide(outputs),
            packed_ih=depth * wide(inputs) if need_x else 0, packed_hr=outputs * wide(hidden) if projected else 0,
            x_panels=rows * wide(inputs) if need_weights else 0, h_panels=rows * wide(outputs) if need_weights else 0,
            y_panels=rows * wide(outputs) if projected else 0, full_panels=rows * wide(hidden) if projected else 0,
            full=rows * hidden if projected else 0, d_full=batch * wide(hidden) if projected else 0,
            scratch=layer.team * 8 * layer.columns,
        )  # fmt: skip
        found = {
            "dx": own_dx,
            "dw_ih": dw_ih,
            "dw_hh": dw_hh,
            "db_ih": db_ih,
            "db_hh": db_hh,
            "dw_hr": dw_hr,
            "db_hr": db_hr,
        }
        values.update(
            c0=part(layer.c0, d), gates=0 if own_gates is None else own_gates.data_ptr(),
            cells=part(cells, d) if cells.numel() else 0, states=part(states, d), dy=part(dy, d, outputs),
            dy_row=layer.directions * outputs, d_cells=part(d_cells, d), dh=dh.data_ptr(), dc=part(dc0, d),
            **{name: 0 if t is None else t.data_ptr() for name, t in found.items()},
        )  # fmt: skip
        if batch:
            layer.kernel.run(layer.team, values)
        del buffer
        dh0[d] = dh[:, :outputs]
        if own_dx is not None:
            own_dx = own_dx[:, :inputs]
            dx = own_dx if dx is None else dx.add_(own_dx)
        count = layer.gates * hidden
        for grad, *shape in ((dw_ih, count, inputs), (dw_hh, count, outputs), (db_ih, count), (db_hh, count)):
            if grad is not None:  # without the rows and columns that only fill panels
                grads.append(grad.view(layer.gates, padded, -1)[:, :hidden, : shape[-1]].reshape(shape))
        if dw_hr is not None:
            grads.append(dw_hr[:outputs, :hidden])
        if db_hr is not None:
            grads.append(db_hr[:outputs])
    if not batch:
        for grad in grads:
            grad.zero_()

    def narrow(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(x.dtype).contiguous()

    dx = None if dx is None else dx.reshape(x.shape)
    own_grads = [g.to(x.dtype).contiguous() for g in grads] if need_weights else None
    return Backward(narrow(dx), dh0.to(x.dtype), narrow(dc0), own_grads)
