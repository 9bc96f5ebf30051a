"""The built-in cells' files are what is printed of their definitions, and the printer knows what it cannot print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn.cell import Cell, CellError, Input, Recurrent, sigmoid, tanh
from fastrnn.compiler.built_in import BUILT_IN
from fastrnn.compiler.built_in.__main__ import files
from fastrnn.compiler.built_in.pointwise import pointwise
from fastrnn.compiler.built_in.print_cpp import print_file
from fastrnn.modes import CELLS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("place", files())
def test_what_is_checked_in_is_what_is_printed(place: str):
    assert (ROOT / place).read_text() == files()[place], "run python -m fastrnn.compiler.built_in"


@pytest.mark.parametrize("mode", BUILT_IN)
def test_the_table_of_cells_is_that_of_the_definitions(mode: str):
    """Gates, states and saved values, by which every backend makes its arrays."""
    cell, row = pointwise(BUILT_IN[mode]), CELLS[mode]
    assert row.gates == tuple(gate or "h" for gate in cell.gates)
    assert list(row.saved) == [slot.name for slot in cell.slots if cell.saved]
    assert row.has_cell_state == ("c" in cell.states)


def test_a_gate_whose_shares_are_read_apart_has_two_slots():
    cell = pointwise(BUILT_IN["GRU"])
    assert [slot.name for slot in cell.slots] == ["b_n", "r", "z", "n"]
    assert cell.rows_of_h == (2, 0, 1)


def test_a_changed_definition_changes_what_is_printed():
    class Changed(Cell):
        W, U = Input("i f g o"), Recurrent("i f g o")

        def step(self, x, h, c):
            a, b = self.W(x), self.U(h)
            c = sigmoid(a.f + b.f) * c - sigmoid(a.i + b.i) * tanh(a.g + b.g)
            return dict(h=sigmoid(a.o + b.o) * tanh(c), c=c)

    text = print_file({"LSTM": pointwise(Changed())})
    assert "c = f * c - i * g;" in text
    assert "const V v3 = -v2;" in text and "grad[0] = v3 * (g * (i * (S(1) - i)));" in text


@pytest.mark.parametrize("cell", [fastrnn.cells.ResetBeforeGRU(), fastrnn.cells.PeepholeLSTM(), fastrnn.cells.MUT1()])
def test_a_cell_of_another_form_is_refused(cell: Cell):
    with pytest.raises(CellError):
        pointwise(cell)


@pytest.mark.parametrize("backend", ["cpp", "numba"])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_closed_gate_of_a_users_cell_stops_a_product_that_overflows(name: str, backend: str):
    """The slope of a closed gate, f or z, is 0: it meets what it multiplies before that meets the gradient."""
    if reason := fastrnn.backends.available()[backend]:
        pytest.skip(reason)
    network = fastrnn.Network(getattr(fastrnn.cells, name)(), 1, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.bias_ih_l0[4:8] = -200.0  # type: ignore[index]
    start = torch.full((1, 1, 4), torch.finfo(torch.float32).max / 4)
    with fastrnn.use_backend(backend):
        y, _ = network(torch.ones(3, 1, 1), (torch.zeros(1, 1, 4), start) if name == "LSTM" else start)
        grads = torch.autograd.grad(y, list(network.parameters()), torch.full_like(y, 1e6))
    for grad in grads:
        torch.testing.assert_close(grad[4:8], torch.zeros_like(grad[4:8]))


NAMES = "|".join(f'"{name}"' for name in ("RNN", "RNN_TANH", "RNN_RELU", "LSTM", "LSTMCell", "GRU", "GRUCell"))
ASKS = re.compile(rf'(==|!=|\bin) \(?({NAMES})|\[:3\] [!=]= "RNN"|startswith\("RNN"|Mode::(lstm|gru|rnn_tanh|rnn_relu)')
# Definitions, what is printed of them and the table of it, and formats and TorchScript, whose names are law.
ELSEWHERE = re.compile(
    r"fastrnn/(cells|compiler/built_in|interop)/|fastrnn/(modes|scripting)\.py|_cells\.py|cells-inl\.h"
)


def test_few_lines_ask_for_a_cell_by_its_name():
    """A cell's facts are in its definition; where torch treats its cells unlike one another, one has to ask."""
    sources = [path for room in ("fastrnn", "kernels", "csrc") for path in (ROOT / room).rglob("*.*")]
    own = [path for path in sources if path.suffix in (".py", ".h", ".cpp") and not ELSEWHERE.search(path.as_posix())]
    found = [
        f"{path.name}: {line.strip()}" for path in own for line in path.read_text().splitlines() if ASKS.search(line)
    ]
    assert len(own) > 100
    assert 0 < len(found) <= 10, "\n".join(found)
