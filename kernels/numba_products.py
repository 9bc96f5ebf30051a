"""What follows the time loop backward: the products over the rows of all steps, of gates and what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .numba_cells import Cell
from .numba_pointers import at, pointer
from .numba_scan import BLOCK, DEPTH, Names, panels_of, widths
from .numba_tiles import ROWS_OF_4, add_columns, pack_row, product, share


def products_of(cell: Cell, real: type, named: Names) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions that do a share of them: of what has a row for each of these, the gradient of x, then of the sums
    over them, the gradients of the parameters."""
    gates, slots, input_slot, shift = cell.gates, cell.slots, cell.input_slot, cell.shift
    size = np.dtype(real).itemsize
    units, columns = widths(cell, size)
    width, wide = slots * units, gates * units

    @named
    def multiply_rows(a, part, threads):
        rows, inputs, hidden = a.rows, a.inputs, a.hidden
        panels, input_panels = panels_of(hidden, units), panels_of(inputs, columns)
        dx_row = input_panels * columns
        dz, packed_ih = pointer(a.work + a.d_gates, real), pointer(a.work + a.packed_ih, real)
        first, last = share(rows, part, threads)
        for n in range(first, last if a.dx else first, BLOCK):
            count = min(BLOCK, last - n)
            for c in range(input_panels):
                for p in range(panels):
                    d = at(dz, (p * rows + n) * width + input_slot * units)
                    w = at(packed_ih, (c * panels + p) * wide * columns)
                    o = at(pointer(a.dx, real), n * dx_row + c * columns)
                    product(4, count, o, dx_row, d, width, 1, w, columns, wide, p > 0)
        for n in range(first, last if a.projected and a.dw_ih else first):
            source = at(pointer(a.work + a.full, real), n * hidden)
            pack_row(pointer(a.work + a.full_panels, real), n, rows, source, hidden, columns)

    @named
    def multiply_sums(a, part, threads, me):
        rows, panels = a.rows, panels_of(a.hidden, units)
        input_panels, output_panels = panels_of(a.inputs, columns), panels_of(a.outputs, columns)
        full_panels = panels_of(a.hidden, columns)
        dx_row, dh_row, full_row = input_panels * columns, output_panels * columns, full_panels * columns
        dz, x_panels = pointer(a.work + a.d_gates, real), pointer(a.work + a.x_panels, real)
        h_panels, y_panels = pointer(a.work + a.h_panels, real), pointer(a.work + a.y_panels, real)
        full, tokens = pointer(a.work + a.full_panels, real), pointer(a.x, np.int64)
        dw_ih, dw_hh, dw_hr = pointer(a.dw_ih, real), pointer(a.dw_hh, real), pointer(a.dw_hr, real)
        db_ih, db_hh, db_hr = pointer(a.db_ih, real), pointer(a.db_hh, real), pointer(a.db_hr, real)
        scratch = pointer(a.work + a.scratch + me * 8 * columns * size, real)
        if not a.dw_ih:
            return
        if a.projected:
            if a.db_hr:
                first, last = share(output_panels, part, threads)
                for p in range(first, last):
                    d = at(y_panels, p * rows * columns)
                    add_columns(at(db_hr, p * columns), scratch, d, rows, columns, columns)
            first, last = share(output_panels * columns // ROWS_OF_4, part, threads)
            for n in range(0, rows, DEPTH):
                depth = min(DEPTH, rows - n)
                for item in range(first, last):
                    k = item * ROWS_OF_4
                    source = at(y_panels, (k // columns * rows + n) * columns + k % columns)
                    for c in range(full_panels):
                        o, w = at(dw_hr, k * full_row + c * columns), at(full, (c * rows + n) * columns)
                        product(4, ROWS_OF_4, o, full_row, source, 1, columns, w, columns, depth, n > 0)
        first, last = share(panels * gates, part, threads)
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
        for item in range(first, last if a.db_ih else first):
            p, g = item // gates, item % gates
            d = at(dz, p * rows * width + g * units)
            o = at(db_hh, ((g + shift) % gates * panels + p) * units)
            add_columns(o, scratch, d, rows, width, units)
            o = at(db_ih, (g * panels + p) * units)
            add_columns(o, scratch, at(d, input_slot * units), rows, width, units)
        if a.tokens:
            first, last = share(panels, part, threads)
            for n in range(rows):
                for p in range(first, last):
                    o = at(dw_ih, (tokens[n] * panels + p) * wide)
                    d = at(dz, (p * rows + n) * width + input_slot * units)
                    for j in range(wide):
                        o[j] += d[j]

    return multiply_rows, multiply_sums
