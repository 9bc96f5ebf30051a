"""The time loop backward, a factory over the cell and the element type.  How it is called: :mod:`.numba_scan`.

What follows the loop, the products over the rows of all steps: :mod:`.numba_products`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray

from .numba_barrier import follow, seat_of, take
from .numba_cells import Cell
from .numba_functions import like
from .numba_pointers import at, pointer
from .numba_products import products_of
from .numba_scan import Names, enter, groups_of, leave, neighbours, panels_of, rows_of, widths
from .numba_tiles import copy, pack_gate_rows, pack_row, product, share


def backward_kernel(cell: Cell, real: type) -> Callable[[Any], None]:
    """The callback backward, over :data:`BACKWARD`."""
    step, gates, slots, shift, d_output = cell.backward, cell.gates, cell.slots, cell.shift, cell.d_output
    size = np.dtype(real).itemsize
    units, columns = widths(cell, size)
    width, wide = slots * units, gates * units
    named = Names(step, d_output, real)
    multiply_rows, multiply_sums = products_of(cell, real, named)

    @named
    def prepare(a, part, threads):
        """Weights into panels, and the operands of their gradients."""
        rows, inputs, hidden, outputs = a.rows, a.inputs, a.hidden, a.outputs
        starts = pointer(a.starts, np.int64)
        if a.packed_hh:
            to, w = pointer(a.work + a.packed_hh, real), pointer(a.w_hh, real)
            pack_gate_rows(to, w, part, threads, gates, units, hidden, outputs, columns, shift)
        if a.dx:
            to, w = pointer(a.work + a.packed_ih, real), pointer(a.w_ih, real)
            pack_gate_rows(to, w, part, threads, gates, units, hidden, inputs, columns, 0)
        if a.projected:
            first, last = share(outputs, part, threads)
            for k in range(first, last):
                w = at(pointer(a.w_hr, real), k * hidden)
                pack_row(pointer(a.work + a.packed_hr, real), k, outputs, w, hidden, columns)
        if a.dw_ih:
            first, last = share(rows, part, threads)
            for n in range(first, last):
                if not a.tokens:
                    x = at(pointer(a.x, real), n * inputs)
                    pack_row(pointer(a.work + a.x_panels, real), n, rows, x, inputs, columns)
            for i in range(a.steps):
                t, active, coming, before, _ = neighbours(a, i)
                for r in range(part, active, threads):
                    h = h_before(a, before, r, coming, 0)
                    pack_row(pointer(a.work + a.h_panels, real), starts[t] + r, rows, h, outputs, columns)

    @named
    def h_before(a, before, r, coming, u):
        """Units of h of a row before a step, from one on."""
        d, outputs = a.direction, a.outputs
        saved, h0 = pointer(a.states, real), pointer(a.h0, real)
        if r < coming:
            return at(saved, (d * a.rows + before + r) * outputs + u)
        return at(h0, (d * a.batch + r) * outputs + u)

    @named
    def d_outputs(a, i, first, end, member, members):
        """The gradient of what a projection gave, for some of these rows."""
        rows, outputs, d = a.rows, a.outputs, a.direction
        dy_row, dh_row = a.directions * outputs, panels_of(outputs, columns) * columns
        dh, dy = pointer(a.dh, real), at(pointer(a.dy, real), d * outputs)
        saved_h = at(pointer(a.states, real), d * rows * outputs)
        t, active, _, _, _ = neighbours(a, i)
        start, last = pointer(a.starts, np.int64)[t], min(active, end)
        for r in range(first + member, last, members):
            for j in range(outputs):
                k, n = r * dh_row + j, start + r
                grad = dh[k] + (dy[n * dy_row + j] if a.dy else like(0.0, dh[k]))
                dh[k] = d_output(grad, saved_h[n * outputs + j])
            pack_row(pointer(a.work + a.y_panels, real), start + r, rows, at(dh, r * dh_row), outputs, columns)

    @named
    def unproject(a, i, first, end, first_panel, last_panel):
        """That of its argument."""
        outputs = a.outputs
        dh_row, full_row = panels_of(outputs, columns) * columns, panels_of(a.hidden, columns) * columns
        packed_hr, d_full = pointer(a.work + a.packed_hr, real), pointer(a.work + a.d_full, real)
        last = min(neighbours(a, i)[1], end)
        for p in range(first_panel, last_panel):
            o, w = at(d_full, first * full_row + p * columns), at(packed_hr, p * outputs * columns)
            d = at(pointer(a.dh, real), first * dh_row)
            product(4, last - first, o, full_row, d, dh_row, 1, w, columns, outputs, False)

    @named
    def differentiate(a, i, first, end, first_panel, last_panel, me):
        """The cell, and what reaches h and c before the step past its gates."""
        rows, hidden, outputs, projected, direction = a.rows, a.hidden, a.outputs, a.projected, a.direction
        dy_row, dh_row = a.directions * outputs, panels_of(outputs, columns) * columns
        full_row = panels_of(hidden, columns) * columns
        saved_h = at(pointer(a.states, real), direction * rows * outputs)
        saved_c = at(pointer(a.cells, real), direction * rows * hidden)
        c0 = at(pointer(a.c0, real), direction * a.batch * hidden)
        dc = at(pointer(a.dc, real), direction * a.batch * hidden)
        d_cells = at(pointer(a.d_cells, real), direction * rows * hidden)
        dy, dh = at(pointer(a.dy, real), direction * outputs), pointer(a.dh, real)
        z, dz = pointer(a.gates, real), pointer(a.work + a.d_gates, real)
        d_full, full = pointer(a.work + a.d_full, real), pointer(a.work + a.full, real)
        scratch = pointer(a.work + a.scratch + me * 8 * columns * size, real)
        h_old, c_old, h_here, c_here = scratch, at(scratch, units), at(scratch, 2 * units), at(scratch, 3 * units)
        dh_here, dc_here, more = at(scratch, 4 * units), at(scratch, 5 * units), at(scratch, 6 * units)
        t, active, coming, before, _ = neighbours(a, i)
        start, last = pointer(a.starts, np.int64)[t], min(active, end)
        for p in range(first_panel, last_panel):
            u, count = p * units, min(units, hidden - p * units)
            for r in range(first, last):
                n = start + r
                s, d = at(z, (p * rows + n) * width), at(dz, (p * rows + n) * width)
                if projected:
                    copy(dh_here, at(d_full, r * full_row + u), count, units)
                    if slots == 1:
                        copy(h_here, at(saved_c, n * hidden + u), count, units)
                else:
                    copy(h_old, h_before(a, before, r, coming, u), count, units)
                    copy(h_here, at(saved_h, n * outputs + u), count, units)
                    copy(dh_here, at(dh, r * dh_row + u), count, units)
                    if a.dy:
                        copy(more, at(dy, n * dy_row + u), count, units)
                        for j in range(units):
                            dh_here[j] += more[j]
                if a.dc:
                    source = at(saved_c, (before + r) * hidden + u) if r < coming else at(c0, r * hidden + u)
                    copy(c_old, source, count, units)
                    copy(c_here, at(saved_c, n * hidden + u), count, units)
                    copy(dc_here, at(dc, r * hidden + u), count, units)
                    if a.d_cells:
                        copy(more, at(d_cells, n * hidden + u), count, units)
                        for j in range(units):
                            dc_here[j] += more[j]
                for j in range(units):
                    s0 = s1 = s2 = s3 = h_here[j]
                    if slots == 4:
                        s0, s1, s2, s3 = s[j], s[units + j], s[2 * units + j], s[3 * units + j]
                    d0, d1, d2, d3, to_h, to_c, h = step(
                        s0, s1, s2, s3, h_old[j], c_old[j], h_here[j], c_here[j], dh_here[j], dc_here[j]
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

    @named
    def go_back(a, i, first, end, first_panel, last_panel):
        """The gradient of h before the step, by the gates; of rows that begin here, it is that of h0."""
        outputs, panels = a.outputs, panels_of(a.hidden, units)
        dh_row = panels_of(outputs, columns) * columns
        packed_hh, dz, dh = pointer(a.work + a.packed_hh, real), pointer(a.work + a.d_gates, real), pointer(a.dh, real)
        t, active, coming, _, _ = neighbours(a, i)
        start, last = pointer(a.starts, np.int64)[t], min(active, end)
        count = (last if a.need_state else max(first, min(coming, last))) - first
        for c in range(first_panel, last_panel if count else 0):
            for p in range(panels):
                w, d = at(packed_hh, (c * panels + p) * wide * columns), at(dz, (p * a.rows + start + first) * width)
                product(4, count, at(dh, first * dh_row + c * columns), dh_row, d, width, 1, w, columns, wide, True)

    @named
    def clear_d_outputs(a, i, first, end, member, members):
        """Of a projection nothing reaches h before the step past the gates."""
        dh_row, last = panels_of(a.outputs, columns) * columns, min(neighbours(a, i)[1], end)
        for r in range(first + member, last, members):
            dh = at(pointer(a.dh, real), r * dh_row)
            copy(dh, dh, 0, dh_row)

    def run(table):
        a = carray(table, 1)[0]
        me, team = enter(a)
        if me >= team:
            return
        barrier, seat = pointer(a.work + a.barrier, np.int64), seat_of(me, team)
        part, seat = take(barrier, seat)
        while part >= 0:
            prepare(a, part, seat.threads)
            part, seat = follow(barrier, seat, part)
        work = gates * a.hidden * a.outputs
        whole = groups_of(a.batch, work, team)[1] == 1  # a share is some rows of all steps, else some of a step
        known, first, end, member, members = -1, 0, 0, 0, 1
        skipped = 0 if a.projected else 2
        phases = 4 - skipped
        for turn in range(1 if whole else a.steps * phases):
            if me >= seat.threads:
                break
            begin, phase = a.steps - 1 - turn // phases, turn % phases + skipped
            stop = begin - 1
            if whole:
                begin, stop, phase = a.steps - 1, -1, -1  # all of them
            part, seat = take(barrier, seat)
            while part >= 0:
                if known != part * team + seat.threads:
                    known = part * team + seat.threads
                    groups, members = groups_of(a.batch, work, seat.threads)
                    first, end = rows_of(a, part, groups, members)
                    member = part % members
                first_panel, last_panel = share(panels_of(a.hidden, units), member, members)
                first_short, last_short = share(panels_of(a.outputs, columns), member, members)
                first_full, last_full = share(panels_of(a.hidden, columns), member, members)
                for i in range(begin, stop, -1):
                    if a.projected and (whole or phase == 0):
                        d_outputs(a, i, first, end, member, members)
                    if a.projected and (whole or phase == 1):
                        unproject(a, i, first, end, first_full, last_full)
                    if whole or phase == 2:
                        if a.projected:
                            clear_d_outputs(a, i, first, end, member, members)
                        differentiate(a, i, first, end, first_panel, last_panel, me)
                    if whole or phase == 3:
                        go_back(a, i, first, end, first_short, last_short)
                part, seat = follow(barrier, seat, part)
        for phase in range(2):
            if me >= seat.threads:
                break
            part, seat = take(barrier, seat)
            while part >= 0:
                if phase == 0:
                    multiply_rows(a, part, seat.threads)
                else:
                    multiply_sums(a, part, seat.threads, me)
                part, seat = follow(barrier, seat, part)

        leave(a, me)

    run.__qualname__ = named.name
    return run
