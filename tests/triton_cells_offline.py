"""Compiles printed kernels of cells for GPUs that need not be there; run as a script, as ``triton_offline.py`` is."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch
from triton_offline import amd_usage, nvidia_usage, run_script


class Variant(NamedTuple):
    """A program of a cell of the library, "forward", "keeping" or "backward", of this many units of every size."""

    cell: str
    which: str
    hidden: int
    dtype: str
    packed: bool = False
    target: str = "sm_90"


class Usage(NamedTuple):
    """``registers`` and ``spilled`` bytes of a thread, bytes of ``shared`` memory of a program, and the arguments of
    which another number compiles nothing anew."""

    registers: int
    spilled: int
    shared: int
    unspecialized: list[str]


def compile_variant(variant: Variant) -> Usage:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastrnn import cells
    from fastrnn.compiler.print_triton import sizes_of
    from fastrnn.compiler.program import compile_cell
    from fastrnn.fused import triton as engine

    compiled = compile_cell(getattr(cells, variant.cell)())
    program = getattr(compiled, variant.which)
    sizes = dict.fromkeys(sizes_of(program), variant.hidden)
    dtype = torch.float64 if variant.dtype == "fp64" else torch.float32
    form = engine.choose_form(program, sizes, dtype)
    kernel: Any = engine.kernel(compiled, variant.which, form.whole)
    constants: dict[str, Any] = form.constants(sizes)
    constants |= dict(REAL=getattr(tl, str(dtype).removeprefix("torch.")), PACKED=variant.packed, REVERSE=False)
    constants |= {} if variant.packed else dict(p_offsets=None)

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name == "p_offsets":
            return "*i64"
        return f"*{variant.dtype}" if name.startswith("p_") else "i32"

    names = [parameter.name for parameter in kernel.params]
    signature = {name: kind(name) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    amd = variant.target.startswith("gfx")
    target = GPUTarget("hip", variant.target, 64) if amd else GPUTarget("cuda", int(variant.target[3:]), 32)
    source = ASTSource(kernel, signature, constants, aligned)
    built: Any = triton.compile(source, target=target, options=form.options())
    registers, spilled = amd_usage(built.asm["amdgcn"]) if amd else nvidia_usage(built.asm["cubin"])
    unspecialized = [p.name for p in kernel.params if p.do_not_specialize]
    return Usage(registers, spilled, built.metadata.shared, unspecialized)


def compile_all(variants: list[Variant]) -> list[Usage]:
    """In a process of its own, without the interpreter."""
    return [Usage(*usage) for usage in run_script(__file__, variants)]


if __name__ == "__main__":
    json.dump([compile_variant(Variant(*variant)) for variant in json.loads(sys.argv[1])], sys.stdout)
