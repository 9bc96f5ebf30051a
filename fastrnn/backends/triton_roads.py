"""The choice of a road for a scan: one small table by shape and dtype, which asks the device what it has.

The roads themselves are in :mod:`fastrnn.kernels.triton_product`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

KIB = 1024


class Chip(NamedTuple):
    """What a road asks of a device: how many programs are sure to run at once, the bytes of shared memory of one."""

    multiprocessors: int
    shared_memory: int

    @classmethod
    def of(cls, device: torch.device) -> Chip:
        if device.type != "cuda":  # the interpreter: the table of a common chip, so that it runs all roads
            return cls(64, 96 * KIB)
        properties = torch.cuda.get_device_properties(device)
        return cls(properties.multi_processor_count, properties.shared_memory_per_block_optin)


class Road(NamedTuple):
    """How a scan is laid out: ROWS x UNITS a program, DEPTH of the product at a time (on the spread road of each warp),
    warps a program, loads under way at once, and whether one launch takes all steps or each step is its own."""

    name: str
    rows: int
    units: int
    depth: int
    warps: int
    stages: int
    whole: bool

    @property
    def has_barrier(self) -> bool:
        return self.whole and self.name != "tile"

    def grid(self, sequences: int, hidden_size: int, directions: int) -> tuple[int, int, int]:
        return -(-hidden_size // self.units), -(-sequences // self.rows), directions


# Weights that a program keeps go through its shared memory once, beside the scratch of the product.  Half of a
# multiprocessor's 256 KiB of registers is what they may take; at more, the rest spills.
KEPT = 128 * KIB
SCRATCH = 24 * KIB
# Rows and units of a program on the spread road, best first: few programs, because each reads all of h in every step,
# but few rows in each, because sums of 32 rows beside many weights begin to spill.
SPREAD = ((16, 16), (32, 16), (16, 8), (32, 8), (64, 8))


def choose_road(
    chip: Chip, sequences: int, hidden_size: int, directions: int, gates: int, dtype: torch.dtype, fma: bool
) -> Road:
    """The road of a scan.  ``fma``: its product is float32 throughout, for which there is no tensor core."""
    kept = min(KEPT, chip.shared_memory - SCRATCH)
    width = max(16, 1 << (hidden_size - 1).bit_length())
    if gates * width * width * dtype.itemsize <= kept and not fma:
        return Road("tile", 16, width, width, max(1, min(8, width // 8)), 1, whole=True)
    for rows, units in SPREAD:
        road = Road("spread", rows, units, 32 if dtype.itemsize == 2 else 16, 8, 1, whole=True)
        if gates * units * hidden_size * dtype.itemsize <= kept and _at_once(
            road, chip, sequences, hidden_size, directions
        ):
            return road
    rows = next((rows for rows in (16, 32) if sequences <= rows), 64)
    for units in (16, 32):
        road = Road("stream", rows, units, 64, 4 if rows == 16 else 8, 3, whole=True)
        if _at_once(road, chip, sequences, hidden_size, directions):
            return road
    return road._replace(whole=False)


def _at_once(road: Road, chip: Chip, sequences: int, hidden_size: int, directions: int) -> bool:
    units, rows, directions = road.grid(sequences, hidden_size, directions)
    return units * rows * directions <= chip.multiprocessors
