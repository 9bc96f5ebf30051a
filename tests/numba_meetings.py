"""What the processes of ``test_numba_barrier.py`` run: ``python numba_meetings.py PROGRAM``, beside two that spin.

``futex`` and ``yield``: teams of four, on however few CPUs, that share work and meet again and again, and see each time
what all did before; ``late``: some of which come late.  ``layer``: calls of one layer on a team, in turn with the same
ones on a thread alone.
"""

from __future__ import annotations

import ctypes
import faulthandler
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fastrnn.kernels import numba_barrier, numba_functions, numba_pointers
from numba import cfunc, types

import fastrnn
from fastrnn.backends import numba_company, numba_start

PATIENCE = 90  # seconds after which a process that waits for ever says where, and ends itself
TEAM, MEETINGS = 4, 500
call: Any = numba_pointers.call
pointer: Any = numba_pointers.pointer
# The table of a team: functions, where it meets, how often each share was done, how often that was too early, or
# somebody saw too little, and how often somebody did another's.
SIZE, NUMBER, BARRIER, DONE, WRONG, HELPED = range(6)


def run(table):
    barrier, done = pointer(table[BARRIER], np.int64), pointer(table[DONE], np.int64)
    team, me = np.int64(call(table[SIZE])), np.int64(call(table[NUMBER]))
    seat = numba_barrier.seat_of(me, team)
    for turn in range(MEETINGS):
        share, seat = numba_barrier.take(barrier, seat)
        while share >= 0:
            if done[8 * share] != turn:
                table[WRONG] += 1
            done[8 * share] = turn + 1
            if share != me:
                table[HELPED] += 1
            share, seat = numba_barrier.follow(barrier, seat, share)
        for share in range(team):
            if done[8 * share] <= turn:
                table[WRONG] += 1


@contextmanager
def company() -> Iterator[None]:
    """Two programs that want the CPUs.  From here on patience is limited: what there is to compile has been."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    spinner = "import os\nhere = os.getppid()\nwhile os.getppid() == here: sum(range(10**6))"
    programs = [subprocess.Popen([sys.executable, "-c", spinner]) for _ in range(2)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()


def meetings() -> None:
    compiled: Any = cfunc(types.void(types.CPointer(types.int64)), **numba_functions.OPTIONS)(run)
    words = numba_barrier.words_of(TEAM)
    memory = torch.zeros(8 + words + 8 * TEAM, dtype=torch.int64)
    barrier = -(-memory.data_ptr() // 64) * 64
    functions = numba_start.team_functions(TEAM)
    table = np.array([functions["team_size"], functions["thread_number"], barrier, barrier + 8 * words, 0, 0])
    openmp: Any = numba_start._openmp()
    with company():
        numba_company.begin(barrier, TEAM, True)
        openmp.GOMP_parallel(ctypes.c_void_p(compiled.address), ctypes.c_void_p(table.ctypes.data), TEAM, 0)
    rounds = ctypes.c_int64.from_address(barrier + 8 * numba_barrier.ROUND).value
    assert rounds == MEETINGS and not table[WRONG], (rounds, table[WRONG])
    assert table[HELPED] or not numba_company.absent_every


def layer() -> None:
    numba_start.usable_cpus = lambda: TEAM
    torch.manual_seed(0)
    lstm, x = fastrnn.LSTM(64, 512), torch.randn(40, 1, 64)
    spent = {1: 0.0, 2: 0.0, TEAM: 0.0}

    def called() -> list[torch.Tensor]:
        y = lstm(x)[0]
        return [y, *torch.autograd.grad(y.sum(), list(lstm.parameters()))]

    with fastrnn.use_backend("numba"):
        exact = called()
        with company():
            for threads in [*spent] * 5:
                torch.set_num_threads(threads)
                numba_company.forget_company()  # it is learned of again
                start = time.perf_counter()
                found = called()
                spent[threads] += time.perf_counter() - start
                assert all(map(torch.equal, found, exact))
    # Where threads spin until they have met, this is 20 times as long.
    assert max(spent.values()) < 10 * spent[1], spent


if __name__ == "__main__":
    if sys.argv[1] == "yield":
        numba_company.FUTEX = 0
    numba_company.absent_every = 5 * (sys.argv[1] == "late")
    layer() if sys.argv[1] == "layer" else meetings()
