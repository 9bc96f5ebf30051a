"""The Triton backend without a GPU: every path through the interpreter, the table of paths, and the machine code that
the kernels become, compiled for GPUs that need not be there."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as Folder
from typing import Any, NamedTuple

import pytest
import torch
from support import RAGGED, Case, Inputs, expect, make, run, verify
from triton_offline import CHIPS, DTYPES, Usage, Variant, compile_all

from fastrnn import backends
from fastrnn.backends import triton as backend
from fastrnn.backends import triton_launch, triton_paths
from fastrnn.backends.triton_paths import KIB, Chip, Path, choose_path, names_that_fit
from fastrnn.backends.triton_rows import Rows
from fastrnn.modes import CELLS

triton = pytest.importorskip("triton", minversion="3.6")
import triton.language as tl  # noqa: E402
from fastrnn.kernels import triton_product  # noqa: E402

stream_product: Any = triton_product.stream_product

interpreted = pytest.mark.skipif(not triton_launch.INTERPRETED, reason="runs through Triton's interpreter")

# Small blocks, so that small cases have several programs, tiles of rows and pieces of depth, with tails in each.
ROADS = {
    "tile": Path("tile", 16, 32, 32, 4, 1, whole=True),
    "spread": Path("spread", 32, 16, 8, 2, 1, whole=True, slice=8),
    "stream": Path("stream", 16, 16, 16, 4, 1, whole=True),
}
# With a launch for each tile of rows.
PARTS = {f"{name} in parts": path._replace(rows=16, tiles=1) for name, path in ROADS.items()}
FORMS = [
    Case("both directions", directions=2),
    Case("rows enter late in reverse", lengths=RAGGED, directions=2),
    Case("several tiles of rows and a tail, sequences end in each", lengths=(3,) * 3 + (2,) * 15 + (1,) * 16),
]
CASES = [
    *(replace(form, mode=mode) for mode in ("LSTM", "GRU") for form in FORMS),
    *(replace(FORMS[1], mode=mode) for mode in ("RNN_TANH", "RNN_RELU")),
    Case("half precision", "GRU", rows=17, dtype=torch.float16),
    Case("bfloat16, which NumPy has not", "LSTM", rows=17, dtype=torch.bfloat16),
]


def all_seeds(inputs: Inputs) -> Inputs:
    """A gradient for whatever a layer gives, an LSTM's cell states of all steps with it."""
    if inputs.c0 is None:
        return inputs
    shape = (len(inputs.h0), inputs.x.shape[:-1].numel(), inputs.c0.shape[-1])
    return inputs._replace(grad_cells=torch.randn(shape, generator=torch.Generator().manual_seed(1)))


@interpreted
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("path", PARTS.values(), ids=PARTS)
def test_rows_in_launches_of_their_own_are_right(monkeypatch: pytest.MonkeyPatch, path: Path, mode: str):
    monkeypatch.setattr(triton_launch, "choose_path", lambda *shape: path)
    expected = expect(replace(FORMS[2], mode=mode, directions=2), all_seeds)
    verify(run(backend, expected.inputs), expected)


@interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("path", ROADS.values(), ids=ROADS)
def test_every_path_is_right(monkeypatch: pytest.MonkeyPatch, path: Path, case: Case):
    monkeypatch.setattr(triton_launch, "choose_path", lambda *shape: path)
    expected = expect(case, all_seeds)
    verify(run(backend, expected.inputs), expected)


ALONE = [
    Case("one step with a projection: h0 as it is, no product of all steps", steps=1, rows=17, proj_size=5),
    Case("both directions, units in several programs", steps=1, hidden=40, proj_size=33, directions=2),
    Case("both directions, tiles of rows and of columns and pieces of depth, with tails", steps=1, rows=35, inputs=70,
         hidden=71, proj_size=67, directions=2),
    Case("both directions, no bias", steps=1, proj_size=5, directions=2, bias=False),
    Case("packed", lengths=(1, 1), proj_size=1, bias=False),
    Case("packed, both directions", lengths=(1, 1, 1), proj_size=5, directions=2),
    Case("no rows", steps=1, rows=0, proj_size=5, directions=2),
    Case("bfloat16", steps=1, proj_size=16, hidden=32, dtype=torch.bfloat16),
    Case("bfloat16, both directions", steps=1, rows=17, proj_size=16, hidden=32, directions=2, dtype=torch.bfloat16),
    Case("float16, both directions, packed", lengths=(1,) * 5, proj_size=7, directions=2, dtype=torch.float16),
]  # fmt: skip


def no_states(inputs: Inputs) -> Inputs:
    """The zeros that a module begins with, and a gradient of y alone."""
    assert inputs.c0 is not None
    zeros = dict(h0=torch.zeros_like(inputs.h0), c0=torch.zeros_like(inputs.c0))
    return inputs._replace(**zeros, grad_hn=None, grad_cn=None, grad_cells=None)


def no_gradient_of_y(inputs: Inputs) -> Inputs:
    return inputs._replace(grad_y=None)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every second of what lies there."""
    return tensor.repeat_interleave(2, -1)[..., ::2]


def of_many_steps(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, rows as far apart as those of one step of many, batch first."""
    return tensor.repeat_interleave(2, -2)[..., ::2, :] if tensor.dim() == 3 else tensor


@interpreted
@pytest.mark.parametrize(
    ("case", "change"),
    [
        *((case, all_seeds) for case in ALONE),
        (ALONE[1], no_states),
        (ALONE[5], no_states),
        (ALONE[1], no_gradient_of_y),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_one_step_with_a_projection_is_right(case: Case, change: Callable[[Inputs], Inputs]):
    expected = expect(case, change)
    found = run(backend, expected.inputs)
    verify(found, expected)
    y, hn, *_ = backend.forward(*expected.inputs[:6], save=False)
    assert torch.equal(y, found["y"]) and torch.equal(hn, found["hn"])
    version = hn._version
    y.zero_()
    assert torch.equal(hn, found["hn"]) and hn._version == version  # of one product, yet each by itself
    for layout in strided, of_many_steps:
        verify(run(backend, expected.inputs.map(layout)), expected)


TOKENS = [
    Case("more rows than tokens", "LSTM", directions=2),
    Case("fewer rows than tokens, packed", "GRU", lengths=RAGGED, inputs=40, directions=2),
    Case("projection, sums in float32", proj_size=5, bias=False, dtype=torch.bfloat16),
    Case("one step with a projection", steps=1, proj_size=5, directions=2),
    Case("no rows", "RNN_TANH", rows=0),
]


def one_hot(inputs: Inputs) -> Inputs:
    tokens = inputs.x.argmax(-1) if inputs.x.numel() else inputs.x.new_zeros(inputs.x.shape[:-1], dtype=torch.int64)
    return inputs._replace(x=torch.nn.functional.one_hot(tokens, inputs.x.shape[-1]).to(inputs.x.dtype))


@interpreted
@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_tokens_are_one_hot_rows(case: Case):
    expected = expect(case, one_hot)
    tokens = expected.inputs.x.long() @ torch.arange(case.inputs)
    found = run(backend, expected.inputs._replace(x=tokens))
    assert "grad x" not in found
    exact = {name: value for name, value in expected.exact.items() if name != "grad x"}
    verify(found, expected._replace(exact=exact))


@interpreted
@pytest.mark.parametrize("mode", backend.MODES)
@pytest.mark.parametrize("lengths", [(), RAGGED], ids=["padded", "packed"])
def test_one_launch_for_all_steps_equals_one_for_each(
    monkeypatch: pytest.MonkeyPatch, mode: str, lengths: tuple[int, ...]
):
    """Bit by bit: what a launch hands to the next is all that a step hands to the next."""
    inputs = all_seeds(make(Case("", mode, lengths=lengths, directions=2)))
    found = []
    for whole in (True, False):
        monkeypatch.setattr(triton_launch, "choose_path", lambda *shape: ROADS["tile"]._replace(whole=whole))  # noqa: B023
        found.append(run(backend, inputs))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


H200, A100, MI300 = CHIPS["sm_90"], CHIPS["sm_80"], CHIPS["gfx942"]
SMALL = Chip(8, 64 * KIB)


@pytest.mark.parametrize("chip", [H200, A100, MI300, SMALL], ids=["H200", "A100", "MI300", "small"])
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("mode", backend.MODES)
def test_every_shape_has_a_path_that_the_device_can_run(chip: Chip, precision: str, dtype: torch.dtype, mode: str):
    for hidden in (1, 16, 17, 64, 65, 100, 128, 200, 256, 500, 512, 768, 1000, 1024, 1500, 2048, 5000):
        for sequences in (1, 8, 16, 17, 32, 64, 65, 256, 4096, 2_000_000):
            for directions in (1, 2):
                path = choose_path(chip, mode, sequences, hidden, directions, dtype, precision)
                rows, units, _ = path.grid(sequences, hidden, directions)
                assert units <= 65_535  # rows may be more: theirs is the one dimension of a grid that may pass it
                assert (units - 1) * path.units < hidden <= units * path.units
                assert (rows - 1) * path.rows < sequences <= rows * path.rows
                at_once = path.tiles or rows
                assert not path.has_barrier or units * at_once * directions <= chip.multiprocessors
                assert path.name != "tile" or units == 1
                weights = len(CELLS[mode].gates) * path.units * hidden * dtype.itemsize
                assert path.name == "stream" or weights + triton_paths.SCRATCH <= chip.shared_memory


@pytest.mark.parametrize(
    ("hidden", "sequences", "dtype", "name", "programs"),
    [
        (64, 16, torch.bfloat16, "tile", 1),
        (64, 1000, torch.float32, "tile", 63),
        (128, 64, torch.bfloat16, "tile", 4),
        (128, 16, torch.float32, "spread", 8),
        (512, 64, torch.bfloat16, "spread", 128),
        (768, 16, torch.bfloat16, "spread", 48),
        (1024, 64, torch.bfloat16, "spread", 128),
        (1024, 16, torch.float32, "spread", 128),
        (2048, 16, torch.bfloat16, "stream", 128),
    ],
)
def test_paths_of_an_lstm_on_a_large_chip(hidden: int, sequences: int, dtype: torch.dtype, name: str, programs: int):
    path = choose_path(H200, "LSTM", sequences, hidden, 1, dtype, "tf32")
    rows, units, _ = path.grid(sequences, hidden, 1)
    assert (path.name, units * rows, path.whole) == (name, programs, True)


def test_rows_that_a_device_cannot_hold_at_once_are_launched_apart():
    path = choose_path(H200, "LSTM", 512, 1024, 1, torch.bfloat16, "tf32")
    assert (path.name, path.whole, path.rows * path.tiles, path.launches(512)) == ("spread", True, 64, 8)
    assert choose_path(H200, "LSTM", 512, 512, 1, torch.bfloat16, "tf32").launches(512) == 4
    # Where the weights stay nowhere, up to four launches of all steps are less than one for each step.
    path = choose_path(H200, "LSTM", 256, 2048, 1, torch.bfloat16, "tf32")
    assert (path.name, path.whole, path.launches(256)) == ("stream", True, 4)


def test_what_a_device_cannot_hold_at_once_is_launched_step_by_step():
    assert not choose_path(H200, "LSTM", 4096, 2048, 1, torch.bfloat16, "tf32").whole
    assert not choose_path(SMALL, "GRU", 16, 1024, 1, torch.bfloat16, "tf32").whole


def test_a_path_is_had_by_name_where_it_serves():
    scan = H200, "LSTM", 16, 64, 1, torch.bfloat16, "tf32"
    assert names_that_fit(*scan) == ("tile", "spread", "stream")
    assert [choose_path(*scan, name).name for name in names_that_fit(*scan)] == ["tile", "spread", "stream"]
    with pytest.raises(ValueError, match="expected a path of .*'stream'.*, got 'tile'"):
        choose_path(H200, "LSTM", 16, 4096, 1, torch.bfloat16, "tf32", "tile")


@interpreted
@pytest.mark.parametrize("name", ["tile", "spread", "stream"])
def test_a_backend_on_one_path_runs_that_and_is_right(monkeypatch: pytest.MonkeyPatch, name: str):
    seen: list[str] = []

    def spy(*scan: Any) -> Path:
        seen.append(choose_path(*scan).name)
        return choose_path(*scan)

    monkeypatch.setattr(triton_launch, "choose_path", spy)
    expected = expect(Case("", "GRU", directions=2, dtype=torch.float16))
    verify(run(backends.load(f"triton_{name}"), expected.inputs), expected)
    assert seen == [name, name]


BOTH = ("forward", "backward")
PRODUCTS = ("input", "projection")
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


# Those of the quick suite: all take a minute to compile.
FIRST = [variant for variant in VARIANTS if variant[1:4] in {("sm_90", "LSTM", 512), ("sm_80", "RNN_RELU", 17)}]
FIRST += [variant for variant in VARIANTS if variant[1:4] == ("gfx942", "GRU", 64)]


@functools.cache
def usages(first: bool) -> dict[Variant, Usage]:
    variants = [variant for variant in VARIANTS if (variant in FIRST) == first]
    return dict(zip(variants, compile_all(variants), strict=True))


@pytest.mark.parametrize(
    "variant",
    [pytest.param(variant, marks=() if variant in FIRST else pytest.mark.slow) for variant in VARIANTS],
    ids=lambda variant: "-".join(map(str, variant[:6])),
)
def test_machine_code_stays_within_limits(variant: Variant):
    """Spills: some bytes of a program whose weights take half of all registers are known and allowed, an array
    that went to memory is hundreds.  Reloads: weights stay in registers wherever there is a tensor core.  Exponentials:
    each value's are computed once, not by every warp."""
    usage, path = usages(variant in FIRST)[variant], variant.path()
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


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=() if step[1] in (512, 128) else pytest.mark.slow) for step in STEPS], ids=str
)
def test_a_step_is_short(step: tuple[str, int, int]):
    kernel, hidden, sequences = step
    (usage,), most = compile_all([Variant(kernel, "sm_90", "LSTM", hidden, sequences, "bf16")]), STEPS[step]
    assert 0 < usage.instructions <= most.instructions
    assert 0 < usage.barriers <= most.barriers
    # Triton 3.6 gives a thread fewer registers.
    assert usage.spilled <= most.spilled + (16 if triton.__version__ < "3.9" else 0)
    assert set(usage.loads) == (set() if hidden == 128 else {128})


OTHER_CHIPS = [(target, step) for target in ("sm_80", "sm_100", "gfx942") for step in STEPS]


@functools.cache
def spills(target: str, quick: bool) -> dict[tuple[str, int, int], int]:
    steps = [step for step in STEPS if (step[1] == 512) == quick]
    found = compile_all([Variant(kernel, target, "LSTM", *shape, "bf16") for kernel, *shape in steps])
    return {step: usage.spilled for step, usage in zip(steps, found, strict=True)}


@pytest.mark.parametrize(
    ("target", "step"),
    [pytest.param(*case, marks=() if case[1][1] == 512 else pytest.mark.slow) for case in OTHER_CHIPS],
    ids=str,
)
def test_on_other_chips_next_to_nothing_spills(target: str, step: tuple[str, int, int]):
    """All of them compile, too: Triton 3.6 and later have a compiler of sm_100's machine code."""
    assert spills(target, step[1] == 512)[step] <= max(16, STEPS[step].spilled)


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
        cwd=Folder(__file__).parents[1],
    )  # fmt: skip
    poll = done.stdout.index("ld.relaxed.gpu.global.s32")
    assert done.stdout.count("ld.relaxed") == 1 and "ld.acquire" not in done.stdout
    loop, fence = done.stdout.index("bra AGAIN", poll), done.stdout.index("fence.acq_rel.gpu", poll)
    barrier = done.stdout.index("bar.sync", poll)
    assert poll < loop < fence < barrier
    assert done.stdout.count("fence.acq_rel.gpu") == 1


class Kernel:
    """A kernel that notes its launches, on a device that refuses cooperative ones with ``error``."""

    def __init__(self, error: str = ""):
        self.error, self.launches, self.parts = error, [], []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def launch(*values: Any, **options: Any) -> None:
            cooperative = options.get("launch_cooperative_grid", False)
            if cooperative and self.error:
                raise RuntimeError(self.error)
            tile, begin, end, *_ = values[-6:]
            self.launches.append((begin, end, cooperative))
            self.parts.append((tile, grid[0], values[-7].storage_offset()))

        return launch


def launch(kernel: Kernel, steps: int) -> list[tuple[int, int, bool]]:
    kernel.launches.clear()
    w, rows = torch.zeros(4 * 256, 256, dtype=torch.bfloat16), Rows(steps, 16, steps * 16, None, None)
    triton_launch._launch(kernel, "LSTM", rows, [w], (), {}, None)
    return kernel.launches


def test_each_launch_of_a_part_has_its_rows_and_its_flags(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    path = Path("spread", 16, 16, 128, 8, 1, whole=True, tiles=3)
    monkeypatch.setattr(triton_launch, "choose_path", lambda *shape: path)
    kernel, w = Kernel(), torch.zeros(4 * 256, 256, dtype=torch.bfloat16)
    triton_launch._launch(kernel, "LSTM", Rows(5, 100, 500, None, None), [w], (), {}, None)
    assert kernel.launches == [(0, 5, True)] * 3
    assert kernel.parts == [(0, 3, 0), (3, 3, 3 * 16), (6, 1, 6 * 16)]  # 16 programs a tile


def test_a_refused_cooperative_launch_becomes_one_a_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(triton_launch, "_refused", set())
    assert launch(Kernel(), 3) == [(0, 3, True)]
    assert launch(Kernel(), 1) == [(0, 1, False)]  # one step has nobody to wait for
    with pytest.raises(RuntimeError, match="illegal memory access"):
        launch(Kernel("Triton Error [CUDA]: an illegal memory access was encountered"), 3)
    kernel, one_each = Kernel("Triton Error [CUDA]: too many blocks in cooperative launch"), [(0, 1), (1, 2), (2, 3)]
    with pytest.warns(RuntimeWarning, match="step by step"):
        assert launch(kernel, 3) == [(*step, False) for step in one_each]
    assert launch(kernel, 3) == [(*step, False) for step in one_each]  # it is not asked again


def test_a_new_length_or_batch_size_compiles_nothing():
    code = """
from fastrnn.kernels.triton_scan import scan_forward
from fastrnn.kernels.triton_scan_backward import scan_backward
from fastrnn.kernels.triton_one_step import step_product
for kernel in (scan_forward, scan_backward, step_product):
    numbers = [p for p in kernel.params if not p.is_constexpr and not p.name.startswith("p_")]
    print(*(p.name for p in numbers if p.do_not_specialize))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["tile_begin t_begin t_end T B N"] * 2 + ["B"]


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    import triton

    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "TRITON_INTERPRET=1" in str(backend.unavailable())
    assert "cpu" in str(backend.unsupported(torch.device("cpu"), torch.float32))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend.unavailable() is None
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    assert "3.5.1 is too old" in str(backend.unavailable())
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton cannot be imported" in str(backend.unavailable())


def test_tf32_of_a_product_follows_the_switch_for_matrix_products():
    before, found = torch.get_float32_matmul_precision(), []
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            found.append(triton_launch.matmuls_may_use_tf32())
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == [False, True]


def test_tf32_follows_the_switches_for_rnns_old_and_new():
    cudnn, found = torch.backends.cudnn, []
    for allowed in (False, True):
        with cudnn.flags(enabled=True, allow_tf32=allowed):
            found.append(triton_launch.rnns_may_use_tf32())
    assert found == [False, True]
    if hasattr(cudnn, "rnn"):
        with cudnn.flags(enabled=True, allow_tf32=True):
            cudnn.rnn.fp32_precision = "ieee"  # until it is set back torch refuses to read allow_tf32
            found.append(triton_launch.rnns_may_use_tf32())
            cudnn.rnn.fp32_precision = "tf32"
        assert found == [False, True, False]


def test_float64_is_refused_by_name():
    cuda = torch.device("cuda")
    assert "float64" in str(backend.unsupported(cuda, torch.float64))
    assert [backend.unsupported(cuda, dtype) for dtype in DTYPES.values()] == [None] * 3


@triton.jit
def far_product(p_x, p_w, p_y, STRIDE_U: tl.constexpr, OPERAND: tl.constexpr):
    o = tl.arange(0, 16)
    zeros = tl.zeros((16, 16), tl.float32)
    b = stream_product(p_x, 16, p_w, 0, zeros, 16, 16, 1, 1, 16, 0, STRIDE_U, 1, 16, 16, 16, OPERAND, "ieee")
    tl.store(p_y + o[:, None] * 16 + o[None, :], b[0])


@interpreted
def test_the_numbers_of_a_matrix_are_told_apart_beyond_2_to_the_31():
    """W_hh of more than 46340 units, of which memory is touched where this product reads."""
    import numpy as np

    apart = 160_000_000
    w = torch.from_numpy(np.empty(15 * apart + 16, np.int8))
    columns = w.as_strided((16, 16), (apart, 1)).random_(-9, 10)
    x, y = torch.randn(16, 16), torch.empty(16, 16)
    far_product[(1,)](x, w, y, STRIDE_U=apart, OPERAND=tl.float32)
    torch.testing.assert_close(y, x @ columns.t().float())
