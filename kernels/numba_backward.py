"""The time loop backward, a factory over the cell and the element type.  How it is called: :mod:`.numba_scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray

from .numba_barrier import meet
from .numba_cells import Cell
from .numba_functions import like
from .numba_pointers import at, call, call_with, pointer
from .numba_scan import BLOCK, DEPTH, DIGEST, MODE_BYTES, neighbours, panels_of, partition, widths
from .numba_tiles import ROWS_OF_4, add_columns, copy, pack_gate_rows, pack_row, product, share


def backward_kernel(cell: Cell, real: type) -> Callable[[Any], None]:
    """The callback backward, over :data:`BACKWARD`."""
    step, gates, slots, input_slot, shift = cell.backward, cell.gates, cell.slots, cell.input_slot, cell.shift
    d_output = cell.d_output
    units, columns = widths(cell, np.dtype(real).itemsize)
    width, wide = slots * units, gates * units

    def backward(table):
        a = carray(table, 1)[0]
        steps, batch, rows, inputs, hidden, outputs = a.steps, a.batch, a.rows, a.inputs, a.hidden, a.outputs
        projected, dy_row = a.projected, a.directions * outputs
        came, me = (np.int64(call(a.team_size)), np.int64(call(a.thread_number))) if a.barrier else (1, 0)
        team = min(came, a.team)
        if me >= team:
            return
        barrier = pointer(a.work + a.barrier, np.int64)
        own_mode = a.work + a.modes + me * MODE_BYTES
        if me:  # computes in the calling thread's floating-point mode, and has its own back at the end
            call_with(a.get_mode, own_mode)
            call_with(a.set_mode, a.work + a.modes)
        sizes, starts, tokens = pointer(a.sizes, np.int64), pointer(a.starts, np.int64), pointer(a.x, np.int64)
        states_before, cells_before = a.direction * batch * outputs, a.direction * batch * hidden  # of a direction
        x, h0, c0 = pointer(a.x, real), at(pointer(a.h0, real), states_before), at(pointer(a.c0, real), cells_before)
        saved_h = at(pointer(a.states, real), a.direction * rows * outputs)
        saved_c = at(pointer(a.cells, real), a.direction * rows * hidden)
        d_cells = at(pointer(a.d_cells, real), a.direction * rows * hidden)
        dy, dc = at(pointer(a.dy, real), a.direction * outputs), at(pointer(a.dc, real), cells_before)
        z, dh, dx = pointer(a.gates, real), pointer(a.dh, real), pointer(a.dx, real)
        dw_ih, dw_hh, dw_hr = pointer(a.dw_ih, real), pointer(a.dw_hh, real), pointer(a.dw_hr, real)
        db_ih, db_hh, db_hr = pointer(a.db_ih, real), pointer(a.db_hh, real), pointer(a.db_hr, real)
        packed_ih, packed_hh = pointer(a.work + a.packed_ih, real), pointer(a.work + a.packed_hh, real)
        packed_hr, full_panels = pointer(a.work + a.packed_hr, real), pointer(a.work + a.full_panels, real)
        x_panels, h_panels = pointer(a.work + a.x_panels, real), pointer(a.work + a.h_panels, real)
        y_panels, d_full = pointer(a.work + a.y_panels, real), pointer(a.work + a.d_full, real)
        full, dz = pointer(a.work + a.full, real), pointer(a.work + a.d_gates, real)
        scratch = at(pointer(a.work + a.scratch, real), me * 8 * columns)
        panels, input_panels = panels_of(hidden, units), panels_of(inputs, columns)
        output_panels, full_panel_count = panels_of(outputs, columns), panels_of(hidden, columns)
        dx_row, dh_row, full_row = input_panels * columns, output_panels * columns, full_panel_count * columns

        # Weights into panels, and the operands of their gradients.
        if a.packed_hh:
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
                if not a.tokens:
                    pack_row(x_panels, n, rows, at(x, n * inputs), inputs, columns)
            for i in range(steps):
                t, active, coming, before, _ = neighbours(sizes, starts, steps, i, a.direction)
                for r in range(me, active, team):
                    h = at(saved_h, (before + r) * outputs) if r < coming else at(h0, r * outputs)
                    pack_row(h_panels, starts[t] + r, rows, h, outputs, columns)
        stay = meet(barrier, team)

        work = gates * hidden * outputs
        first, end, member, members = partition(sizes, steps, rows, batch, work, me, team)
        first_panel, last_panel = share(panels, member, members)
        first_short, last_short = share(output_panels, member, members)
        first_full, last_full = share(full_panel_count, member, members)
        if members == 1:  # who has rows of its own waits for nobody
            stay = team
        for i in range(steps - 1, -1, -1):
            if me >= stay:
                call_with(a.set_mode, own_mode)
                return
            if stay < team:
                team = stay
                first, end, member, members = partition(sizes, steps, rows, batch, work, me, team)
                first_panel, last_panel = share(panels, member, members)
                first_short, last_short = share(output_panels, member, members)
                first_full, last_full = share(full_panel_count, member, members)
            t, active, coming, before, _ = neighbours(sizes, starts, steps, i, a.direction)
            start, last = starts[t], min(active, end)
            if projected:
                for r in range(first + member, last, members):
                    for j in range(outputs):
                        k, n = r * dh_row + j, start + r
                        d = dh[k] + (dy[n * dy_row + j] if a.dy else like(0.0, dh[k]))
                        dh[k] = d_output(d, saved_h[n * outputs + j])
                    pack_row(y_panels, start + r, rows, at(dh, r * dh_row), outputs, columns)
                if members > 1:
                    meet(barrier, team)
                for p in range(first_full, last_full):
                    o, w = at(d_full, first * full_row + p * columns), at(packed_hr, p * outputs * columns)
                    d = at(dh, first * dh_row)
                    product(4, last - first, o, full_row, d, dh_row, 1, w, columns, outputs, False)
                if members > 1:
                    meet(barrier, team)
                for r in range(first + member, last, members):
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
                        if a.d_cells:
                            copy(at(scratch, 6 * units), at(d_cells, n * hidden + u), count, units)
                            for j in range(units):
                                dc_here[j] += scratch[6 * units + j]
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
            if members > 1:
                meet(barrier, team)
            # Of rows that begin here, dh is that of h0.
            to_before = (last if a.need_state else max(first, min(coming, last))) - first
            for c in range(first_short, last_short if to_before else 0):
                for p in range(panels):
                    w, d = at(packed_hh, (c * panels + p) * wide * columns), at(dz, (p * rows + start + first) * width)
                    o = at(dh, first * dh_row + c * columns)
                    product(4, to_before, o, dh_row, d, width, 1, w, columns, wide, True)
            stay = meet(barrier, team) if members > 1 else team
        meet(barrier, team)

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
            meet(barrier, team)
            if a.db_hr:
                first, last = share(output_panels, me, team)
                for p in range(first, last):
                    o, d = at(db_hr, p * columns), at(y_panels, p * rows * columns)
                    add_columns(o, scratch, d, rows, columns, columns)
            first, last = share(output_panels * columns // ROWS_OF_4, me, team)
            for n in range(0, rows, DEPTH):
                depth = min(DEPTH, rows - n)
                for item in range(first, last):
                    k = item * ROWS_OF_4
                    source = at(y_panels, (k // columns * rows + n) * columns + k % columns)
                    for c in range(full_panel_count):
                        o, w = (
                            at(dw_hr, k * full_row + c * columns),
                            at(full_panels, (c * rows + n) * columns),
                        )
                        product(4, ROWS_OF_4, o, full_row, source, 1, columns, w, columns, depth, n > 0)
        if a.dw_ih:
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
                    for c in range(0 if a.tokens else input_panels):
                        o, w = at(dw_ih, row * dx_row + c * columns), at(x_panels, (c * rows + n) * columns)
                        product(4, units, o, dx_row, d, 1, width, w, columns, depth, n > 0)
            if a.tokens:
                first, last = share(panels, me, team)
                for n in range(rows):
                    for p in range(first, last):
                        o = at(dw_ih, (tokens[n] * panels + p) * wide)
                        d = at(dz, (p * rows + n) * width + input_slot * units)
                        for j in range(wide):
                            o[j] += d[j]
            if a.db_ih:
                first, last = share(panels * gates, me, team)
                for item in range(first, last):
                    p, g = item // gates, item % gates
                    d = at(dz, p * rows * width + g * units)
                    o = at(db_hh, ((g + shift) % gates * panels + p) * units)
                    add_columns(o, scratch, d, rows, width, units)
                    o = at(db_ih, (g * panels + p) * units)
                    add_columns(o, scratch, at(d, input_slot * units), rows, width, units)
        if me:
            call_with(a.set_mode, own_mode)

    backward.__qualname__ = f"{step.__name__}_{np.dtype(real)}_{DIGEST}"
    return backward
