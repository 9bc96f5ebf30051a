"""What benchmarks/gpu.py measures, and how long that should take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Case:
    """One layer; ``packed`` lengths fall evenly from T to T/4.  ``isolates`` says what it stands for."""

    isolates: str
    mode: str
    steps: int
    rows: int
    hidden: int
    dtype: torch.dtype
    directions: int = 1
    packed: bool = False

    def __str__(self) -> str:
        form = ["D2"] * (self.directions == 2) + ["packed"] * self.packed
        return "-".join([self.mode, f"T{self.steps}", f"B{self.rows}", f"H{self.hidden}", NAMES[self.dtype], *form])


CASES = [
    *(
        Case(f"{NAMES[dtype]} grid", mode, 256, rows, hidden, dtype)
        for dtype in (torch.bfloat16, torch.float32)
        for mode in ("LSTM", "GRU")
        for hidden in (256, 512, 1024)
        for rows in (1, 16, 64)
    ),
    *(
        Case("small H", mode, 256, rows, hidden, dtype)
        for mode, dtype in (("LSTM", torch.bfloat16), ("GRU", torch.float32))
        for hidden in (64, 128)
        for rows in (1, 16, 64, 1024)
    ),
    # Where cuDNN keeps the weights on the chip, too: one layer, one direction, rows a multiple of 8.
    *(Case("cuDNN persistent", "LSTM", 256, rows, hidden, torch.float16) for hidden, rows in ((512, 16), (1024, 64))),
    *(
        Case("packed", mode, 500, 32, 512, dtype, packed=True)
        for mode in ("LSTM", "GRU")
        for dtype in (torch.bfloat16, torch.float32)
    ),
    Case("packed, small H", "LSTM", 256, 64, 64, torch.float16, packed=True),
    *(Case("short and many", "GRU", 16, 128, 512, dtype) for dtype in (torch.bfloat16, torch.float32)),
    *(Case("both directions", mode, 256, 32, 512, torch.bfloat16, directions=2) for mode in ("LSTM", "GRU")),
    *(Case("RNN", "RNN", 256, 32, 512, dtype) for dtype in (torch.bfloat16, torch.float32)),
    Case("long", "LSTM", 1024, 16, 768, torch.bfloat16),
    Case("a large batch", "LSTM", 100, 512, 1024, torch.bfloat16),
]


# What a case takes beside its times, and the kernels of a case, compiled by a process each: allowances, not measured.
SECONDS_A_CASE = 2.0
SECONDS_TO_COMPILE = 20.0


def estimate(cases: list[Case], seconds: float, processes: int) -> float:
    """Seconds that a run of these cases takes."""
    pairs = sum(3 + case.packed for case in cases)
    return 2 * seconds * pairs + SECONDS_A_CASE * len(cases) + SECONDS_TO_COMPILE * -(-len(cases) // processes)
