"""Where the threads of a team meet: the protocol of ``csrc/barrier.h`` for Numba's kernels.

Whoever waits spins for a short time by the clock, then sleeps, so that a thread that lost its CPU finds one.  A meeting
that came late by a good part of the scheduler's slice tells of company, other programs on these CPUs: half of the team
then leaves the loop, and who started the call learns of it.  Members have to be threads of the system, which all run at
some time; OpenMP's are.

Memory order.  Arrivals are read-modify-writes with acquire and release, so the last to arrive has seen all that the
others did before; it sets the counter back and the new size, then the round, which those that wait acquire.  A thread
that goes to sleep announces itself, then asks for the round; the last one writes the round, then asks for sleepers.
Both writes and both questions are sequentially consistent: at least one of the two sees the other's, so nobody sleeps
through a round, and the system compares the round once more.  ``tests/barrier_model.py`` walks through every
interleaving of this.
"""

from __future__ import annotations

from .numba_atomics import (
    WAIT,
    WAKE,
    add_consistent,
    add_ordered,
    add_relaxed,
    futex,
    load_acquire,
    load_consistent,
    load_relaxed,
    pause,
    store_consistent,
    store_relaxed,
    time_by,
)
from .numba_functions import device
from .numba_pointers import at, call

# A barrier is so many words of 64 bits, in three cache lines, all zero at first but the first line: how to wait.
WORDS = 24
# Addresses of three functions, and which call of the first is the futex (0: there is none, and threads yield instead),
# which clock of the second is meant; how late a meeting may be, in ns; when the call began; and, for tests, every how
# manyth meeting counts as late.
SYSCALL, CLOCK_GETTIME, SCHED_YIELD, FUTEX, CLOCK, PATIENCE, BEGAN, LATE_EVERY = range(8)
ARRIVED = 8
# LATE: when the first sleeper of a round came, in us since the call began, and the round's low bits.  COMPANY: by how
# many ns a meeting was late, or 0, and how many threads to go on with.
ROUND, SLEEPERS, SIZE, LATE, COMPANY, STAYED = range(16, 22)

SPIN = 60_000  # ns, as kSpin of csrc/waiting.h


@device
def meet(barrier, team):
    """Waits for all of a team; how many of it are to go on, the threads 0 .. n - 1.  All know, so all may stay."""
    if team == 1:
        return 1
    number = load_relaxed(at(barrier, ROUND))
    if add_ordered(at(barrier, ARRIVED), 1) == team - 1:
        store_relaxed(at(barrier, ARRIVED), 0)
        return _release(barrier, number, team)
    since = _spin(barrier, number)
    if since:
        _sleep(barrier, number, since)
    return load_relaxed(at(barrier, SIZE))


@device
def _now(barrier):
    return time_by(barrier[CLOCK_GETTIME], barrier[CLOCK]) - barrier[BEGAN]


@device
def _release(barrier, number, team):
    stay, mark = team, load_relaxed(at(barrier, LATE))
    if mark and (mark & 0xFFFF) == (number & 0xFFFF):
        since = (mark >> 16) * 1000
        waited = _now(barrier) - since
        # Late by more than rounds take on the whole: a step of some ms may be late by much for no other's sake.
        if waited > max(barrier[PATIENCE], since // (number + 1) // 2):
            stay = (team + 1) // 2
            barrier[COMPANY], barrier[STAYED] = waited, stay
    if barrier[LATE_EVERY] and (number + 1) % barrier[LATE_EVERY] == 0:
        stay = (team + 1) // 2
    store_relaxed(at(barrier, SIZE), stay)
    store_consistent(at(barrier, ROUND), number + 1)
    if load_consistent(at(barrier, SLEEPERS)) and barrier[FUTEX]:
        futex(barrier[SYSCALL], barrier[FUTEX], at(barrier, ROUND), WAKE, 0x7FFFFFFF)
    return stay


@device
def _spin(barrier, number):
    """Waits for a short time by the clock; 0 if the round ended, else since when."""
    since, turn = 0, 0
    while load_acquire(at(barrier, ROUND)) == number:
        pause()
        turn += 1
        if turn % 32 == 0:
            time = _now(barrier)
            if since == 0:
                since = time
            if time - since > SPIN:
                return since
    return 0


@device
def _sleep(barrier, number, since):
    mark = load_relaxed(at(barrier, LATE))
    if mark == 0 or (mark & 0xFFFF) != (number & 0xFFFF):  # the first one, or nearly
        store_relaxed(at(barrier, LATE), ((since // 1000 + 1) << 16) | (number & 0xFFFF))
    add_consistent(at(barrier, SLEEPERS), 1)
    while load_consistent(at(barrier, ROUND)) == number:
        if barrier[FUTEX]:
            futex(barrier[SYSCALL], barrier[FUTEX], at(barrier, ROUND), WAIT, number)
        else:
            call(barrier[SCHED_YIELD])
    add_relaxed(at(barrier, SLEEPERS), -1)
