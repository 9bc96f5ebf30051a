"""The loop of any cell on the C++ engine: its phases with pointwise functions that LLVM compiles on the spot."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.cell.int8 import Int8
from fastrnn.compiler.arrays import Array, Program
from fastrnn.compiler.print_llvm import Operand
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Address, Part, Result
from fastrnn.fused import machine
from fastrnn.fused.behind import Behind, arrays_behind
from fastrnn.fused.functions import compile_functions
from fastrnn.fused.layer import Operands, Steps
from fastrnn.fused.run import scan_with

try:
    from fastrnn import _core
except ImportError:  # a pure-Python installation
    _core = None

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Why no cell runs on this engine here; None where cells do."""
    if _core is None or not hasattr(_core, "Program"):
        return "the C++ core is not compiled"
    return machine.unavailable()


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it takes no tensors of this device and dtype; None where it does."""
    if device.type != "cpu" or dtype not in DTYPES:
        return f"it takes no tensors of {dtype} on {device.type}"
    return None


class Engine(NamedTuple):
    """A program as the core holds it, and the order of its sizes and arrays."""

    program: Any
    sizes: tuple[str, ...]
    arrays: tuple[str, ...]


@functools.lru_cache(maxsize=512)
def engine(
    compiled: Compiled, which: str, dtype: torch.dtype, int8: tuple[str, ...] = (), behind: Behind | None = None
) -> Engine:
    """The program "forward", "keeping" or "backward" of a cell in the core, its functions compiled; ``int8`` are the
    arrays that are matrices of 8 bits."""
    program: Program = getattr(compiled, which)
    functions = iter(compile_functions(program, dtype))
    every = program.arrays | (arrays_behind(compiled, behind) if behind else {})
    sizes = tuple(dict.fromkeys(s for a in every.values() for s in (a.size, a.columns) if s))
    arrays = tuple(every)
    phases = []
    for phase in program.phases:
        described = [_part(*next(functions), sizes, arrays) for _ in phase]
        several = len(phase) > 1 or len({part.size for each in program.phases for part in each}) > 1
        meets = any(_reads_rows(result) for part in phase for result in part.results)
        phases.append(dict(meets=several or meets, parts=described))
    spec = dict(
        dtype=str(dtype).removeprefix("torch."),
        sizes=len(sizes),
        arrays=[_array(name, array, sizes, name in int8) for name, array in every.items()],
        phases=phases,
        **(_behind(behind, arrays) if behind else {}),
    )
    assert _core is not None
    return Engine(_core.Program(spec), sizes, arrays)


def _reads_rows(result: Result) -> bool:
    """Whether a result reads whole rows that the step has written."""
    return bool(result.mean) or any(term.operand.array != "x" for term in result.terms)


def _array(name: str, array: Array, sizes: Sequence[str], int8: bool) -> dict[str, Any]:
    found: dict[str, Any] = dict(name=name, kind=array.kind)
    if array.kind == "number":
        return found
    found |= dict(size=sizes.index(array.size) if array.size else 0, blocks=array.blocks)
    if array.size is None:
        found |= dict(single=True)
    if array.kind == "neighbour":
        found |= dict(offset=array.offset)
    if array.kind == "matrix":
        found |= dict(columns_size=sizes.index(str(array.columns)), columns_parts=array.heads, int8=int8)
    return found


def _part(
    part: Part, function: int, args: Sequence[Operand], sizes: Sequence[str], arrays: Sequence[str]
) -> dict[str, Any]:
    def blocks(address: Address) -> dict[str, int]:
        return dict(array=arrays.index(str(address.array)), block=address.block)

    results = [
        dict(mean=dict(array=arrays.index(str(result.mean.array)), block=result.mean.block, heads=result.heads))
        if result.mean
        else dict(
            terms=[
                dict(
                    blocks(term.operand),
                    blocks=term.blocks,
                    matrix=arrays.index(term.matrix),
                    row_block=term.row,
                    transposed=term.transposed,
                    heads=result.heads,
                )
                for term in result.terms
            ],
            bias=result.bias and blocks(result.bias),
        )
        for result in part.results
    ]
    described = [
        dict(blocks(arg.address), write=arg.write) if arg.address.array else dict(result=arg.address.block)
        for arg in args
    ]
    return dict(size=sizes.index(part.size), results=results, operands=described, function=function)


def _behind(behind: Behind, arrays: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What the core sums up and multiplies behind the loop."""
    sums: list[dict[str, Any]] = []
    products: list[dict[str, Any]] = []
    for each in behind.products:
        values = dict(array=arrays.index(str(each.operand.array)), block=each.operand.block)
        to = arrays.index(f"gradient of matrix:{each.name}")
        bias = arrays.index(f"gradient of bias:{each.name}") if each.name in behind.biases else None
        for run in each.runs:
            grad = dict(array=arrays.index(run.array), block=run.block, blocks=run.count)
            about = dict(grad=grad, row_block=run.row, heads=each.heads)
            sums.append(dict(about, values=values, to=to, bias=bias, add=not each.fresh))
            if behind.x and each.operand.array == "x":
                matrix = arrays.index(f"matrix:{each.name}")
                products.append(dict(about, matrix=matrix, to=arrays.index("gradient of x"), add=bool(products)))
    return dict(sums=sums, products=products)


def run(
    compiled: Compiled, which: str, steps: Steps, sizes: dict[str, int], places: dict[str, Any], like: Tensor,
    behind: Behind | None,
) -> None:  # fmt: skip
    """Runs a program over all steps; see :data:`fastrnn.fused.run.Run`."""
    int8 = tuple(name for name, place in places.items() if type(place) is Int8)
    own = engine(compiled, which, like.dtype, int8, behind)
    for name in int8:
        places[name] = places[name]._asdict()
    own.program.run(
        steps=steps.count,
        batch=steps.batch,
        rows=steps.rows,
        batch_sizes=steps.sizes,
        reverse=steps.reverse,
        threads=torch.get_num_threads(),
        sizes=[sizes[name] for name in own.sizes],
        arrays=[places.get(name) for name in own.arrays],
        keep=which in ("forward", "ahead"),
    )


def scan(compiled: Compiled, steps: Steps, given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """The loop; see :data:`fastrnn.fused.layer.Scan`."""
    return scan_with(run, compiled, steps, given)
