"""How the teams of Numba's kernels wait, and what they learn of company: other programs that want the same CPUs.

As ``csrc/barrier.h`` has it; :mod:`fastrnn.kernels.numba_barrier` is where threads meet.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
import sys
import time

# The number of the system call futex; where it is not known, threads that wait yield their CPUs.
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) if sys.platform == "linux" else 0
# A meeting is late by a quarter of the slice that the scheduler gives to others, as kLatePart of csrc/barrier.h.
LATE_PART = 4
# So many times as long as a team was late, calls that meet go on with fewer threads: what is lost is a part of it.
REPAY = 16
# For tests: every so manyth meeting of a call counts as late; at every so manyth each thread comes late.
late_every = absent_every = 0

_until, _threads = 0, sys.maxsize


def note_company(late: int, threads: int) -> None:
    """A meeting was late by so many nanoseconds; how many threads to go on with."""
    global _until, _threads
    _threads, _until = threads, time.monotonic_ns() + REPAY * late


def most_in_company() -> int:
    """How many threads may work with meetings at this time."""
    return _threads if _until and time.monotonic_ns() < _until else sys.maxsize


def forget_company() -> None:
    """For tests."""
    global _until
    _until = 0


@functools.cache
def _slice() -> int:
    """For how many nanoseconds the scheduler lets a thread run that others wait behind."""
    told = os.sched_rr_get_interval(0) if hasattr(os, "sched_rr_get_interval") else 0
    # A policy without slices says 0; some systems say 100 ms, after which no call would notice anything.
    return round(min(max(told or 3e-3, 0.75e-3), 6e-3) * 1e9)


@functools.cache
def _functions() -> tuple[int, ...]:
    names, process = ("syscall", "clock_gettime", "sched_yield"), ctypes.CDLL(None)
    return tuple(ctypes.cast(getattr(process, name), ctypes.c_void_p).value or 0 for name in names)


def begin(barrier: int, team: int, stays: bool) -> None:
    """Makes the barrier of a team, at this address, ready for the first meeting of a call.  If it ``stays``, nobody
    leaves it in company."""
    from fastrnn.kernels.numba_barrier import words_of  # which imports Numba

    clock, words = time.CLOCK_MONOTONIC, words_of(team)
    how = (*_functions(), FUTEX, clock, _slice() // LATE_PART, time.clock_gettime_ns(clock))
    told = (*how, stays, late_every, absent_every)
    ctypes.memmove(barrier, struct.pack(f"{len(told)}q{8 * (words - len(told))}x", *told), 8 * words)


def end(barrier: int, team: int) -> None:
    """Notes what the team of a call learned, all of which has come to its end."""
    from fastrnn.kernels.numba_barrier import BEGAN, COMPANY, ENDED, STAYED

    def told(word: int) -> int:
        return ctypes.c_int64.from_address(barrier + 8 * word).value

    late, threads, ended = told(COMPANY), told(STAYED), told(ENDED)
    # A thread whose shares the others have done, or which has rows of its own, may find no CPU to end on.
    waited = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - told(BEGAN) - ended
    if not late and waited > max(_slice() // LATE_PART, ended // 2):
        late, threads = waited, (team + 1) // 2
    if late:
        note_company(late, threads)
