"""Fused kernels compiled by Numba at first use.  The kernels: :mod:`fastrnn.kernels.numba_scan`.

This module gives the kernels dense tensors and room to work in, and starts them on the threads that torch itself
uses.  Numba is imported with the first call, never with fastrnn.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.backends import Backward, Forward, Saved
from fastrnn.cells import CELLS, split_weights

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Below so many multiplications a call runs on the calling thread: waking the others costs a few microseconds.
SERIAL_WORK = 1 << 18
# Up to so many rows the weights are read where they lie; for more, copying them into panels pays.
DIRECT_ROWS = 4


@functools.cache
def unavailable() -> str | None:
    if sys.byteorder != "little":
        return "the Numba kernels are written for little-endian machines; use another backend"
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed: pip install 'fastrnn[numba]'"
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the Numba kernels run on the CPU, not on {device.type}"
    return None if dtype in DTYPES else f"{dtype} is not one of {', '.join(map(str, DTYPES))}"


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, by the calls that GCC's and LLVM's share.

    Its team is the one that torch's own operators run on.  A pool of our own would compete with it: after each
    operator the team spins for milliseconds on cores that ours then wants (measured: 12 ms instead of 5).
    """
    for name in (None, "libgomp.so.1", "libomp.dylib", "libiomp5.dylib", "libiomp5.so"):
        try:
            library = ctypes.CDLL(name, mode=getattr(os, "RTLD_NOLOAD", 0)) if name else ctypes.CDLL(None)
            if all(hasattr(library, call) for call in ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num")):
                return library
        except (OSError, TypeError):  # not loaded; Windows cannot look through the whole process
            continue
    return None


_forked = False


def _after_fork() -> None:
    # OpenMP's threads do not come along into a child, and waking them there would wait for ever.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """Threads a large call runs on in this process."""
    return 1 if _forked or _openmp() is None else torch.get_num_threads()


class Kernel:
    """One compiled callback and how to start it."""

    def __init__(self, address: int, table) -> None:
        self.address = address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self.names = table.names

    def run(self, work: int, values: dict[str, Tensor | int | None]) -> None:
        """Fill the table with sizes and with the addresses of tensors (0 for None), and run; the GIL is released."""
        team = threads() if work > SERIAL_WORK else 1
        if team > 1:
            library = _openmp()
            for name, call in (
                ("team_size", library.omp_get_num_threads),
                ("thread_number", library.omp_get_thread_num),
                ("barrier", library.GOMP_barrier),
            ):
                values[name] = ctypes.cast(call, ctypes.c_void_p).value
        table = (ctypes.c_int64 * len(self.names))(*[_number(values.get(name)) for name in self.names])
        if team > 1:
            library.GOMP_parallel(ctypes.c_void_p(self.address), table, ctypes.c_uint(team), ctypes.c_uint(0))
        else:
            self.call(ctypes.addressof(table))


def _number(value: Tensor | int | None) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else int(value or 0)


@functools.cache
def _kernel(mode: str, name: str, dtype: torch.dtype) -> Kernel:
    """The kernel ``name`` of a cell, loaded from Numba's cache on disk or compiled into it."""
    import numpy as np
    from numba import cfunc, from_dtype, types

    from fastrnn.kernels import numba_cells, numba_scan

    real = np.float32 if dtype == torch.float32 else np.float64
    make, table = {
        "forward": (numba_scan.forward_kernel, numba_scan.FORWARD),
        "backward": (numba_scan.backward_kernel, numba_scan.BACKWARD),
    }[name]
    function = make(numba_cells.CELLS[mode], real)
    signature = types.void(types.CPointer(from_dtype(table)))
    return Kernel(cfunc(signature, cache=True, **numba_cells.OPTIONS)(function).address, table)


class _Layer:
    """Sizes and dense tensors of a call, in the dtype the kernels run in."""

    def __init__(self, mode, x, batch_sizes, h0, c0, weights) -> None:
        from fastrnn.kernels import numba_cells, numba_scan

        self.mode, self.dtype = mode, torch.float64 if x.dtype == torch.float64 else torch.float32
        self.cell = numba_cells.CELLS[mode]
        self.directions, self.batch, self.outputs = h0.shape
        self.hidden = self.outputs if c0 is None else c0.shape[-1]
        self.x = self.dense(x)
        self.inputs = x.shape[-1]
        self.rows = self.x.numel() // self.inputs
        if batch_sizes is None:
            batch_sizes = torch.full((x.shape[0],), self.batch)
        self.sizes = batch_sizes.contiguous()
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.h0 = self.dense(h0)
        self.c0 = None if c0 is None else self.dense(c0)
        self.weights = [own._make(map(self.dense, own)) for own in split_weights(weights, self.directions)]
        self.lanes, _, self.units, self.columns = numba_scan.shape(
            self.cell, "float32" if self.dtype == torch.float32 else "float64"
        )
        self.panels = -(-self.hidden // self.units)

    def dense(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(self.dtype).contiguous()

    def room(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def wide(self, columns: int) -> int:
        """``columns`` up to whole panels."""
        return -(-columns // self.columns) * self.columns

    def work(self) -> int:
        return self.rows * self.cell.gates * self.hidden * (self.inputs + self.outputs)

    def table(self, d: int) -> dict[str, Tensor | int | None]:
        """What both kernels are given, for one direction."""
        own = self.weights[d]
        return {
            "steps": len(self.sizes), "batch": self.batch, "rows": self.rows, "inputs": self.inputs,
            "hidden": self.hidden, "outputs": self.outputs, "reverse": d, "projected": own.w_hr is not None,
            "sizes": self.sizes, "starts": self.starts, "x": self.x, "h0": self.h0[d],
            "w_ih": own.w_ih, "w_hh": own.w_hh, "w_hr": own.w_hr, "b_ih": own.b_ih, "b_hh": own.b_hh,
        }  # fmt: skip

    def gates_to_saved(self, gates: Tensor) -> Tensor:
        """(panels, N, slots, U) without the units that only fill the last panel: (N, slots, H)."""
        return gates.permute(1, 2, 0, 3).flatten(2)[..., : self.hidden].flatten(1)

    def saved_to_gates(self, saved: Tensor) -> Tensor:
        spare = self.panels * self.units - self.hidden
        gates = F.pad(saved.view(self.rows, self.cell.slots, self.hidden), (0, spare))
        return gates.view(self.rows, self.cell.slots, self.panels, self.units).permute(2, 0, 1, 3).contiguous()


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
    layer = _Layer(mode, x, batch_sizes, h0, c0, weights)
    directions, rows, hidden, outputs, room = layer.directions, layer.rows, layer.hidden, layer.outputs, layer.room
    y = room(rows, directions * outputs)
    hn = room(*h0.shape)
    cn = room(0) if c0 is None else layer.c0.clone()
    kept = len(CELLS[mode].saved) if save else 0
    gates = room(directions, rows, kept * hidden) if kept else room(0)
    cells = room(directions, rows, hidden) if save and c0 is not None else room(0)
    states = room(directions, rows, outputs) if save else room(0)
    kernel = _kernel(mode, "forward", layer.dtype)
    gate_columns = layer.cell.gates * layer.panels * layer.units
    fits = kept and hidden == layer.panels * layer.units
    for d in range(directions):
        own = gates[d] if fits else room(layer.panels, rows, layer.cell.slots, layer.units)
        values = layer.table(d)
        direct = rows <= DIRECT_ROWS
        values.update(
            y=y[:, d * outputs :] if rows else y, y_row=directions * outputs, hn=hn[d],
            cn=None if c0 is None else cn[d],
            states=states[d] if save else None, cells=cells[d] if save and c0 is not None else None, gates=own,
            direct=direct, bias=room(layer.panels * layer.cell.slots * layer.units),
            packed_ih=None if direct else room(gate_columns * layer.inputs),
            packed_hh=None if direct else room(gate_columns * outputs),
            packed_hr=room(layer.wide(outputs) * hidden) if values["projected"] else None,
            full=room(layer.batch, hidden) if values["projected"] else None,
            scratch=room(torch.get_num_threads() * 4 * layer.columns),
        )  # fmt: skip
        if layer.batch:
            kernel.run(layer.work(), values)
            if kept and not fits:
                gates[d] = layer.gates_to_saved(own)
    narrow = x.dtype
    y = y.view(*x.shape[:-1], directions * outputs)
    saved = Saved(gates.to(narrow), cells, states.to(narrow))
    return Forward(y.to(narrow), hn.to(narrow), cn.to(narrow), saved)


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
    need_x: bool,
    need_weights: bool,
) -> Backward:
    """See :mod:`fastrnn.backends`."""
    layer = _Layer(mode, x, batch_sizes, h0, c0, weights)
    rows, batch, hidden, outputs, inputs = layer.rows, layer.batch, layer.hidden, layer.outputs, layer.inputs
    room, cell, wide = layer.room, layer.cell, layer.wide
    dy, states, cells = layer.dense(grad_y), layer.dense(saved.hidden), layer.dense(saved.cells)
    dh0 = torch.zeros_like(layer.h0) if grad_hn is None else layer.dense(grad_hn).clone()
    dc0 = None if c0 is None else torch.zeros_like(layer.c0) if grad_cn is None else layer.dense(grad_cn).clone()
    dx = torch.zeros(rows, inputs, dtype=layer.dtype) if need_x else None
    grads: list[Tensor] = []
    kernel = _kernel(mode, "backward", layer.dtype)
    padded = layer.panels * layer.units
    depth = cell.gates * padded
    for d, own in enumerate(layer.weights):
        values = layer.table(d)
        projected = own.w_hr is not None
        gates = layer.dense(saved.gates[d]) if CELLS[mode].saved else None
        if gates is not None and padded != hidden:
            gates = layer.saved_to_gates(gates)
        dh = F.pad(dh0[d], (0, wide(outputs) - outputs))
        own_dx = room(rows, wide(inputs)) if need_x else None
        dw_ih = dw_hh = dw_hr = db_ih = db_hh = None
        if need_weights:
            dw_ih, dw_hh = room(depth, wide(inputs)), room(depth, wide(outputs))
            if own.b_ih is not None:
                db_ih, db_hh = room(depth), room(depth)
            if projected:
                dw_hr = room(wide(outputs), wide(hidden))
        values.update(
            c0=None if c0 is None else layer.c0[d], gates=gates, cells=None if c0 is None else cells[d],
            states=states[d], dy=None if dy is None else dy.view(rows, layer.directions * outputs)[:, d * outputs :],
            dy_row=layer.directions * outputs, dh=dh, dc=None if dc0 is None else dc0[d],
            d_gates=room(layer.panels * rows * cell.slots * layer.units), dx=own_dx, dw_ih=dw_ih, dw_hh=dw_hh,
            dw_hr=dw_hr, db_ih=db_ih, db_hh=db_hh,
            packed_ih=room(depth * wide(inputs)) if need_x else None, packed_hh=room(depth * wide(outputs)),
            packed_hr=room(outputs * wide(hidden)) if projected else None,
            x_panels=room(rows * wide(inputs)) if need_weights else None,
            h_panels=room(rows * wide(outputs)) if need_weights else None,
            y_panels=room(rows * wide(outputs)) if projected else None,
            full_panels=room(rows * wide(hidden)) if projected else None,
            full=room(rows, hidden) if projected else None, d_full=room(batch, wide(hidden)) if projected else None,
            scratch=room(torch.get_num_threads() * 8 * layer.columns),
        )  # fmt: skip
        if batch:
            kernel.run(3 * layer.work(), values)
        dh0[d] = dh[:, :outputs]
        if need_x:
            dx += own_dx[:, :inputs]
        if need_weights:
            found = [_crop(dw_ih, cell.gates, hidden, inputs), _crop(dw_hh, cell.gates, hidden, outputs)]
            if db_ih is not None:
                found += [_crop(db[:, None], cell.gates, hidden, 1)[:, 0] for db in (db_ih, db_hh)]
            if projected:
                found.append(dw_hr[:outputs, :hidden])
            grads += found if batch else [f.zero_() for f in found]
    if dx is not None:
        dx = dx.view(x.shape).to(x.dtype)
    if dc0 is not None:
        dc0 = dc0.to(x.dtype)
    return Backward(dx, dh0.to(x.dtype), dc0, [g.contiguous().to(x.dtype) for g in grads] if need_weights else None)


def _crop(padded: Tensor, gates: int, hidden: int, columns: int) -> Tensor:
    """A gradient without the rows and columns that only fill panels."""
    return padded.view(gates, -1, padded.shape[-1])[:, :hidden, :columns].reshape(gates * hidden, columns)
