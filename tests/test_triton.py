"""The Triton backend without a GPU: every path through the interpreter, and the table of paths."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import RAGGED, Case, Inputs, expect, make, run, verify
from triton_offline import CHIPS, DTYPES

from fastrnn import backends
from fastrnn.backends import triton as backend
from fastrnn.backends import triton_launch, triton_paths
from fastrnn.backends.triton_paths import KIB, Chip, Path, choose_path, names_that_fit
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
