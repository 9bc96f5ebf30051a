"""Any cell, fused: the choice of what runs its loop."""

from __future__ import annotations

import functools

import torch

from fastrnn.backends import BackendError, requested
from fastrnn.cell.declare import Cell
from fastrnn.compiler.program import Compiled, compile_cell
from fastrnn.dynamo import transformed, watched
from fastrnn.fused import cpp, op
from fastrnn.fused.layer import Scan, plan, scan_by_torch
from fastrnn.fused.run import layout

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unsupported(cell: Cell, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend does not fuse a cell on tensors of this device and dtype; None where it does."""
    if backend == "reference":
        return None
    if backend != "cpp":
        return f"it fuses no cell of {type(cell).__name__}'s kind"
    if reason := cpp.unavailable():
        return reason
    if device.type != "cpu" or dtype not in FLOATS:
        return f"it takes no tensors of {dtype} on {device.type}"
    return None


def prepare(cell: Cell) -> Compiled:
    """A cell compiled, with all that is derived of it before a call.

    Raises:
        CellError: what the language does not know.
    """
    compiled = compile_cell(cell)
    plan(compiled), layout(compiled)
    return compiled


@functools.lru_cache(maxsize=256)
def _automatic(compiled: Compiled, device: str, dtype: torch.dtype) -> bool:
    """Whether the C++ engine takes such a cell."""
    return unsupported(compiled.loop.traced.cell, "cpp", torch.device(device), dtype) is None


def choose(compiled: Compiled, device: torch.device, dtype: torch.dtype) -> Scan:
    """What runs the loop of a cell.

    Raises:
        BackendError: a backend was asked for by name and cannot fuse the cell; the message says why.
    """
    if torch.compiler.is_compiling():
        return op.scan
    asked = requested()
    if asked is not None:
        if reason := unsupported(compiled.loop.traced.cell, asked, device, dtype):
            raise BackendError(f"fastrnn backend {asked!r} was asked for by name but cannot serve: {reason}")
    if asked == "reference" or transformed() or not _automatic(compiled, device.type, dtype):
        scan = scan_by_torch
    else:
        scan = op.scan if watched() else cpp.scan
    return scan
