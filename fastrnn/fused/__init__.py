"""Any cell, fused: the choice of what runs its loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor

from fastrnn.backends import requested, unable
from fastrnn.cell.declare import Cell
from fastrnn.compiler.program import Compiled, compile_cell
from fastrnn.dynamo import observed, transformed
from fastrnn.fused import op
from fastrnn.fused.engines import ENGINES, automatic, unsupported
from fastrnn.fused.layer import Scan, plan
from fastrnn.fused.layout import layout
from fastrnn.fused.reference import scan_by_torch


def prepare(cell: Cell, every_state: bool = False) -> Compiled:
    """A cell compiled, with all that is derived of it before a call.

    Raises:
        CellError: what the language does not know.
    """
    compiled = compile_cell(cell, every_state)
    plan(compiled)
    layout(compiled)
    return compiled


@functools.lru_cache(maxsize=256)
def _fuses(compiled: Compiled, engine: str, device: str, dtype: torch.dtype, int8: bool) -> bool:
    """Whether an engine takes such a cell."""
    return unsupported(compiled.loop.traced.cell, engine, torch.device(device), dtype, int8) is None


# What is given the states of every step of each direction that runs in the current thread; see scan_by_torch.
watching: ContextVar[Callable[[list[list[Tensor]]], None] | None] = ContextVar("fastrnn_watching", default=None)


def choose(compiled: Compiled, device: torch.device, dtype: torch.dtype, int8: bool = False) -> Scan:
    """What runs the loop of a cell, some of whose matrices may be ``int8``.

    Raises:
        BackendError: a backend was asked for by name and cannot fuse the cell; the message says why.
    """
    if torch.compiler.is_compiling():
        return op.scan
    if (watch := watching.get()) is not None:
        return functools.partial(scan_by_torch, watch=watch)
    asked = requested()
    if asked is not None:
        if reason := unsupported(compiled.loop.traced.cell, asked, device, dtype, int8):
            raise unable(asked, reason)
    name = asked or automatic(device)
    if name == "reference" or transformed() or not _fuses(compiled, name, device.type, dtype, int8):
        scan = scan_by_torch
    else:
        scan = op.scan if observed() else ENGINES[name].scan
    return scan
