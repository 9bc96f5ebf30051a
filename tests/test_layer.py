"""Each backend, one layer at a time, against the float64 oracle; and what the interface promises beside values."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    CASES,
    RAGGED,
    Case,
    Inputs,
    Results,
    assert_close,
    differentiate,
    expect,
    gradients,
    make,
    run,
    search_path,
    verify,
)
from torch import Tensor

from fastrnn.modes import CELLS, TORCH_MODES

FEW = [
    Case("padded", "LSTM", directions=2, small=True, seldom=True),
    Case("packed, projection", "LSTM", lengths=RAGGED, proj_size=5, directions=2, small=True),
    Case("packed, no bias", "GRU", lengths=RAGGED, hidden=3, bias=False, small=True, seldom=True),
    Case("padded, no c", "GRU", small=True),
    Case("no saved gates", "RNN_TANH", directions=2, small=True, seldom=True),
    Case("no saved gates, packed", "RNN_RELU", lengths=RAGGED, small=True),
]
few = pytest.mark.parametrize("case", FEW, ids=str)


def few_with(name: str, values: Sequence[Any], ids: Callable[[Any], str] = str) -> pytest.MarkDecorator:
    """Few cases with each of these values; where Triton is interpreted each case and each value once, a NaN with relu,
    and the other pairs in the slow suite."""
    often = [case for case in FEW if case.small and not case.seldom]

    def seldom(case: Case, turn: int) -> bool:
        return case not in often or (often.index(case) + turn) % len(often) != len(often) - 1

    pairs = [
        pytest.param(replace(case, seldom=seldom(case, turn)), value, id=f"{ids(value)}-{case}")
        for turn, value in enumerate(values)
        for case in FEW
    ]
    return pytest.mark.parametrize(("case", name), pairs)


def forward(target, inputs: Inputs, save: bool = True):
    return target.module.forward(*inputs[:6], save=save)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(target, case: Case):
    expected = expect(case)
    verify(run(target.module, expected.inputs.map(target.move)), expected)


@few
def test_what_backward_needs_is_saved_in_the_documented_shapes_or_not_at_all(target, case: Case):
    inputs = make(case).map(target.move)
    with_saved, without = forward(target, inputs), forward(target, inputs, save=False)
    assert equal(with_saved._asdict() | {"saved": inputs.x}, without._asdict() | {"saved": inputs.x})
    assert without.saved is None
    cell, (directions, _, outputs) = CELLS[case.mode], inputs.h0.shape
    lead = (directions, inputs.x.shape[:-1].numel())
    gates, cells, hidden = with_saved.saved
    assert gates.shape == ((*lead, len(cell.saved) * case.hidden) if cell.saved else (0,))
    assert cells.shape == ((*lead, case.hidden) if cell.has_cell_state else (0,))
    assert hidden.shape == (*lead, outputs)


NARROW = [Case("narrow", dtype=dtype, small=True) for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_the_cell_state_of_a_narrow_dtype_is_saved_in_float32(target, case: Case):
    assert forward(target, make(case).map(target.move)).saved.cells.dtype == torch.float32


def numbers_of_every_kind(hidden: int) -> Inputs:
    """relu(x + b) in bfloat16, of every kind of number but the subnormal ones, which AVX512-BF16 takes for zeros."""
    bits = torch.arange(0x80, 0x7F81, 7, dtype=torch.int16)  # from the smallest normal number to the first NaN
    x = torch.cat([bits, torch.tensor([0x7F7F, 0x7F80, 0x7FC0], dtype=torch.int16)]).view(torch.bfloat16)
    x = x.reshape(1, -1, 1)
    weights = [x.new_ones(hidden, 1), x.new_zeros(hidden, hidden)]
    weights += [x[0, : 50 * hidden : 50, 0].contiguous(), x.new_zeros(hidden)]
    h0 = x.new_zeros(1, x.shape[1], hidden)
    return Inputs("RNN_RELU", x, None, h0, None, weights, torch.ones_like(h0), None, None)


def assert_rounded(y: Tensor, inputs: Inputs) -> None:
    """To the bit, as torch rounds."""
    wide = inputs.x.float() + inputs.weights[2].float()
    torch.testing.assert_close(y, wide.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(y, wide.view(torch.int32).bitwise_and(-65536).view(torch.float32).bfloat16())


@pytest.mark.parametrize("target", [("cpp", "cpu")], ids=["cpp"], indirect=True)
@pytest.mark.parametrize("hidden", [1, 16, 37])
def test_bfloat16_is_rounded_as_torch_rounds_it(target, hidden: int):
    inputs = numbers_of_every_kind(hidden)
    assert_rounded(forward(target, inputs, save=False).y, inputs)


@few_with("needs", [(True, True, False), (False, True, True), (True, False, True), (False, False, False)])
def test_only_what_is_needed_is_returned(target, case: Case, needs: tuple[bool, bool, bool]):
    inputs, exact, budgets = expect(case)
    found = run(target.module, inputs.map(target.move), *needs)
    kinds = (("grad x",), ("grad h0", "grad c0"), ("grad weights",))
    unwanted = [n for n in exact for kind, need in zip(kinds, needs, strict=True) if n.startswith(kind) and not need]
    assert not set(unwanted) & set(found)
    verify(found, expect(case)._replace(exact={n: t for n, t in exact.items() if n not in unwanted}))


def only_y(inputs: Inputs) -> Inputs:
    return inputs._replace(grad_hn=None, grad_cn=None)


def only_hn(inputs: Inputs) -> Inputs:
    return inputs._replace(grad_y=None, grad_cn=None)


def only_cn(inputs: Inputs) -> Inputs:
    return inputs._replace(grad_y=None, grad_hn=None)


def expanded(inputs: Inputs) -> Inputs:
    """What the sum of y sends back: one number, expanded."""
    return inputs._replace(grad_y=inputs.x.new_ones(()).expand(inputs.grad_y.shape), grad_hn=None, grad_cn=None)


@few_with("change", [only_y, only_hn, only_cn, expanded], lambda change: change.__name__)
def test_absent_and_expanded_gradients(target, case: Case, change: Callable[[Inputs], Inputs]):
    expected = expect(case, change)
    verify(run(target.module, expected.inputs.map(target.move)), expected)


def all_cells(inputs: Inputs) -> Inputs:
    """The cell state of every step has a gradient of its own, and two results have none."""
    lead, (directions, _, hidden) = inputs.grad_y.shape[:-1].numel(), inputs.c0.shape
    grad_cells = torch.randn(directions, lead, hidden, generator=torch.Generator().manual_seed(1)).to(inputs.x.dtype)
    grad_cells = grad_cells.to(torch.promote_types(inputs.x.dtype, torch.float32))
    return inputs._replace(grad_hn=None, grad_cn=None, grad_cells=grad_cells)


@pytest.mark.parametrize("case", [case for case in CASES if case.mode == "LSTM"], ids=str)
def test_gradients_of_the_cell_states_of_all_steps(target, case: Case):
    expected = expect(case, all_cells)
    verify(run(target.module, expected.inputs.map(target.move)), expected)


def transposed(tensor: Tensor) -> Tensor:
    """The same values, with the first and last dimensions stored the other way round."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def inside_a_larger_one(tensor: Tensor) -> Tensor:
    """The same values, with strides larger than the sizes, at an odd offset, between values that are NaN."""
    larger = tensor.new_full([size + 3 for size in tensor.shape], float("nan"))
    view = larger[tuple(slice(1, size + 1) for size in tensor.shape)]
    return view.copy_(tensor)


def every_other(tensor: Tensor) -> Tensor:
    """The same values with stride 2 in the last dimension."""
    return torch.stack([tensor, torch.full_like(tensor, float("nan"))], -1)[..., 0]


LAYOUTS = [transposed, inside_a_larger_one, every_other]


@few_with("layout", LAYOUTS, lambda layout: layout.__name__)
def test_any_strides(target, case: Case, layout: Callable[[Tensor], Tensor]):
    expected = expect(case)
    verify(run(target.module, expected.inputs.map(target.move).map(layout)), expected)


@few
def test_nothing_returned_shares_memory_and_inputs_stay_as_they_were(target, case: Case):
    inputs = make(case).map(target.move)
    y, hn, cn, saved = forward(target, inputs)
    found = [y, hn, cn, *saved, *gradients(target.module, inputs, saved).values(), *inputs.tensors()]
    places = [tensor.untyped_storage().data_ptr() for tensor in found if tensor.numel()]
    assert len(places) == len(set(places))
    for now, before in zip(inputs.tensors(), make(case).map(target.move).tensors(), strict=True):
        assert torch.equal(now, before)


@few
def test_outputs_may_be_changed_in_place_before_backward_and_backward_run_twice(target, case: Case):
    expected = expect(case)
    inputs = expected.inputs.map(target.move)
    y, hn, cn, saved = forward(target, inputs)
    for output in (y, hn, cn):
        output.fill_(float("nan"))
    first, second = gradients(target.module, inputs, saved), gradients(target.module, inputs, saved)
    verify(first, expected, only="grad")
    assert equal(first, second)


LARGE = [
    case
    for mode in TORCH_MODES
    for case in (
        Case("two directions", mode, steps=20, rows=9, inputs=70, hidden=130, directions=2),
        Case("packed", mode, lengths=(20, 17, 9, 9, 8, 2, 1), inputs=70, hidden=130),
        Case("one row", mode, steps=20, rows=1, inputs=70, hidden=256),
    )
]


@pytest.mark.parametrize("case", [*FEW, *LARGE], ids=str)
def test_two_runs_give_the_same_bits(target, case: Case):
    inputs = make(case).map(target.move)
    assert equal(run(target.module, inputs), run(target.module, inputs))


@pytest.mark.parametrize("target", [("cpp", "cpu"), ("numba", "cpu")], ids=["cpp", "numba"], indirect=True)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_any_number_of_threads(target, case: Case):
    expected, found = expect(case), []
    before = torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(run(target.module, expected.inputs))
    torch.set_num_threads(before)
    for results in found:
        verify(results, expected)
        assert target.name != "cpp" or equal(results, found[0]), "the C++ backend promises the same bits"


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def with_one(value: float, case: Case) -> Inputs:
    """In the second step of the first row."""
    inputs = make(case)
    inputs.x.view(-1, case.inputs)[len(case.lengths) or case.rows, 0] = value
    return inputs


def assert_spread_within_its_row(found: Results, value: float, case: Case) -> None:
    clean, exact = expect(case), differentiate(with_one(value, case).map(Tensor.double))
    for name in ("y", "hn", "cn"):
        assert_close(found[name], exact[name], clean.budgets[name], case.dtype, name)
    for name in ("grad h0", "grad c0") if "grad c0" in found else ("grad h0",):
        assert_close(found[name][:, 1:], clean.exact[name][:, 1:], clean.budgets[name], case.dtype, name)
    if case.mode == "RNN_RELU" and value != value:  # of which a NaN has a slope, and gradients are finite
        assert exact["grad h0"].isfinite().all() and exact["grad x"].isfinite().all()
        for name in ("grad h0", "grad x"):
            budget = 8 * torch.finfo(case.dtype).eps * max(1.0, exact[name].abs().max().item())
            assert_close(found[name], exact[name], max(budget, clean.budgets[name]), case.dtype, name)


# The Triton interpreter computes with NumPy, which warns of what this test is about.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@few_with("value", NOT_FINITE)
def test_what_is_not_finite_spreads_as_in_torch_and_only_within_its_row(target, case: Case, value: float):
    assert_spread_within_its_row(run(target.module, with_one(value, case).map(target.move)), value, case)


@pytest.mark.parametrize("target", [("cpp", "cpu")], ids=["cpp"], indirect=True)
@pytest.mark.parametrize("rows", [3, 4, 15, 16, 17, 31, 32, 33, 49, 65])
@pytest.mark.parametrize(("mode", "inputs", "hidden"), [("LSTM", 70, 33), ("GRU", 32, 96), ("RNN_TANH", 5, 270)])
def test_bfloat16_of_any_number_of_rows(target, mode: str, inputs: int, hidden: int, rows: int):
    """Whatever is left over of tiles: AMX multiplies 16 rows by 32 numbers of k."""
    case = Case("tiles", mode, steps=3, rows=rows, inputs=inputs, hidden=hidden, dtype=torch.bfloat16)
    expected = expect(case)
    verify(run(target.module, expected.inputs.map(target.move)), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@few
def test_nothing_stays_behind_from_an_earlier_call(target, case: Case):
    larger = make(replace(case, hidden=case.hidden + 20, lengths=(), steps=7, rows=5, inputs=9))
    run(target.module, larger.map(lambda tensor: torch.full_like(tensor, float("nan"), device=target.device)))
    expected = expect(case)
    verify(run(target.module, expected.inputs.map(target.move)), expected)


# Each input twice, the second time to the same bits.
ELSEWHERE = """
import sys
import torch
from support import run
from fastrnn.backends import cpp

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)  # NaN in what nobody has written
found = []
for inputs in torch.load(sys.argv[1], weights_only=False):
    found.append(run(cpp, inputs))
    for name, tensor in run(cpp, inputs).items():
        assert torch.equal(tensor.view(torch.uint8), found[-1][name].view(torch.uint8)), name
torch.save(found, sys.argv[2])
"""


@pytest.mark.parametrize("target", [("cpp", "cpu")], ids=["cpp"], indirect=True)
@pytest.mark.parametrize(
    "isa", ["avx512_amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "generic", "neon_bf16", "neon_dotprod"]
)
def test_every_instruction_set(target, isa: str, tmp_path: Path):
    """FASTRNN_ISA is read once, when the core is loaded: each takes a process, whose results are judged here."""
    core = importlib.import_module("fastrnn._core")
    if isa not in core.supported_isas():
        pytest.skip(f"this CPU or this build has no {isa}")
    cases = [case for case in CASES if case.dtype in (torch.float32, torch.bfloat16)]
    laid_out = [(case, layout) for case in FEW for layout in LAYOUTS]
    spoilt = [(value, case) for value in NOT_FINITE for case in FEW]
    rounded = [numbers_of_every_kind(hidden) for hidden in (1, 16, 37)]
    given = [expect(case).inputs for case in cases] + [expect(case).inputs.map(layout) for case, layout in laid_out]
    given += [with_one(*pair) for pair in spoilt] + rounded
    torch.save(given, tmp_path / "given")
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "given"), str(tmp_path / "found")]
    environment = os.environ | {"FASTRNN_ISA": isa, "PYTHONPATH": search_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = iter(torch.load(tmp_path / "found"))
    for case in [*cases, *(case for case, _ in laid_out)]:
        verify(next(found), expect(case))
    for value, case in spoilt:
        assert_spread_within_its_row(next(found), value, case)
    for inputs in rounded:
        assert_rounded(next(found)["y"], inputs)
    assert next(found, None) is None
