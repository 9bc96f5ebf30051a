"""Sides timed in turn in one process, and what the machine can do at most."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

Call = Callable[[], object]
LINGERS = 5e-3  # what GNU's OpenMP, torch's pool, spins at most: 300000 pauses
BLOCK_SECONDS = 2e-3  # calls shorter than this are timed several in a row, so that the clock costs no share of them


@dataclass(frozen=True)
class Side:
    """``call`` is timed inside ``context``.  ``before``, if any, runs untimed before each call: in training the
    parameters change between two steps, and nothing derived from them may outlive a step.  Its ``pool`` of threads, if
    there are several, spins on for up to ``lingers`` seconds after a call, in case of another."""

    call: Call
    before: Callable[[], None] | None = None
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    pool: str = "OpenMP"
    lingers: float = 0.0

    def sample(self, number: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
        """Seconds a call, over ``number`` calls in a row."""
        with self.context():
            if self.before is not None:
                taken = 0.0
                for _ in range(number):
                    self.before()
                    begin = clock()
                    self.call()
                    taken += clock() - begin
                return taken / number
            if number > 1:
                self.call()  # the side before this one has just filled the caches
            begin = clock()
            for _ in range(number):
                self.call()
            return (clock() - begin) / number


def race(
    sides: Mapping[str, Side], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds a call for each side, as many samples as fit into ``seconds`` a side (at least five): one sample of each
    side in turn, so that whatever else the machine does hits all sides alike.  A side on another pool of threads than
    the one before waits until those have stopped spinning, which would take its cores."""
    for side in sides.values():
        side.sample()
    first = {name: max(side.sample(), 1e-7) for name, side in sides.items()}
    number = {
        name: 1 if side.before is not None else max(1, round(BLOCK_SECONDS / first[name]))
        for name, side in sides.items()
    }
    rounds = round(seconds * len(sides) / sum(number[name] * first[name] for name in sides))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    latest: Side | None = None
    for _ in range(max(5, min(1000, rounds))):
        for name, side in sides.items():
            if latest and latest.pool != side.pool:
                time.sleep(latest.lingers)
            samples[name].append(side.sample(number[name], clock))
            latest = side
    return samples


@contextlib.contextmanager
def company(processes: int) -> Iterator[None]:
    """Beside other processes that compute all the while."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@functools.cache
def product_rate(threads: int, dtype: torch.dtype) -> float:
    """Floating point operations a second of the best large matrix product that torch has: its own choice of library,
    or oneDNN's, which is up to three times as fast on AMD.  Median, as for the sides: a peak that no second run
    reaches would flatter nobody."""
    torch.set_num_threads(threads)
    size = 1024
    x, w = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    sides = {"torch": Side(lambda: torch.nn.functional.linear(x, w))}
    served = dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if torch.backends.mkldnn.is_available() and served:
        sides["oneDNN"] = Side(lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))
    return 2 * size**3 / min(sorted(taken)[len(taken) // 2] for taken in race(sides, 0.5).values())


@functools.cache
def peak_rate(threads: int) -> float:
    """Floating point operations a second of multiply-adds in float32 that wait for nothing and read no memory: what one
    thread does, times the threads."""
    from fastrnn._core import multiply_adds

    done = multiply_adds(2**26)
    taken = sorted(race({"registers": Side(lambda: multiply_adds(done))}, 0.2)["registers"])
    return threads * 2 * done / taken[len(taken) // 2]


@functools.cache
def stream_rate(threads: int, size: int) -> float:
    """Bytes a second at which plain loops (sums) read an array of ``size`` bytes again and again: what one thread reads
    of its share of the array, times the threads, for each has caches of its own."""
    torch.set_num_threads(1)
    floats = max(1, size // threads // 4)
    repeats = max(1, 2**20 // floats)
    array = torch.randn(1, floats).expand(repeats, floats)
    taken = sorted(race({"sum": Side(lambda: array.sum(1))}, 0.1)["sum"])
    torch.set_num_threads(threads)
    return threads * 4 * repeats * floats / taken[len(taken) // 2]
