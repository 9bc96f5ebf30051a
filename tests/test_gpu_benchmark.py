"""What benchmarks/gpu.py keeps of its cases, without a GPU: a run that was cut short goes on where it stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    folder = Path(__file__).parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))  # as Python does for a script
    spec = importlib.util.spec_from_file_location("gpu_bench", folder / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_bench"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(folder))


def test_rows_outlive_a_run_and_no_other_device(bench: Any, tmp_path: Path):
    pair = bench.Pair.of([2.0] * 20, [*[1.0] * 18, 0.5, 4.0])
    assert (pair.theirs, pair.ours, pair.low, pair.high) == (2.0, 1.0, 2.0, 2.0)  # the outer tenths are left out
    rows = [
        bench.Row(bench.CASES[0], 0.5, pair, pair, pair),
        bench.Row(bench.CASES[1], 0.25, pair, pair, pair, "torch.nn", pair),
    ]
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
    text = bench.table([bench.Row(bench.CASES[0], 0.5, pair, pair, pair, "torch.nn")])
    assert "torch.nn as called" in text
    assert str(bench.CASES[0]) in text and "3 / 1 (3.00x, 1.50 to 3.00)" in text and "slowest 3.00x" in text


def test_every_case_has_a_name_of_its_own(bench: Any):
    assert len({str(case) for case in bench.CASES}) == len(bench.CASES)


class Clock:
    """Time that calls take, in milliseconds, in the place of a device's."""

    def __init__(self):
        self.now = 0.0

    def call(self, milliseconds: float) -> Callable[[], None]:
        def spend() -> None:
            self.now += milliseconds

        return spend

    def event(self, enable_timing: bool) -> Any:
        clock = self

        class Event:
            at = 0.0

            def record(self) -> None:
                self.at = clock.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, other: Any) -> float:
                return other.at - self.at

        return Event()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(torch.cuda, "Event", found.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return found


def test_both_sides_are_timed_in_turn_for_the_seconds_given(bench: Any, clock: Clock):
    order: list[str] = []
    calls = [clock.call(3.0), clock.call(1.0)]
    named = [lambda: (order.append("a"), calls[0]()), lambda: (order.append("b"), calls[1]())]
    pair = bench.milliseconds(named, seconds=0.1)
    assert (pair.theirs, pair.ours, pair.low, pair.high) == (3.0, 1.0, 3.0, 3.0)
    assert "".join(order).startswith("ab" + "abba" * 3)  # one of each to warm up
    assert clock.now == pytest.approx(200 + 4, abs=4)
    clock.now = 0
    bench.milliseconds([clock.call(900.0), clock.call(700.0)], seconds=0.1)
    assert clock.now == 7 * 1600.0  # six pairs at least
    clock.now = 0
    bench.milliseconds([clock.call(0.01), clock.call(0.01)], seconds=9.0)
    assert clock.now == pytest.approx(201 * 0.02)  # and 200 at most


def test_a_run_that_is_out_of_time_goes_on_where_it_stopped(bench: Any, clock: Clock, tmp_path: Path):
    pair, ran = bench.Pair.of([2.0] * 6, [1.0] * 6), []
    cases = bench.CASES[:5]

    def measured(case: Any) -> Any:
        ran.append(case)
        clock.now += 10.0
        return bench.Row(case, 0.5, pair, pair, pair)

    for end in (25.0, 60.0):
        results = bench.Results(tmp_path / "gpu.json", "H100")
        bench.run(cases, results, measured, end, lambda: clock.now)
        if end == 25.0:
            assert ran == cases[:3] and results.get(cases[3]) is None
    assert ran == cases  # none twice


def test_all_cases_take_less_than_eight_minutes_by_the_estimate(bench: Any):
    assert bench.estimate(bench.CASES, 0.25, 12) < 8 * 60
    assert bench.estimate(bench.CASES[:1], 0.25, 12) == pytest.approx(1.5 + 2 + 20)


def test_the_sizes_that_other_kernels_are_known_by_are_there(bench: Any):
    """The published figure of cuDNN and FlashRNN, sizes where cuDNN's kernels are persistent, small ones, packed."""
    names = {str(case) for case in bench.CASES}
    assert {"LSTM-T1024-B16-H768-bf16", "LSTM-T256-B64-H1024-fp16", "LSTM-T256-B64-H64-fp16-packed"} <= names
    for dtype in ("bf16", "fp32"):
        for mode in ("LSTM", "GRU"):
            grid = {f"{mode}-T256-B{rows}-H{hidden}-{dtype}" for rows in (1, 16, 64) for hidden in (256, 512, 1024)}
            assert grid | {f"{mode}-T500-B32-H512-{dtype}-packed"} <= names


def test_packed_steps_are_captured_by_what_a_side_runs(bench: Any, monkeypatch: pytest.MonkeyPatch):
    """A side that torch captures is replayed, one that it refuses is known to be none."""
    replayed: list[str] = []

    class Graph:
        def replay(self) -> None:
            replayed.append("replay")

    class Stream:
        def wait_stream(self, other: Any) -> None: ...

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    capturing = []

    @contextlib.contextmanager
    def graph(found: Graph) -> Iterator[None]:
        capturing.append(found)
        yield
        capturing.clear()

    def refused() -> None:
        if capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    replay = bench.graphed(lambda: None)
    replay()
    assert replayed == ["replay"]
    capturing.clear()
    assert bench.graphed(refused) is None
