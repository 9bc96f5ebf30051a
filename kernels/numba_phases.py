"""The time loop over the phases of any cell: one driver for all cells, forward and backward.

A program comes as tables of 64-bit integers, sizes and addresses (:data:`TABLES`); what a phase computes unit by unit
is a function of its own, compiled, at an address.  Threads share rows, which are independent, so nobody waits.

A result is computed for a panel of COLUMNS units of some rows at a time, then the part's function on that panel while
its results are in the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from .numba_functions import like
from .numba_pointers import at, call, call_with, pointer
from .numba_tiles import VECTOR_BYTES, copy, product, share

FOLD = 16  # steps after which partial sums are folded: a long sum in float32 would lose digits
MODE_BYTES = 64  # room for a fenv_t, the floating-point mode of a thread, on a cache line of its own
STEP, NEIGHBOUR, STATE, ROW, SEQUENCE, UNIT, NUMBER, TOTAL = range(8)

# The columns of each table; strides and distances are in numbers of the arrays' type, addresses in bytes.
# arrays: data is where an array lies, or of a state what is read in even steps and, ``other``, in odd ones; of a total
#     the partial sums of a thread, ``other`` the folded ones.  row: from one row to the next; single: one number a row.
# parts: units of a head (of all units where there is one head), heads.
# results: bias, an address or 0; mean, an array or -1, ``column`` its first, ``heads`` of what it is the mean.
# terms: column, of the operand; depth, of a head; share, how many heads of the part have a head of the term between
#     them; packed (heads of the part, panels, depth, COLUMNS).
# operands: result, or array with its first column.
TABLES: dict[str, tuple[str, ...]] = {
    "arrays": ("kind", "data", "other", "row", "columns", "initial", "initial_row", "final", "offset", "single"),
    "parts": ("units", "heads", "result", "results", "operand", "operands", "function"),
    "results": ("term", "terms", "bias", "mean", "column", "mean_heads"),
    "terms": ("array", "column", "depth", "share", "packed"),
    "operands": ("array", "result", "column", "write"),
}
CALL = (
    "team_size", "thread_number", "get_mode", "set_mode", "modes", "steps", "batch", "reverse", "sizes", "starts",
    "array_count", "part_count", "result_count", "term_count", "operand_count", "scratch", "scratch_size",
    "most_operands", *TABLES,
)  # fmt: skip
CALL_TYPE = np.dtype([(name, np.int64) for name in CALL])
ROW_TYPES = {name: np.dtype([(field, np.int64) for field in fields]) for name, fields in TABLES.items()}

# Numba's cache looks at the file of the function compiled only, so its name on disk tells the text of all.
_texts = sorted(Path(__file__).parent.glob("numba_*.py"))
DIGEST = hashlib.sha256(b"".join(text.read_bytes() for text in _texts)).hexdigest()[:12]


@intrinsic
def _call_function(context, address, rows, units, pointers, strides):
    """Calls the C function void(int64, int64, void*, void*) at the address."""

    def code(context, builder, signature, arguments):
        address, *rest = arguments
        word, byte = ir.IntType(64), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [word, word, byte, byte])
        places = [builder.inttoptr(value, byte) for value in rest[2:]]
        builder.call(builder.inttoptr(address, kind.as_pointer()), [*rest[:2], *places])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), code


def columns_of(itemsize: int) -> int:
    """The units of a panel."""
    return 4 * VECTOR_BYTES // itemsize


def driver(real: type) -> Callable[[Any], None]:
    """The callback over :data:`CALL`, for one element type."""
    item = np.dtype(real).itemsize
    width = columns_of(item)
    array_type, part_type, result_type, term_type, operand_type = (ROW_TYPES[name] for name in TABLES)

    def run(table):
        a = carray(table, 1)[0]
        team = call(a.team_size) if a.team_size else np.int32(1)
        me = call(a.thread_number) if a.thread_number else np.int32(0)
        own_mode = a.modes + me * MODE_BYTES
        if me:  # computes in the calling thread's floating-point mode, and has its own back at the end
            call_with(a.get_mode, own_mode)
            call_with(a.set_mode, a.modes)
        sizes, starts = pointer(a.sizes, np.int64), pointer(a.starts, np.int64)
        arrays = carray(pointer(a.arrays, array_type), a.array_count)
        parts = carray(pointer(a.parts, part_type), a.part_count)
        results = carray(pointer(a.results, result_type), a.result_count)
        terms = carray(pointer(a.terms, term_type), a.term_count)
        operands = carray(pointer(a.operands, operand_type), a.operand_count)
        scratch = a.scratch + me * a.scratch_size
        pointers = pointer(scratch, np.int64)
        strides = pointer(scratch + 8 * a.most_operands, np.int64)
        values = pointer(scratch + 16 * a.most_operands, real)
        first, end = share(a.batch, me, team)
        for i in range(a.steps):
            t = a.steps - 1 - i if a.reverse else i
            before, after = (t + 1, t - 1) if a.reverse else (t - 1, t + 1)
            coming = sizes[before] if 0 <= before < a.steps else 0
            going = sizes[after] if 0 <= after < a.steps else 0
            last = min(end, sizes[t])
            for k in range(a.array_count):
                array = arrays[k]
                if array.kind == STATE:
                    for r in range(max(first, coming), last):  # rows that begin here
                        to = at(pointer(array.other if i % 2 else array.data, real), r * array.columns)
                        if array.initial:
                            source = at(pointer(array.initial, real), r * array.initial_row)
                            copy(to, source, array.columns, array.columns)
                        else:
                            for j in range(array.columns):
                                to[j] = like(0.0, to[j])
            for q in range(a.part_count if last > first else 0):
                part = parts[q]
                panels = (part.units + width - 1) // width
                for panel in range(part.heads * panels):
                    head, inner = panel // panels, panel % panels * width
                    unit, count = head * part.units + inner, min(width, part.units - inner)
                    rows = last - first
                    for k in range(part.results):
                        out = at(values, k * rows * width)
                        found = results[part.result + k]
                        if found.mean >= 0:
                            array = arrays[found.mean]
                            data = array.data
                            if array.kind == STATE and i % 2:
                                data = array.other
                            whole = part.units * part.heads
                            size = whole // found.mean_heads
                            for r in range(rows):
                                n = starts[t] + first + r if array.kind == STEP else first + r
                                source = at(pointer(data, real), n * array.row + found.column)
                                j = 0
                                while j < count:
                                    own = (unit + j) // size
                                    total = like(0.0, source[0])
                                    for u in range(own * size, (own + 1) * size):
                                        total += source[u]
                                    total /= real(size)
                                    while j < count and (unit + j) // size == own:
                                        out[r * width + j] = total
                                        j += 1
                            continue
                        for r in range(rows if found.bias else 0):
                            copy(at(out, r * width), at(pointer(found.bias, real), unit), count, width)
                        adds = found.bias != 0
                        for m in range(found.terms):
                            term = terms[found.term + m]
                            array = arrays[term.array]
                            packed = at(
                                pointer(term.packed, real), (head * panels + panel % panels) * term.depth * width
                            )
                            offset = term.column + head // term.share * term.depth
                            if array.kind == NEIGHBOUR:
                                other = i + array.offset
                                there = 0
                                if 0 <= other < a.steps:
                                    there = sizes[a.steps - 1 - other if a.reverse else other]
                                cut = max(first, min(last, there))
                                if cut > first:
                                    n = starts[a.steps - 1 - other if a.reverse else other] + first
                                    x = at(pointer(array.data, real), n * array.row + offset)
                                    product(
                                        4, cut - first, out, width, x, array.row, 1, packed, width, term.depth, adds
                                    )
                                if last > cut:
                                    x = at(pointer(array.initial, real), cut * array.initial_row + offset)
                                    o = at(out, (cut - first) * width)
                                    row = array.initial_row
                                    product(4, last - cut, o, width, x, row, 1, packed, width, term.depth, adds)
                            else:
                                data = array.data
                                if array.kind == STATE and i % 2:
                                    data = array.other
                                n = starts[t] + first if array.kind == STEP else first
                                x = at(pointer(data, real), n * array.row + offset)
                                product(4, rows, out, width, x, array.row, 1, packed, width, term.depth, adds)
                            adds = True
                    # The function, on runs of rows that lie alike in every array.
                    begin = first
                    while begin < last:
                        stop = last
                        for k in range(part.operands):
                            operand = operands[part.operand + k]
                            if operand.result >= 0:
                                pointers[k] = (
                                    scratch
                                    + 16 * a.most_operands
                                    + (operand.result * rows + begin - first) * width * item
                                )
                                strides[k] = width * item
                                continue
                            array = arrays[operand.array]
                            data, row, place = array.data, array.row * item, begin
                            column = operand.column + (0 if array.single else unit)
                            if array.kind == STEP:
                                place = starts[t] + begin
                            elif array.kind == NEIGHBOUR:
                                other = i + array.offset
                                step = a.steps - 1 - other if a.reverse else other
                                there = sizes[step] if 0 <= other < a.steps else 0
                                if begin < there:
                                    place = starts[step] + begin
                                    stop = min(stop, there)
                                else:
                                    data, row = array.initial, array.initial_row * item
                            elif array.kind == STATE:
                                if (i % 2 == 1) != (operand.write != 0):
                                    data = array.other
                            elif array.kind == TOTAL:
                                row, place = 0, 0
                                data += me * array.columns * item
                            elif array.kind == UNIT:
                                row, place = 0, 0
                            elif array.kind == NUMBER:
                                row, place, column = 0, 0, 0
                            pointers[k] = data + place * row + column * item
                            strides[k] = row
                        _call_function(part.function, stop - begin, count, scratch, scratch + 8 * a.most_operands)
                        begin = stop
            for k in range(a.array_count):
                array = arrays[k]
                if array.kind == STATE and array.final:
                    for r in range(max(first, going), last):  # rows that end here
                        source = at(pointer(array.data if i % 2 else array.other, real), r * array.columns)
                        copy(at(pointer(array.final, real), r * array.columns), source, array.columns, array.columns)
                elif array.kind == TOTAL and (i % FOLD == FOLD - 1 or i == a.steps - 1):
                    partial = at(pointer(array.data, real), me * array.columns)
                    total = at(pointer(array.other, real), me * array.columns)
                    for j in range(array.columns):
                        total[j] += partial[j]
                        partial[j] = like(0.0, partial[j])
        if me:
            call_with(a.set_mode, own_mode)

    run.__qualname__ = f"phases_{np.dtype(real)}_{DIGEST}"
    return run
