"""What the scan is built of: tiles of a matrix product, and matrices cut into panels.

A matrix in panels of c columns is (panels, rows, c), the last panel filled up with zeros: the columns that one tile
takes lie side by side, row by row, whatever the width of the whole.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, register_jitable

from .numba_functions import OPTIONS, device, inlined, like
from .numba_pointers import at

_features = get_host_cpu_features().flatten() if config.CPU_FEATURES is None else config.CPU_FEATURES
VECTOR_BYTES = 64 if "+avx512f" in _features else 32 if "+avx2" in _features else 16
# Rows of a tile of four and of three vectors.  Its sums, a row of the weights and a broadcast value must fit into the
# vector registers: 32 with AVX-512 and on ARM, 16 otherwise.  6 rows of four were slower than 4: 108 GF/s, not 115.
_many = "+avx512f" in _features or "+neon" in _features
ROWS_OF_4 = 4 if _many else 2
ROWS_OF_3 = 8 if _many else 4


class _Vectors:
    """Loads and stores of whole vectors, for the two functions below that LLVM would not vectorise by itself."""

    def __init__(self, context, builder, real) -> None:
        self.builder = builder
        scalar = context.get_data_type(real)
        self.alignment = context.get_abi_sizeof(scalar)
        self.lanes = VECTOR_BYTES // self.alignment
        self.type = ir.VectorType(scalar, self.lanes)

    def address(self, start, *products):
        """``start`` and the sum of the products of factors, each a value or a number."""
        builder, total = self.builder, ir.Constant(ir.IntType(64), 0)
        for a, b in products:
            total = builder.add(total, builder.mul(a, ir.Constant(ir.IntType(64), b)))
        return builder.gep(start, [total])

    def load(self, start, kind=None):
        pointer = self.builder.bitcast(start, (kind or self.type).as_pointer())
        return self.builder.load(pointer, align=self.alignment)

    def store(self, value, start) -> None:
        self.builder.store(value, self.builder.bitcast(start, value.type.as_pointer()), align=self.alignment)

    def prefetch(self, start) -> None:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        to_read, into_all_caches, data = (ir.Constant(word, number) for number in (0, 3, 1))
        self.builder.call(function, [self.builder.bitcast(start, byte), to_read, into_all_caches, data])

    def shuffle(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), lanes))

    def cut(self, a, start, count):
        """``count`` lanes, from the one at ``start``."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(start, start + count)))
        return self.builder.shuffle_vector(a, a, mask)

    def broadcast(self, value):
        unset = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(unset, value, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, unset, [0] * self.lanes)


@intrinsic(prefer_literal=True)
def _tile(context, rows, vectors, out, out_row, a, a_row, a_k, b, b_k, depth, accumulate):
    """:func:`product` for a tile of literal size, its sums in registers: 97% of the FMA peak with b in the cache."""
    size = types.intp
    signature = types.void(rows, vectors, out, size, a, size, size, b, size, size, types.boolean)

    def code(context, builder, signature, arguments):
        out, out_row, a, a_row, a_k, b, b_k, depth, accumulate = arguments[2:]
        vector = _Vectors(context, builder, signature.args[2].dtype)
        one = ir.Constant(ir.IntType(64), 1)
        tile = [(r, v) for r in range(rows.literal_value) for v in range(vectors.literal_value)]
        places = {(r, v): vector.address(out, (out_row, r), (one, v * vector.lanes)) for r, v in tile}
        sums = {place: cgutils.alloca_once(builder, vector.type) for place in tile}  # LLVM makes registers of them
        for total in sums.values():
            builder.store(ir.Constant(vector.type, None), total)
        with cgutils.for_range(builder, depth) as loop:
            a_k_start = builder.gep(a, [builder.mul(loop.index, a_k)])
            b_k_start = builder.gep(b, [builder.mul(loop.index, b_k)])
            starts = [vector.address(b_k_start, (one, v * vector.lanes)) for v in range(vectors.literal_value)]
            weights = [vector.load(start) for start in starts]
            for r in range(rows.literal_value):
                value = vector.broadcast(builder.load(vector.address(a_k_start, (a_row, r))))
                for v, weight in enumerate(weights):
                    product = builder.fmul(value, weight, flags=("contract",))
                    total = builder.fadd(product, builder.load(sums[r, v]), flags=("contract",))
                    builder.store(total, sums[r, v])
        # What stands in out is added last: in a sum begun with it every addition would round at its size.
        with builder.if_then(accumulate):
            for place, total in sums.items():
                builder.store(builder.fadd(vector.load(places[place]), builder.load(total)), total)
        for place, total in sums.items():
            vector.store(builder.load(total), places[place])
        return context.get_dummy_value()

    return signature, code


@intrinsic
def _transpose(context, out, out_row, a, a_row):
    """A square block of as many rows as a vector has lanes, transposed in registers."""

    def code(context, builder, signature, arguments):
        out, out_row, a, a_row = arguments
        vector = _Vectors(context, builder, signature.args[0].dtype)
        n = vector.lanes
        lines = [vector.load(vector.address(a, (a_row, r))) for r in range(n)]
        half = n // 2
        while half:  # swaps the blocks beside the diagonal, of half the size each time
            for i in (i for i in range(n) if not i & half):
                upper, lower = lines[i], lines[i + half]
                lines[i] = vector.shuffle(upper, lower, [n + j - half if j & half else j for j in range(n)])
                lines[i + half] = vector.shuffle(upper, lower, [n + j if j & half else j + half for j in range(n)])
            half //= 2
        for r, line in enumerate(lines):
            vector.store(line, vector.address(out, (out_row, r)))
        return context.get_dummy_value()

    return types.void(out, types.intp, a, types.intp), code


@device
def product(vectors, rows, out, out_row, a, a_row, a_k, b, b_k, depth, accumulate):
    """out[r, :] (+)= sum over k of a[r * a_row + k * a_k] * b[k * b_k, :], for 3 or 4 vectors of columns."""
    r = 0
    while r < rows:
        o, x = at(out, r * out_row), at(a, r * a_row)
        if vectors == 4:
            if rows - r >= ROWS_OF_4:
                _tile(ROWS_OF_4, 4, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += ROWS_OF_4
            elif rows - r >= 2:
                _tile(2, 4, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += 2
            else:
                _tile(1, 4, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
                r += 1
        elif rows - r >= ROWS_OF_3:
            _tile(ROWS_OF_3, 3, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
            r += ROWS_OF_3
        elif rows - r >= 2:
            _tile(2, 3, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
            r += 2
        else:
            _tile(1, 3, o, out_row, x, a_row, a_k, b, b_k, depth, accumulate)
            r += 1


@device
def share(items, me, team):
    """The range of the items that thread ``me`` of a team takes."""
    return items * me // team, items * (me + 1) // team


@inlined
def copy(target, source, count, width):
    """``count`` values, then zeros up to ``width``.  A full width is a case of its own, whose loop LLVM unrolls."""
    if count >= width:
        for j in range(width):
            target[j] = source[j]
    else:
        for j in range(count):
            target[j] = source[j]
        for j in range(max(count, 0), width):
            target[j] = like(0.0, target[j])


@device
def pack_row(packed, row, rows, source, columns, width):
    """One row of a (rows, columns) matrix to its places in panels of ``width`` columns."""
    for c in range((columns + width - 1) // width):
        copy(at(packed, (c * rows + row) * width), at(source, c * width), columns - c * width, width)


@device
def gate_row(p, g, j, gates, units, hidden, shift):
    """Where gate ``g`` of unit ``j`` of panel ``p`` stands in a weight matrix, or -1 for a unit that only fills."""
    unit = p * units + j
    return (g + shift) % gates * hidden + unit if unit < hidden else -1


@device
def pack_gates(packed, w, first, last, gates, units, hidden, depth, shift, lanes):
    """Panels ``first`` to ``last`` of a (gates * hidden, depth) matrix, transposed: (panels, depth, gates, units)."""
    width = gates * units
    for p in range(first, last):
        for g in range(gates):
            for j0 in range(0, units, lanes):
                target = at(packed, p * depth * width + g * units + j0)
                done = 0
                if p * units + j0 + lanes <= hidden:
                    source = at(w, gate_row(p, g, j0, gates, units, hidden, shift) * depth)
                    while done + lanes <= depth:
                        _transpose(at(target, done * width), width, at(source, done), depth)
                        done += lanes
                for j in range(lanes):
                    row = gate_row(p, g, j0 + j, gates, units, hidden, shift)
                    for k in range(done, depth):
                        target[k * width + j] = w[row * depth + k] if row >= 0 else like(0.0, w[0])


@device
def pack_gate_rows(packed, w, me, team, gates, units, hidden, columns, width, shift):
    """The same matrix with its rows in the order of the gate panels, cut into panels of ``width`` columns."""
    rows = (hidden + units - 1) // units * gates * units
    first, last = share(rows, me, team)
    for k in range(first, last):
        row = gate_row(k // (gates * units), k // units % gates, k % units, gates, units, hidden, shift)
        if row >= 0:
            pack_row(packed, k, rows, at(w, row * columns), columns, width)
        else:
            for c in range((columns + width - 1) // width):
                copy(at(packed, (c * rows + k) * width), w, 0, width)


@intrinsic
def lanes_of(context: Any, start: Any) -> Any:
    """How many of the numbers that ``start`` points to fill a vector."""

    def code(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), _Vectors(context, builder, signature.args[0].dtype).lanes)

    return types.intp(start), code


@intrinsic(prefer_literal=True)
def _dots_tile(context, several, out, out_row, a, a_row, w, depth):
    """:func:`dots` for up to four units of one gate and one row or, with a literal 1, as many as make a sum a lane."""
    signature = types.void(several, out, types.intp, a, types.intp, w, types.intp)

    def code(context, builder, signature, arguments):
        out, out_row, a, a_row, w, depth = arguments[1:]
        vector = _Vectors(context, builder, signature.args[1].dtype)
        lanes = ir.Constant(ir.IntType(64), vector.lanes)
        units = min(4, vector.lanes)
        rows = vector.lanes // units if several.literal_value else 1
        tile = [(r, u) for r in range(rows) for u in range(units)]
        sums = {place: cgutils.alloca_once(builder, vector.type) for place in tile}
        for total in sums.values():
            builder.store(ir.Constant(vector.type, None), total)
        with cgutils.for_range(builder, builder.sdiv(depth, lanes)) as loop:
            k = builder.mul(loop.index, lanes)
            weights = [vector.load(vector.address(w, (depth, u), (k, 1))) for u in range(units)]
            for u in range(units if rows > 1 else 0):  # of the units behind these; for one row it gains nothing
                vector.prefetch(vector.address(w, (depth, u + units), (k, 1)))
            for r in range(rows):
                value = vector.load(vector.address(a, (a_row, r), (k, 1)))
                for u, weight in enumerate(weights):
                    product = builder.fmul(value, weight, flags=("contract",))
                    total = builder.fadd(product, builder.load(sums[r, u]), flags=("contract",))
                    builder.store(total, sums[r, u])
        # The two halves of each stretch of lanes are added up, of two vectors at a time, until each lane holds one sum.
        found, stretch = [builder.load(total) for total in sums.values()], vector.lanes
        while stretch > 1:
            first = [start + j for start in range(0, 2 * vector.lanes, stretch) for j in range(stretch // 2)]
            second = [lane + stretch // 2 for lane in first]
            pairs = zip(found[::2], found[1::2], strict=True) if len(found) > 1 else [(found[0], found[0])]
            found = [builder.fadd(vector.shuffle(x, y, first), vector.shuffle(x, y, second)) for x, y in pairs]
            stretch //= 2
        for r in range(rows):
            row = vector.cut(found[0], r * units, units)
            place = vector.address(out, (out_row, r))
            vector.store(builder.fadd(vector.load(place, row.type), row), place)
        return context.get_dummy_value()

    return signature, code


@register_jitable(**{**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
def _dot(a, b, depth):
    """The sum in any order, so that LLVM may vectorise it."""
    total = like(0.0, a[0])
    for k in range(depth):
        total += a[k] * b[k]
    return total


@device
def dots(out, out_row, rows, w, a, a_row, p, gates, units, hidden, depth, shift):
    """out[r, g, j] += (row of W for gate g, unit j of panel p) . a[r]: reads W where it lies."""
    lanes = lanes_of(w)
    tile_units, there = min(4, lanes), min(units, hidden - p * units)
    for g in range(gates):
        for j in range(0, there, tile_units):
            o, w_j = at(out, g * units + j), at(w, gate_row(p, g, j, gates, units, hidden, shift) * depth)
            r, done = 0, 0
            if there - j >= tile_units:
                done = depth // lanes * lanes
                while r < rows:
                    if rows - r >= lanes // tile_units:
                        _dots_tile(1, at(o, r * out_row), out_row, at(a, r * a_row), a_row, w_j, depth)
                        r += lanes // tile_units
                    else:
                        _dots_tile(0, at(o, r * out_row), out_row, at(a, r * a_row), a_row, w_j, depth)
                        r += 1
            if done < depth:
                for r in range(rows):
                    for u in range(min(tile_units, there - j)):
                        o[r * out_row + u] += _dot(at(w_j, u * depth + done), at(a, r * a_row + done), depth - done)


@device
def gather(out, w, packed, token, p, gates, units, hidden, inputs):
    """out[g, j] += W[row for gate g, unit j of panel p, token]: from W where it lies, or where there are its panels."""
    if packed:
        source = at(w, (p * inputs + token) * gates * units)
        for k in range(gates * units):
            out[k] += source[k]
    else:
        for g in range(gates):
            for j in range(min(units, hidden - p * units)):
                out[g * units + j] += w[gate_row(p, g, j, gates, units, hidden, 0) * inputs + token]


@device
def add_columns(out, scratch, source, rows, row, width):
    """out[j] = the sum of column j, by blocks of rows: one long sum in float32 would lose digits."""
    copy(out, source, 0, width)
    for block in range(0, rows, 32):
        copy(scratch, at(source, block * row), width, width)
        for n in range(block + 1, min(block + 32, rows)):
            for j in range(width):
                scratch[j] += source[n * row + j]
        for j in range(width):
            out[j] += scratch[j]
