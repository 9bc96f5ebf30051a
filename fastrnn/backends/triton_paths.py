"""The choice of a path for a scan: one small table by shape and dtype, which asks the device what it has.

The paths themselves are in :mod:`fastrnn.kernels.triton_product`.  Whether any of them is faster than cuDNN, and which
of them is, :mod:`fastrnn.tuned` has from measurements.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch

from fastrnn.modes import CELLS

KIB = 1024


class Chip(NamedTuple):
    """What a path asks of a device: how many programs are sure to run at once, the bytes of shared memory of one."""

    multiprocessors: int
    shared_memory: int
    lanes: int = 32  # of a warp; 64 on AMD

    @classmethod
    @functools.cache
    def of(cls, device: torch.device) -> Chip:
        if device.type != "cuda":  # the interpreter: the table of a common chip, so that it runs all paths
            return cls(64, 96 * KIB)
        from triton.runtime import driver

        # Triton's driver, because torch's own properties have no shared memory before 2.7.
        active: Any = driver.active
        properties = active.utils.get_device_properties(device.index)
        return cls(properties["multiprocessor_count"], properties["max_shared_mem"], properties["warpSize"])


class Path(NamedTuple):
    """How a scan is laid out: ROWS x UNITS a program, DEPTH of the product at a time, warps a program, loads under way
    at once, whether one launch takes all steps or each step is its own; on the spread path forward the partial sums,
    and backward the depth of the product at a time of each warp; how many tiles of rows a launch takes at most, 0 for
    all; warps a program backward, 0 for as many."""

    name: str
    rows: int
    units: int
    depth: int
    warps: int
    stages: int
    whole: bool
    chains: int = 2
    slice: int = 64
    tiles: int = 0
    backward_warps: int = 0

    @property
    def has_barrier(self) -> bool:
        return self.whole and self.name != "tile"

    def grid(self, sequences: int, hidden_size: int, directions: int) -> tuple[int, int, int]:
        # Rows first: only the first dimension of a grid may pass 65,535.
        return -(-sequences // self.rows), -(-hidden_size // self.units), directions

    def backward(self) -> Path:
        return self._replace(warps=self.backward_warps or self.warps)

    def stepwise(self) -> Path:
        """The same with a launch for each step, of all rows."""
        return self._replace(whole=False, tiles=0)

    def split(self, chip: Chip, sequences: int, hidden_size: int, directions: int) -> Path | None:
        """The same with no more tiles in a launch than a device runs at once; None where it has no room for one."""
        tiles, *others = self.grid(sequences, hidden_size, directions)
        at_once = chip.multiprocessors // math.prod(others)
        return self._replace(tiles=0 if at_once >= tiles else at_once) if at_once else None

    def launches(self, sequences: int) -> int:
        return -(-sequences // (self.rows * self.tiles)) if self.tiles else 1


# Half of a multiprocessor's 256 KiB of registers is what the weights of a program may take; at more, the rest spills.
# True float32, which no tensor core takes from registers, has them in shared memory, beside the product's scratch.
KEPT = 128 * KIB
SCRATCH = 24 * KIB
# Rows and units of a program on the spread path, best first: few programs, because each reads all of h in every step,
# but few rows in each, because sums of 32 rows beside many weights begin to spill.
SPREAD = ((16, 16), (32, 16), (16, 8), (32, 8), (64, 8))
MOST_ROWS = max(rows for rows, _ in SPREAD)
# Rows beyond what runs at once take a launch of their own, all steps of it.  Where the weights are read anew in every
# step, up to so many: a barrier costs a third or a quarter of a launch, of which all rows could share one.
PARTS = 4


@functools.lru_cache(maxsize=1024)
def choose_path(
    chip: Chip, mode: str, sequences: int, hidden_size: int, directions: int, dtype: torch.dtype, precision: str,
    name: str | None = None,
) -> Path:  # fmt: skip
    """The path of a scan, forward or backward: the best by this table, or the best of this ``name``.

    ``precision`` is "tf32" or "ieee", which matters in float32 alone.

    Raises:
        ValueError: a path of that name serves no such scan on this device.
    """
    scan = chip, mode, sequences, hidden_size, directions, dtype, precision
    for path in paths_that_fit(*scan):
        if name in (None, path.name):
            return path
    raise ValueError(f"expected a path of {names_that_fit(*scan)}, which serve this scan, got {name!r}")


def product_path(chip: Chip, sequences: int, count: int, directions: int, dtype: torch.dtype, precision: str) -> Path:
    """Of a product by itself, to ``count`` numbers a row: tiles as those of four gates whose weights stay nowhere."""
    path = choose_path(chip, "LSTM", sequences, -(-count // 4), directions, dtype, precision, "stream")
    return path.stepwise()._replace(units=4 * path.units)


@functools.lru_cache(maxsize=1024)
def names_that_fit(*scan: Any) -> tuple[str, ...]:
    """The names of :func:`paths_that_fit`, of the same arguments."""
    return tuple(path.name for path in paths_that_fit(*scan))


def paths_that_fit(
    chip: Chip, mode: str, sequences: int, hidden_size: int, directions: int, dtype: torch.dtype, precision: str
) -> list[Path]:
    """What could run a scan on this device, best first; the last, "stream", always can."""
    weights = len(CELLS[mode].gates) * hidden_size * dtype.itemsize  # bytes, of one unit
    kept = min(KEPT, chip.shared_memory - SCRATCH)
    warps = 256 // chip.lanes  # with more, a thread has too few registers for its share of the weights
    columns = chip.lanes // 4  # units that one matrix instruction takes at least
    width = max(16, 1 << (hidden_size - 1).bit_length())
    # True float32 has no tensor core, and without one a program has no room for all weights beside their copies.
    tensor_core = dtype != torch.float32 or precision == "tf32"
    fitting = []
    if tensor_core and weights * width * width // hidden_size <= kept:
        # Backward, where a thread has more values beside its weights, with a multiprocessor's registers for fewer.
        several, fewer = (min(count, width // columns) for count in (2 * warps, warps))
        fitting.append(Path("tile", 16, width, width, several, 1, whole=True, backward_warps=fewer))
    spread = []
    for rows, units in SPREAD:
        if units >= columns and weights * units <= kept:
            path = Path("spread", rows, units, 128 if dtype.itemsize == 2 else 16, warps, 1, whole=True)
            spread.append(path.split(chip, sequences, hidden_size, directions))
    fitting += sorted(filter(None, spread), key=lambda path: path.launches(sequences))[:1]
    rows = next((rows for rows in (16, 32) if sequences <= rows), 64 if tensor_core else 32)
    stages = 3 if chip.shared_memory >= 96 * KIB else 2
    stream = [Path("stream", rows, units, 64, 4 if rows == 16 else warps, stages, whole=True) for units in (16, 32)]
    for path in stream:
        path = path.split(chip, sequences, hidden_size, directions)
        if path and path.launches(sequences) <= PARTS:
            return [*fitting, path]
    return [*fitting, stream[-1].stepwise()]
