"""The pointwise functions of a program's parts, as machine code: what both engines on a CPU call."""

from __future__ import annotations

import torch

from fastrnn.compiler.arrays import Program
from fastrnn.compiler.print_llvm import Operand, operands, print_llvm
from fastrnn.compiler.schedule import Part
from fastrnn.fused import machine

REAL = {torch.float32: "float", torch.float64: "double"}


def compile_functions(program: Program, dtype: torch.dtype) -> tuple[tuple[Part, int, tuple[Operand, ...]], ...]:
    """For each part, in the order of the phases, the address of its function and the operands that it takes."""
    lanes = machine.vector_bytes() // dtype.itemsize
    parts = [part for phase in program.phases for part in phase]
    sums = [name for name in program.arrays if name.startswith("sum:")]
    lists = [operands(part, sums) for part in parts]
    names = [f"part{k}" for k in range(len(parts))]
    printed = [
        print_llvm(name, part, args, REAL[dtype], lanes) for name, part, args in zip(names, parts, lists, strict=True)
    ]
    declarations = sorted(set().union(*(declared for _, declared in printed)))
    found = machine.addresses("\n".join([*declarations, *(text for text, _ in printed)]), names)
    return tuple((part, address, tuple(args)) for part, address, args in zip(parts, found, lists, strict=True))
