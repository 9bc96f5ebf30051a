"""What a comparison says of its samples, and that its workers run the build that they are told to."""

import math
import random
import sys
from pathlib import Path

import compare
import compare_worker
import pytest
import torch
from compare import Result, groups, interval
from compare_build import Build

import fastrnn


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    draw = random.Random(7)
    covered = 0
    for _ in range(2000):
        low, high = interval([draw.lognormvariate(0, 1) for _ in range(21)])
        covered += low <= 1 <= high
    assert 0.95 <= covered / 2000 < 0.99
    assert interval([3, 1, 2, 5, 4]) == (0, math.inf)
    assert interval(list(range(6))) == (0, 5)  # 1 - 2 / 2**6 = 0.969; without the ends it would be 0.78
    assert interval(list(range(9))) == (1, 7)  # 1 - 2 (1 + 9) / 2**9 = 0.961


def noisy(center: float, seed: int, launches: int = 3) -> list[list[float]]:
    draw = random.Random(seed)
    return [[center * draw.lognormvariate(0, 0.02) for _ in range(7)] for _ in range(launches)]


def test_verdicts() -> None:
    assert Result("a", "g", 1, noisy(1.1, 1)).verdict == "better"
    assert Result("a", "g", 1, noisy(0.9, 1)).verdict == "worse"
    assert Result("a", "g", 1, noisy(1.0, 1)).verdict == "not told apart"
    # One launch that disagrees: a process that lay badly, not a change.
    assert Result("a", "g", 1, [*noisy(1.1, 1, 2), *noisy(0.99, 1, 1)]).verdict == "not told apart"
    assert Result("a", "g", 1, failed="tree: WrongResult").verdict == "not timed: tree: WrongResult"


def test_groups_are_geometric_means_of_their_cases() -> None:
    cases = [
        Result("LSTM-T1-infer", "stream", 1, [[2.0, 2.0], [2.0, 2.0]]),
        Result("LSTM-T2-infer", "stream", 1, [[8.0, 2.0], [8.0, 8.0]]),
        Result("GRU-T2-infer", "stream", 1, failed="tree: wrong"),
    ]
    found = {mean.name: (mean.launches, least, of) for mean, least, of in groups(cases)}
    assert found["stream, LSTM infer"] == ([[4.0, 2.0], [4.0, 4.0]], 2.0, "LSTM-T1-infer")
    assert set(found) == {"stream, LSTM infer", "stream, all"}


def test_both_sides_run_and_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed package against itself: the whole way but for the builds."""
    build = Build("itself", Path(fastrnn.__file__).parent.parent)
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    options = compare.parse("HEAD --group tiny --threads 1 --cells GRU --quick --pairs 2 --sample 0.001".split())
    monkeypatch.setattr(compare, "worker", lambda: [sys.executable, str(compare.FOLDER / "compare_worker.py")])
    results = compare.run(build, build, options)
    assert len(results) == 4 and all(len(result.launches[0]) == 2 and not result.failed for result in results)
    lines = compare.record(build, build, results, "itself", tmp_path)
    assert any("tiny, GRU train" in line for line in lines)
    assert (tmp_path / "itself.json").exists() and "not told apart" in (tmp_path / "itself.md").read_text()


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = compare_worker.Worker()
    case = dict(case="GRU-T7-B5-I20-H33-infer", threads=1, check=True)
    assert worker.prepare(**case)["seconds"] > 0

    def wrong(modules: torch.nn.ModuleList) -> torch.nn.ModuleList:
        for parameter in modules.parameters():
            parameter.data.mul_(1.001)
        return modules

    monkeypatch.setattr(compare_worker.fastrnn, "convert", wrong)
    assert "WrongResult" in worker.prepare(**case)["failed"]
    assert worker.prepare(**case | dict(check=False))["seconds"] > 0
