"""The loop of any cell on Triton: its programs as kernels that :mod:`fastrnn.compiler.print_triton` prints.

A printed file lies in the folder of caches under the hash of its text; Triton keeps what it compiles of it in its own.
Numbers are float32, or float64; products of float32 are true float32, not TF32.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn.backends import triton as backend
from fastrnn.backends.triton_launch import on_device
from fastrnn.compiler.arrays import Program
from fastrnn.compiler.print_triton import identifier, print_triton, sizes_of, workspaces
from fastrnn.compiler.program import Compiled
from fastrnn.compiler.schedule import Part
from fastrnn.fused import machine
from fastrnn.fused.behind import Behind, sum_behind
from fastrnn.fused.layer import Operands, Steps
from fastrnn.fused.run import scan_with

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROWS = 16  # of a program: what a matrix instruction takes at least
WHOLE = 256  # the most units of any size that a kernel computes at once, with states in registers
BLOCK = 64  # of more, how many it computes at once
HELD = 176  # numbers of its tiles that a thread has registers for, of 255


def unavailable() -> str | None:
    """Why no cell runs on this engine here; None where cells do."""
    return backend.unavailable()


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it takes no tensors of this device and dtype; None where it does."""
    if dtype not in DTYPES:
        return f"{dtype} is none of {', '.join(str(served) for served in DTYPES)}"
    return backend.unsupported(device, torch.float32)


class Form(NamedTuple):
    """How a kernel is laid out: whether it is whole, units at once of each size, depth of products, warps a program."""

    whole: bool
    units: dict[str, int]
    depth: int
    warps: int

    def constants(self, sizes: dict[str, int]) -> dict[str, int]:
        found = {f"Z_{name}": sizes[name] for name in self.units}
        found |= {f"UNITS_{name}": units for name, units in self.units.items()}
        return found | dict(ROWS=ROWS, DEPTH=self.depth)

    def options(self) -> dict[str, Any]:
        return dict(num_warps=self.warps, num_stages=1, enable_fp_fusion=True)


def choose_form(program: Program, sizes: dict[str, int], dtype: torch.dtype) -> Form:
    """The form of a program's kernel, by the numbers of units that its sizes stand for and by what it holds."""
    widths = {name: max(16, 1 << (sizes[name] - 1).bit_length()) for name in sizes_of(program)}
    heads = any(result.heads > 1 and result.terms for part in _parts(program) for result in part.results)
    widest, depth = max(widths.values()), 16 if heads or dtype == torch.float64 else 32
    for most in (WHOLE, BLOCK, BLOCK // 2, 16):
        whole, at_once = most == WHOLE, min(widest, most)
        for warps in (4, 8):
            fits = ROWS * at_once * held(program, whole) <= HELD * 32 * warps
            if fits and (widest <= most or not whole):
                return Form(whole, {name: min(units, most) for name, units in widths.items()}, depth, warps)
    return Form(False, dict.fromkeys(widths, 16), depth, 8)


def held(program: Program, whole: bool) -> int:
    """How many tiles a kernel has in registers at once: what a part reads, the sums of heads beside those of all, and
    of a whole kernel its states and what phases hand on."""
    parts = _parts(program)
    kept = sum(array.kind in ("state", "row") for array in program.arrays.values()) if whole else 0
    return kept + max(len(p.loads) + sum(r.heads > 1 and bool(r.terms) for r in p.results) for p in parts)


def _parts(program: Program) -> list[Part]:
    return [part for phase in program.phases for part in phase]


@functools.lru_cache(maxsize=512)
def kernel(compiled: Compiled, which: str, whole: bool) -> Any:
    """The kernel of the program "forward", "keeping" or "backward" of a cell."""
    return load(print_triton(getattr(compiled, which), whole))


def load(text: str) -> Any:
    """The function ``run`` of a printed file."""
    name = f"triton_{hashlib.sha256(text.encode()).hexdigest()}"
    path = (machine.folder() or _own_folder()) / f"{name}.py"
    if not path.exists() or path.read_text() != text:
        machine.write(path, text.encode())
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run


@functools.cache
def _own_folder() -> Path:
    """Where files lie for this process alone: Triton reads a kernel's text from its file."""
    folder = tempfile.TemporaryDirectory(prefix="fastrnn-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []


def run(
    compiled: Compiled, which: str, steps: Steps, sizes: dict[str, int], places: dict[str, Any], like: Tensor,
    behind: Behind | None,
) -> None:  # fmt: skip
    """Runs a program over all steps; see :data:`fastrnn.fused.run.Run`."""
    import triton.language as tl

    program = getattr(compiled, which)
    form, programs = choose_form(program, sizes, like.dtype), -(-steps.batch // ROWS)
    given, partial = _arguments(program, form, steps.batch, programs, sizes, places, like)
    offsets = None
    if steps.sizes is not None:
        offsets = torch.cat([steps.sizes.new_zeros(1), steps.sizes.cumsum(0)]).to(like.device)
    with on_device(like.device):
        kernel(compiled, which, form.whole)[programs,](
            **given,
            p_offsets=offsets,
            T=steps.count,
            B=steps.batch,
            **form.constants(sizes),
            REAL=tl.float64 if like.dtype == torch.float64 else tl.float32,
            PACKED=offsets is not None,
            REVERSE=steps.reverse,
            **form.options(),
        )
    for name, tensor in partial.items():
        places[name] += tensor.sum(0)
    if behind:
        sum_behind(compiled, steps, behind, places, sizes)


def _arguments(
    program: Program, form: Form, batch: int, programs: int, sizes: dict[str, int], places: dict[str, Any], like: Tensor
) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    """The pointers of a kernel, and what its programs sum up each for itself."""
    given: dict[str, Tensor | None] = {}
    partial: dict[str, Tensor] = {}
    in_memory = workspaces(program, form.whole)
    for name, array in program.arrays.items():
        own = f"p_{identifier(name)}"
        if array.kind in ("state", "row"):
            if name in in_memory:
                lead = (2,) if array.kind == "state" else ()
                given[own] = like.new_empty(*lead, batch, sizes[str(array.size)])
            if array.kind == "state":
                given |= {f"{own}_{end}": places[name][end] for end in ("initial", "final")}
        elif array.kind == "neighbour":
            given |= {own: places[name]["history"], f"{own}_initial": places[name]["initial"]}
        elif array.kind == "total":
            given[own] = partial[name] = like.new_zeros(programs, sizes[str(array.size)])
        else:
            given[own] = places[name]
    return given, partial


def scan(compiled: Compiled, steps: Steps, given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """The loop; see :data:`fastrnn.fused.layer.Scan`."""
    return scan_with(run, compiled, steps, given)
