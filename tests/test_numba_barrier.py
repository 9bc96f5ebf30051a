"""Where the threads of Numba's kernels meet: every interleaving of its code, its threads in company, what is learned.

The code of :mod:`fastrnn.kernels.numba_barrier` is Python before Numba compiles it: run with what its accesses to
memory gave so far, it tells which it makes next.  So the walk of ``barrier_model.py`` is made through the code itself,
on the same memory, whose stores arrive late.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import barrier_model
import pytest
import torch
from barrier_model import Broken, Memory, Store, flushes, load

from fastrnn import backends
from fastrnn.backends import numba_company, numba_plan, numba_start

numba_backend = backends.load("numba")
pytestmark = pytest.mark.skipif(numba_backend.unavailable() is not None, reason=str(numba_backend.unavailable()))


class Access(NamedTuple):
    """``kind`` is "load", "store", "add", "exchange", "wait" or "wake"; ``order`` how strong."""

    kind: str
    name: str
    order: str
    value: Any = 0


class Pending(Exception):
    """The code has come to an access whose result is not known yet."""


class Words:
    """A barrier that tells what every access asks for; constants are read past it."""

    def __init__(self, late_every: int, known: tuple[int, ...]) -> None:
        from fastrnn.kernels import numba_barrier as code

        self.constants = {code.LATE_EVERY: late_every, code.ABSENT_EVERY: 0, code.FUTEX: 1, code.SYSCALL: 0}
        self.known, self.met = known, 0

    def __getitem__(self, word: int) -> int:
        return self.constants[word]

    def access(self, *access: Any) -> int:
        if self.met == len(self.known):
            raise Pending(Access(*access))
        self.met += 1
        return self.known[self.met - 1]


def accesses(monkeypatch: pytest.MonkeyPatch, groups: int = 1) -> None:
    """Makes the code hand its accesses to :class:`Words`.  It looks for a round once, then for shares, then sleeps; a
    hint, which may be anything, is left out: when somebody began to sleep."""
    from fastrnn.kernels import numba_barrier as code

    next_of.cache_clear()

    def name_of(word: int) -> str:
        if word >= code.TAKEN:
            return f"taken {(word - code.TAKEN) // code.LINE}"
        known = {code.ROUND: "round", code.SLEEPERS: "sleepers", code.SIZE: "size", code.ROOT: "root"}
        return known.get(word) or f"arrived {(word - code.ARRIVED) // code.LINE}"

    def made(kind: str, order: str) -> Any:
        def access(place: Any, value: int = 0) -> int:
            words, word = place
            return 0 if word == code.LATE else words.access(kind, name_of(word), order, value)

        return access

    for kind, orders in {
        "load": ("relaxed", "acquire", "consistent"),
        "store": ("relaxed", "consistent"),
        "add": ("relaxed", "ordered", "consistent"),
    }.items():
        for order in orders:
            monkeypatch.setattr(code, f"{kind}_{order}", made(kind, order))
    kinds = {code.WAIT: "wait", code.WAKE: "wake"}
    monkeypatch.setattr(code, "futex", lambda s, n, place, what, value: place[0].access(kinds[what], "", "", value))
    exchanged = made("exchange", "relaxed")
    monkeypatch.setattr(code, "exchange_if", lambda place, seen, value: exchanged(place, (seen, value)))
    monkeypatch.setattr(code, "at", lambda words, word: (words, word))
    monkeypatch.setattr(code, "_spin", lambda words, number: int(code.load_acquire((words, code.ROUND)) == number))
    monkeypatch.setattr(code, "_now", lambda words: 0)
    monkeypatch.setattr(code, "_groups_of", lambda threads: min(groups, (threads + 1) // 2))


@dataclass(frozen=True)
class Thread(barrier_model.Thread):
    """``part``, the share that it does, is -1 before the first and behind the last of a meeting."""

    seat: tuple[int, ...] = ()
    part: int = -1
    done: bool = False  # the part
    known: tuple[int, ...] = ()  # what the accesses since then gave
    drains: bool = False  # nothing comes before the buffer is empty
    asleep: bool = False
    over: bool = False


State = tuple[Memory, tuple[Thread, ...]]


@functools.cache
def next_of(seat: tuple[int, ...], done: int, known: tuple[int, ...], late_every: int) -> Access | tuple[int, Any]:
    """The next access of a thread, or which share it does next and its seat."""
    from fastrnn.kernels.numba_barrier import Seat, follow, take

    words: Any = Words(late_every, known)
    try:
        return take(words, Seat(*seat)) if done < 0 else follow(words, Seat(*seat), done)
    except Pending as pending:
        return pending.args[0]


def moves(state: State, i: int, late_every: int, meetings: int, fault: str) -> Iterator[State]:
    """The states behind the next access of a thread, or behind the arrival of one of its stores."""
    memory, thread = dict(state[0]), state[1][i]

    def after(memory: dict[str, int], moved: Thread, woken: bool = False) -> State:
        threads = [replace(other, asleep=False) if woken else other for other in state[1]]
        return tuple(sorted(memory.items())), (*threads[:i], moved, *threads[i + 1 :])

    for store, flushed in flushes(thread):
        yield after(memory | {store.name: store.value}, flushed)
    if thread.asleep or thread.over or (thread.drains and thread.buffer):
        return
    if thread.part >= 0 and not thread.done:
        name = f"data {thread.part}"
        if load(memory, thread, name) != thread.meeting:
            raise Broken(f"thread {i} does share {thread.part} of round {thread.meeting}, not the first or too early")
        store = Store(name, thread.meeting + 1, False)
        yield after(memory, replace(thread, done=True, buffer=(*thread.buffer, store)))
        return
    access = next_of(thread.seat, thread.part, thread.known, late_every)
    if not isinstance(access, Access):
        part, seat = access
        if part < 0:
            for other in range(thread.seat[1]):
                if load(memory, thread, f"data {other}") < thread.meeting + 1:
                    raise Broken(f"thread {i} does not see what was done of share {other}")
            if not 1 <= seat.threads <= thread.seat[1]:
                raise Broken(f"thread {i} is told of {seat.threads} of {thread.seat[1]} threads")
            thread = replace(thread, meeting=thread.meeting + 1)
        over = part < 0 and (i >= seat.threads or thread.meeting == meetings)
        yield after(memory, replace(thread, seat=tuple(seat), part=part, done=False, known=(), over=over))
        return
    if access.order + " " + access.kind in fault:
        access = access._replace(order="relaxed")
    drained = not thread.buffer

    def known(value: int, **others: Any) -> Thread:
        return replace(thread, known=(*thread.known, value), drains=False, **others)

    if access.kind == "load":
        yield after(memory, known(load(memory, thread, access.name)))
    elif access.kind == "store":
        consistent = access.order == "consistent"
        moved = known(0, buffer=(*thread.buffer, Store(access.name, access.value, consistent)))
        yield after(memory, replace(moved, drains=consistent))
    elif access.kind == "exchange":  # which waits for no store before
        before, (expected, value) = memory.get(access.name, 0), access.value
        if fault == "a share is looked at, then taken":
            before = expected
        yield after(memory | ({access.name: value} if before == expected else {}), known(before))
    elif access.kind == "add":
        if drained or access.order == "relaxed":
            before = load(memory, thread, access.name)
            yield after(memory | {access.name: before + access.value}, known(before))
    elif drained and access.kind == "wait":
        same = memory.get("round", 0) == access.value or fault == "the system does not compare"
        yield after(memory, known(0, asleep=same))
    elif drained:
        yield after(memory, known(0), woken=True)


def explore(threads: int, meetings: int, late_every: int = 0, fault: str = "") -> int:
    """Walks through all states; how many there are.

    Raises:
        Broken: a thread sees too little, waits for ever, or counts another team than the others; a share is done twice.
    """
    first: State = ((), tuple(Thread(i, threads, seat=(i, threads, 0, 0)) for i in range(threads)))
    seen: set[State] = {first}
    ahead: list[State] = [first]
    while ahead:
        state = ahead.pop()
        followers = [after for i in range(threads) for after in moves(state, i, late_every, meetings, fault)]
        if not followers and not all(thread.over for thread in state[1]):
            raise Broken(f"for ever: {state}")
        for after in followers:
            if after not in seen:
                seen.add(after)
                ahead.append(after)
    return len(seen)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("threads", "meetings", "late_every", "groups"),
    [(2, 3, 0, 1), (2, 3, 2, 1), pytest.param(3, 1, 0, 1, marks=SLOW), pytest.param(3, 1, 0, 2, marks=SLOW)],
)
def test_all_see_what_was_done_before_and_nobody_sleeps_for_ever(
    threads: int, meetings: int, late_every: int, groups: int, monkeypatch: pytest.MonkeyPatch
):
    accesses(monkeypatch, groups)
    assert explore(threads, meetings, late_every) > 1000


FAULTS = ("consistent store", "ordered add", "the system does not compare", "a share is looked at, then taken")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_weaker_order_is_found_out(fault: str, monkeypatch: pytest.MonkeyPatch):
    accesses(monkeypatch)
    with pytest.raises(Broken):
        explore(2, 2, 0, fault)


@pytest.mark.skipif(numba_start._openmp() is None, reason="the backend runs on one thread here")
@pytest.mark.parametrize("program", ["futex", "yield", "late", "layer"])
def test_teams_beside_programs_that_want_the_same_cpus(program: str):
    """Each in a process of its own, which ends itself where it waits for ever: ``numba_meetings.py``."""
    command = [sys.executable, str(Path(__file__).with_name("numba_meetings.py")), program]
    own = os.environ | {"FASTRNN_CPUS": "4"}
    done = subprocess.run(command, env=own, text=True, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def no_company():
    numba_company.forget_company()
    yield
    numba_company.forget_company()


def test_company_is_remembered_for_a_multiple_of_what_it_cost(no_company: None):
    assert numba_company.most_in_company() > 1 << 20
    numba_company.note_company(10**9, 3)  # for 16 seconds
    assert numba_company.most_in_company() == 3
    numba_company.note_company(10**6, 3)
    time.sleep(0.02)  # more than 16 ms
    assert numba_company.most_in_company() > 1 << 20


MS = 1_000_000


@pytest.mark.parametrize(
    ("came", "late", "round_of_mark", "stay"),
    [
        (10 * MS, 2 * MS, 9, 2),  # behind nine meetings of 1 ms
        (10 * MS, MS // 2, 9, 4),  # less than what others have of a slice
        (100 * MS, 2 * MS, 9, 4),  # steps of 10 ms may be late by that
        (100 * MS, 6 * MS, 9, 2),
        (10 * MS, 2 * MS, 8, 4),  # that was the meeting before
    ],
)
@pytest.mark.parametrize("stays", [False, True])
def test_half_of_a_team_leaves_behind_a_late_meeting(
    came: int, late: int, round_of_mark: int, stay: int, stays: bool, monkeypatch: pytest.MonkeyPatch
):
    from fastrnn.kernels import numba_barrier as code

    words = [0] * code.words_of(4)
    words[code.PATIENCE], words[code.LATE], words[code.STAYS] = MS, (came // 1000) << 16 | round_of_mark, stays
    monkeypatch.setattr(code, "at", lambda words, word: word)
    monkeypatch.setattr(code, "load_relaxed", words.__getitem__)
    monkeypatch.setattr(code, "load_consistent", words.__getitem__)
    monkeypatch.setattr(code, "store_relaxed", words.__setitem__)
    monkeypatch.setattr(code, "store_consistent", words.__setitem__)
    monkeypatch.setattr(code, "_now", lambda words: came + late)
    expected = 4 if stays else stay
    assert code._release(words, 9, 4) == expected
    assert words[code.SIZE] == 10 << 32 | expected and words[code.ROUND] == 10
    assert words[code.COMPANY : code.STAYED + 1] == ([late, stay] if stay < 4 else [0, 0])


@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "teams"),
    [
        (100, 1, 512, (4, 2)),  # threads meet at every step
        (400, 1, 512, (4, 4)),  # of a long call
        (100, 1, 128, (1, 1)),  # a step is not worth a meeting
        (4, 64, 128, (4, 2)),  # rows are shared, but others' slices are longer than the call
        (100, 64, 512, (4, 4)),
    ],
)
def test_in_company_fewer_threads_take_the_calls_that_are_short_beside_a_slice(
    steps: int, batch: int, hidden: int, teams: tuple[int, int]
):
    for meeting, team in zip((4, 2), teams, strict=True):
        shape = numba_plan.Shape(
            steps, batch, steps * batch, hidden, 4 * hidden, hidden, 1, 4, False, threads=4, meeting=meeting
        )
        assert numba_plan.Plan("LSTM", "forward", torch.float32, shape, False).team == team


def test_what_a_team_learns_counts_for_the_next_call(no_company: None, monkeypatch: pytest.MonkeyPatch):
    from fastrnn.kernels import numba_barrier as code

    monkeypatch.setattr(numba_start, "threads", lambda: 4)
    h0, weights = torch.zeros(1, 1, 512), [torch.zeros(2048, 30), torch.zeros(2048, 512)]
    count = code.words_of(4)
    words = (ctypes.c_int64 * count)(*[7] * count)

    def team() -> int:
        return numba_backend._plan("LSTM", "forward", torch.zeros(30, 1, 30), None, h0, weights, False)[0].team

    numba_company.begin(ctypes.addressof(words), 4, True)
    assert words[code.SYSCALL] and words[code.CLOCK_GETTIME] and words[code.PATIENCE] and words[code.BEGAN]
    assert words[code.STAYS] and not any(words[code.LATE_EVERY :])
    words[code.ENDED] = 1 << 40  # later than now
    numba_company.end(ctypes.addressof(words), 4)
    assert team() == 4
    words[code.COMPANY], words[code.STAYED] = 10**9, 2
    numba_company.end(ctypes.addressof(words), 4)
    assert team() == 2
    numba_company.forget_company()
    words[code.COMPANY], words[code.ENDED] = 0, 10 * MS
    words[code.BEGAN] -= 1000 * MS  # the last thread came a second after the first was done
    numba_company.end(ctypes.addressof(words), 4)
    assert team() == 2
