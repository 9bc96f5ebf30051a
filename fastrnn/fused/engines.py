"""The engines that run a compiled loop, by the names of their backends, and which one serves a device."""

from __future__ import annotations

import torch

from fastrnn.backends import requested
from fastrnn.cell.declare import Cell
from fastrnn.fused import cpp, numba, triton
from fastrnn.fused.run import Run

ENGINES = dict(cpp=cpp, numba=numba, triton=triton)


def automatic(device: torch.device) -> str:
    """The engine for a device; Triton's interpreter, which serves CPUs, is for who asks for it."""
    if device.type == "cuda":
        return "triton"
    return "numba" if cpp.unavailable() and not numba.unavailable() else "cpp"


def run_of(device: torch.device) -> Run:
    """What runs programs on a device: the engine asked for by name, or else the device's own."""
    asked = requested()
    return ENGINES[asked if asked in ENGINES else automatic(device)].run


def unsupported(cell: Cell, backend: str, device: torch.device, dtype: torch.dtype, int8: bool = False) -> str | None:
    """Why a backend does not fuse a cell, perhaps with matrices of ``int8``, on tensors of this device and dtype; None
    where it does."""
    if backend == "reference":
        return None
    if backend not in ENGINES:
        return f"it fuses no cell of {type(cell).__name__}'s kind"
    if int8 and (backend != "cpp" or dtype is not torch.float32):
        return "it has no weights of 8 bits" + f" for {dtype}" * (backend == "cpp")
    engine = ENGINES[backend]
    return engine.unavailable() or engine.unsupported(device, dtype)
