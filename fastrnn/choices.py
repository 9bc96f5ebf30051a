"""Which path is the fastest for a kind of call, as measured on this device: kept in memory and on disk.

On a GPU torch's own function, which is cuDNN's, runs what no measurement says another for.  Measurements are made
where the calls are: with :func:`use_tuning`, or FASTRNN_TUNE=1 in the environment, at the first call of each kind, or
ahead by :func:`fastrnn.tune`.  They hold for one device, driver, torch, Triton, cuDNN and version of fastrnn; ``python
-m fastrnn`` prints them, and removing the folder that it names forgets them.

On disk every kind is a file of its own, written whole or not at all: of processes that measure the same kind at once
the last one's file stays, and none loses another's.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

TORCH = "torch"  # the name of torch's own function, beside those of backends
_ASKED = os.environ.get("FASTRNN_TUNE", "0").lower() in ("1", "true", "on", "y", "yes")
_tuning: ContextVar[bool] = ContextVar("fastrnn_tuning", default=_ASKED)


class Kind(NamedTuple):
    """Calls that one measurement speaks for.  ``rows`` B and ``steps`` T are rounded up to a power of two; ``tf32`` is
    whether products of float32 may be; ``training``, whether a derivative is recorded."""

    mode: str
    dtype: str
    tf32: bool
    layers: int
    directions: int
    packed: bool
    hidden: int
    outputs: int
    rows: int
    steps: int
    training: bool


class Choice(NamedTuple):
    """What was measured of a kind: the fastest, milliseconds of each that is right, and why others were refused."""

    kind: Kind
    winner: str
    milliseconds: dict[str, float]
    refused: dict[str, str]


def bucket(number: int) -> int:
    """The next power of two; 0 for 0."""
    return 1 << (number - 1).bit_length() if number else 0


@contextmanager
def use_tuning(on: bool = True) -> Iterator[None]:
    """Inside the context the first call of each kind on a GPU times every path that serves it and cuDNN, on the call's
    own shapes, and keeps the winner, as ``torch.backends.cudnn.benchmark`` does for convolutions.

    A path whose results are off is refused, with a RuntimeWarning.  Such a first call takes seconds and some memory;
    none is made while a CUDA graph is captured.  The choice belongs to the current thread (a context variable).
    """
    token = _tuning.set(on)
    try:
        yield
    finally:
        _tuning.reset(token)


def tuning() -> bool:
    """Whether calls of unknown kinds are measured here and now."""
    return _tuning.get() and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


@functools.cache
def environment(device: torch.device) -> tuple[tuple[str, str], ...]:
    """What a measurement depends on beside its kind."""
    found = {"fastrnn": _version("fastrnn"), "torch": torch.__version__, "triton": _version("triton")}
    if device.type == "cuda":
        driver: Any = torch._C
        found |= {"device": torch.cuda.get_device_name(device), "driver": str(driver._cuda_getDriverVersion())}
        found |= {"cudnn": str(torch.backends.cudnn.version())}
    else:
        found |= {"device": device.type}
    return tuple(sorted(found.items()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


class Table:
    """The choices of one device's environment.  Lookups that find nothing are remembered, too, until one is added."""

    def __init__(self, device: torch.device) -> None:
        self.environment: dict[str, str] = dict(environment(device))
        self._known: dict[Kind, Choice | None] = {}
        self._lock = threading.Lock()

    def folder(self) -> Path | None:
        """Where the files are; None where no folder belongs to this user alone."""
        from fastrnn.fused import machine

        key = hashlib.sha256(json.dumps(self.environment, sort_keys=True).encode()).hexdigest()[:16]
        base = machine.folder()
        return base / "choices" / key if base else None

    def get(self, kind: Kind, measure: Callable[[], Choice | None] | None = None) -> Choice | None:
        """The choice of a kind, or None: from memory, from disk, or else by ``measure``, whose result is kept.  One
        thread measures at a time, since two would time each other."""
        found = self._known.get(kind)
        if found is not None or measure is None and kind in self._known:
            return found
        with self._lock:
            found = self._known.get(kind) or self._read(kind)
            if found is None and measure is not None and (found := measure()) is not None:
                self._write(found)
            self._known[kind] = found
            return found

    def all(self) -> list[Choice]:
        """Every choice in memory and on disk, in the order of their kinds."""
        folder = self.folder()
        found = {choice.kind: choice for choice in self._known.values() if choice is not None}
        for path in sorted(folder.glob("*.json")) if folder else ():
            if (choice := _parse(path)) is not None:
                found.setdefault(choice.kind, choice)
        return [found[kind] for kind in sorted(found)]

    def _path(self, kind: Kind) -> Path | None:
        folder = self.folder()
        return folder / f"{hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:32]}.json" if folder else None

    def _read(self, kind: Kind) -> Choice | None:
        path = self._path(kind)
        found = _parse(path) if path else None
        return found if found is not None and found.kind == kind else None

    def _write(self, choice: Choice) -> None:
        from fastrnn.fused import machine

        if (path := self._path(choice.kind)) is None:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {**choice._asdict(), "kind": choice.kind._asdict(), "environment": self.environment}
        machine.write(path, json.dumps(content, indent=1).encode())


def _parse(path: Path) -> Choice | None:
    """The choice in a file; None where there is none, or no whole one, which is measured again."""
    try:
        content = json.loads(path.read_bytes())
        kind = Kind(**content["kind"])
        times = {str(name): float(ms) for name, ms in content["milliseconds"].items()}
        return Choice(kind, str(content["winner"]), times, dict(content["refused"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@functools.cache
def table(device: torch.device) -> Table:
    """The table of a device; of the current one where it has no number."""
    return Table(device)


def report(found: Table) -> list[str]:
    """What ``python -m fastrnn`` says of a table."""
    lines = []
    for kind, winner, times, refused in found.all():
        form = [f"D{kind.directions}"] * (kind.directions > 1) + ["packed"] * kind.packed + ["tf32"] * kind.tf32
        form += [f"P{kind.outputs}"] * (kind.outputs != kind.hidden)
        shape = f"{kind.mode} {kind.dtype} H{kind.hidden} B<={kind.rows} T<={kind.steps} L{kind.layers}"
        each = ", ".join(f"{name} {ms:.3g} ms" for name, ms in sorted(times.items(), key=lambda item: item[1]))
        lines.append(f"  {' '.join([shape, *form])} {'training' if kind.training else 'inference'}: {winner} ({each})")
        lines += [f"    refused {name}: {reason}" for name, reason in sorted(refused.items())]
    return lines
