"""How many threads share a call: the model of csrc/team_plan.h, a pure function; CPUs by affinity and quota."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fastrnn import __main__ as main
from fastrnn import backends, teams
from fastrnn.backends import cpp

pytestmark = pytest.mark.skipif(backends.load("cpp").unavailable() is not None, reason="the plan is the C++ core's")

COUNTS = (*range(1, 17), 20, 24, 32, 48, 64, 96, 127, 128)
MACHINES = [
    # two cores of a desktop, a server whose threads meet slowly, one of wide vectors and small caches
    {"start": 8.0, "meeting": 0.3, "multiply_adds": 30e3, "read": 60e3, "cache": 1 << 20, "slice": 3000.0},
    {"start": 50.0, "meeting": 3.0, "multiply_adds": 60e3, "read": 100e3, "cache": 2 << 20, "slice": 4000.0},
    {"start": 20.0, "meeting": 1.0, "multiply_adds": 100e3, "read": 50e3, "cache": 256 << 10, "slice": 750.0},
]
WORKS = [
    teams.work_of(cell, steps, rows, hidden, training)
    for cell, (steps, rows), hidden, training in itertools.product(
        teams.GATES, ((1, 1), (100, 1), (30, 5), (60, 32), (40, 300)), (24, 64, 128, 256, 512, 1024), (False, True)
    )
]
WORKS += [work | {"directions": 2} for work in WORKS[::3]] + [work | {"batch": 0} for work in WORKS[::5]]


def on(machine: dict[str, Any], threads: int, meeting: int | None = None) -> dict[str, Any]:
    return machine | {"threads": threads, "threads_in_company": threads if meeting is None else meeting}


def time_of(work: dict[str, Any], machine: dict[str, Any], *plan: Any) -> float:
    return cpp._core.predicted_time(work, machine, *plan)


@pytest.mark.parametrize("machine", MACHINES)
def test_more_cpus_never_give_a_longer_predicted_time(machine: dict[str, Any]):
    shared = 0
    for work in WORKS:
        times = [teams.plan(work, on(machine, count)) for count in COUNTS]
        for (few, before), (more, after) in itertools.pairwise(zip(COUNTS, times, strict=True)):
            assert after.predicted <= before.predicted, (work, few, before, more, after)
            assert after.threads * (work["directions"] if after.side_by_side else 1) <= more
        shared += times[-1].threads > 1
    assert shared > len(WORKS) / 10, "the works tell nothing"


def ways_to_share(work: dict[str, Any], machine: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """All groups of rows and threads of a group that a plan may have: each group with enough rows, and a thread's cache
    with room for its share of the weights, unless nobody would have a smaller one."""
    panels = work["panels"]
    for groups, members in itertools.product(range(1, 129), range(1, min(128, panels) + 1)):
        share = -(-panels // members) / panels * work["weight_bytes"]
        fits = share < 0.75 * machine["cache"] or 2 * members > min(panels, machine["threads_in_company"])
        if groups == 1 or (groups * work["least_rows"] <= work["batch"] and fits):
            yield groups, members


@pytest.mark.parametrize("machine", MACHINES)
def test_no_way_to_share_is_much_faster(machine: dict[str, Any]):
    for work, count in itertools.product(WORKS, (2, 6, 16, 64)):
        best = min(
            time_of(work, on(machine, count), groups * members, directions > 1, groups)
            for groups, members in ways_to_share(work, on(machine, count))
            for directions in {1, work["directions"]}
            if groups * members * directions <= count
        )
        assert best <= teams.plan(work, on(machine, count)).predicted <= best * 1.03, (work, count)


@pytest.mark.parametrize(("cell", "rows", "hidden"), [("RNN", 64, 256), ("GRU", 32, 256), ("LSTM", 64, 128)])
def test_many_threads_share_rows_and_units_where_neither_is_enough(cell: str, rows: int, hidden: int):
    work = teams.work_of(cell, 100, rows, hidden)
    found = teams.plan(work, on(MACHINES[0], 64))
    assert 1 < found.groups < found.threads and found.kind == f"{found.groups}r{found.threads // found.groups}u"
    assert found.threads > max(work["panels"], rows // work["least_rows"]), "rows or units alone were enough"
    alone = teams.plan(work | {"batch": 0}, on(MACHINES[0], 64))
    assert found.predicted < 0.8 * alone.predicted


def test_a_small_team_shares_both_where_rows_are_few():
    """The ways of team_processes.py: whatever takes long is shared by four, and meetings cost nothing."""
    machine = on({"start": 1e-6, "meeting": 1e-6, "multiply_adds": 1.0, "read": 1.0, "cache": 1 << 20, "slice": 3e3}, 4)
    for rows, kind in ((8, "2r2u"), (9, "2r2u"), (10, "2r2u"), (11, "2r2u"), (4, "u"), (24, "r")):
        assert teams.plan(teams.work_of("LSTM", 12, rows, 130), machine).kind == kind


@pytest.mark.parametrize("machine", MACHINES)
def test_every_thread_repays_what_it_costs(machine: dict[str, Any]):
    """Short steps above all: with under 20 us of work a thread, one thread less would be slower."""
    short = 0
    for work, count in itertools.product(WORKS, COUNTS):
        found = teams.plan(work, on(machine, count))
        if found.threads == 1:
            continue
        fewer = [
            time_of(work, on(machine, count), groups * members, found.side_by_side, groups)
            for groups, members in ways_to_share(work, on(machine, count))
            if groups * members < found.threads
        ]
        assert found.predicted < min(fewer), (work, count, found)
        own = work["rows"] / work["steps"] * work["recurrent"] / machine["multiply_adds"] / found.threads
        short += own < 20 and found.groups == 1
    assert short > 10, "no step was so short"


def test_a_step_that_is_shorter_than_a_meeting_is_not_shared():
    for machine, count in itertools.product(MACHINES, COUNTS):
        work = teams.work_of("LSTM", 1000, 1, 24)
        assert teams.plan(work, on(machine, count)).threads == 1


def test_the_prediction_is_the_formula():
    machine = on(MACHINES[0], 4)
    work = teams.work_of("LSTM", 100, 2, 64)
    products = 4 * 64 * 64
    step = max(2 * products / 2 / 30e3, 4 * products / 2 / 60e3) + 0.3
    assert time_of(work, machine, 2, False, 1) == pytest.approx(100 * (step + 2 * products / 2 / 30e3) + 8)
    by_rows = max(products / 30e3, 4 * products / 60e3)
    assert time_of(work, machine, 2, False, 2) == pytest.approx(100 * (by_rows + products / 30e3) + 8)
    work = teams.work_of("LSTM", 100, 8, 64)
    both = max(2 * products / 30e3, 4 * products / 2 / 60e3) + 0.3  # four rows and half of the units each
    assert time_of(work, machine, 4, False, 2) == pytest.approx(100 * (both + 2 * products / 30e3) + 16)
    with pytest.raises(ValueError, match="groups: expected as many threads in each"):
        time_of(work, machine, 4, False, 3)


def test_panels_that_no_thread_halves_are_not_shared_by_more():
    """Four panels are as long for three threads as for two."""
    work = teams.work_of("RNN", 50, 16, 64) | {"batch": 0, "recurrent": 1e6}
    assert work["panels"] == 4
    assert [teams.plan(work, on(MACHINES[0], count)).threads for count in (1, 2, 3, 4, 64)] == [1, 2, 2, 4, 4]


def test_in_company_short_calls_have_few_threads():
    """Those of which one thread makes an end within two slices of other programs."""
    machine = MACHINES[0]
    for work, count, few in itertools.product(WORKS, (2, 8, 64), (1, 2, 5)):
        plan, quiet = teams.plan(work, on(machine, count, few)), teams.plan(work, on(machine, count))
        if time_of(work, machine | {"threads": 1, "threads_in_company": 1}, 1, False, 1) >= 2 * machine["slice"]:
            assert plan == quiet, (work, count, few)
        else:
            assert plan == teams.plan(work, on(machine, min(count, few))), (work, count, few)
    short, long = teams.work_of("LSTM", 20, 1, 512), teams.work_of("LSTM", 100, 1, 512)
    assert [teams.plan(work, on(machine, 2)).threads for work in (short, long)] == [2, 2]
    assert [teams.plan(work, on(machine, 2, 1)).threads for work in (short, long)] == [1, 2]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_wavefront_is_chosen_where_it_is_shorter(machine: dict[str, Any]):
    chosen = 0
    for work, layers in itertools.product(WORKS, (2, 3, 8)):
        times = [teams.wavefront(work, on(machine, count), layers)[1] for count in COUNTS]
        assert times == sorted(times, reverse=True), "more CPUs, and longer"
    for work, count, layers in itertools.product(WORKS, (1, 2, 6), (2, 3, 8)):
        own, piece = on(machine, count), max(12, work["rows"] // 8)
        height, predicted = teams.wavefront(work, own, layers)
        assert 1 <= height <= min(count, layers)
        one = teams.plan(work, own).predicted
        assert predicted <= one
        times = [cpp._core.predicted_wavefront(work, own, n, piece) / n for n in range(2, min(count, layers) + 1)]
        if work["directions"] > 1 or work["weight_bytes"] >= 0.75 * machine["cache"]:
            assert height == 1
        elif height > 1:
            assert times[height - 2] == pytest.approx(min(times), rel=0.03) and times[height - 2] < one
        elif times:
            assert min(times) >= 0.97 * one
        chosen += height > 1
    assert chosen > 10, "the works tell nothing"


def test_the_prediction_of_a_wavefront_is_the_formula():
    machine, work = on(MACHINES[0], 4), teams.work_of("GRU", 96, 1, 64)
    alone = time_of(work, machine, 1, False, 1)
    assert cpp._core.predicted_wavefront(work, machine, 3, 12) == pytest.approx(alone * (1 + 2 / 8) + 8 * 0.3 + 16)
    assert cpp._core.plan_wavefront(work, machine | {"threads_in_company": 1}, 3, 12) == 1
    with pytest.raises(ValueError, match="piece: expected at least one row"):
        cpp._core.plan_wavefront(work, machine, 3, 0)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000", 0), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("-1 100000", 0),
        ("", 0), (" ", 0), ("400000 100000", 4), ("50000 50000", 1), ("nonsense", 0),
    ],
)  # fmt: skip
def test_quotas_as_control_groups_tell_them(text: str, cpus: int):
    assert cpp._core.cpus_of_quota(text) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity here")
def test_no_more_threads_than_the_affinity_leaves():
    before = os.sched_getaffinity(0)
    code = f"import os, fastrnn._core as c; os.sched_setaffinity(0, {{{min(before)}}}); print(c.usable_cpus())"
    environment = {key: value for key, value in os.environ.items() if key != "FASTRNN_CPUS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert 1 <= cpp._core.usable_cpus() <= max(len(before), int(os.environ.get("FASTRNN_CPUS", 1)))


def test_the_environment_says_how_many_cpus():
    code = "import fastrnn._core as c; print(c.usable_cpus())"
    environment = os.environ | {"FASTRNN_CPUS": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7"


def test_company_is_remembered_for_a_multiple_of_what_it_cost():
    core = cpp._core
    core.forget_company()
    most = core.most_in_company()
    assert most > 1 << 20
    core.note_company(10**9, 3)  # for 16 seconds
    assert core.most_in_company() == 3 and core.this_machine(8)["threads_in_company"] == 3
    assert core.this_machine(2)["threads_in_company"] == 2
    core.note_company(10**6, 3)
    time.sleep(0.02)  # more than 16 ms
    assert core.most_in_company() == most


def test_rates_are_measured_and_of_this_world():
    machine = cpp._core.this_machine(2)
    assert 0 < machine["meeting"] <= 5 and 0 < machine["start"] <= 50
    assert machine["multiply_adds"] > 100 and machine["read"] > 100  # a us
    assert 1 << 14 <= machine["cache"] <= 1 << 30 and machine["threads"] == 2


def test_the_table_is_of_1_to_128_cpus():
    text = teams.table()
    assert "LSTM 100,1,512" in text and " 128" in text.splitlines()[3]
    assert len(text.splitlines()) == 6 + len(teams.GATES) * (len(teams.SHAPES) + 2)
    assert "team" in (main.__doc__ or "")
