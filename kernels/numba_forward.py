"""The time loop forward, a factory over the cell and the element type.  How it is called: :mod:`.numba_scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray

from .numba_barrier import meet
from .numba_cells import Cell
from .numba_functions import like
from .numba_pointers import at, call, call_with, pointer
from .numba_scan import BLOCK, DIGEST, MODE_BYTES, neighbours, panels_of, partition, vectors_of, widths
from .numba_tiles import copy, dots, gather, pack_gates, product, share


def forward_kernel(cell: Cell, real: type) -> Callable[[Any], None]:
    """The callback forward, over :data:`FORWARD`."""
    step, gates, slots, input_slot, shift = cell.forward, cell.gates, cell.slots, cell.input_slot, cell.shift
    output = cell.output
    vectors, (units, columns) = vectors_of(cell), widths(cell, np.dtype(real).itemsize)
    size, lanes = np.dtype(real).itemsize, columns // 4
    width, wide = slots * units, gates * units

    def forward(table):
        a = carray(table, 1)[0]
        steps, batch, rows, inputs, hidden, outputs = a.steps, a.batch, a.rows, a.inputs, a.hidden, a.outputs
        projected, d, y_row = a.projected, a.direction, a.directions * outputs
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
        x, w_ih, w_hh = pointer(a.x, real), pointer(a.w_ih, real), pointer(a.w_hh, real)
        b_ih, b_hh, b_hr = pointer(a.b_ih, real), pointer(a.b_hh, real), pointer(a.b_hr, real)
        h0, hn = at(pointer(a.h0, real), d * batch * outputs), at(pointer(a.hn, real), d * batch * outputs)
        c0, cn = at(pointer(a.c0, real), d * batch * hidden), at(pointer(a.cn, real), d * batch * hidden)
        y, states = at(pointer(a.y, real), d * outputs), at(pointer(a.states, real), d * rows * outputs)
        cells = at(pointer(a.cells, real), d * rows * hidden)
        z = pointer(a.gates + d * rows * slots * hidden * size if a.gates else a.work + a.own_gates, real)
        # Addresses, not distances from one pointer: of those LLVM runs the pointwise loop below unvectorised.
        packed_ih, packed_hh = pointer(a.work + a.packed_ih, real), pointer(a.work + a.packed_hh, real)
        packed_hr, full = pointer(a.work + a.packed_hr, real), pointer(a.work + a.full, real)
        short, bias = pointer(a.work + a.short, real), pointer(a.work + a.bias, real)
        scratch = at(pointer(a.work + a.scratch, real), me * 8 * columns)
        panels, output_panels = panels_of(hidden, units), panels_of(outputs, columns)
        short_row = output_panels * columns

        # Weights into panels, and the biases into the slots that they belong to.
        first, last = share(panels, me, team)
        for p in range(first, last):
            copy(at(bias, p * width), h0, 0, width)
            for g in range(gates if a.b_ih else 0):
                for j in range(min(units, hidden - p * units)):
                    at_hh, at_ih = p * width + g * units + j, p * width + (g + input_slot) * units + j
                    bias[at_hh] += b_hh[(g + shift) % gates * hidden + p * units + j]
                    bias[at_ih] += b_ih[g * hidden + p * units + j]
        if a.packed_ih:
            pack_gates(packed_ih, w_ih, first, last, gates, units, hidden, inputs, 0, lanes)
        if a.packed_hh:
            pack_gates(packed_hh, w_hh, first, last, gates, units, hidden, outputs, shift, lanes)
        if projected:
            first, last = share(output_panels, me, team)
            pack_gates(packed_hr, pointer(a.w_hr, real), first, last, 1, columns, outputs, hidden, 0, lanes)
        stay = meet(barrier, team)

        direct = a.packed_hh == 0
        # Where there is no room for all rows, a step of a block has that of a whole batch: a row keeps its place from
        # block to block, since threads that have their own rows do not wait for each other.
        whole = a.block_rows == rows
        work = gates * hidden * outputs
        first, end, member, members = partition(sizes, steps, rows, batch, work, me, team)
        first_panel, last_panel = share(panels, member, members)
        # Steps whose inputs one weight panel meets at a time.
        together = max(1, BLOCK // max(1, end - first))
        if members == 1:  # who has rows of its own waits for nobody
            stay = team
        for i in range(steps):
            if me >= stay:
                break
            if stay < team:
                team = stay
                first, end, member, members = partition(sizes, steps, rows, batch, work, me, team)
                first_panel, last_panel = share(panels, member, members)
                together = max(1, BLOCK // max(1, end - first))
            # The product with the inputs of a block of steps.  A thread makes what it reads itself: nobody waits.
            for begun in range(i, min(i + a.block_steps, steps) if i % a.block_steps == 0 else i, together):
                behind = min(i + a.block_steps, steps)
                for top in range(first, end, BLOCK):
                    for p in range(first_panel, last_panel):
                        for k in range(begun, min(begun + together, behind)):
                            t = steps - 1 - k if d else k
                            n, count = starts[t] + top, min(min(end, sizes[t]) - top, BLOCK)
                            place = n if whole else (k - i) * batch + top
                            out, source = at(z, (p * a.block_rows + place) * width), at(x, n * inputs)
                            for r in range(count):
                                copy(at(out, r * width), at(bias, p * width), width, width)
                            out = at(out, input_slot * units)
                            if a.tokens:
                                for r in range(count):
                                    w, packed = (packed_ih, True) if a.packed_ih else (w_ih, False)
                                    token = tokens[n + r]
                                    gather(at(out, r * width), w, packed, token, p, gates, units, hidden, inputs)
                            elif direct:
                                dots(out, width, count, w_ih, source, inputs, p, gates, units, hidden, inputs, 0)
                            else:
                                w = at(packed_ih, p * inputs * wide)
                                product(vectors, count, out, width, source, inputs, 1, w, wide, inputs, True)
            t, active, coming, before, going = neighbours(sizes, starts, steps, i, d)
            start, last = starts[t], min(active, end)
            place = start if whole else i % a.block_steps * batch
            middle = max(first, min(coming, last))
            previous = at(y, before * y_row)
            for p in range(first_panel, last_panel):
                out = at(z, (p * a.block_rows + place) * width)
                o, h = at(out, first * width), at(previous, first * y_row)
                begun, new = at(out, middle * width), at(h0, middle * outputs)
                if direct:
                    dots(o, width, middle - first, w_hh, h, y_row, p, gates, units, hidden, outputs, shift)
                    dots(begun, width, last - middle, w_hh, new, outputs, p, gates, units, hidden, outputs, shift)
                else:
                    w = at(packed_hh, p * outputs * wide)
                    product(vectors, middle - first, o, width, h, y_row, 1, w, wide, outputs, True)
                    product(vectors, last - middle, begun, width, new, outputs, 1, w, wide, outputs, True)
                u, count = p * units, min(units, hidden - p * units)
                for r in range(first, last):
                    s, n = at(out, r * width), start + r
                    h_here, c_here = scratch, at(scratch, units)
                    if not projected:
                        source = at(previous, r * y_row + u) if r < coming else at(h0, r * outputs + u)
                        copy(h_here, source, count, units)
                    if a.cn:
                        copy(c_here, at(cn if r < coming else c0, r * hidden + u), count, units)
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
                        copy(at(cells, n * hidden + u), c_here, count, count)
            stay = meet(barrier, team) if members > 1 else team
            if projected:
                first_short, last_short = share(output_panels, member, members)
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
                stay = meet(barrier, team) if members > 1 else team
            for r in range(first + member, last, members):
                source = at(y, (start + r) * y_row)
                if a.states:
                    copy(at(states, (start + r) * outputs), source, outputs, outputs)
                if r >= going:
                    copy(at(hn, r * outputs), source, outputs, outputs)
        if me:
            call_with(a.set_mode, own_mode)

    forward.__qualname__ = f"{step.__name__}_{np.dtype(real)}_{DIGEST}"
    return forward
