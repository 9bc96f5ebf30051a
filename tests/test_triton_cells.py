"""Any cell on Triton: its printed kernels through the interpreter, or on a GPU where there is one, and the machine code
that they become, compiled for GPUs that need not be there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
import torch
from cell_budgets import Everything, Form, Inputs, by_equations, expected, make, results
from cell_oracles import Case, Row, judge, measured, verify
from cell_rows import ROWS
from cell_runs import RUNS, compiled_run
from support import assert_close
from test_compiler import Gru, Headed, Lstm, Projected, ReadOut, ResetBefore
from test_random_cells import safe
from torch import Tensor
from triton_cells_offline import Usage, Variant, compile_all

import fastrnn
from fastrnn import backends, fused
from fastrnn.backends import triton as backend
from fastrnn.backends.triton_launch import INTERPRETED, on_device
from fastrnn.cell import Cell, Heads, Recurrent
from fastrnn.compiler.print_triton import print_triton
from fastrnn.compiler.program import compile_cell
from fastrnn.fused import machine
from fastrnn.fused import triton as engine
from fastrnn.fused.layer import Steps, direction

triton = pytest.importorskip("triton", minversion="3.6")
import triton.language as tl  # noqa: E402
from fastrnn.kernels import triton_functions, triton_phases  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
runs = pytest.mark.skipif(not (GPU or INTERPRETED), reason="runs on a GPU or through Triton's interpreter")


FORMS = [
    Form("whole"),
    Form("float64, rows end early", lengths=(3, 1), dtype=torch.float64),
    Form("blocks of units", block=16, hidden=34),
    Form("packed, rows end early", lengths=(4, 2, 2, 1)),
    Form("packed, rows enter late", lengths=(4, 2, 2, 1), reverse=True),
    Form("blocks, two tiles of rows, packed", lengths=(3,) + (2,) * 10 + (1,) * 7, reverse=True, block=16),
]


def by_triton(cell: Cell, form: Form, inputs: Inputs) -> dict[str, Tensor]:
    sizes = torch.tensor(inputs.batch_sizes) if form.lengths else None
    steps = Steps(len(inputs.batch_sizes), inputs.batch_sizes[0], len(inputs.x), sizes, form.reverse)
    compiled = compile_cell(cell)
    y, states, _ = direction(engine.scan, compiled, inputs.parameters, inputs.x, steps, inputs.states, inputs.extras)
    return results(inputs, y, states)


# Each definition in two forms, the one that has everything in all.
PAIRS = [(Everything, form) for form in FORMS]
PAIRS += [
    (cell, FORMS[(2 * number + k) % len(FORMS)])
    for number, cell in enumerate((Lstm, Projected, ResetBefore, Headed, ReadOut))
    for k in (0, 1)
]


@runs
@pytest.mark.parametrize(("cell", "form"), PAIRS, ids=lambda each: getattr(each, "__name__", str(each)))
def test_kernels_are_the_equations(monkeypatch: pytest.MonkeyPatch, cell: type[Cell], form: Form):
    if form.block:
        monkeypatch.setattr(engine, "WHOLE", 0)
        monkeypatch.setattr(engine, "BLOCK", form.block)
    inputs, exact, budgets = expected(cell(), form, DEVICE)
    found = by_triton(cell(), form, inputs)
    for name, value in exact.items():
        assert_close(found[name], value, budgets[name], form.dtype, name)


def test_the_budgets_see_a_fault_of_a_thousandth():
    """In any one parameter, in what is summed up of it or in what it leads to."""
    inputs, exact, budgets = expected(Everything(), FORMS[0], torch.device("cpu"))
    for name in inputs.parameters:
        other = {own: tensor * (1.001 if own == name else 1) for own, tensor in inputs.parameters.items()}
        found = by_equations(Everything(), FORMS[0], inputs._replace(parameters=other))
        assert any((found[own].double() - value).abs().max() > budgets[own] for own, value in exact.items()), name


LATE = Case("packed, backwards: rows enter late", lengths=(3, 2, 1), reverse=True)


@pytest.mark.skipif(not INTERPRETED, reason="runs through Triton's interpreter")
@pytest.mark.parametrize("row", [row for row in ROWS if not row.needs], ids=str)
def test_cells_of_the_library_are_what_their_sources_say(row):
    """Forward and backward, in float64, as ``test_cells.py`` judges the other engines."""
    judge(compiled_run(engine.scan), row, LATE)


@pytest.mark.skipif(not INTERPRETED, reason="runs through Triton's interpreter")
@pytest.mark.parametrize("seed", range(6))
def test_cells_that_nobody_has_written(seed: int):
    row = Row(safe(seed), f"seed{seed}", step=lambda *_: None, sizes={"other_size": 4}, multiple=2)  # type: ignore[arg-type, return-value]
    verify(measured(compiled_run(engine.scan), row, LATE), measured(RUNS["equations"], row, LATE))


@triton.jit
def functions(p_x, p_y, N: tl.constexpr):
    o = tl.arange(0, N)
    x = tl.load(p_x + o)
    tl.store(p_y + o, triton_functions.exp(x))
    tl.store(p_y + N + o, triton_functions.sigmoid(x))
    tl.store(p_y + 2 * N + o, triton_functions.tanh(x))
    tl.store(p_y + 3 * N + o, triton_functions.softplus(x))
    tl.store(p_y + 4 * N + o, triton_functions.relu(x))


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functions_are_good_to_a_few_ulp(dtype: torch.dtype):
    """Of all sizes, and at either end; the hardware's exponential, of an argument within 0.35, may be off by two.  The
    powers within sigmoid and its like are as wrong as their exponent is rounded, by half a unit of it, times x."""
    ends = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e30, -1e30, 100.0, -100.0]
    sizes = torch.logspace(-8, 1.9, 1019, dtype=torch.float64)
    x = torch.cat([torch.tensor(ends + [0.0], dtype=torch.float64), sizes, -sizes]).to(dtype)[:2048].to(DEVICE)
    y = torch.empty(5, 2048, dtype=dtype, device=DEVICE)
    with on_device(DEVICE):
        functions[(1,)](x, y, 2048)
    wide = x.cpu().double()
    exact = [wide.exp(), wide.sigmoid(), wide.tanh(), torch.logaddexp(wide, wide * 0), wide.relu()]
    exact[3][:2] = torch.tensor([math.inf, 0.0])  # infinity less infinity is none
    tiny = torch.finfo(dtype).tiny  # below, a GPU has none
    units = 6 + torch.stack([wide * 0, *[wide.abs().nan_to_num(0, 0)] * 3, wide * 0]).nan_to_num(0)
    for found, right, ulp in zip(y.cpu().double(), exact, units, strict=True):
        right = torch.where(right > torch.finfo(dtype).max, math.inf, right)
        allowed = (ulp * torch.finfo(dtype).eps * right.abs()).nan_to_num(0, 0) + tiny
        torch.testing.assert_close(found.isnan(), right.isnan())
        assert ((found == right) | right.isnan() | ((found - right).abs() <= allowed)).all()


@triton.jit
def far_product(p_x, p_w, p_y, i_u, K: tl.constexpr, Z: tl.constexpr, TRANSPOSED: tl.constexpr):
    o = tl.arange(0, 16)[:, None]
    total = triton_phases.zeros_each(1, 16, 16, tl.float32)
    total = triton_phases.multiply(total, p_x + o * K, o < 16, p_w, i_u, K, Z, TRANSPOSED, 1, 1, 16, 16)
    tl.store(p_y + o * 16 + tl.arange(0, 16)[None, :], total[0])


@pytest.mark.skipif(not INTERPRETED, reason="runs through Triton's interpreter")
@pytest.mark.parametrize("transposed", [False, True])
def test_the_numbers_of_a_matrix_are_told_apart_beyond_2_to_the_31(transposed: bool):
    """Of which memory is touched where this product reads: the last units of a matrix of 16 columns, or rows."""
    units = 160_000_000
    w = torch.from_numpy(numpy.empty(units * 16, numpy.int8)).view((16, units) if transposed else (units, 16))
    own = w[:, -16:] if transposed else w[-16:].t()
    own.copy_(torch.randint(-9, 10, (16, 16)))
    x, y = torch.randn(16, 16), torch.empty(16, 16)
    far_product[(1,)](x, w, y, units - 16, K=16, Z=units, TRANSPOSED=transposed)
    torch.testing.assert_close(y, x @ own.float())


@runs
def test_what_is_infinite_concerns_its_own_head_and_row():
    class Pair(Cell):
        U = Recurrent("", kind=Heads(2))

        def step(self, x, h):
            return dict(h=0.5 * self.U(h) + x)

        square = True

    inputs = make(Pair(), Form(""), 0)._replace(x=torch.randn(9, 20))
    inputs.states[0][1, 3] = math.inf
    y = [
        scan(Pair(), Form(""), inputs.to(torch.float32, device))["y"].cpu()
        for scan, device in ((by_equations, torch.device("cpu")), (by_triton, DEVICE))
    ]
    assert not y[0].isfinite().all()
    assert torch.equal(y[0].isfinite(), y[1].isfinite())


@runs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_network_runs_on_triton_where_it_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    """Narrow numbers are float32 within the loop on both sides: layers differ by a rounding of their outputs each."""
    torch.manual_seed(0)
    network = fastrnn.Network(Lstm, 5, 8, num_layers=2, bidirectional=True, device=DEVICE, dtype=dtype)
    x = torch.randn(3, 2, 5, device=DEVICE, dtype=dtype)
    with fastrnn.use_backend("reference"):
        wanted, _ = network(x)
    launched = []
    monkeypatch.setattr(engine, "run", lambda *args, run=engine.run: launched.append(args[1]) or run(*args))
    with fastrnn.use_backend("triton"):
        y, _ = network(x)
    y.sum().backward()
    assert launched == ["keeping"] * 4 + ["backward"] * 4
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.testing.assert_close(y, wanted, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_what_triton_cannot_serve_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [engine.unsupported(cuda, dtype) for dtype in engine.DTYPES] == [None] * 4
    assert "int8" in str(engine.unsupported(cuda, torch.int8))
    monkeypatch.setattr(backend, "INTERPRETED", False)
    assert "cpu" in str(engine.unsupported(cpu, torch.float32))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with backends.use_backend("triton"), pytest.raises(backends.BackendError, match="kernels run on a GPU"):
        fastrnn.Network(Lstm, 3, 4)(torch.zeros(1, 1, 3))


def test_tensors_on_a_gpu_choose_triton_and_others_do_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "unavailable", lambda: None)
    fused._fuses.cache_clear()
    compiled = fused.prepare(Gru())
    assert fused.choose(compiled, torch.device("cuda"), torch.float32) is engine.scan
    assert fused.choose(compiled, torch.device("cpu"), torch.float32) is not engine.scan
    fused._fuses.cache_clear()


@pytest.mark.parametrize("hidden", [1, 16, 17, 128, 200, 256, 257, 500, 1024])
@pytest.mark.parametrize("cell", [Lstm, Gru, Projected, Everything], ids=lambda c: c.__name__)
@pytest.mark.parametrize("which", ["keeping", "backward"])
def test_a_form_holds_what_it_computes_at_once(cell: type[Cell], which: str, hidden: int):
    program = getattr(compile_cell(cell()), which)
    sizes = dict.fromkeys(("input_size", "hidden_size", "low_size"), hidden) | dict(proj_size=hidden // 2 + 1)
    form = engine.choose_form(program, sizes, torch.float32)
    held = engine.held(program, form.whole)
    for name, units in form.units.items():
        assert units & (units - 1) == 0 and units >= 16
        assert units >= sizes[name] or not form.whole
        assert held * units * engine.ROWS <= engine.HELD * 32 * form.warps or units == 16
    assert form.whole or hidden > 64


def test_a_printed_file_lies_in_the_folder_of_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    text = print_triton(compile_cell(Gru()).forward, True)
    assert engine.load(text) is not None
    (file,) = (tmp_path / "cache").glob("*.py")
    assert file.read_text() == text
    file.write_text("another text")  # half of a file, or somebody else's
    assert engine.load(text) is not None
    assert file.read_text() == text
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.is_file()] == [".py"]
    monkeypatch.setattr(machine, "folder", lambda: None)
    assert engine.load(text) is not None
    assert engine.load(text).fn.__code__.co_filename != str(file)


# Whole and in blocks, products and means of heads, packed, the wider type, and another maker's.
VARIANTS = [
    *(Variant("LSTM", which, 128, "fp32") for which in ("keeping", "backward")),
    Variant("GRU", "backward", 512, "fp32", packed=True),
    Variant("SLSTM", "forward", 768, "fp32"),
    Variant("BlockGRU", "backward", 64, "fp32"),
    Variant("GRU", "backward", 64, "fp64"),
    Variant("GRU", "backward", 64, "fp32", target="gfx942"),
]


@pytest.fixture(scope="module")
def usages() -> dict[Variant, Usage]:
    return dict(zip(VARIANTS, compile_all(VARIANTS), strict=True))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_machine_code_stays_within_limits(usages: dict[Variant, Usage], variant: Variant):
    """What float64 takes in registers is twice as much, of which some is spilled."""
    usage = usages[variant]
    assert usage.registers <= (512 if variant.target == "gfx942" else 255)
    assert usage.spilled <= (512 if variant.dtype == "fp64" else 16)
    assert usage.shared <= 48 * 1024


def test_a_new_length_or_batch_size_compiles_nothing(usages: dict[Variant, Usage]):
    assert all(usage.unspecialized == ["T", "B"] for usage in usages.values())
