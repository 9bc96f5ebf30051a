"""Where the threads of a team meet: the protocol of ``csrc/barrier.h`` for Numba's kernels.

Work between two meetings comes in as many shares as there are threads.  Each takes its own first; who has waited for
long takes those that nobody has begun, of threads that are still to be woken or lost their CPU on the way.  Such a
thread finds its work done, and goes from meeting to meeting without waiting until it is where the others are::

    part, seat = take(barrier, seat)
    while part >= 0:
        ...  # the share `part` of seat.threads
        part, seat = follow(barrier, seat, part)
    if seat.thread >= seat.threads:
        return  # half of the team goes on

Whoever waits spins for a short time by the clock, then sleeps, so that a thread that lost its CPU finds one.  A meeting
that came late by a good part of the scheduler's slice tells of company, other programs on these CPUs: half of the team
then leaves the loop, unless the call is long beside a slice, and who started it learns of it.  Members have to be
threads of the system, which all run at some time; OpenMP's are.

Memory order.  Arrivals are read-modify-writes with acquire and release, so the last to arrive has seen all that the
others did before; it sets the counters back and the new size, then the round, which those that wait acquire.  A thread
that goes to sleep announces itself, then asks for the round; the last one writes the round, then asks for sleepers.
Both writes and both questions are sequentially consistent: at least one of the two sees the other's, so nobody sleeps
through a round, and the system compares the round once more.

Who takes a share raises its count of rounds, by a read-modify-write that one thread alone brings about; it says nothing
of what others did, which the round has said before.  The size stands with the round it is of: who is behind reads a
later one, which is no larger, so all shares that it knows of are taken; and as long as a round is not over, none but
its own stands there.  ``tests/barrier_model.py`` walks through every interleaving of this.
"""

from __future__ import annotations

from typing import NamedTuple

from .numba_atomics import (
    WAIT,
    WAKE,
    add_consistent,
    add_ordered,
    add_relaxed,
    exchange_if,
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

LINE = 8  # words of 64 bits in a cache line
# A barrier is a number of words, all zero at first but the first of them: addresses of three functions, and which call
# of the first is the futex (0: there is none, and threads yield instead), which clock of the second is meant; how late
# a meeting may be, in ns; when the call began; whether nobody leaves; and, for tests, every how manyth meeting counts
# as late, and at every how manyth a thread comes late.
SYSCALL, CLOCK_GETTIME, SCHED_YIELD, FUTEX, CLOCK, PATIENCE, BEGAN, STAYS, LATE_EVERY, ABSENT_EVERY = range(10)
# How many have arrived, of each group and of groups, so that not all threads fight for one cache line.
ARRIVED, GROUPS = 2 * LINE, 8
ROOT = ARRIVED + GROUPS * LINE
# SIZE: how many threads go on, and the round it is of, above.  LATE: when the first sleeper of a round came, in us
# since the call began, and the round's low bits.  COMPANY: by how many ns a meeting was late, or 0, and how many
# threads to go on with.  ENDED: when the calling thread was done, in ns since the call began.
ROUND, SLEEPERS, SIZE, LATE, COMPANY, STAYED, ENDED = range(ROOT + LINE, ROOT + LINE + 7)
# In how many rounds each thread's share was taken, by whomever, on a line of its own.
TAKEN = ROOT + 2 * LINE

SPIN = 60_000  # ns, as kSpin of csrc/waiting.h


def words_of(team: int) -> int:
    """The words of a barrier for so many threads."""
    return TAKEN + team * LINE


class Seat(NamedTuple):
    """A thread of a team, how many work on, the threads 0 .. threads - 1, how many meetings it has been at, others may
    be further, and whether it had to take another's share at the last one."""

    thread: int
    threads: int
    round: int
    helps: int


@device
def seat_of(thread, threads):
    """The seat of a thread at the beginning of a call."""
    return Seat(thread, threads, 0, 0)


@device
def take(barrier, seat):
    """The share to do, and the seat; or -1 where all have met, and the seat says who goes on."""
    if seat.threads == 1:
        return 0, seat
    if barrier[ABSENT_EVERY] and (seat.round + seat.thread) % barrier[ABSENT_EVERY] == 0:
        _be_absent(barrier)
    if _takes(barrier, seat.thread, seat.round):
        return seat.thread, seat
    return _take_more(barrier, seat)


@device
def follow(barrier, seat, done):
    """The share to do behind that one, as :func:`take`."""
    if seat.threads == 1:
        return -1, seat
    if not _arrives_last(barrier, done, seat.threads):
        return _take_more(barrier, seat)
    stay = _release(barrier, seat.round, seat.threads)
    return -1, Seat(seat.thread, stay, seat.round + 1, seat.helps)


@device
def end(barrier):
    """Of the calling thread, at the end of its work."""
    barrier[ENDED] = _now(barrier)


@device
def _takes(barrier, share, number):
    seen = load_relaxed(at(barrier, TAKEN + share * LINE))
    return seen <= number and exchange_if(at(barrier, TAKEN + share * LINE), seen, number + 1) == seen


@device
def _take_of_others(barrier, seat):
    """From its neighbour's on, so that several who help begin with different ones."""
    for i in range(1, seat.threads):
        share = (seat.thread + i) % seat.threads
        if _takes(barrier, share, seat.round):
            return share
    return -1


@device
def _take_more(barrier, seat):
    """A share that nobody has begun, once it was waited for; from then on at once, for a thread that lost its CPU has
    none for many rounds.  Nobody sleeps before all are taken."""
    since, helps = 0, seat.helps
    if not helps:
        since = _spin(barrier, seat.round)
    if helps or since:
        share = _take_of_others(barrier, seat)
        if share >= 0:
            return share, Seat(seat.thread, seat.threads, seat.round, 1)
        helps = 0
        if not since:
            since = _spin(barrier, seat.round)
        if since:
            _sleep(barrier, seat.round, since)
    # Who is behind is never alone, for that one does all shares itself, and rounds that are over had two at least.
    size = load_relaxed(at(barrier, SIZE))
    behind = (size >> 32) != seat.round + 1
    threads = max(size & 0xFFFFFFFF, 2 if behind else 1)
    return -1, Seat(seat.thread, threads, seat.round + 1, helps)


@device
def _groups_of(threads):
    """Those who arrive at one counter do so one behind the other: n threads in g groups take n / g + g turns, least
    where g is the root of n, here rounded down to a power of two; below six threads one counter takes no more."""
    groups = 1 if threads < 6 else 2
    while groups < GROUPS and 4 * groups * groups <= threads:
        groups *= 2
    return groups


@device
def _arrives_last(barrier, share, threads):
    groups = _groups_of(threads)
    group = share * groups // threads  # neighbours go to one counter
    members = ((group + 1) * threads + groups - 1) // groups - (group * threads + groups - 1) // groups
    counter = at(barrier, ARRIVED + group * LINE)
    if add_ordered(counter, 1) != members - 1:
        return False
    store_relaxed(counter, 0)
    if groups == 1:
        return True
    if add_ordered(at(barrier, ROOT), 1) != groups - 1:
        return False
    store_relaxed(at(barrier, ROOT), 0)
    return True


@device
def _now(barrier):
    return time_by(barrier[CLOCK_GETTIME], barrier[CLOCK]) - barrier[BEGAN]


@device
def _release(barrier, number, threads):
    """Ends a round; how many threads go on."""
    stay, mark = threads, load_relaxed(at(barrier, LATE))
    if mark and (mark & 0xFFFF) == (number & 0xFFFF):
        since = (mark >> 16) * 1000
        waited = _now(barrier) - since
        # Late by more than rounds take on the whole: a step of some ms may be late by much for no other's sake.
        if waited > max(barrier[PATIENCE], since // (number + 1) // 2):
            barrier[COMPANY], barrier[STAYED] = waited, (threads + 1) // 2
            if not barrier[STAYS]:
                stay = (threads + 1) // 2
    if barrier[LATE_EVERY] and (number + 1) % barrier[LATE_EVERY] == 0:
        stay = (threads + 1) // 2
    store_relaxed(at(barrier, SIZE), (number + 1) << 32 | stay)
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
def _be_absent(barrier):
    until = _now(barrier) + 4 * SPIN
    while _now(barrier) < until:
        call(barrier[SCHED_YIELD])


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
