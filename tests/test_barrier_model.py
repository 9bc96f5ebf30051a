"""The barrier between the programs of a scan, as a model: every interleaving of its steps, and of the moments at which
what a program wrote reaches the others, is tried.

The model is weaker than the memory of a GPU in what matters here: a store is seen by others at any later moment, in
any order, but for what a release and the acquire that reads it say (PTX ISA, "Memory Consistency Model": release and
acquire patterns, causality order; a barrier of the program orders its threads, so that a program of the model is one
thread).  A test that plants each fault of the protocol shows that the model would tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest


class Protocol(NamedTuple):
    """What the kernels do; each field false is a fault.  ``releases``: an arrival is written only after what its
    program wrote is visible; ``acquires``: nothing is read before the wait has ended; ``places``: for how many h there
    is room; ``all_arrive``: a wait is for all programs, not one fewer; ``fresh``: flags begin at 0 with every launch.
    """

    releases: bool = True
    acquires: bool = True
    places: int = 2
    all_arrive: bool = True
    fresh: bool = True


class State(NamedTuple):
    """Of each program: ``step``, and ``at``, what it does next ("read", "write", "arrive", "wait" or "end"); what of
    its stores the others see, ``shown``, by place; stores that nobody sees yet, ``pending``; its flag, ``arrived``."""

    step: tuple[int, ...]
    at: tuple[str, ...]
    shown: tuple[tuple[int, ...], ...]
    pending: tuple[tuple[tuple[int, int], ...], ...]
    arrived: tuple[int, ...]
    launch: int


STEPS = 3  # the fewest in which a place is written again


def put(values: tuple, i: int, value) -> tuple:
    return (*values[:i], value, *values[i + 1 :])


def successors(state: State, protocol: Protocol, launches: int) -> Iterator[State]:
    programs = len(state.at)
    for i in range(programs):
        for k, (place, value) in enumerate(state.pending[i]):  # a store reaches the others, in any order
            shown = put(state.shown, i, put(state.shown[i], place, value))
            pending = put(state.pending, i, state.pending[i][:k] + state.pending[i][k + 1 :])
            yield state._replace(shown=shown, pending=pending)
        s, at = state.step[i], state.at[i]
        if at == "read":  # the last h of every program; of its own it knows
            place = (s - 1) % protocol.places
            for j in range(programs):
                if s and j != i:
                    found = state.shown[j][place]
                    assert found == state.launch * STEPS + s - 1, f"program {i} in step {s} read h of {found}"
            yield state._replace(at=put(state.at, i, "write"))
        elif at == "write":
            value = state.launch * STEPS + s
            pending = put(state.pending, i, (*state.pending[i], (s % protocol.places, value)))
            yield state._replace(at=put(state.at, i, "arrive" if s + 1 < STEPS else "end"), pending=pending)
        elif at == "arrive":
            if not (protocol.releases and state.pending[i]):
                arrived = put(state.arrived, i, state.arrived[i] + 1)
                yield state._replace(at=put(state.at, i, "wait"), arrived=arrived, step=put(state.step, i, s + 1))
        elif at == "wait":
            ready = sum(flag >= s for flag in state.arrived)
            if ready >= programs - (not protocol.all_arrive) or not protocol.acquires:
                yield state._replace(at=put(state.at, i, "read"))
    ended = all(at == "end" for at in state.at)
    if ended and not any(state.pending) and state.launch + 1 < launches:  # a launch ends when all has been written
        arrived = (0,) * programs if protocol.fresh else state.arrived
        yield state._replace(step=(0,) * programs, at=("read",) * programs, arrived=arrived, launch=state.launch + 1)


def explore(protocol: Protocol, programs: int, launches: int) -> int:
    """How many states there are; raises where one reads what is not of the step before, or where none is left to go
    to before all has ended."""
    first = State(
        (0,) * programs, ("read",) * programs, ((-1,) * protocol.places,) * programs, ((),) * programs,
        (0,) * programs, 0,
    )  # fmt: skip
    seen, ahead = {first}, [first]
    while ahead:
        state = ahead.pop()
        found = list(successors(state, protocol, launches))
        if not found:
            assert all(at == "end" for at in state.at) and state.launch + 1 == launches, f"all wait: {state}"
        for other in found:
            if other not in seen:
                seen.add(other)
                ahead.append(other)
    return len(seen)


@pytest.mark.parametrize(("programs", "launches"), [(2, 2), (3, 1)])
def test_no_arrival_is_lost_and_no_h_is_read_before_it_is_written_or_after(programs: int, launches: int):
    assert explore(Protocol(), programs, launches) > 100


@pytest.mark.parametrize(
    "protocol",
    [Protocol(releases=False), Protocol(acquires=False), Protocol(places=1), Protocol(all_arrive=False)],
    ids=["releases", "acquires", "places", "all_arrive"],
)
def test_the_model_sees_each_fault(protocol: Protocol):
    with pytest.raises(AssertionError, match="read h of"):
        explore(protocol, 2, 1)


def test_the_model_sees_flags_that_a_launch_left_behind():
    with pytest.raises(AssertionError, match="read h of"):
        explore(Protocol(fresh=False), 2, 2)
