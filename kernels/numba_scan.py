"""The time loop around a cell: one driver forward, one backward, each a factory over the cell and the element type.

A kernel is a C callback over one table of sizes and addresses (:data:`FORWARD`, :data:`BACKWARD`), for one direction
of one layer.  Every thread of a team runs it (``team_size``, ``thread_number`` and ``barrier`` are the addresses of the
team's functions, or 0 for a thread alone).  Matrices are dense; the rows of all steps stand below one another, those of
step t from ``starts[t]``.  States of the rows that a step does not reach stay as they are.

Gates are kept in panels of U units with all their slots, (panels, N, slots, U): a tile of the product then holds every
gate of its units, and the pointwise code finds them at constant distances, so that LLVM vectorises it without testing
whether they overlap.  Pointwise inputs and outputs of other matrices pass through ``scratch`` for the same reason.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numba import carray

from .numba_cells import Cell, device, like
from .numba_tiles import (
    ROWS_OF_4,
    VECTOR_BYTES,
    add_columns,
    at,
    call,
    copy,
    dots,
    pack_gate_rows,
    pack_gates,
    pack_row,
    pointer,
    product,
    share,
)

BLOCK = 64  # rows of all steps that one weight panel meets at a time, so that they stay in the L2 cache
DEPTH = 128  # rows that a weight gradient sums in one go: a longer sum in float32 would lose digits
SPLIT_WORK = 1 << 18  # multiplications of a step from which on it pays to share its units out, at a barrier a step
SPLIT_ROWS = 8  # rows that a thread should have at least, or units are shared out too

# Numba's cache looks at the file of the function compiled only, so its name on disk tells the text of all three.
_texts = sorted(Path(__file__).parent.glob("numba_*.py"))
DIGEST = hashlib.sha256(b"".join(text.read_bytes() for text in _texts)).hexdigest()[:12]


def _table(names: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in names.split()])


_COMMON = "team_size thread_number barrier steps batch rows inputs hidden outputs reverse projected sizes starts x h0 "
_COMMON += "w_ih w_hh w_hr b_ih b_hh b_hr scratch packed_ih packed_hh packed_hr "

# y: its rows stand y_row apart.  cn: c0 on entry.  states (N, P) and cells (N, H; the argument of the projection of a
# cell without c): 0 where not wanted.  gates as above.
# direct: use the weights where they lie, without packed_ih and packed_hh.  full (B, H), short (B, P in whole panels):
# what a projection begins and ends with.
FORWARD = _table(_COMMON + "cn hn y y_row states cells gates direct bias full short")

# dh (B, P in whole panels), dc (B, H): the gradients of hn and cn on entry, those of h0 and c0 on exit.
# dx and dw_* are 0 where not wanted; their columns, and the units of dw_* and db_*, fill whole panels.
# x_panels, h_panels: x and the h before each step.  d_full (B, H), y_panels and full_panels belong to a projection:
# the gradient behind it, that of its result and its argument, for all steps.
BACKWARD = _table(
    _COMMON + "c0 gates cells states dy dy_row dh dc d_gates dx dw_ih dw_hh dw_hr db_ih db_hh db_hr "
    "x_panels h_panels y_panels full_panels full d_full"
)


def widths(cell: Cell, itemsize: int) -> tuple[int, int]:
    """Units of a gate panel and columns of a plain panel, for elements of so many bytes."""
    lanes = VECTOR_BYTES // itemsize
    return lanes * _vectors(cell) // cell.gates, 4 * lanes


def _vectors(cell: Cell) -> int:
    """Vectors side by side in a gate panel: one a gate, but four of the one gate of a plain RNN."""
    return 3 if cell.gates == 3 else 4


@device
def first_row(sizes, steps, rows, batch, part, parts):
    """Where the rows of the batch are cut so that every part has as many steps to do."""
    if part <= 0 or part >= parts:
        return 0 if part <= 0 else batch
    r, before = 0, 0
    while r < batch and before * parts < rows * part:
        r, before = min(r + ROWS_OF_4, batch), 0
        for t in range(steps):
            before += min(sizes[t], r)
    return r


@device
def partition(sizes, steps, rows, batch, work, me, team):
    """A thread's part of every step: its rows, and which of how many threads it is that share these rows' units.

    Rows are independent, so threads that have their own need no barrier; units are shared where rows are too few.
    """
    groups = min(team, (batch + SPLIT_ROWS - 1) // SPLIT_ROWS)
    mates = team // groups if work * batch >= SPLIT_WORK * groups else 1
    group = me // mates
    first = first_row(sizes, steps, rows, batch, group, groups)
    last = first_row(sizes, steps, rows, batch, group + 1, groups)
    return first, last, me % mates, mates


@device
def neighbours(sizes, starts, steps, i, reverse):
    """Step i of the loop: its t, its rows, how many of them come from a step before (the others begin), where that
    step starts, and how many go on to one behind (the others end)."""
    t = steps - 1 - i if reverse else i
    before, after = (t + 1, t - 1) if reverse else (t - 1, t + 1)
    rows = sizes[t]
    coming = min(rows, sizes[before]) if 0 <= before < steps else 0
    going = min(rows, sizes[after]) if 0 <= after < steps else 0
    return t, rows, coming, starts[before] if coming else 0, going


@device
def panels_of(columns, width):
    return (columns + width - 1) // width


def forward_kernel(cell: Cell, real: type):
    """The callback forward, over :data:`FORWARD`."""
    step, gates, slots, input_slot, shift = cell.forward, cell.gates, cell.slots, cell.input_slot, cell.shift
    output = cell.output
    vectors, (units, columns) = _vectors(cell), widths(cell, np.dtype(real).itemsize)
    lanes, width, wide = columns // 4, slots * units, gates * units

    def forward(table):
        a = carray(table, 1)[0]
        steps, batch, rows, inputs, hidden, outputs = a.steps, a.batch, a.rows, a.inputs, a.hidden, a.outputs
        y_row, projected, direct = a.y_row, a.projected, a.direct
        team = call(a.team_size) if a.barrier else np.int32(1)
        me = call(a.thread_number) if a.barrier else np.int32(0)
        sizes, starts = pointer(a.sizes, np.int64), pointer(a.starts, np.int64)
        x, h0, w_ih, w_hh = pointer(a.x, real), pointer(a.h0, real), pointer(a.w_ih, real), pointer(a.w_hh, real)
        y, hn, cn, z = pointer(a.y, real), pointer(a.hn, real), pointer(a.cn, real), pointer(a.gates, real)
        packed_ih, packed_hh = pointer(a.packed_ih, real), pointer(a.packed_hh, real)
        packed_hr, full, short = pointer(a.packed_hr, real), pointer(a.full, real), pointer(a.short, real)
        bias, b_ih = pointer(a.bias, real), pointer(a.b_ih, real)
        b_hh, b_hr = pointer(a.b_hh, real), pointer(a.b_hr, real)
        scratch = at(pointer(a.scratch, real), me * 8 * columns)
        panels, output_panels = panels_of(hidden, units), panels_of(outputs, columns)
        short_row = output_panels * columns

        # Weights into panels, and the biases into the slots that they belong to.
        first, last = share(panels, me, team)
        for p in range(first, last):
            copy(at(bias, p * width), x, 0, width)
            for g in range(gates if a.b_ih else 0):
                for j in range(min(units, hidden - p * units)):
                    at_hh, at_ih = p * width + g * units + j, p * width + (g + input_slot) * units + j
                    bias[at_hh] += b_hh[(g + shift) % gates * hidden + p * units + j]
                    bias[at_ih] += b_ih[g * hidden + p * units + j]
        if not direct:
            pack_gates(packed_ih, w_ih, first, last, gates, units, hidden, inputs, 0, lanes)
            pack_gates(packed_hh, w_hh, first, last, gates, units, hidden, outputs, shift, lanes)
        if projected:
            first, last = share(output_panels, me, team)
            pack_gates(packed_hr, pointer(a.w_hr, real), first, last, 1, columns, outputs, hidden, 0, lanes)
        if a.barrier:
            call(a.barrier)

        # The product with all inputs: rows are shared out, or panels where there are but a few rows.
        first, last = (0, rows) if direct else share(rows, me, team)
        first_panel, last_panel = share(panels, me, team) if direct else (0, panels)
        for n in range(first, last, BLOCK):
            count = min(BLOCK, last - n)
            for p in range(first_panel, last_panel):
                out, source = at(z, (p * rows + n) * width), at(x, n * inputs)
                for r in range(count):
                    copy(at(out, r * width), at(bias, p * width), width, width)
                out = at(out, input_slot * units)
                if direct:
                    for r in range(count):
                        dots(at(out, r * width), w_ih, at(source, r * inputs), p, gates, units, hidden, inputs, 0)
                else:
                    w = at(packed_ih, p * inputs * wide)
                    product(vectors, count, out, width, source, inputs, 1, w, wide, inputs, True)
        if a.barrier:
            call(a.barrier)

        work = gates * hidden * outputs
        first, end, mate, mates = partition(sizes, steps, rows, batch, work, me, team)
        first_panel, last_panel = share(panels, mate, mates)
        for i in range(steps):
            t, active, coming, before, going = neighbours(sizes, starts, steps, i, a.reverse)
            start, last = starts[t], min(active, end)
            middle = max(first, min(coming, last))
            previous = at(y, before * y_row)
            for p in range(first_panel, last_panel):
                out = at(z, (p * rows + start) * width)
                if direct:
                    for r in range(first, last):
                        h = at(previous, r * y_row) if r < coming else at(h0, r * outputs)
                        dots(at(out, r * width), w_hh, h, p, gates, units, hidden, outputs, shift)
                else:
                    w = at(packed_hh, p * outputs * wide)
                    o, h = at(out, first * width), at(previous, first * y_row)
                    product(vectors, middle - first, o, width, h, y_row, 1, w, wide, outputs, True)
                    o, h = at(out, middle * width), at(h0, middle * outputs)
                    product(vectors, last - middle, o, width, h, outputs, 1, w, wide, outputs, True)
                u, count = p * units, min(units, hidden - p * units)
                for r in range(first, last):
                    s, n = at(out, r * width), start + r
                    h_here, c_here = scratch, at(scratch, units)
                    if not projected:
                        source = at(previous, r * y_row + u) if r < coming else at(h0, r * outputs + u)
                        copy(h_here, source, count, units)
                    if a.cn:
                        copy(c_here, at(cn, r * hidden + u), count, units)
                    for j in range(units):
                        if slots == 4:
                            s0, s1, s2, s3 = s[j], s[units + j], s[2 * units + j], s[3 * units + j]
                            s0, s1, s2, s3, h_here[j], c_here[j] = step(s0, s1, s2, s3, h_here[j], c_here[j])
                            s[j], s[units + j], s[2 * units + j], s[3 * units + j] = s0, s1, s2, s3
                        else:
                            _, _, _, _, h_here[j], c_here[j] = step(s[j], s[j], s[j], s[j], h_here[j], s[j])
                    copy(at(full, r * hidden + u) if projected else at(y, n * y_row + u), h_here, count, count)
                    if a.cn:
                        copy(at(cn, r * hidden + u), c_here, count, count)
                    if a.cells:
                        copy(at(pointer(a.cells, real), n * hidden + u), c_here, count, count)
            if mates > 1:
                call(a.barrier)
            if projected:
                first_short, last_short = share(output_panels, mate, mates)
                for p in range(first_short, last_short):
                    o, w = at(short, first * short_row + p * columns), at(packed_hr, p * hidden * columns)
                    h = at(full, first * hidden)
                    product(4, last - first, o, short_row, h, hidden, 1, w, columns, hidden, False)
                    count = min(columns, outputs - p * columns)
                    for r in range(first, last):
                        source = at(short, r * short_row + p * columns)
                        for j in range(count):
                            v = source[j] + (b_hr[p * columns + j] if a.b_hr else like(0.0, source[j]))
                            source[j] = output(v)
                        copy(at(y, (start + r) * y_row + p * columns), source, count, count)
                if mates > 1:
                    call(a.barrier)
            for r in range(first + mate, last, mates):
                source = at(y, (start + r) * y_row)
                if a.states:
                    copy(at(pointer(a.states, real), (start + r) * outputs), source, outputs, outputs)
                if r >= going:
                    copy(at(hn, r * outputs), source, outputs, outputs)

    forward.__qualname__ = f"{step.__name__}_{np.dtype(real)}_{DIGEST}"
    return forward


def backward_kernel(cell: Cell, real: type):
    """The callback backward, over :data:`BACKWARD`."""
    step, gates, slots, input_slot, shift = cell.backward, cell.gates, cell.slots, cell.input_slot, cell.shift
    d_output = cell.d_output
    units, columns = widths(cell, np.dtype(real).itemsize)
    width, wide = slots * units, gates * units

    def backward(table):
        a = carray(table, 1)[0]
        steps, batch, rows, inputs, hidden, outputs = a.steps, a.batch, a.rows, a.inputs, a.hidden, a.outputs
        dy_row, projected = a.dy_row, a.projected
        team = call(a.team_size) if a.barrier else np.int32(1)
        me = call(a.thread_number) if a.barrier else np.int32(0)
        sizes, starts = pointer(a.sizes, np.int64), pointer(a.starts, np.int64)
        x, h0, c0, dy = pointer(a.x, real), pointer(a.h0, real), pointer(a.c0, real), pointer(a.dy, real)
        z, saved_h, saved_c = pointer(a.gates, real), pointer(a.states, real), pointer(a.cells, real)
        dh, dc, dz, dx = pointer(a.dh, real), pointer(a.dc, real), pointer(a.d_gates, real), pointer(a.dx, real)
        packed_ih, packed_hh = pointer(a.packed_ih, real), pointer(a.packed_hh, real)
        packed_hr, full, d_full = pointer(a.packed_hr, real), pointer(a.full, real), pointer(a.d_full, real)
        x_panels, h_panels = pointer(a.x_panels, real), pointer(a.h_panels, real)
        y_panels, full_panels = pointer(a.y_panels, real), pointer(a.full_panels, real)
        scratch = at(pointer(a.scratch, real), me * 8 * columns)
        panels, input_panels = panels_of(hidden, units), panels_of(inputs, columns)
        output_panels, full_panel_count = panels_of(outputs, columns), panels_of(hidden, columns)
        dx_row, dh_row, full_row = input_panels * columns, output_panels * columns, full_panel_count * columns

        # Weights into panels, and the operands of their gradients.
        pack_gate_rows(packed_hh, pointer(a.w_hh, real), me, team, gates, units, hidden, outputs, columns, shift)
        if a.dx:
            pack_gate_rows(packed_ih, pointer(a.w_ih, real), me, team, gates, units, hidden, inputs, columns, 0)
        if projected:
            first, last = share(outputs, me, team)
            for k in range(first, last):
                pack_row(packed_hr, k, outputs, at(pointer(a.w_hr, real), k * hidden), hidden, columns)
        if a.dw_ih:
            first, last = share(rows, me, team)
            for n in range(first, last):
                pack_row(x_panels, n, rows, at(x, n * inputs), inputs, columns)
            for i in range(steps):
                t, active, coming, before, _ = neighbours(sizes, starts, steps, i, a.reverse)
                for r in range(me, active, team):
                    h = at(saved_h, (before + r) * outputs) if r < coming else at(h0, r * outputs)
                    pack_row(h_panels, starts[t] + r, rows, h, outputs, columns)
        if a.barrier:
            call(a.barrier)

        work = gates * hidden * outputs
        first, end, mate, mates = partition(sizes, steps, rows, batch, work, me, team)
        first_panel, last_panel = share(panels, mate, mates)
        first_short, last_short = share(output_panels, mate, mates)
        first_full, last_full = share(full_panel_count, mate, mates)
        for i in range(steps - 1, -1, -1):
            t, active, coming, before, _ = neighbours(sizes, starts, steps, i, a.reverse)
            start, last = starts[t], min(active, end)
            if projected:
                for r in range(first + mate, last, mates):
                    for j in range(outputs):
                        k, n = r * dh_row + j, start + r
                        d = dh[k] + (dy[n * dy_row + j] if a.dy else like(0.0, dh[k]))
                        dh[k] = d_output(d, saved_h[n * outputs + j])
                    pack_row(y_panels, start + r, rows, at(dh, r * dh_row), outputs, columns)
                if mates > 1:
                    call(a.barrier)
                for p in range(first_full, last_full):
                    o, w = at(d_full, first * full_row + p * columns), at(packed_hr, p * outputs * columns)
                    d = at(dh, first * dh_row)
                    product(4, last - first, o, full_row, d, dh_row, 1, w, columns, outputs, False)
                if mates > 1:
                    call(a.barrier)
                for r in range(first + mate, last, mates):
                    copy(at(dh, r * dh_row), dh, 0, dh_row)
            for p in range(first_panel, last_panel):
                u, count = p * units, min(units, hidden - p * units)
                for r in range(first, last):
                    n = start + r
                    s, d = at(z, (p * rows + n) * width), at(dz, (p * rows + n) * width)
                    h_before, c_before, h_here, c_here = (
                        scratch,
                        at(scratch, units),
                        at(scratch, 2 * units),
                        at(scratch, 3 * units),
                    )
                    dh_here, dc_here = at(scratch, 4 * units), at(scratch, 5 * units)
                    if projected:
                        copy(dh_here, at(d_full, r * full_row + u), count, units)
                        if slots == 1:
                            copy(h_here, at(saved_c, n * hidden + u), count, units)
                    else:
                        source = at(saved_h, (before + r) * outputs + u) if r < coming else at(h0, r * outputs + u)
                        copy(h_before, source, count, units)
                        copy(h_here, at(saved_h, n * outputs + u), count, units)
                        copy(dh_here, at(dh, r * dh_row + u), count, units)
                        if a.dy:
                            copy(at(scratch, 6 * units), at(dy, n * dy_row + u), count, units)
                            for j in range(units):
                                dh_here[j] += scratch[6 * units + j]
                    if a.dc:
                        source = at(saved_c, (before + r) * hidden + u) if r < coming else at(c0, r * hidden + u)
                        copy(c_before, source, count, units)
                        copy(c_here, at(saved_c, n * hidden + u), count, units)
                        copy(dc_here, at(dc, r * hidden + u), count, units)
                    for j in range(units):
                        s0 = s1 = s2 = s3 = h_here[j]
                        if slots == 4:
                            s0, s1, s2, s3 = s[j], s[units + j], s[2 * units + j], s[3 * units + j]
                        d0, d1, d2, d3, to_h, to_c, h = step(
                            s0, s1, s2, s3, h_before[j], c_before[j], h_here[j], c_here[j], dh_here[j], dc_here[j]
                        )
                        d[j] = d0
                        if slots == 4:
                            d[units + j], d[2 * units + j], d[3 * units + j] = d1, d2, d3
                        h_here[j], dh_here[j], dc_here[j] = h, to_h, to_c
                    if projected:
                        copy(at(full, n * hidden + u), h_here, count, count)
                    else:
                        copy(at(dh, r * dh_row + u), dh_here, count, count)
                    if a.dc:
                        copy(at(dc, r * hidden + u), dc_here, count, count)
            if mates > 1:
                call(a.barrier)
            for c in range(first_short, last_short):
                for p in range(panels):
                    w, d = at(packed_hh, (c * panels + p) * wide * columns), at(dz, (p * rows + start + first) * width)
                    o = at(dh, first * dh_row + c * columns)
                    product(4, last - first, o, dh_row, d, width, 1, w, columns, wide, True)
            if mates > 1:
                call(a.barrier)
        if a.barrier:
            call(a.barrier)

        # The products over the rows of all steps.
        if a.dx:
            first, last = share(rows, me, team)
            for n in range(first, last, BLOCK):
                count = min(BLOCK, last - n)
                for c in range(input_panels):
                    for p in range(panels):
                        d = at(dz, (p * rows + n) * width + input_slot * units)
                        w = at(packed_ih, (c * panels + p) * wide * columns)
                        o = at(dx, n * dx_row + c * columns)
                        product(4, count, o, dx_row, d, width, 1, w, columns, wide, p > 0)
        if projected and a.dw_ih:
            first, last = share(rows, me, team)
            for n in range(first, last):
                pack_row(full_panels, n, rows, at(full, n * hidden), hidden, columns)
            if a.barrier:
                call(a.barrier)
            if a.db_hr:
                first, last = share(output_panels, me, team)
                for p in range(first, last):
                    o, d = at(pointer(a.db_hr, real), p * columns), at(y_panels, p * rows * columns)
                    add_columns(o, scratch, d, rows, columns, columns)
            first, last = share(output_panels * columns // ROWS_OF_4, me, team)
            for n in range(0, rows, DEPTH):
                depth = min(DEPTH, rows - n)
                for item in range(first, last):
                    k = item * ROWS_OF_4
                    source = at(y_panels, (k // columns * rows + n) * columns + k % columns)
                    for c in range(full_panel_count):
                        o, w = (
                            at(pointer(a.dw_hr, real), k * full_row + c * columns),
                            at(full_panels, (c * rows + n) * columns),
                        )
                        product(4, ROWS_OF_4, o, full_row, source, 1, columns, w, columns, depth, n > 0)
        if a.dw_ih:
            dw_ih, dw_hh = pointer(a.dw_ih, real), pointer(a.dw_hh, real)
            first, last = share(panels * gates, me, team)
            for n in range(0, rows, DEPTH):
                depth = min(DEPTH, rows - n)
                for item in range(first, last):
                    p, g = item // gates, item % gates
                    d = at(dz, (p * rows + n) * width + g * units)
                    row = (g + shift) % gates * panels * units + p * units
                    for c in range(output_panels):
                        o, w = at(dw_hh, row * dh_row + c * columns), at(h_panels, (c * rows + n) * columns)
                        product(4, units, o, dh_row, d, 1, width, w, columns, depth, n > 0)
                    d, row = at(d, input_slot * units), g * panels * units + p * units
                    for c in range(input_panels):
                        o, w = at(dw_ih, row * dx_row + c * columns), at(x_panels, (c * rows + n) * columns)
                        product(4, units, o, dx_row, d, 1, width, w, columns, depth, n > 0)
            if a.db_ih:
                for item in range(first, last):
                    p, g = item // gates, item % gates
                    d = at(dz, p * rows * width + g * units)
                    o = at(pointer(a.db_hh, real), ((g + shift) % gates * panels + p) * units)
                    add_columns(o, scratch, d, rows, width, units)
                    o = at(pointer(a.db_ih, real), (g * panels + p) * units)
                    add_columns(o, scratch, at(d, input_slot * units), rows, width, units)

    backward.__qualname__ = f"{step.__name__}_{np.dtype(real)}_{DIGEST}"
    return backward
