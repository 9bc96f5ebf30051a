"""Every cell of the library is what its source says: outputs, last states and gradients in float64."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import warnings
from pathlib import Path

import pytest
import torch
import torchrecurrent
from cell_oracles import CASES, Row, draw, expected, judge, measured, verify
from cell_rows import LOOPS, PACKAGES, ROWS, ZOO
from cell_runs import RUNS, run_equations, unavailable

from fastrnn import cells
from fastrnn.cell import Cell, equations
from fastrnn.cell.trace import trace


@functools.cache
def missing(package: str) -> str:
    """Why a package cannot be imported, or nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(package)
        except ImportError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_cells_are_what_their_sources_say(run, row: Row, case):
    if row.needs and (reason := missing(row.needs)):
        pytest.skip(f"compares with another package: {reason}")
    if reason := unavailable(run):
        pytest.skip(reason)
    judge(run, row, case)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.needs], ids=str)
def test_the_comparison_fails_for_another_cell(row: Row):
    """A change of 10^-7 in any parameter, input or state is seen, and each has a gradient to be compared."""
    case = CASES[0]
    wanted = expected(row, case)

    def perturbed(name: str):
        def run(cell, parameters, x, states, extras, batch_sizes, reverse):
            def shifted(own, tensor):
                uneven = torch.arange(1, tensor.numel() + 1).reshape(tensor.shape) / tensor.numel()
                return tensor + 1e-7 * uneven if own == name else tensor

            parameters = {own: shifted(own, tensor) for own, tensor in parameters.items()}
            extras = {own: shifted(own, tensor) for own, tensor in extras.items()}
            states = [shifted(f"state {k}", state) for k, state in enumerate(states)]
            return run_equations(cell, parameters, shifted("x", x), states, extras, batch_sizes, reverse)

        return run

    for name in draw(row, case).leaves():
        assert wanted[f"gradient of {name}"].abs().max() > 1e-6
        with pytest.raises(AssertionError, match="from the oracle's"):
            verify(measured(perturbed(name), row, case), wanted)


@pytest.mark.parametrize("name", cells.__all__)
def test_every_cell_has_an_oracle(name: str):
    assert any(type(row.cell) is getattr(cells, name) and not row.needs for row in ROWS)


def test_every_cell_of_torchrecurrent_is_expressed():
    """Of its 33 families one, RHN, cannot be imported; it is among the loops."""
    exported = {name for name in torchrecurrent.__all__ if name.endswith("Cell")}
    asked = {type(row.cell).__name__.lower() + "cell" for row in ZOO}
    assert {name.lower() for name in exported} <= asked
    assert any(type(row.cell) is cells.RHN for row in LOOPS)


def definitions() -> list[ast.ClassDef]:
    files = sorted(Path(inspect.getfile(cells)).parent.glob("*.py"))
    return [node for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("node", definitions(), ids=lambda node: node.name)
def test_a_definition_is_short_and_names_its_source(node: ast.ClassDef):
    docstring, *body = node.body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    assert "Source:" in str(docstring.value.value)
    lines = [line for part in body for line in ast.unparse(part).splitlines()]
    assert len(lines) <= 15 and node.end_lineno and docstring.end_lineno
    assert node.end_lineno - docstring.end_lineno <= 18  # with the blank lines between


def test_all_definitions_are_exported():
    assert sorted(node.name for node in definitions()) == sorted(cells.__all__)
    assert all(issubclass(getattr(cells, name), Cell) for name in cells.__all__)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "ProjectedLSTM", "GRU"])
def test_parameters_of_torch_nn_have_its_names_and_shapes(name: str):
    projection = 3 if name == "ProjectedLSTM" else 0
    options = dict(proj_size=projection) if projection else {}
    module = getattr(torch.nn, name.removeprefix("Projected"))(4, 7, **options)
    traced = trace(getattr(cells, name)())
    sizes = dict(input_size=4, hidden_size=7, proj_size=projection)
    found = equations.parameter_shapes(traced.parts, traced.columns, sizes)
    assert found == {key.removesuffix("_l0"): tuple(each.shape) for key, each in module.named_parameters()}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # NumPy asks a tensor of torch
def test_a_gru_with_its_reset_before_is_that_of_keras(monkeypatch):
    """In float32, in which Keras multiplies; its gates are z, r, n, and its matrices transposed."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="compares with Keras")
    row = next(row for row in ROWS if type(row.cell) is cells.ResetBeforeGRU)
    inputs = draw(row, CASES[0], torch.float32)
    p = {name: tensor.detach() for name, tensor in inputs.parameters.items()}
    (w_r, w_z, w_n), (u_r, u_z) = p["weight_ih"].chunk(3), p["weight_hh"].chunk(2)
    b_r, b_z, b_n = (p["bias_ih"] + torch.cat([p["bias_hh"], p["bias_nh"]])).chunk(3)
    layer = keras.layers.GRU(len(u_r), reset_after=False, return_sequences=True)
    x = inputs.x.detach()
    layer.build((x.shape[1], None, x.shape[2]))
    layer.set_weights(
        [torch.cat(each).mT.numpy() for each in ((w_z, w_r, w_n), (u_z, u_r, p["weight_nh"]))]
        + [torch.cat([b_z, b_r, b_n]).numpy()]
    )
    y = layer(x.transpose(0, 1), initial_state=inputs.states[0].detach()).transpose(0, 1)
    torch.testing.assert_close(y.double(), expected(row, CASES[0])["output"], rtol=0, atol=2e-6)


def test_packages_that_a_row_needs_are_named():
    assert {row.needs.partition(".")[0] for row in PACKAGES} == {"ncps", "xlstm", "minGRU_pytorch"}


@pytest.mark.parametrize("row", [row for row in ROWS if not row.needs], ids=str)
@pytest.mark.parametrize("name", ["cpp", "numba"])
def test_in_float32_an_engine_is_as_near_as_the_loop(name: str, row: Row):
    """Its own order of sums and its own functions, of a few units of the last digit where torch's are of one or two: as
    near to float64 as the definition in float32, but for a small factor, or within some roundings of the numbers."""
    if reason := unavailable(RUNS[name]):
        pytest.skip(reason)
    case, single = CASES[0], torch.float32
    wanted = expected(row, case)
    ours, loop = measured(RUNS[name], row, case, single), measured(run_equations, row, case, single)
    for what, exact in wanted.items():
        scale = max(1.0, exact.abs().max().item())
        budget = 4 * (loop[what] - exact).abs().max().item() + 16 * torch.finfo(single).eps * scale
        assert (ours[what] - exact).abs().max().item() <= budget, what
