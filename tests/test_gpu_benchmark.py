"""What benchmarks/gpu.py keeps of its cases, without a GPU: a run that was cut short goes on where it stopped."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_bench", Path(__file__).parents[1] / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_bench"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def test_rows_outlive_a_run_and_no_other_device(bench: Any, tmp_path: Path):
    pair = bench.Pair.of([2.0] * 20, [*[1.0] * 18, 0.5, 4.0])
    assert (pair.theirs, pair.ours, pair.low, pair.high) == (2.0, 1.0, 2.0, 2.0)  # the outer tenths are left out
    rows = [bench.Row(bench.CASES[0], 0.5, pair, pair, pair), bench.Row(bench.CASES[1], 0.25, pair, pair, None)]
    results = bench.Results(tmp_path / "gpu.json", "H100, torch 2.13")
    for row in rows:
        results.add(row)
    again = bench.Results(tmp_path / "gpu.json", "H100, torch 2.13")
    assert [again.get(row.case) for row in rows] == rows
    assert again.get(bench.CASES[2]) is None
    assert bench.Results(tmp_path / "gpu.json", "H200, torch 2.13").get(rows[0].case) is None
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_the_table_has_a_ratio_and_its_interval_for_each_case(bench: Any):
    pair = bench.Pair.of([3.0, 3.0, 2.0], [1.0, 2.0, 1.0])
    text = bench.table([bench.Row(bench.CASES[0], 0.5, pair, pair, None)])
    assert str(bench.CASES[0]) in text and "3 / 1 (3.00x, 1.50 to 3.00)" in text and "slowest 3.00x" in text


def test_every_case_has_a_name_of_its_own(bench: Any):
    assert len({str(case) for case in bench.CASES}) == len(bench.CASES)
