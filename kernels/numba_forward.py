"""The time loop forward, a factory over the cell and the element type.  How it is called: :mod:`.numba_scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray

from .numba_barrier import follow, seat_of, take
from .numba_cells import Cell
from .numba_functions import like
from .numba_pointers import at, pointer
from .numba_scan import BLOCK, Names, enter, groups_of, leave, neighbours, panels_of, rows_of, vectors_of, widths
from .numba_tiles import copy, dots, gather, pack_gates, product, share


def forward_kernel(cell: Cell, real: type) -> Callable[[Any], None]:
    """The callback forward, over :data:`FORWARD`."""
    step, gates, slots, input_slot, shift = cell.forward, cell.gates, cell.slots, cell.input_slot, cell.shift
    output = cell.output
    vectors, (units, columns) = vectors_of(cell), widths(cell, np.dtype(real).itemsize)
    size, lanes = np.dtype(real).itemsize, columns // 4
    width, wide = slots * units, gates * units

    named = Names(step, output, real)

    @named
    def gates_of(a):
        saved = a.gates + a.direction * a.rows * slots * a.hidden * size
        return pointer(saved if a.gates else a.work + a.own_gates, real)

    @named
    def place_of(a, i, start):
        """Where the rows of a step stand in a panel of gates.  Where there is no room for all rows, a step of a block
        has that of a whole batch: a row keeps its place, since threads of other rows are at other steps."""
        return start if a.block_rows == a.rows else i % a.block_steps * a.batch

    @named
    def results_of(a):
        """Where h goes: y, the states where they are kept for backward, and the last ones."""
        outputs, d = a.outputs, a.direction
        y, states, hn = pointer(a.y, real), pointer(a.states, real), pointer(a.hn, real)
        return at(y, d * outputs), at(states, d * a.rows * outputs), at(hn, d * a.batch * outputs)

    @named
    def prepare(a, part, threads):
        """Weights into panels, and the biases into the slots that they belong to."""
        hidden, inputs, outputs = a.hidden, a.inputs, a.outputs
        bias, zeros = pointer(a.work + a.bias, real), pointer(a.h0, real)
        b_ih, b_hh = pointer(a.b_ih, real), pointer(a.b_hh, real)
        first, last = share(panels_of(hidden, units), part, threads)
        for p in range(first, last):
            copy(at(bias, p * width), zeros, 0, width)
            for g in range(gates if a.b_ih else 0):
                for j in range(min(units, hidden - p * units)):
                    at_hh, at_ih = p * width + g * units + j, p * width + (g + input_slot) * units + j
                    bias[at_hh] += b_hh[(g + shift) % gates * hidden + p * units + j]
                    bias[at_ih] += b_ih[g * hidden + p * units + j]
        if a.packed_ih:
            to = pointer(a.work + a.packed_ih, real)
            pack_gates(to, pointer(a.w_ih, real), first, last, gates, units, hidden, inputs, 0, lanes)
        if a.packed_hh:
            to = pointer(a.work + a.packed_hh, real)
            pack_gates(to, pointer(a.w_hh, real), first, last, gates, units, hidden, outputs, shift, lanes)
        if a.projected:
            to = pointer(a.work + a.packed_hr, real)
            first, last = share(panels_of(outputs, columns), part, threads)
            pack_gates(to, pointer(a.w_hr, real), first, last, 1, columns, outputs, hidden, 0, lanes)

    @named
    def multiply_inputs(a, i, first, end, first_panel, last_panel):
        """The product with the inputs of the block of steps that begins with this one."""
        steps, hidden, inputs = a.steps, a.hidden, a.inputs
        sizes, starts, tokens = pointer(a.sizes, np.int64), pointer(a.starts, np.int64), pointer(a.x, np.int64)
        x, w_ih, z, bias = pointer(a.x, real), pointer(a.w_ih, real), gates_of(a), pointer(a.work + a.bias, real)
        packed_ih = pointer(a.work + a.packed_ih, real)
        behind = min(i + a.block_steps, steps)
        together = max(1, BLOCK // max(1, end - first))  # steps whose inputs one weight panel meets at a time
        for begun in range(i, behind, together):
            for top in range(first, end, BLOCK):
                for p in range(first_panel, last_panel):
                    for k in range(begun, min(begun + together, behind)):
                        t = steps - 1 - k if a.direction else k
                        n, count = starts[t] + top, min(min(end, sizes[t]) - top, BLOCK)
                        place = place_of(a, k, starts[t]) + top
                        out, source = at(z, (p * a.block_rows + place) * width), at(x, n * inputs)
                        for r in range(count):
                            copy(at(out, r * width), at(bias, p * width), width, width)
                        out = at(out, input_slot * units)
                        if a.tokens:
                            for r in range(count):
                                w, packed = (packed_ih, True) if a.packed_ih else (w_ih, False)
                                gather(at(out, r * width), w, packed, tokens[n + r], p, gates, units, hidden, inputs)
                        elif a.packed_hh == 0:
                            dots(out, width, count, w_ih, source, inputs, p, gates, units, hidden, inputs, 0)
                        else:
                            w = at(packed_ih, p * inputs * wide)
                            product(vectors, count, out, width, source, inputs, 1, w, wide, inputs, True)

    @named
    def advance(a, i, first, end, first_panel, last_panel, me):
        """The product with h, and the cell."""
        rows, hidden, outputs, projected, d = a.rows, a.hidden, a.outputs, a.projected, a.direction
        y_row = a.directions * outputs
        w_hh, packed_hh, z = pointer(a.w_hh, real), pointer(a.work + a.packed_hh, real), gates_of(a)
        (y, states, hn), h0 = results_of(a), at(pointer(a.h0, real), d * a.batch * outputs)
        keeps, has_cell, keeps_cells = a.states != 0, a.cn != 0, a.cells != 0
        c0, cn = at(pointer(a.c0, real), d * a.batch * hidden), at(pointer(a.cn, real), d * a.batch * hidden)
        cells, full = at(pointer(a.cells, real), d * rows * hidden), pointer(a.work + a.full, real)
        # Addresses, not distances from one pointer: of those LLVM runs the pointwise loop below unvectorised.
        scratch = pointer(a.work + a.scratch + me * 8 * columns * size, real)
        h_here, c_here = scratch, at(scratch, units)
        t, active, coming, before, going = neighbours(a, i)
        start, last = pointer(a.starts, np.int64)[t], min(active, end)
        middle, previous = max(first, min(coming, last)), at(y, before * y_row)
        for p in range(first_panel, last_panel):
            out = at(z, (p * a.block_rows + place_of(a, i, start)) * width)
            o, h = at(out, first * width), at(previous, first * y_row)
            begun, new = at(out, middle * width), at(h0, middle * outputs)
            if a.packed_hh == 0:
                dots(o, width, middle - first, w_hh, h, y_row, p, gates, units, hidden, outputs, shift)
                dots(begun, width, last - middle, w_hh, new, outputs, p, gates, units, hidden, outputs, shift)
            else:
                w = at(packed_hh, p * outputs * wide)
                product(vectors, middle - first, o, width, h, y_row, 1, w, wide, outputs, True)
                product(vectors, last - middle, begun, width, new, outputs, 1, w, wide, outputs, True)
            u, count = p * units, min(units, hidden - p * units)
            for r in range(first, last):
                s, n = at(out, r * width), start + r
                if not projected:
                    source = at(previous, r * y_row + u) if r < coming else at(h0, r * outputs + u)
                    copy(h_here, source, count, units)
                if has_cell:
                    copy(c_here, at(cn if r < coming else c0, r * hidden + u), count, units)
                for j in range(units):
                    if slots == 4:
                        s0, s1, s2, s3 = s[j], s[units + j], s[2 * units + j], s[3 * units + j]
                        s0, s1, s2, s3, h_here[j], c_here[j] = step(s0, s1, s2, s3, h_here[j], c_here[j])
                        s[j], s[units + j], s[2 * units + j], s[3 * units + j] = s0, s1, s2, s3
                    else:
                        _, _, _, _, h_here[j], c_here[j] = step(s[j], s[j], s[j], s[j], h_here[j], s[j])
                if projected:
                    copy(at(full, r * hidden + u), h_here, count, count)
                else:
                    copy(at(y, n * y_row + u), h_here, count, count)
                    if keeps:
                        copy(at(states, n * outputs + u), h_here, count, count)
                    if r >= going:
                        copy(at(hn, r * outputs + u), h_here, count, count)
                if has_cell:
                    copy(at(cn, r * hidden + u), c_here, count, count)
                if keeps_cells:
                    copy(at(cells, n * hidden + u), c_here, count, count)

    @named
    def project(a, i, first, end, first_panel, last_panel):
        """The output of a step, of what the cell gave."""
        hidden, outputs = a.hidden, a.outputs
        short_row = panels_of(outputs, columns) * columns
        packed_hr, full = pointer(a.work + a.packed_hr, real), pointer(a.work + a.full, real)
        short, b_hr = pointer(a.work + a.short, real), pointer(a.b_hr, real)
        (y, states, hn), keeps, y_row = results_of(a), a.states != 0, a.directions * outputs
        t, active, _, _, going = neighbours(a, i)
        start, last = pointer(a.starts, np.int64)[t], min(active, end)
        for p in range(first_panel, last_panel):
            o, w = at(short, first * short_row + p * columns), at(packed_hr, p * hidden * columns)
            product(4, last - first, o, short_row, at(full, first * hidden), hidden, 1, w, columns, hidden, False)
            u, count = p * columns, min(columns, outputs - p * columns)
            for r in range(first, last):
                found, n = at(short, r * short_row + u), start + r
                for j in range(count):
                    found[j] = output(found[j] + (b_hr[u + j] if a.b_hr else like(0.0, found[j])))
                copy(at(y, n * y_row + u), found, count, count)
                if keeps:
                    copy(at(states, n * outputs + u), found, count, count)
                if r >= going:
                    copy(at(hn, r * outputs + u), found, count, count)

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
        phases = 2 if a.projected else 1
        for turn in range(1 if whole else a.steps * phases):
            if me >= seat.threads:
                break
            begin, stop, phase = turn // phases, turn // phases + 1, turn % phases
            if whole:
                begin, stop, phase = 0, a.steps, -1  # all of them
            part, seat = take(barrier, seat)
            while part >= 0:
                if known != part * team + seat.threads:
                    known = part * team + seat.threads
                    groups, members = groups_of(a.batch, work, seat.threads)
                    first, end = rows_of(a, part, groups, members)
                    member = part % members
                first_panel, last_panel = share(panels_of(a.hidden, units), member, members)
                first_short, last_short = share(panels_of(a.outputs, columns), member, members)
                for i in range(begin, stop):
                    if phase != 1:
                        if i % a.block_steps == 0:
                            multiply_inputs(a, i, first, end, first_panel, last_panel)
                        advance(a, i, first, end, first_panel, last_panel, me)
                    if phase != 0 and a.projected:
                        project(a, i, first, end, first_short, last_short)
                part, seat = follow(barrier, seat, part)

        leave(a, me)

    run.__qualname__ = named.name
    return run
