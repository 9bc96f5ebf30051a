"""The time loop around a cell: one driver forward, one backward, each a factory over the cell and the element type.

A kernel is a C callback over one table of addresses and sizes (:data:`FORWARD`, :data:`BACKWARD`), run by every thread
of a team (``team_size``, ``thread_number`` and ``barrier`` are addresses of the team's functions, 0 for one thread
alone).  All matrices are dense and row-major; rows of all steps stand one below the other, step t's from ``starts[t]``.

Inside, gates live in *panels*: U units side by side with all their slots, (panels, N, slots, U), so that a tile of the
product holds every gate of its units and the pointwise code finds them at constant distances, which lets LLVM
vectorise it without tests for overlap.  Weights are copied into panels too, (panels, K, columns of a panel).
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .numba_cells import OPTIONS, Cell, device, like

_features = get_host_cpu_features()
# Rows of a tile, so that its accumulators, one row of the weights and one broadcast value fill the vector registers:
# 32 with AVX-512 (4 rows of 4 vectors measured faster than 6 of 4) and on ARM, 16 with AVX2 and below.
_MANY = bool(_features.get("avx512f") or _features.get("neon"))
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx2") else 16
ROWS = 4 if _MANY else 2
ROWS_OF_3 = 8 if _MANY else 4
DEPTH = 128  # rows that a weight gradient sums in one go: a longer sum in float32 would lose digits


def _table(names: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in names.split()])


_SIZES = "steps batch rows inputs hidden outputs reverse projected team_size thread_number barrier"
_SHARED = "sizes starts x h0 w_ih w_hh w_hr"
FORWARD = _table(
    # y and states have a row of outputs at a distance of y_row and outputs; states, cells are 0 where not wanted.
    # cn holds c0 on entry.  gates (panels, N, slots, U); packed_* are room for the weights in panels; full (B, H).
    f"{_SIZES} {_SHARED} b_ih b_hh cn hn y y_row states cells gates direct "
    "packed_ih packed_hh packed_hr bias full scratch"
)
BACKWARD = _table(
    # dh (B, P) and dc (B, H) hold the gradients of hn and cn on entry and those of h0 and c0 on exit; rows of dh are
    # padded to whole column panels of C, as are those of dx, dw_* and dfull.  d_gates as gates.
    f"{_SIZES} {_SHARED} c0 gates cells states dy dy_row dh dc d_gates dx dw_ih dw_hh dw_hr db_ih db_hh "
    "packed_ih packed_hh packed_hr x_panels h_panels y_panels full_panels full d_full scratch"
)


@intrinsic
def pointer(context, address, real):
    """The address (an integer) as a pointer to ``real``."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(real.instance_type)(address, real), code


@intrinsic
def at(context, start, distance):
    """The pointer ``distance`` elements behind ``start``."""

    def code(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, types.intp), code


@intrinsic
def call(context, address):
    """Calls the C function int(void) at the address."""

    def code(context, builder, signature, arguments):
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])

    return types.int32(address), code


@intrinsic(prefer_literal=True)
def tile(context, rows, vectors, out, out_row, a, a_row, a_k, b, b_k, depth, accumulate):
    """out[r, :] (+)= sum over k of a[r * a_row + k * a_k] * b[k * b_k, :], for a few vectors of columns.

    Written as vector code, because LLVM does not keep a loop's tile of sums in registers by itself.  With this it
    reaches 97% of the machine's FMA rate; the sums live in `alloca`s only until LLVM's first pass.
    """
    count_rows, count_vectors = rows.literal_value, vectors.literal_value
    lanes = VECTOR_BYTES * 8 // out.dtype.bitwidth

    def code(context, builder, signature, arguments):
        out, out_row, a, a_row, a_k, b, b_k, depth, accumulate = arguments[2:]
        scalar = context.get_data_type(signature.args[2].dtype)
        vector = ir.VectorType(scalar, lanes)
        alignment = context.get_abi_sizeof(scalar)

        def number(n):
            return ir.Constant(ir.IntType(64), n)

        def address(p, offset):
            return builder.bitcast(builder.gep(p, [offset]), vector.as_pointer())

        places = [
            [address(out, builder.add(builder.mul(out_row, number(r)), number(v * lanes))) for v in range(count_vectors)]
            for r in range(count_rows)
        ]
        zero = ir.Constant(vector, None)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in row] for row in places]
        for row_sums in sums:
            for total in row_sums:
                builder.store(zero, total)  # again at each call: an alloca's own value is set once a function
        with cgutils.for_range(builder, depth) as loop:
            weights = [
                builder.load(address(b, builder.add(builder.mul(loop.index, b_k), number(v * lanes))), align=alignment)
                for v in range(count_vectors)
            ]
            for r, row_sums in enumerate(sums):
                offset = builder.add(builder.mul(loop.index, a_k), builder.mul(a_row, number(r)))
                value = builder.load(builder.gep(a, [offset]))
                first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
                value = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)
                for weight, total in zip(weights, row_sums):
                    product = builder.fmul(value, weight, flags=("contract",))
                    builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)
        # What stands in out is added last: begun with it, every addition would round at its size.
        with builder.if_then(accumulate):
            for row, row_sums in zip(places, sums):
                for place, total in zip(row, row_sums):
                    value = builder.load(place, align=alignment)
                    builder.store(builder.fadd(value, builder.load(total)), total)
        for row, row_sums in zip(places, sums):
            for place, total in zip(row, row_sums):
                builder.store(builder.load(total), place, align=alignment)
        return context.get_dummy_value()

    size = types.intp
    signature = types.void(rows, vectors, out, size, a, size, size, b, size, size, types.boolean)
    return signature, code


@device
def product(vectors, rows, out, out_row, a, a_row, a_k, b, b_k, depth, accumulate):
    """:func:`tile` for any number of rows."""
    r = 0
    while r < rows:
        o, x = at(out, r * out_row), at(a, r * a_row)
        if vectors == 4:
            if rows - r >= ROWS:
                tile(ROWS, 4, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += ROWS
            elif rows - r >= 2:
                tile(2, 4, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += 2
            else:
                tile(1, 4, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += 1
        else:
            if rows - r >= ROWS_OF_3:
                tile(ROWS_OF_3, 3, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += ROWS_OF_3
            elif rows - r >= 2:
                tile(2, 3, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += 2
            else:
                tile(1, 3, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += 1


@device
def share(items, me, team):
    """The range of ``items`` that thread ``me`` takes."""
    return items * me // team, items * (me + 1) // team


@device
def copy(target, source, count, width):
    """``count`` values, and zeros up to ``width``; the full width is a case of its own, whose loop LLVM unrolls."""
    if count >= width:
        for j in range(width):
            target[j] = source[j]
    else:
        for j in range(count):
            target[j] = source[j]
        for j in range(max(count, 0), width):
            target[j] = like(0.0, source[0])


@device
def pack_gates(packed, w, first, last, gates, units, hidden, depth, shift):
    """Panels ``first`` to ``last`` of a (gates * hidden, depth) matrix, transposed: (panels, depth, gates, units)."""
    columns = gates * units
    for p in range(first, last):
        for k0 in range(0, depth, 16):  # a block of either matrix that stays in the L1 cache
            k1 = min(k0 + 16, depth)
            for g in range(gates):
                for j in range(units):
                    target = at(packed, p * depth * columns + g * units + j)
                    if p * units + j < hidden:
                        source = at(w, ((g + shift) % gates * hidden + p * units + j) * depth)
                        for k in range(k0, k1):
                            target[k * columns] = source[k]
                    else:
                        for k in range(k0, k1):
                            target[k * columns] = like(0.0, w[0])


@device
def pack_gate_rows(packed, w, me, team, gates, units, hidden, columns, width, shift):
    """The same matrix with its rows in the order of the panels, cut into panels of ``width`` columns."""
    panels = (hidden + units - 1) // units
    depth = panels * gates * units
    first, last = share(depth, me, team)
    for k in range(first, last):
        p, g, j = k // (gates * units), k // units % gates, k % units
        source = at(w, ((g + shift) % gates * hidden + p * units + j) * columns)
        pack_row(at(packed, k * width), depth, source, columns if p * units + j < hidden else 0, columns, width)


@device
def pack_row(packed, rows, source, count, columns, width):
    """One row of a (rows, columns) matrix to its places in (panels, rows, width)."""
    for c in range((columns + width - 1) // width):
        copy(at(packed, c * rows * width), at(source, c * width), count - c * width, width)


@register_jitable(**{**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
def dot(a, b, depth):
    """Reordering the sum is what lets LLVM vectorise it."""
    total = like(0.0, a[0])
    for k in range(depth):
        total += a[k] * b[k]
    return total


@device
def dots(out, w, a, panel, gates, units, hidden, depth, shift):
    """out[g, j] += W[unit j of the panel, gate g] . a, with W as it is: for a few rows packing would cost more."""
    for g in range(gates):
        for j in range(min(units, hidden - panel * units)):
            row = ((g + shift) % gates * hidden + panel * units + j) * depth
            out[g * units + j] += dot(at(w, row), a, depth)


@device
def add_columns(out, scratch, source, rows, row, width):
    """out[j] = the sum of column j, in blocks of rows: one long sum in float32 would lose digits."""
    for j in range(width):
        out[j] = like(0.0, out[j])
    for block in range(0, rows, 32):
        copy(scratch, at(source, block * row), width, width)
        for n in range(block + 1, min(block + 32, rows)):
            for j in range(width):
                scratch[j] += source[n * row + j]
        for j in range(width):
            out[j] += scratch[j]


@device
def first_row(sizes, steps, rows, batch, part, parts):
    """Where the rows of the batch are cut so that each part has as many steps to do."""
    if part <= 0 or part >= parts:
        return 0 if part <= 0 else batch
    r, before = 0, 0
    while r < batch and before * parts < rows * part:
        r = min(r + ROWS, batch)
        before = 0
        for t in range(steps):
            before += min(sizes[t], r)
    return r


@device
def neighbours(sizes, starts, steps, i, reverse):
    """Step i of the loop: its t, its rows, how many of them come from a step before (the others begin), that step's
    start, and how many go on to a step behind (the others end)."""
    t = steps - 1 - i if reverse else i
    rows = sizes[t]
    before, after = (t + 1, t - 1) if reverse else (t - 1, t + 1)
    coming = min(rows, sizes[before]) if 0 <= before < steps else 0
    going = min(rows, sizes[after]) if 0 <= after < steps else 0
    return t, rows, coming, starts[before] if coming else 0, going


def shape(cell: Cell, real: type) -> tuple[int, int, int, int]:
    """Lanes of a vector, vectors of a gate panel, units of a panel, columns of a plain panel."""
    lanes = VECTOR_BYTES // np.dtype(real).itemsize
    vectors = 3 if cell.gates == 3 else 4
    return lanes, vectors, lanes * vectors // cell.gates, 4 * lanes


def forward_kernel(cell: Cell, real: type):
    """The callback for one direction of one layer, forward, over :data:`FORWARD`."""
    step, gates, slots, input_slot, shift = cell.forward, cell.gates, cell.slots, cell.input_slot, cell.shift
    _, vectors, units, columns = shape(cell, real)
    width = slots * units
    gate_columns = gates * units

    def forward(table):
        a = carray(table, 1)[0]
        steps, batch, rows, hidden, outputs = a.steps, a.batch, a.rows, a.hidden, a.outputs
        inputs, y_row, reverse, projected, direct = a.inputs, a.y_row, a.reverse, a.projected, a.direct
        team, me = (call(a.team_size), call(a.thread_number)) if a.barrier else (np.int32(1), np.int32(0))
        sizes, starts = pointer(a.sizes, np.int64), pointer(a.starts, np.int64)
        x, h0, y, hn, cn = pointer(a.x, real), pointer(a.h0, real), pointer(a.y, real), pointer(a.hn, real), pointer(a.cn, real)
        w_ih, w_hh, w_hr = pointer(a.w_ih, real), pointer(a.w_hh, real), pointer(a.w_hr, real)
        b_ih, b_hh, bias = pointer(a.b_ih, real), pointer(a.b_hh, real), pointer(a.bias, real)
        packed_ih, packed_hh = pointer(a.packed_ih, real), pointer(a.packed_hh, real)
        packed_hr, full = pointer(a.packed_hr, real), pointer(a.full, real)
        z, saved_h, saved_c = pointer(a.gates, real), pointer(a.states, real), pointer(a.cells, real)
        panels = (hidden + units - 1) // units
        output_panels = (outputs + columns - 1) // columns
        scratch = at(pointer(a.scratch, real), me * 4 * columns)

        # 1. Weights into panels; the biases to the slots they belong to.
        p0, p1 = share(panels, me, team)
        for p in range(p0, p1):
            for k in range(width):
                bias[p * width + k] = like(0.0, x[0])
            if a.b_ih:
                for g in range(gates):
                    from_hh, from_ih = (g + shift) % gates * hidden, g * hidden
                    for j in range(p * units, min(p * units + units, hidden)):
                        bias[p * width + g * units + j - p * units] += b_hh[from_hh + j]
                        bias[p * width + (g + input_slot) * units + j - p * units] += b_ih[from_ih + j]
        if not direct:
            pack_gates(packed_ih, w_ih, p0, p1, gates, units, hidden, inputs, 0)
            pack_gates(packed_hh, w_hh, p0, p1, gates, units, hidden, outputs, shift)
        if projected:
            c0, c1 = share(output_panels, me, team)
            pack_gates(packed_hr, w_hr, c0, c1, 1, columns, outputs, hidden, 0)
        if a.barrier:
            call(a.barrier)

        # 2. The product of all inputs.
        n0, n1 = share(rows, me, team)
        for block in range(n0, n1, 64):
            count = min(64, n1 - block)
            for p in range(panels):
                out = at(z, (p * rows + block) * width)
                for r in range(count):
                    copy(at(out, r * width), at(bias, p * width), width, width)
                source, target = at(x, block * inputs), at(out, input_slot * units)
                if direct:
                    for r in range(count):
                        dots(at(target, r * width), w_ih, at(source, r * inputs), p, gates, units, hidden, inputs, 0)
                else:
                    product(vectors, count, target, width, source, inputs, 1, at(packed_ih, p * inputs * gate_columns), gate_columns, inputs, True)
        if a.barrier:
            call(a.barrier)

        # 3. The steps.
        r0, r1 = first_row(sizes, steps, rows, batch, me, team), first_row(sizes, steps, rows, batch, me + 1, team)
        for i in range(steps):
            t, active, coming, before, going = neighbours(sizes, starts, steps, i, reverse)
            start, last = starts[t], min(active, r1)
            middle = max(r0, min(coming, last))
            previous = at(y, before * y_row)
            for p in range(panels):
                out = at(z, (p * rows + start) * width)
                if direct:
                    for r in range(r0, last):
                        source = at(previous, r * y_row) if r < coming else at(h0, r * outputs)
                        dots(at(out, r * width), w_hh, source, p, gates, units, hidden, outputs, shift)
                else:
                    weights = at(packed_hh, p * outputs * gate_columns)
                    product(vectors, middle - r0, at(out, r0 * width), width, at(previous, r0 * y_row), y_row, 1, weights, gate_columns, outputs, True)
                    product(vectors, last - middle, at(out, middle * width), width, at(h0, middle * outputs), outputs, 1, weights, gate_columns, outputs, True)
                count = min(units, hidden - p * units)
                for r in range(r0, last):
                    u = p * units
                    s = at(out, r * width)
                    if not projected:
                        copy(scratch, at(previous, r * y_row + u) if r < coming else at(h0, r * outputs + u), count, units)
                    if a.cn:
                        copy(at(scratch, units), at(cn, r * hidden + u), count, units)
                    for j in range(units):
                        if slots == 4:
                            s0, s1, s2, s3, h, c = step(s[j], s[units + j], s[2 * units + j], s[3 * units + j], scratch[j], scratch[units + j])
                            s[j], s[units + j], s[2 * units + j], s[3 * units + j] = s0, s1, s2, s3
                        else:
                            _, _, _, _, h, c = step(s[j], s[j], s[j], s[j], scratch[j], scratch[units + j])
                        scratch[j], scratch[units + j] = h, c
                    n = start + r
                    if projected:
                        copy(at(full, r * hidden + u), scratch, count, count)
                    else:
                        copy(at(y, n * y_row + u), scratch, count, count)
                    if a.cn:
                        copy(at(cn, r * hidden + u), at(scratch, units), count, count)
                    if a.cells:
                        copy(at(saved_c, n * hidden + u), at(scratch, units), count, count)
            if projected:
                for p in range(output_panels):
                    count = min(columns, outputs - p * columns)
                    for r in range(r0, last):
                        product(4, 1, scratch, columns, at(full, r * hidden), hidden, 1, at(packed_hr, p * hidden * columns), columns, hidden, False)
                        copy(at(y, (start + r) * y_row + p * columns), scratch, count, count)
            for r in range(r0, last):
                if a.states:
                    copy(at(saved_h, (start + r) * outputs), at(y, (start + r) * y_row), outputs, outputs)
                if r >= going:
                    copy(at(hn, r * outputs), at(y, (start + r) * y_row), outputs, outputs)

    forward.__qualname__ = forward.__name__ = f"forward_{cell.forward.__name__}_{np.dtype(real)}"
    return forward


def backward_kernel(cell: Cell, real: type):
    """The callback for one direction of one layer, backward, over :data:`BACKWARD`."""
    step, gates, slots, input_slot, shift = cell.backward, cell.gates, cell.slots, cell.input_slot, cell.shift
    _, vectors, units, columns = shape(cell, real)
    width = slots * units
    gate_columns = gates * units

    def backward(table):
        a = carray(table, 1)[0]
        steps, batch, rows, hidden, outputs = a.steps, a.batch, a.rows, a.hidden, a.outputs
        inputs, dy_row, reverse, projected = a.inputs, a.dy_row, a.reverse, a.projected
        team, me = (call(a.team_size), call(a.thread_number)) if a.barrier else (np.int32(1), np.int32(0))
        sizes, starts = pointer(a.sizes, np.int64), pointer(a.starts, np.int64)
        x, h0, c0, dy = pointer(a.x, real), pointer(a.h0, real), pointer(a.c0, real), pointer(a.dy, real)
        w_ih, w_hh, w_hr = pointer(a.w_ih, real), pointer(a.w_hh, real), pointer(a.w_hr, real)
        z, saved_h, saved_c = pointer(a.gates, real), pointer(a.states, real), pointer(a.cells, real)
        dh, dc, dz, dx = pointer(a.dh, real), pointer(a.dc, real), pointer(a.d_gates, real), pointer(a.dx, real)
        packed_ih, packed_hh = pointer(a.packed_ih, real), pointer(a.packed_hh, real)
        packed_hr, full, d_full = pointer(a.packed_hr, real), pointer(a.full, real), pointer(a.d_full, real)
        x_panels, h_panels = pointer(a.x_panels, real), pointer(a.h_panels, real)
        y_panels, full_panels = pointer(a.y_panels, real), pointer(a.full_panels, real)
        panels = (hidden + units - 1) // units
        input_panels, output_panels = (inputs + columns - 1) // columns, (outputs + columns - 1) // columns
        hidden_panels = (hidden + columns - 1) // columns
        dh_row, full_row = output_panels * columns, hidden_panels * columns
        scratch = at(pointer(a.scratch, real), me * 8 * columns)

        # 1. Weights into panels.
        pack_gate_rows(packed_hh, w_hh, me, team, gates, units, hidden, outputs, columns, shift)
        if a.dx:
            pack_gate_rows(packed_ih, w_ih, me, team, gates, units, hidden, inputs, columns, 0)
        if projected:
            k0, k1 = share(outputs, me, team)
            for k in range(k0, k1):
                pack_row(at(packed_hr, k * columns), outputs, at(w_hr, k * hidden), hidden, hidden, columns)
        if a.barrier:
            call(a.barrier)

        # 2. The steps, last first.
        r0, r1 = first_row(sizes, steps, rows, batch, me, team), first_row(sizes, steps, rows, batch, me + 1, team)
        for i in range(steps - 1, -1, -1):
            t, active, coming, before, _ = neighbours(sizes, starts, steps, i, reverse)
            start, last = starts[t], min(active, r1)
            for r in range(r0, last):
                n, d = start + r, at(dh, r * dh_row)
                if a.dy:
                    for j in range(outputs):
                        d[j] += dy[n * dy_row + j]
                if a.dw_ih:
                    pack_row(at(x_panels, n * columns), rows, at(x, n * inputs), inputs, inputs, columns)
                    source = at(saved_h, (before + r) * outputs) if r < coming else at(h0, r * outputs)
                    pack_row(at(h_panels, n * columns), rows, source, outputs, outputs, columns)
                if projected:
                    pack_row(at(y_panels, n * columns), rows, d, outputs, outputs, columns)
                    for p in range(hidden_panels):
                        product(4, 1, at(d_full, r * full_row + p * columns), columns, d, outputs, 1, at(packed_hr, p * outputs * columns), columns, outputs, False)
                    for j in range(outputs):
                        d[j] = like(0.0, d[0])
            for p in range(panels):
                u, count = p * units, min(units, hidden - p * units)
                for r in range(r0, last):
                    n = start + r
                    s, d = at(z, (p * rows + n) * width), at(dz, (p * rows + n) * width)
                    dh_here = at(d_full, r * full_row + u) if projected else at(dh, r * dh_row + u)
                    if not projected:
                        copy(scratch, at(saved_h, (before + r) * outputs + u) if r < coming else at(h0, r * outputs + u), count, units)
                        copy(at(scratch, 2 * units), at(saved_h, n * outputs + u), count, units)
                    if a.cells:
                        copy(at(scratch, units), at(saved_c, (before + r) * hidden + u) if r < coming else at(c0, r * hidden + u), count, units)
                        copy(at(scratch, 3 * units), at(saved_c, n * hidden + u), count, units)
                        copy(at(scratch, 5 * units), at(dc, r * hidden + u), count, units)
                    copy(at(scratch, 4 * units), dh_here, count, units)
                    for j in range(units):
                        if slots == 4:
                            s0, s1, s2, s3 = s[j], s[units + j], s[2 * units + j], s[3 * units + j]
                        else:
                            s0 = s1 = s2 = s3 = scratch[j]
                        d0, d1, d2, d3, to_h, to_c, h = step(
                            s0, s1, s2, s3, scratch[j], scratch[units + j], scratch[2 * units + j],
                            scratch[3 * units + j], scratch[4 * units + j], scratch[5 * units + j])
                        if slots == 4:
                            d[j], d[units + j], d[2 * units + j], d[3 * units + j] = d0, d1, d2, d3
                        else:
                            d[j] = d0
                        scratch[2 * units + j], scratch[4 * units + j], scratch[5 * units + j] = h, to_h, to_c
                    if projected:
                        copy(at(full, n * hidden + u), at(scratch, 2 * units), count, count)
                    else:
                        copy(dh_here, at(scratch, 4 * units), count, count)
                    if a.cells:
                        copy(at(dc, r * hidden + u), at(scratch, 5 * units), count, count)
            for c in range(output_panels):
                for p in range(panels):
                    weights = at(packed_hh, (c * panels + p) * gate_columns * columns)
                    source = at(dz, (p * rows + start + r0) * width)
                    product(4, last - r0, at(dh, r0 * dh_row + c * columns), dh_row, source, width, 1, weights, columns, gate_columns, True)
            if projected:
                for r in range(r0, last):
                    n = start + r
                    pack_row(at(full_panels, n * columns), rows, at(full, n * hidden), hidden, hidden, columns)
        if a.barrier:
            call(a.barrier)

        # 3. The products over all rows.
        if a.dx:
            n0, n1 = share(rows, me, team)
            for block in range(n0, n1, 64):
                count = min(64, n1 - block)
                for c in range(input_panels):
                    for p in range(panels):
                        source = at(dz, (p * rows + block) * width + input_slot * units)
                        weights = at(packed_ih, (c * panels + p) * gate_columns * columns)
                        out = at(dx, (block * input_panels + c) * columns)
                        product(4, count, out, input_panels * columns, source, width, 1, weights, columns, gate_columns, p > 0)
        if a.dw_ih:
            dw_ih, dw_hh = pointer(a.dw_ih, real), pointer(a.dw_hh, real)
            first, last = share(panels * gates, me, team)
            for k0 in range(0, rows, DEPTH):
                depth = min(DEPTH, rows - k0)
                for item in range(first, last):
                    p, g = item // gates, item % gates
                    source = at(dz, (p * rows + k0) * width + g * units)
                    row = g * panels * units + p * units
                    for c in range(input_panels):
                        out = at(dw_ih, (row * input_panels + c) * columns)
                        product(4, units, out, input_panels * columns, at(source, input_slot * units), 1, width, at(x_panels, (c * rows + k0) * columns), columns, depth, k0 > 0)
                    row = (g + shift) % gates * panels * units + p * units
                    for c in range(output_panels):
                        out = at(dw_hh, (row * output_panels + c) * columns)
                        product(4, units, out, output_panels * columns, source, 1, width, at(h_panels, (c * rows + k0) * columns), columns, depth, k0 > 0)
            if a.db_ih:
                db_ih, db_hh = pointer(a.db_ih, real), pointer(a.db_hh, real)
                for item in range(first, last):
                    p, g = item // gates, item % gates
                    add_columns(at(db_ih, (g * panels + p) * units), scratch, at(dz, p * rows * width + (g + input_slot) * units), rows, width, units)
                    add_columns(at(db_hh, ((g + shift) % gates * panels + p) * units), scratch, at(dz, p * rows * width + g * units), rows, width, units)
            if projected:
                dw_hr = pointer(a.dw_hr, real)
                first, last = share(output_panels, me, team)
                for k0 in range(0, rows, DEPTH):
                    depth = min(DEPTH, rows - k0)
                    for p in range(first, last):
                        for c in range(hidden_panels):
                            out = at(dw_hr, (p * columns * hidden_panels + c) * columns)
                            product(4, columns, out, full_row, at(y_panels, (p * rows + k0) * columns), 1, columns, at(full_panels, (c * rows + k0) * columns), columns, depth, k0 > 0)

    backward.__qualname__ = backward.__name__ = f"backward_{cell.backward.__name__}_{np.dtype(real)}"
    return backward
