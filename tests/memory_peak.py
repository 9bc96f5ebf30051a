"""How much memory a call takes at most, read from Linux's /proc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

Found = TypeVar("Found")
MIB = 1 << 20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
measures = pytest.mark.skipif(not _RESET.exists(), reason="peaks of memory are read from Linux's /proc")


def resident(name: str = "VmRSS") -> int:
    """The bytes that the process holds, or of ``VmHWM`` did at most."""
    return int(_STATUS.read_text().split(f"{name}:")[1].split()[0]) * 1024


def peak(call: Callable[[], Found]) -> tuple[int, Found]:
    """By how many bytes the memory of the process grew at most during a call, and what that returned."""
    _RESET.write_text("5")
    before = resident()
    found = call()
    return resident("VmHWM") - before, found
