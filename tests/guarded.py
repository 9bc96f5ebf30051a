"""Tensors flush with a page that nobody may touch: a read or a write beyond that end is a segmentation fault."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections import deque
from typing import Any

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
# Given back long after their tensors, so that what comes late is a fault, too; a process has some 65,000 maps.
_pages: deque[Any] = deque(maxlen=10_000)
_dice = random.Random(0)


def guarded(shape: Any, dtype: torch.dtype, behind: bool | None = None) -> Tensor:
    """Dense memory of this shape, guarded behind it or before it, by chance; it holds NaN, or the largest integer."""
    shape = torch.Size(shape)
    size = shape.numel() * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    room = -(-size // PAGE) * PAGE
    pages = mmap.mmap(-1, room + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for page in (start, start + PAGE + room):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    _pages.append(pages)
    behind = _dice.random() < 0.6 if behind is None else behind
    place = start + PAGE + (room - size if behind else 0)
    tensor = torch.frombuffer((ctypes.c_char * size).from_address(place), dtype=dtype).view(shape)
    return tensor.fill_(float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max)


def guard(tensor: Tensor) -> Tensor:
    """A copy of a tensor."""
    return guarded(tensor.shape, tensor.dtype).copy_(tensor.detach())


def guard_results() -> None:
    """From now on all uninitialised memory that Python, or the C++ core, asks torch for is guarded.

    To be called before fastrnn is imported, which hands torch's functions to the core.
    """
    plain: Any = torch.Tensor

    def new_empty(self: Tensor, *shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return guarded(shape if not shape or isinstance(shape[0], int) else shape[0], dtype or self.dtype)

    def empty_like(tensor: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return guarded(tensor.shape, dtype or tensor.dtype)

    plain.new_empty, torch.empty_like = new_empty, empty_like
