"""The loop of any cell on the Numba engine: one driver that Numba compiles once for all cells, and the functions of a
cell's phases, which LLVM compiles on the spot (:mod:`fastrnn.fused.machine`)."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.backends import load
from fastrnn.compiler.arrays import Program
from fastrnn.compiler.print_llvm import Operand
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Part, Result, Term
from fastrnn.fused import machine
from fastrnn.fused.behind import Behind, sum_behind
from fastrnn.fused.functions import compile_functions
from fastrnn.fused.layer import Operands, Steps
from fastrnn.fused.run import scan_with

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Why no cell runs on this engine here; None where cells do."""
    return load("numba").unavailable() or machine.unavailable()


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it takes no tensors of this device and dtype; None where it does.  Narrow ones come widened."""
    return None if device.type == "cpu" and dtype in DTYPES else f"it takes no tensors of {dtype} on {device.type}"


class Driver(NamedTuple):
    """The compiled driver for one element type."""

    address: int
    call: Any
    columns: int


@functools.cache
def driver(dtype: torch.dtype) -> Driver:
    """The driver, from Numba's cache on disk where it is there."""
    import numpy as np
    from numba import from_dtype, types

    from fastrnn.backends import numba_start
    from fastrnn.kernels import numba_functions, numba_phases

    real = np.float32 if dtype == torch.float32 else np.float64
    signature = types.void(types.CPointer(from_dtype(numba_phases.CALL_TYPE)))
    with numba_start.announced(f"phases {dtype}".replace("torch.", "")):
        compiled = numba_start.compile_callback(numba_phases.driver(real), signature, numba_functions.OPTIONS)
    call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(compiled.address)
    return Driver(compiled.address, call, numba_phases.columns_of(dtype.itemsize))


class Engine(NamedTuple):
    """A program, and for each part its function and the operands of that."""

    program: Program
    parts: tuple[tuple[Part, int, tuple[Operand, ...]], ...]


@functools.lru_cache(maxsize=512)
def engine(compiled: Compiled, which: str, dtype: torch.dtype) -> Engine:
    """The program "forward", "keeping" or "backward" of a cell, its functions compiled."""
    program: Program = getattr(compiled, which)
    return Engine(program, compile_functions(program, dtype))


class _Tables:
    """The tables of one run, and the tensors whose memory they speak of."""

    def __init__(
        self, engine: Engine, steps: Steps, sizes: dict[str, int], places: dict[str, Any], like: Tensor
    ) -> None:
        self.program, self.steps, self.sizes, self.places, self.like = engine.program, steps, sizes, places, like
        self.columns = driver(like.dtype).columns
        self.team = max(1, min(_threads(), steps.batch))
        self.held: list[Tensor] = []
        self.sums: list[tuple[Tensor, Tensor]] = []
        self.arrays = [name for name, array in self.program.arrays.items() if array.kind != "matrix"]
        self.index = {name: number for number, name in enumerate(self.arrays)}
        self.rows: dict[str, list[tuple[int, ...]]] = {name: [] for name in ("parts", "results", "terms", "operands")}
        self.rows["arrays"] = [self._array(name) for name in self.arrays]
        for part, function, operands in engine.parts:
            self._part(part, function, operands)

    def _units(self, size: str | None) -> int:
        return 1 if size is None else self.sizes[size]

    def _held(self, tensor: Tensor) -> int:
        self.held.append(tensor)
        return tensor.data_ptr()

    def _array(self, name: str) -> tuple[int, ...]:
        from fastrnn.kernels import numba_phases

        array = self.program.arrays[name]
        given: Any = self.places.get(name)
        kind = getattr(numba_phases, array.kind.upper())
        columns = array.blocks * self._units(array.size)
        data = other = initial = initial_row = final = 0
        row, rows = columns, self.steps.batch
        if array.kind == "state":
            data, other = (self._held(self.like.new_empty(rows, columns)) for _ in range(2))
            if given["initial"] is not None:
                initial, initial_row = self._held(given["initial"]), given["initial"].stride(0)
            final = 0 if given["final"] is None else self._held(given["final"])
        elif array.kind == "row":
            data = self._held(self.like.new_empty(rows, columns))
        elif array.kind == "neighbour":
            data, row = self._held(given["history"]), given["history"].stride(0)
            initial, initial_row = self._held(given["initial"]), given["initial"].stride(0)
        elif array.kind == "total":
            partial, total = (self.like.new_zeros(self.team, columns) for _ in range(2))
            data, other = self._held(partial), self._held(total)
            self.sums.append((given, total))
        else:
            data = self._held(given)
            row = given.stride(0) if given.dim() > 1 else columns
        return kind, data, other, row, columns, initial, initial_row, final, array.offset, int(array.size is None)

    def _part(self, part: Part, function: int, operands: tuple[Operand, ...]) -> None:
        units = self.sizes[part.size]
        heads = math.lcm(*(result.heads for result in part.results if not result.mean))
        first = len(self.rows["results"])
        for result in part.results:
            self._result(result, heads, units)
        begin = len(self.rows["operands"])
        for operand in operands:
            address = operand.address
            if address.array is None:
                self.rows["operands"].append((-1, address.block, 0, 0))
            else:
                own = self._units(self.program.arrays[address.array].size)
                self.rows["operands"].append((self.index[address.array], -1, address.block * own, int(operand.write)))
        self.rows["parts"].append((units // heads, heads, first, len(part.results), begin, len(operands), function))

    def _result(self, result: Result, heads: int, units: int) -> None:
        if result.mean:
            column = result.mean.block * units
            self.rows["results"].append((0, 0, 0, self.index[str(result.mean.array)], column, result.heads))
            return
        bias = 0
        if result.bias:
            bias = self.places[str(result.bias.array)].data_ptr() + result.bias.block * units * self.like.itemsize
        self.rows["results"].append((len(self.rows["terms"]), len(result.terms), bias, -1, 0, 1))
        for term in result.terms:
            self._term(term, result.heads, heads, units)

    def _term(self, term: Term, heads: int, part_heads: int, units: int) -> None:
        """A product, its weights in panels for each head of the part."""
        matrix, array = self.places[term.matrix], self.program.arrays[str(term.operand.array)]
        own = self.sizes[str(array.size)]
        if term.transposed:
            rows = matrix[term.row * own : (term.row + term.blocks) * own]
            blocks = rows.view(heads, -1, rows.shape[1])  # (heads, depth, units of a head)
        else:
            rows = matrix[term.row * units : (term.row + 1) * units]
            blocks = rows.view(heads, -1, rows.shape[1]).transpose(1, 2)
        # A head of the part has some of the columns of one of the term's.
        depth, share = blocks.shape[1], part_heads // heads
        blocks = blocks.unflatten(2, (share, -1)).transpose(1, 2).flatten(0, 1)
        wide = F.pad(blocks, (0, -blocks.shape[2] % self.columns))
        packed = wide.unflatten(2, (-1, self.columns)).transpose(1, 2).contiguous()
        column = term.operand.block * own
        self.rows["terms"].append((self.index[str(term.operand.array)], column, depth, share, self._held(packed)))


def _threads() -> int:
    from fastrnn.backends import numba_start

    return numba_start.threads()


def run(
    compiled: Compiled, which: str, steps: Steps, sizes: dict[str, int], places: dict[str, Any], like: Tensor,
    behind: Behind | None,
) -> None:  # fmt: skip
    """Runs a program over all steps; see :data:`fastrnn.fused.run.Run`."""
    import numpy as np

    from fastrnn.backends import numba_start
    from fastrnn.kernels import numba_phases

    own = engine(compiled, which, like.dtype)
    tables = _Tables(own, steps, sizes, places, like)
    if steps.sizes is None:
        lengths = torch.full((steps.count,), steps.batch, dtype=torch.int64, device="cpu")
    else:
        lengths = steps.sizes.contiguous()
    starts = lengths.cumsum(0) - lengths
    made = {
        name: np.array(rows, dtype=numba_phases.ROW_TYPES[name]) if rows else np.zeros(1, numba_phases.ROW_TYPES[name])
        for name, rows in tables.rows.items()
    }
    most = max(len(operands) for _, _, operands in own.parts)
    results = max(len(part.results) for part, *_ in own.parts)
    each = 16 * most + results * steps.batch * tables.columns * like.itemsize
    each += -each % 64
    scratch = torch.empty(tables.team * each + 64, dtype=torch.uint8, device="cpu")
    modes = torch.zeros(tables.team * numba_phases.MODE_BYTES + 64, dtype=torch.uint8, device="cpu")
    fields = numba_start.team_functions(tables.team)
    fields.pop("barrier", None)
    fields |= dict(
        modes=modes.data_ptr() + -modes.data_ptr() % 64, steps=steps.count, batch=steps.batch,
        reverse=int(steps.reverse), sizes=lengths.data_ptr(), starts=starts.data_ptr(),
        scratch=scratch.data_ptr() + -scratch.data_ptr() % 64, scratch_size=each, most_operands=most,
        **{name: table.ctypes.data for name, table in made.items()},
        **{f"{name[:-1]}_count": len(table) for name, table in made.items()},
    )  # fmt: skip
    table = np.array([tuple(fields[name] for name in numba_phases.CALL)], dtype=numba_phases.CALL_TYPE)
    numba_start.start(driver(like.dtype), tables.team, table.tobytes(), fields["modes"])
    for given, total in tables.sums:
        given.copy_(total.sum(0))
    if behind:
        sum_behind(compiled, steps, behind, places, sizes)


def scan(compiled: Compiled, steps: Steps, given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """The loop; see :data:`fastrnn.fused.layer.Scan`."""
    return scan_with(run, compiled, steps, given)
