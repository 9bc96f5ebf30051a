"""What the declarations of a cell mean, and its functions, traced and called with tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from cell_definitions import applying

from fastrnn import cell as language
from fastrnn import cells
from fastrnn.cell import (
    Antisymmetric,
    Cell,
    CellError,
    Diagonal,
    Heads,
    Input,
    LowRank,
    Recurrent,
    Scalar,
    SequenceInput,
    State,
    StepInput,
    Vector,
    equations,
    functions,
    layer_norm,
    naming,
    rms_norm,
    sigmoid,
    tanh,
)
from fastrnn.cell.graph import POINTWISE
from fastrnn.cell.naming import cell_of, key_of
from fastrnn.cell.regularise import Regularised
from fastrnn.cell.trace import trace


class Good(Cell):
    dt = 0.1
    W, U = Input(), Recurrent()

    def step(self, x, h):
        return dict(h=h + self.dt * tanh(self.W(x) + self.U(h)))


def random_values(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1


EXACT: dict[str, Callable[..., torch.Tensor]] = {
    "softplus": torch.nn.functional.softplus,
    "leaky_relu": lambda v: torch.nn.functional.leaky_relu(v, 0.01),
    "hard_sigmoid": torch.nn.functional.hardsigmoid,
    "softsign": torch.nn.functional.softsign,
    "silu": torch.nn.functional.silu,
    "clip": lambda v: v.clamp(-0.5, 0.5),
    "identity": lambda v: v,
    "layer_norm": lambda v: torch.nn.functional.layer_norm(v, v.shape[-1:]),
    "rms_norm": lambda v: torch.nn.functional.rms_norm(v, v.shape[-1:], eps=1e-6),
    "mean": lambda v: v.mean(-1, keepdim=True).expand_as(v),
    "where": lambda v: torch.where(v > 0, 2 * v, -v),
    "maximum": lambda v: torch.maximum(v, -v),
    "minimum": lambda v: torch.minimum(v, -v),
    "activation": torch.tanh,
}
ARGUMENTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "clip": lambda v: (v, -0.5, 0.5),
    "where": lambda v: (v > 0, 2 * v, -v),
    "maximum": lambda v: (v, -v),
    "minimum": lambda v: (v, -v),
}


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_functions_are_torchs(name: str):
    """And traced they have the size of their argument."""
    function = getattr(language, name)
    function = function("tanh") if name == "activation" else function
    v = random_values(3, 6) - (0 if name in ("log", "sqrt") else 0.6)
    exact = EXACT[name] if name in EXACT else getattr(torch, name)
    torch.testing.assert_close(function(*ARGUMENTS.get(name, lambda v: (v,))(v)), exact(v), rtol=1e-14, atol=1e-15)
    made = applying(lambda v: function(*ARGUMENTS.get(name, lambda v: (v,))(v + 0)))
    assert trace(made()).output.size == "hidden_size"


def test_a_number_beside_a_tensor_is_of_its_dtype():
    """0.9 of float32 is another number."""
    a = torch.tensor([0.5, 1.5], dtype=torch.float64)
    assert language.minimum(a, 0.9).tolist() == [0.5, 0.9]
    assert language.maximum(0.9, a).tolist() == [0.9, 1.5]


def test_every_operation_has_a_function_or_an_operator():
    operators = {"add", "sub", "mul", "div", "gt", "ge"}
    assert set(POINTWISE) <= operators | set(functions.FUNCTIONS)
    assert set(functions.FUNCTIONS) <= set(language.__all__)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_norms_of_heads_and_of_several_values(heads: int):
    a, b = random_values(4, 6), random_values(4, 6) * 2

    def parts(v):
        return v.reshape(4, heads, -1)

    joined = torch.cat([parts(a), parts(b)], -1)
    for function, exact in (
        (layer_norm, lambda v: torch.nn.functional.layer_norm(v, v.shape[-1:])),
        (rms_norm, lambda v: torch.nn.functional.rms_norm(v, v.shape[-1:], eps=1e-6)),
    ):
        found = function(a, b, heads=heads)
        wanted = exact(joined).chunk(2, -1)
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(parts(mine), theirs, rtol=1e-13, atol=1e-14)


def test_numbers_of_numpy_are_numbers():
    cells = [
        applying(lambda v, k=k: k(2) * v + v / k(4) - k(1)) for k in (float, numpy.float64, numpy.float32, numpy.int64)
    ]
    first, *others = (repr(trace(made()).graph.nodes) for made in cells)
    assert all(other == first for other in others)


def test_python_of_constants_is_not_traced():
    """An if on a constant chooses between two cells; equal constants are one cell, and traced once."""

    class Made(Cell):
        gated = True
        W, U = Input("z n", bias=False), Recurrent()

        def step(self, x, h):
            a = self.W(x)
            n = tanh(a.n + self.U(h))
            return dict(h=sigmoid(a.z) * n if self.gated else n)

    ops = [{node.op for node in trace(made).graph.nodes} for made in (Made(), Made(gated=False))]
    assert ops[0] - ops[1] == {"sigmoid", "mul"}
    assert Made() == Made(gated=True) or trace(Made()) is trace(Made())
    assert trace(Made(gated=False)) is trace(Made(gated=False))
    assert Made(gated=False) != Made() and "gated=False" in repr(Made(gated=False))


SIZES = dict(input_size=4, hidden_size=6, proj_size=3)


def shapes(cell: Cell, bias: bool = True) -> dict[str, tuple[int, ...]]:
    traced = trace(cell)
    return equations.parameter_shapes(traced.parts, traced.columns, SIZES, bias)


def test_parameters_of_every_declaration():
    class Made(Cell):
        h, past = State("proj_size"), State(copies="delay")
        mask, span = SequenceInput("hidden_size"), StepInput()
        delay = 2
        W, V = Input("a b"), Input("a", bias=False)
        U, D = Recurrent("a b", kind=Heads(3)), Recurrent(kind=LowRank(2), copies="delay")
        R, p, alpha = Recurrent(size="proj_size"), Vector("a b"), Scalar(0.5)
        q, unused = Vector(copies="delay"), Recurrent()

        def step(self, x, h, *past, mask, span):
            a, b = self.W(x), self.U(h)
            v = span * tanh(a.a + b.a + self.V(x).a + self.p.a) + self.alpha * mask
            for D, q in zip(self.D, self.q, strict=True):
                v = v + D(past[-1]) * q
            return dict(h=self.R(v + self.p.b), past=(v, *past[:-1]))

    matrices = dict(weight_ih=(12, 4), weight_V=(6, 4), weight_hh=(12, 1), weight_R=(3, 6))
    low_rank = {f"weight_D_{k}_{part}": shape for k in (0, 1) for part, shape in (("u", (6, 2)), ("v", (2, 6)))}
    biases = dict(bias_ih=(12,), bias_hh=(12,), bias_D_0=(6,), bias_D_1=(6,), bias_R=(3,))
    own = dict(p=(12,), alpha=(), q_0=(6,), q_1=(6,))
    assert shapes(Made()) == matrices | low_rank | biases | own
    assert shapes(Made(), bias=False) == matrices | low_rank | own
    parts = trace(Made()).parts
    assert parts.states == dict(h="proj_size", past_0="hidden_size", past_1="hidden_size")
    assert {name: (type(each), each.size) for name, each in parts.extras.items()} == dict(
        mask=(SequenceInput, "hidden_size"), span=(StepInput, None)
    )
    assert shapes(Made(kinds={"U": LowRank(1), "D": Heads(2)}))["weight_D_1"] == (6, 3)


def test_a_cell_may_go_on_from_another():
    """With super(), with a declaration or a constant in the place of another, and with methods of its own."""

    class Made(Good):
        inner = 2.0
        U = Recurrent(kind=Diagonal())

        def twice(self, v):
            return self.inner * v + self.U(v)

        def step(self, x, h):
            return dict(h=self.twice(super().step(x, h)["h"]))

    assert shapes(Made()) == dict(weight_ih=(6, 4), weight_hh=(6,), bias_ih=(6,), bias_hh=(6,))
    assert shapes(Good())["weight_hh"] == (6, 6)


def later(v):
    return tanh(v)


def test_a_function_that_is_defined_further_down():
    class Made(Cell):
        W = Input()

        def step(self, x, h):
            return dict(h=defined_below(self.W(x)) * h)  # noqa: F821

    with pytest.raises(NameError):
        trace(Made())
    globals()["defined_below"] = later
    try:
        assert trace(Made()).output.op == "mul"
    finally:
        del globals()["defined_below"]


@pytest.mark.parametrize("heads", [0, -1, 1.5])
def test_a_kind_of_no_meaning(heads):
    with pytest.raises(ValueError, match="heads: expected an integer of at least 1"):
        Heads(heads)
    with pytest.raises(ValueError, match="rank: expected an integer of at least 1"):
        LowRank(heads)


@pytest.mark.parametrize(
    "cell",
    [
        cells.LSTM(),
        cells.TauGRU(delay=3),
        cells.SLSTM(kinds={"U": Heads(2)}),
        cells.FastGRNN(nonlinearity="tanh", kinds={"W": LowRank(2), "U": Antisymmetric(0.25)}),
        Regularised(cells.CoRNN(dt=0.2), {"h": 0.25}, True, "step", ("hidden_size",)),
    ],
    ids=str,
)
def test_a_cell_is_found_by_its_key(cell: Cell, monkeypatch):
    key = key_of(cell)
    assert cell_of(key) == cell and key_of(cell) == key
    monkeypatch.setattr(naming, "_made", {})  # as in another process
    found = cell_of(key)
    assert found == cell and found is not cell and trace(found).columns == trace(cell).columns


def test_a_class_that_is_defined_again_is_another_cell():
    def define(rate: float) -> Cell:
        class Made(Good):
            def step(self, x, h):
                return dict(h=rate * self.W(x) + self.U(h))

        return Made()

    first, second = define(1.0), define(2.0)
    keys = [key_of(first), key_of(second), key_of(first)]
    assert keys[0] == keys[2] != keys[1]
    assert cell_of(keys[0]) is first and cell_of(keys[1]) is second


def test_two_parameters_of_one_name():
    class Made(Cell):
        W, U, V, V_u = Input(), Recurrent(), Recurrent(kind=LowRank(2)), Recurrent()
        bias_ih = Vector()

        def step(self, x, h):
            return dict(h=self.W(x) + self.V(h) + self.V_u(h) + self.bias_ih)

    with pytest.raises(CellError, match="two parameters are called weight_V_u"):
        shapes(Made())
    with pytest.raises(CellError, match="two parameters are called bias_ih"):
        shapes(Made(kinds={"V": Heads(2)}))
    assert "bias_ih" in shapes(Made(kinds={"V": Heads(2)}), bias=False)


def test_heads_divide_sizes():
    with pytest.raises(ValueError, match="expected sizes that 4 heads divide, got 6"):
        shapes(Good(kinds={"U": Heads(4)}))


def test_a_function_of_a_constant_is_a_number():
    class Constant(Cell):
        rate = 0.3
        W = Input()

        def step(self, x, h):
            return dict(h=functions.sigmoid(self.rate) * h + functions.tanh(self.W(x)))

    traced = trace(Constant())
    (found,) = [node.about for node in traced.graph.nodes if node.op == "const"]
    assert found == torch.sigmoid(torch.tensor(0.3, dtype=torch.float64)).item()
