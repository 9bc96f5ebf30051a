"""Compiles the kernels for GPUs that need not be there, and reads what the machine code takes.

Run as a script, because the interpreter that the other tests use is chosen once a process: variants as JSON on the
command line, their :class:`Usage` as JSON on standard output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastrnn.backends.triton_paths import KIB, Chip, choose_path, product_path
from fastrnn.modes import CELLS

CHIPS = {
    "sm_80": Chip(108, 163 * KIB),
    "sm_90": Chip(132, 227 * KIB),
    "sm_100": Chip(148, 227 * KIB),
    "gfx942": Chip(304, 64 * KIB, 64),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Variant(NamedTuple):
    """One kernel as a layer of this shape would launch it; ``precision`` as in ``choose_path``, ``cells`` whether the
    cell states of all steps have a gradient."""

    kernel: str
    target: str
    mode: str
    hidden: int
    sequences: int
    dtype: str
    precision: str = "ieee"
    packed: bool = False
    directions: int = 1
    cells: bool = False

    def path(self):
        chip, number = CHIPS[self.target], DTYPES[self.dtype]
        if self.kernel in ("input", "projection", "gather"):  # to as many numbers
            return product_path(chip, self.sequences, self.hidden, self.directions, number, self.precision)
        path = choose_path(chip, self.mode, self.sequences, self.hidden, self.directions, number, self.precision)
        return path.backward() if self.kernel == "backward" else path


class Usage(NamedTuple):
    """``registers`` and ``spilled`` bytes of a thread, bytes of ``shared`` memory of a program, ``reloads``, how often
    a step of the time loop fetches weights out of shared memory or lays them out anew, and on NVIDIA the
    ``exponentials`` that a thread computes in a step and, of the machine code of the time loop, its ``instructions``,
    its ``barriers`` of the program, and the bits of each load past the L1, which are those of x, ``loads``."""

    registers: int
    spilled: int
    shared: int
    reloads: int
    exponentials: int
    instructions: int = 0
    barriers: int = 0
    loads: tuple[int, ...] = ()


def compiled(variant: Variant) -> Any:
    """What Triton makes of a variant."""
    import triton
    from fastrnn.kernels.triton_one_step import step_gather, step_product
    from fastrnn.kernels.triton_scan import scan_forward
    from fastrnn.kernels.triton_scan_backward import scan_backward
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastrnn.backends.triton_launch import ASSERTING, constants_of, options_of

    others = {"forward": scan_forward, "backward": scan_backward, "gather": step_gather}
    kernel: Any = others.get(variant.kernel, step_product)
    cell, path = CELLS[variant.mode], variant.path()
    shape, number = (variant.mode, variant.hidden, variant.directions, path), DTYPES[variant.dtype]
    constants = constants_of(*shape, number, variant.precision, variant.packed)
    constants |= dict(
        P=variant.hidden, SAVE=True, HAS_C=cell.has_cell_state, HAS_BIAS=True, HAS_Y=True, WHOLE=path.whole
    )
    constants |= dict(GRADS=max(len(cell.gates), len(cell.saved)), HAS_DY=True, HAS_DHN=True, HAS_DCELLS=variant.cells)
    constants |= dict(K=variant.hidden, U=variant.hidden, COLUMNS=path.units)
    if variant.kernel == "gather":
        del constants["K"]  # the number of tokens is no constant
    constants |= dict(WHOLE=path.whole, PTX=not variant.target.startswith("gfx"))
    absent = set() if variant.packed else {"p_offsets"}
    absent |= set() if variant.cells else {"p_dcells"}
    absent |= {"input": {"p_y", "p_hn"}, "projection": {"p_bias", "p_bias_reverse"}}.get(variant.kernel, set())
    constants |= dict(HAS_BIAS=variant.kernel != "projection")
    absent |= set() if cell.has_cell_state else {"p_c0"}

    def kind(name: str) -> str:
        if name in ("p_c", "p_cells", "p_dcells", "p_carry") or (name, variant.kernel) == ("p_c0", "backward"):
            return "*fp32"
        if name in ("p_offsets", "p_arrived"):
            return "*i64" if name == "p_offsets" else "*i32"
        if name == "p_tokens":
            return "*i64"
        return f"*{variant.dtype}" if name.startswith("p_") else "i32"

    names = [parameter.name for parameter in kernel.params]
    fixed = {name: None if name in absent else constants[name] for name in names if name in constants or name in absent}
    signature = {name: "constexpr" if name in fixed else kind(name) for name in names}
    even = [signature[name].startswith("*") or name.startswith("stride") for name in names]
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(names)) if even[i]}
    compute, lanes = {"sm_80": (80, 32), "sm_90": (90, 32), "sm_100": (100, 32), "gfx942": ("gfx942", 64)}[
        variant.target
    ]
    options = ASSERTING if variant.kernel == "gather" else options_of(path)
    target = GPUTarget("hip" if lanes == 64 else "cuda", compute, lanes)
    return triton.compile(ASTSource(kernel, signature, fixed, aligned), target=target, options=options)


def compile_variant(variant: Variant) -> Usage:
    built, lanes = compiled(variant), CHIPS[variant.target].lanes
    loop = built.asm["ttgir"].partition("scf.while")[2]
    reloads = len(re.findall(r"= ttg\.(?:local_load|convert_layout) [^\n]*-> [^\n]*opIdx = 1", loop))
    registers, spilled = amd_usage(built.asm["amdgcn"]) if lanes == 64 else nvidia_usage(built.asm["cubin"])
    exponentials = built.asm.get("ptx", "").count("ex2.approx")
    counts = (0, 0, ()) if lanes == 64 else time_loop(built.asm["cubin"])
    return Usage(registers, spilled, built.metadata.shared, reloads, exponentials, *counts)


def time_loop(cubin: bytes) -> tuple[int, int, tuple[int, ...]]:
    """Instructions, barriers of the program, and bits of each load past the L1, in the longest loop of a kernel: what
    lies between a label and the last branch back to it.  The barrier's own look at a flag is no such load."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in nvidia_tool("nvdisasm", "-c", cubin).splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);?\s*(?:/\*.*)?$", line):
            instructions.append(found[1])
    body: list[str] = []
    for last, instruction in enumerate(instructions):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction)
        if target and labels.get(target[1], last + 1) <= last and last - labels[target[1]] >= len(body):
            body = instructions[labels[target[1]] : last + 1]
    loads = [re.search(r"\bLDG\.E(?:\.U?(\d+))?\.STRONG", instruction) for instruction in body]
    bits = sorted(int(load[1] or 32) for load in loads if load)
    if 32 in bits:
        bits.remove(32)
    return len(body), sum("BAR.SYNC" in instruction for instruction in body), tuple(bits)


def nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes of a thread."""
    text = nvidia_tool("cuobjdump", "-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def nvidia_tool(name: str, option: str, cubin: bytes) -> str:
    """What a tool that comes with Triton prints of machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def amd_usage(assembly: str) -> tuple[int, int]:
    """Registers and spilled bytes of a thread."""
    found = [re.search(rf"\.{name}:\s*(\d+)", assembly) for name in ("vgpr_count", "private_segment_fixed_size")]
    assert all(found), assembly[-4000:]
    registers, spilled = (int(match[1]) for match in found if match)
    return registers, spilled


def compile_all(variants: list[Variant]) -> list[Usage]:
    """In a process of its own, without the interpreter."""
    return [Usage(*usage) for usage in run_script(__file__, variants)]


def run_script(script: str, variants: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What a script prints as JSON of variants that it gets as JSON, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, json.dumps(variants)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


if __name__ == "__main__":
    json.dump([compile_variant(Variant(*variant)) for variant in json.loads(sys.argv[1])], sys.stdout)
