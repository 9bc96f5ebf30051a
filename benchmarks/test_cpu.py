"""The cases and peers of this folder under pytest-benchmark, for its statistics, its histories and its comparisons.

    pytest benchmarks --group measured -k "LSTM and fastrnn" --benchmark-autosave

Peers are timed one after another here; :mod:`report` times them in turn, which is fairer on a busy machine.
"""

from __future__ import annotations

import functools

import pytest
import torch
from cases import Case
from peers import Peer
from problem import Problem
from pytest_benchmark.fixture import BenchmarkFixture

from fastrnn.backends import BackendError

# Of what other libraries warn is not for this suite to judge.
pytestmark = pytest.mark.filterwarnings("default")
recent_problem = functools.lru_cache(maxsize=1)(Problem)


def test_cpu(request: pytest.FixtureRequest, case: Case, peer: Peer, threads: int) -> None:
    if reason := peer.refusal(case, threads):
        pytest.skip(reason)
    torch.set_num_threads(threads)
    problem = recent_problem(case)
    try:
        side, results = peer.build(problem, threads)
        problem.check(results())
    except BackendError as refused:
        pytest.skip(str(refused))
    # Only now: the fixture of a test that is skipped warns that nothing was timed.
    benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")
    benchmark.group = f"{case}, {threads} threads"
    with side.context():
        if side.before is None:
            benchmark(side.call)
        else:
            benchmark.pedantic(side.call, setup=side.before, rounds=10, warmup_rounds=2)
