"""The machine code that Triton's kernels become, compiled for GPUs that need not be there."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from triton_offline import CHIPS, Usage, Variant, compile_all

triton = pytest.importorskip("triton", minversion="3.6")

BOTH = ("forward", "backward")
PRODUCTS = ("input", "projection", "gather")
# A variant for each path, cell, dtype, precision, form and target; not their product, which would take many minutes.
VARIANTS = [
    *(Variant(kernel, "sm_90", "LSTM", 1024, 64, "bf16") for kernel in BOTH),
    *(Variant(kernel, "sm_90", "LSTM", 512, 64, "bf16") for kernel in BOTH),
    *(Variant(kernel, "sm_90", "LSTM", 512, 64, "bf16", directions=2) for kernel in PRODUCTS),
    *(Variant(kernel, "sm_90", "LSTM", 1024, 256, "fp32", "tf32", directions=2) for kernel in PRODUCTS),
    *(Variant(kernel, "sm_80", "LSTM", 2048, 256, "fp32", directions=2) for kernel in PRODUCTS),
    *(Variant(kernel, "gfx942", "LSTM", 100, 16, "fp16") for kernel in PRODUCTS),
    *(Variant(kernel, "sm_90", "GRU", 200, 16, "bf16", packed=True, directions=2) for kernel in BOTH),
    *(Variant(kernel, "sm_90", "LSTM", 64, 16, "fp32", "tf32") for kernel in BOTH),
    Variant("backward", "sm_90", "LSTM", 512, 64, "bf16", packed=True, cells=True),
    *(Variant(kernel, "sm_90", "GRU", 64, 16, "fp32", "ieee") for kernel in BOTH),
    *(Variant(kernel, "sm_90", "LSTM", 2048, 16, "fp16") for kernel in BOTH),
    *(Variant(kernel, "sm_80", "GRU", 256, 64, "fp32", "tf32") for kernel in BOTH),
    *(Variant(kernel, "sm_80", "RNN_RELU", 17, 16, "fp16") for kernel in BOTH),
    *(Variant(kernel, "sm_100", "LSTM", 512, 16, "bf16") for kernel in BOTH),
    *(Variant(kernel, "gfx942", "LSTM", 256, 16, "bf16") for kernel in BOTH),
    *(Variant(kernel, "gfx942", "GRU", 64, 16, "fp16", packed=True) for kernel in BOTH),
    *(Variant(kernel, "gfx942", "RNN_TANH", 1024, 64, "fp32") for kernel in BOTH),
    *(Variant(kernel, "gfx942", "LSTM", 1024, 256, "fp32") for kernel in BOTH),
]


EXPONENTIALS = {"LSTM": 5, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 0}  # of a value, in a step forward


class Most(NamedTuple):
    """What a thread's step of the time loop may take: instructions, barriers of the program, bytes spilled; x is loaded
    by 16 bytes each."""

    instructions: int
    barriers: int
    spilled: int


# Of an LSTM in bfloat16 on sm_90.  What spills is stored before the loop, of which one access is a pointer's.
STEPS = {
    ("forward", 512, 16): Most(400, 12, 0),
    ("forward", 1024, 16): Most(560, 16, 0),
    ("forward", 1024, 64): Most(1100, 40, 0),
    ("backward", 1024, 64): Most(700, 40, 24),
    ("forward", 128, 16): Most(700, 12, 0),
    ("backward", 128, 16): Most(810, 44, 0),
}


def of_step(target: str, step: tuple[str, int, int]) -> Variant:
    kernel, hidden, sequences = step
    return Variant(kernel, target, "LSTM", hidden, sequences, "bf16")


OTHER_CHIPS = [of_step(target, step) for target in ("sm_80", "sm_100", "gfx942") for step in STEPS]
# Those of the quick suite: all take a minute to compile.
FIRST = {variant for variant in VARIANTS if variant[1:4] in {("sm_90", "LSTM", 512), ("sm_80", "RNN_RELU", 17)}}
FIRST |= {variant for variant in VARIANTS if variant[1:4] == ("gfx942", "GRU", 64)}
FIRST |= {of_step("sm_90", step) for step in STEPS if step[1] in (512, 128)}
FIRST |= {variant for variant in OTHER_CHIPS if variant.hidden == 512}


@functools.cache
def usages(first: bool) -> dict[Variant, Usage]:
    """Of each suite's variants, from one process: most of the time of one that compiles a few goes to its imports."""
    every = dict.fromkeys([*VARIANTS, *(of_step("sm_90", step) for step in STEPS), *OTHER_CHIPS])
    variants = [variant for variant in every if (variant in FIRST) == first]
    return dict(zip(variants, compile_all(variants), strict=True))


def usage_of(variant: Variant) -> Usage:
    return usages(variant in FIRST)[variant]


def by_suite(variants: list[Variant]) -> list[Any]:
    return [
        pytest.param(variant, id="-".join(map(str, variant[:6])), marks=() if variant in FIRST else pytest.mark.slow)
        for variant in variants
    ]


@pytest.mark.parametrize("variant", by_suite(VARIANTS))
def test_machine_code_stays_within_limits(variant: Variant):
    """Spills: some bytes of a program whose weights take half of all registers are known and allowed, an array
    that went to memory is hundreds.  Reloads: weights stay in registers wherever there is a tensor core.  Exponentials:
    each value's are computed once, not by every warp."""
    usage, path = usage_of(variant), variant.path()
    registers = 512 if variant.target == "gfx942" else 255
    assert usage.registers <= registers
    assert usage.spilled <= (0 if variant.kernel in PRODUCTS else 64)
    assert usage.shared <= CHIPS[variant.target].shared_memory
    tensor_core = variant.dtype != "fp32" or variant.precision == "tf32"
    if path.name != "stream" and tensor_core and variant.target != "gfx942":
        assert usage.reloads == 0
    if variant.target != "gfx942":
        each = EXPONENTIALS[variant.mode] if variant.kernel == "forward" else int(variant.mode == "LSTM")
        assert usage.exponentials <= each * -(-path.rows * path.units // (32 * path.warps))


@pytest.mark.parametrize("variant", by_suite([of_step("sm_90", step) for step in STEPS]))
def test_a_step_is_short(variant: Variant):
    usage, most = usage_of(variant), STEPS[variant.kernel, variant.hidden, variant.sequences]
    assert 0 < usage.instructions <= most.instructions
    assert 0 < usage.barriers <= most.barriers
    # Triton 3.6 gives a thread fewer registers.
    assert usage.spilled <= most.spilled + (16 if triton.__version__ < "3.9" else 0)
    assert set(usage.loads) == (set() if variant.hidden == 128 else {128})


@pytest.mark.parametrize("variant", by_suite(OTHER_CHIPS))
def test_on_other_chips_next_to_nothing_spills(variant: Variant):
    """All of them compile, too: Triton 3.6 and later have a compiler of sm_100's machine code."""
    assert usage_of(variant).spilled <= max(16, STEPS[variant.kernel, variant.hidden, variant.sequences].spilled)


def test_of_the_barrier_one_thread_a_flag_polls_and_fences_once():
    """Relaxed loads in a loop, then one fence, and no invalidation of the cache in the loop."""
    code = """
import sys
sys.path[:0] = ["tests"]
import triton_offline
print(triton_offline.compiled(triton_offline.Variant("forward", "sm_90", "LSTM", 256, 16, "bf16")).asm["ptx"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    poll = done.stdout.index("ld.relaxed.gpu.global.s32")
    assert done.stdout.count("ld.relaxed") == 1 and "ld.acquire" not in done.stdout
    loop, fence = done.stdout.index("bra AGAIN", poll), done.stdout.index("fence.acq_rel.gpu", poll)
    barrier = done.stdout.index("bar.sync", poll)
    assert poll < loop < fence < barrier
    assert done.stdout.count("fence.acq_rel.gpu") == 1


def test_a_new_length_or_batch_size_compiles_nothing():
    code = """
from fastrnn.kernels.triton_scan import scan_forward
from fastrnn.kernels.triton_scan_backward import scan_backward
from fastrnn.kernels.triton_one_step import step_gather, step_product
for kernel in (scan_forward, scan_backward, step_product, step_gather):
    numbers = [p for p in kernel.params if not p.is_constexpr and not p.name.startswith("p_")]
    print(*(p.name for p in numbers if p.do_not_specialize))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["tile_begin t_begin t_end T B N"] * 2 + ["B"] * 2
