"""What the two drivers of the time loop share: the tables they are called with, and who does which part of a step.

A kernel is a C callback over one table of sizes and addresses (:data:`FORWARD`, :data:`BACKWARD`), for one direction
of one layer.  What it works in has its places in ``work``, so many bytes behind the start of it, or 0 for no place.
Every thread of a team runs it (``team_size`` and ``thread_number`` are the addresses of the team's functions,
``get_mode`` and ``set_mode`` those of fegetenv and fesetenv, or 0 for a thread alone), ``team`` of them at most do
work, in shares that they take in ``barrier`` (:mod:`.numba_barrier`).  ``modes`` has room for every thread's
floating-point mode; that of the calling thread, the first, stands there on entry.  Matrices are dense; the rows of all
steps stand below one another, those of step t from ``starts[t]``.  States of the rows that a step does not reach stay
as they are.

Gates are kept in panels of U units with all their slots, (panels, N, slots, U): a tile of the product then holds every
gate of its units, and the pointwise code finds them at constant distances, so that LLVM vectorises it without testing
whether they overlap.  Pointwise inputs and outputs of other matrices pass through ``scratch`` for the same reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .numba_barrier import end
from .numba_cells import Cell
from .numba_functions import device
from .numba_pointers import call, call_with, pointer
from .numba_tiles import ROWS_OF_4, VECTOR_BYTES

BLOCK = 64  # rows that one weight panel meets at a time, so that they stay in the L2 cache
DEPTH = 128  # rows that a weight gradient sums in one go: a longer sum in float32 would lose digits
MODE_BYTES = 64  # room for a fenv_t, the floating-point mode of a thread, on a cache line of its own
SPLIT_WORK = 1 << 18  # multiplications of a step from which on it pays to share its units out, at a barrier a step
SPLIT_ROWS = 8  # rows that a thread should have at least, or units are shared out too

# Numba's cache looks at the file of the function compiled only, so its name on disk tells the text of all.
_texts = sorted(Path(__file__).parent.glob("numba_*.py"))
DIGEST = hashlib.sha256(b"".join(text.read_bytes() for text in _texts)).hexdigest()[:12]


class Table(NamedTuple):
    """The fields of a table: ``sizes``, the addresses of the parameters, other ``addresses``; each of 64 bits."""

    sizes: tuple[str, ...]
    addresses: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        parameters = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "b_hr")
        return np.dtype([(name, np.int64) for name in (*self.sizes, *parameters, *self.addresses)])


def _table(workspaces: str, addresses: str) -> Table:
    sizes = "team team_size thread_number get_mode set_mode steps batch rows inputs hidden outputs directions "
    sizes += "direction projected tokens scratch modes barrier " + workspaces
    return Table((*sizes.split(),), (*("work sizes starts x h0 c0 " + addresses).split(),))


# Tensors are those of fastrnn.backends, for all directions.  0 stands for those that are not wanted: cells, states,
# gates (then own_gates).  Of a cell without c, cells are the arguments of the projection.
# The gates of block_steps steps are computed at a time, from the first in the order of the loop; there is room for
# block_rows rows: all, or for each step of a block as many as the batch has.
# packed_ih, packed_hh: 0 to use the weights where they lie.  full (B, H), short (B, P in whole panels): what a
# projection begins and ends with.
FORWARD = _table(
    "block_steps block_rows own_gates bias packed_ih packed_hh packed_hr full short", "y hn cn gates cells states"
)

# need_state: whether the gradients of h0 and c0 are wanted.
# dc (D, B, H) and, of this direction only, dh (B, P in whole panels): the gradients of cn and hn on entry, those of c0
# and h0 on exit.  dy and d_cells, the gradients of y and cells, are 0 for zeros.
# gates, dx and dw_* are of this direction only, the last two 0 where not wanted; the columns of dx and dw_*, and the
# units of dw_* and db_*, fill whole panels.  Of tokens dw_ih is (I, panels, gates, U), zeros on entry.
# x_panels, h_panels: x and the h before each step.  d_full (B, H), y_panels and full_panels belong to a projection:
# the gradient behind it, that of its result and its argument, for all steps.
BACKWARD = _table(
    "need_state d_gates packed_ih packed_hh packed_hr x_panels h_panels y_panels full_panels full d_full",
    "gates cells states dy d_cells dh dc dx dw_ih dw_hh dw_hr db_ih db_hh db_hr",
)


def widths(cell: Cell, itemsize: int) -> tuple[int, int]:
    """Units of a gate panel and columns of a plain panel, for elements of so many bytes."""
    lanes = VECTOR_BYTES // itemsize
    return lanes * vectors_of(cell) // cell.gates, 4 * lanes


def vectors_of(cell: Cell) -> int:
    """Vectors side by side in a gate panel: one a gate, but four of the one gate of a plain RNN."""
    return 3 if cell.gates == 3 else 4


class Names:
    """Gives the functions that one kernel is made of names of their own, in this module.

    Numba links compiled functions by their names, and takes two of one name for the same, if one is of a kernel in its
    cache and one has just been compiled: of another cell, or of numbers of another type.  And its cache asks what a
    function's closure holds by pickling it.  A function of a module is its name there, which tells the text of all; any
    other is its code and all that it uses, which is not the same bytes twice."""

    def __init__(self, point: Callable[..., Any], output: Callable[..., Any], real: type) -> None:
        self.name: str = f"{point.__name__}_{output.__name__}_{np.dtype(real)}_{DIGEST}"

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        function.__module__, function.__qualname__ = __name__, f"{self.name}_{function.__name__}"
        globals()[function.__qualname__] = function
        return device(function)


@device
def enter(a):
    """The number of a thread and of those of the team, which work in the floating-point mode of the first."""
    came, me = (np.int64(call(a.team_size)), np.int64(call(a.thread_number))) if a.barrier else (1, 0)
    team = min(came, a.team)
    if 0 < me < team:
        call_with(a.get_mode, a.work + a.modes + me * MODE_BYTES)
        call_with(a.set_mode, a.work + a.modes)
    return me, team


@device
def leave(a, me):
    """Of a thread of the team, which has its own mode back."""
    if me:
        call_with(a.set_mode, a.work + a.modes + me * MODE_BYTES)
    elif a.barrier:
        end(pointer(a.work + a.barrier, np.int64))


@device
def first_row(sizes, steps, rows, batch, part, parts):
    """Where the rows of the batch are cut so that every part has as many steps to do."""
    if part <= 0 or part >= parts:
        return 0 if part <= 0 else batch
    if rows == steps * batch:
        return min(batch, (batch * part + parts * ROWS_OF_4 - 1) // (parts * ROWS_OF_4) * ROWS_OF_4)
    r, before = 0, 0
    while r < batch and before * parts < rows * part:
        r, before = min(r + ROWS_OF_4, batch), 0
        for t in range(steps):
            before += min(sizes[t], r)
    return r


@device
def groups_of(batch, work, team):
    """In how many groups a team shares the rows, and how many threads of a group share units, at a meeting a step."""
    groups = max(1, min(team, (batch + SPLIT_ROWS - 1) // SPLIT_ROWS))
    return groups, team // groups if work * batch >= SPLIT_WORK * groups else 1


@device
def rows_of(a, part, groups, members):
    """The rows of a share of every step.  Rows are independent, so threads that have their own need not meet; units are
    shared where rows are too few."""
    sizes, group = pointer(a.sizes, np.int64), part // members
    first = first_row(sizes, a.steps, a.rows, a.batch, group, groups)
    return first, first_row(sizes, a.steps, a.rows, a.batch, group + 1, groups)


@device
def neighbours(a, i):
    """Step i of the loop: its t, its rows, how many of them come from a step before (the others begin), where that
    step starts, and how many go on to one behind (the others end)."""
    sizes, starts, steps, reverse = pointer(a.sizes, np.int64), pointer(a.starts, np.int64), a.steps, a.direction
    t = steps - 1 - i if reverse else i
    before, after = (t + 1, t - 1) if reverse else (t - 1, t + 1)
    rows = sizes[t]
    coming = min(rows, sizes[before]) if 0 <= before < steps else 0
    going = min(rows, sizes[after]) if 0 <= after < steps else 0
    return t, rows, coming, starts[before] if coming else 0, going


@device
def panels_of(columns, width):
    return (columns + width - 1) // width
