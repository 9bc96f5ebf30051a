"""How the Triton backend launches its kernels: parts of the rows, and a launch a step where all at once is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrnn.backends import triton_launch
from fastrnn.backends.triton_paths import Path
from fastrnn.backends.triton_rows import Rows

triton = pytest.importorskip("triton", minversion="3.6")


class Kernel:
    """A kernel that notes its launches, on a device that refuses cooperative ones with ``error``."""

    def __init__(self, error: str = ""):
        self.error, self.launches, self.parts = error, [], []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def launch(*values: Any, **options: Any) -> None:
            cooperative = options.get("launch_cooperative_grid", False)
            if cooperative and self.error:
                raise RuntimeError(self.error)
            tile, begin, end, *_ = values[-6:]
            self.launches.append((begin, end, cooperative))
            self.parts.append((tile, grid[0], values[-7].storage_offset()))

        return launch


def launch(kernel: Kernel, steps: int) -> list[tuple[int, int, bool]]:
    kernel.launches.clear()
    w, rows = torch.zeros(4 * 256, 256, dtype=torch.bfloat16), Rows(steps, 16, steps * 16, None, None)
    triton_launch._launch(kernel, "LSTM", rows, [w], (), {}, None)
    return kernel.launches


def test_each_launch_of_a_part_has_its_rows_and_its_flags(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    path = Path("spread", 16, 16, 128, 8, 1, whole=True, tiles=3)
    monkeypatch.setattr(triton_launch, "choose_path", lambda *shape: path)
    kernel, w = Kernel(), torch.zeros(4 * 256, 256, dtype=torch.bfloat16)
    triton_launch._launch(kernel, "LSTM", Rows(5, 100, 500, None, None), [w], (), {}, None)
    assert kernel.launches == [(0, 5, True)] * 3
    assert kernel.parts == [(0, 3, 0), (3, 3, 3 * 16), (6, 1, 6 * 16)]  # 16 programs a tile


def test_a_refused_cooperative_launch_becomes_one_a_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(triton_launch, "_refused", set())
    assert launch(Kernel(), 3) == [(0, 3, True)]
    assert launch(Kernel(), 1) == [(0, 1, False)]  # one step has nobody to wait for
    with pytest.raises(RuntimeError, match="illegal memory access"):
        launch(Kernel("Triton Error [CUDA]: an illegal memory access was encountered"), 3)
    kernel, one_each = Kernel("Triton Error [CUDA]: too many blocks in cooperative launch"), [(0, 1), (1, 2), (2, 3)]
    with pytest.warns(RuntimeWarning, match="step by step"):
        assert launch(kernel, 3) == [(*step, False) for step in one_each]
    assert launch(kernel, 3) == [(*step, False) for step in one_each]  # it is not asked again
