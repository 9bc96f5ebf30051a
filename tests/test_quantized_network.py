"""Networks of any cell with weights of 8 bits: beside the built-in modules of 8 bits, integers in NumPy, and the same
equations in plain torch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fastrnn
from fastrnn import cells
from fastrnn.cell import Cell, Diagonal, Heads, Input, LowRank, Recurrent, StepInput, sigmoid, tanh
from fastrnn.cell.int8 import EXACT_TERMS, Int8, multiply, quantize
from fastrnn.fused import cpp
from fastrnn.fused.engines import ENGINES

EPS = 2**-24
PAIRS: dict[str, tuple[Any, Any, Any]] = {
    "LSTM": (cells.LSTM, nn.LSTM, nn.LSTMCell),
    "GRU": (cells.GRU, nn.GRU, nn.GRUCell),
    "RNN": (cells.RNN, nn.RNN, nn.RNNCell),
}
BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(bool(cpp.unavailable()), reason=str(cpp.unavailable()))),
]
needs_core = pytest.mark.skipif(bool(fastrnn.backends.cpp.unavailable()), reason="built-in modules of 8 bits run there")


def flat(found: Any) -> list[Tensor]:
    if isinstance(found, PackedSequence):
        return [found.data]
    return [found] if isinstance(found, Tensor) else [each for part in found for each in flat(part)]


def near(found: Any, right: Any, budget: float = 64 * EPS) -> None:
    """Within float32's rounding, but for what a value in the middle of two integers, which may go to either, moves: a
    step of one in 127 of one term, in few of the results."""
    for ours, wanted in zip(flat(found), flat(right), strict=True):
        off = (ours.double() - wanted.double()).abs()
        assert ours.shape == wanted.shape and float(off.max()) < 2e-2
        assert float((off < budget * max(1.0, float(wanted.abs().max()))).double().mean()) > 0.9


@needs_core
@pytest.mark.parametrize("float_input", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["batch", "one row", "long", "single", "packed", "states"])
@pytest.mark.parametrize(
    "options", [{}, dict(num_layers=2, bidirectional=True), dict(batch_first=True, bias=False)], ids=str
)
@pytest.mark.parametrize("name", PAIRS)
def test_gives_what_the_built_in_gives(backend: str, name: str, options: dict[str, Any], form: str, float_input: bool):
    torch.manual_seed(0)
    cell, theirs, _ = PAIRS[name]
    other, net = theirs(19, 33, **options), fastrnn.Network(cell, 19, 33, **options)
    net.load_state_dict(other.state_dict())
    ours, built_in = (fastrnn.quantize_dynamic(each, float_input=float_input) for each in (net, other))
    assert type(ours) is fastrnn.QuantizedNetwork and ours.float_input is float_input
    state, right = ours.state_dict(), built_in.state_dict()
    assert state.keys() == right.keys() and all(torch.equal(state[key], right[key]) for key in right)
    steps, rows = dict(long=(150, 2)).get(form, (4, 1 if form == "one row" else 3))
    x: Any = torch.randn(steps, 19) if form == "single" else torch.randn(steps, rows, 19)
    x = x.transpose(0, 1).contiguous() if options.get("batch_first") and form != "single" else x
    if form == "packed":
        x = pack_padded_sequence(x, [2, 4, 3], bool(options.get("batch_first")), enforce_sorted=False)
    hx: Any = None
    if form == "states":
        slots = net.num_layers * (1 + net.bidirectional)
        hx = tuple(torch.randn(slots, rows, 33) for _ in net.state_names)
        hx = hx if len(hx) > 1 else hx[0]
    with fastrnn.use_backend(backend):
        found = ours(x, hx)  # the built-in module runs on the C++ kernels alone
    near(found, built_in(x, hx), budget=64 * EPS if form != "long" else 1e-3)
    assert not flat(found)[0].requires_grad


@needs_core
@pytest.mark.parametrize("float_input", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PAIRS)
def test_one_step(backend: str, name: str, float_input: bool):
    torch.manual_seed(0)
    cell, _, theirs = PAIRS[name]
    other, net = theirs(19, 33), fastrnn.NetworkCell(cell, 19, 33)
    net.load_state_dict(other.state_dict())
    ours, built_in = (fastrnn.quantize_dynamic(each, float_input=float_input) for each in (net, other))
    assert type(ours) is fastrnn.QuantizedNetworkCell
    hx: Any = tuple(torch.randn(5, 33) for _ in net.state_names)
    hx = hx if len(hx) > 1 else hx[0]
    x = torch.randn(5, 19)
    one = tuple(h[2] for h in hx) if isinstance(hx, tuple) else hx[2]
    with fastrnn.use_backend(backend):
        found, of_zeros, alone = ours(x, hx), ours(x), ours(x[2], one)
    right = flat(built_in(x, hx))
    near(found, right)
    near(of_zeros, built_in(x))
    near(alone, [each[2] for each in right])


class AllKinds(Cell):
    """A matrix of every kind, an operand that is computed, an output that is no state."""

    W, Z = Input("a b"), Input(kind=LowRank(2), bias=False)
    U, V, D, R = Recurrent("a b", kind=Heads(3)), Recurrent(), Recurrent(kind=Diagonal()), Recurrent(kind=LowRank(4))
    out = Recurrent(size="out_size")
    output = "y"

    def step(self, x, h, *, gain=StepInput()):  # noqa: B008
        a, b = self.W(x), self.U(h)
        r = sigmoid(a.a + b.a + self.D(h))
        h = tanh(a.b + r * b.b + self.V(r * h) + self.R(h) + gain * self.Z(x))
        return dict(h=h, y=self.out(h))


def integers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = (np.abs(rows).max(-1, keepdims=True) / np.float32(127)).astype(np.float32)
    return np.rint(rows / np.where(scales > 0, scales, np.float32(1))).astype(np.int64), scales.astype(np.float64)


def by_integers(weight: np.ndarray, v: np.ndarray, gates: int = 1, heads: int = 1) -> np.ndarray:
    """W v, rows of both rounded to integers; a row of v for each head."""
    (q, s), found = integers(weight), []
    for rows, scales in zip(np.split(q, gates), np.split(s, gates), strict=True):
        for head, (own, own_scales) in enumerate(zip(np.split(rows, heads), np.split(scales, heads), strict=True)):
            p, t = integers(np.split(v.astype(np.float32), heads, -1)[head])
            found.append((p @ own.T) * (t * own_scales.T))
    return np.concatenate(found, -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("float_input", [False, True])
def test_dense_matrices_and_heads_have_8_bits_and_all_else_is_float(backend: str, rows: int, float_input: bool):
    torch.manual_seed(2)
    net = fastrnn.Network(AllKinds, 20, 36, out_size=11)
    narrow = fastrnn.quantize_dynamic(net, float_input=float_input)
    kinds = {name: value.dtype for name, value in narrow.state_dict().items() if name.startswith("weight")}
    int8 = {f"weight_{name}_l0" for name in ("hh", "V", "out", *(() if float_input else ("ih",)))}
    assert {name for name, dtype in kinds.items() if dtype is torch.int8} == int8
    assert set(kinds.values()) == {torch.int8, torch.float32}
    x, h, gain = torch.randn(1, rows, 20), torch.randn(1, rows, 36), torch.randn(1, rows)
    with fastrnn.use_backend(backend):
        found = narrow(x, h, gain=gain)
    p = {name.removesuffix("_l0"): value.detach().numpy() for name, value in net.named_parameters()}
    v, s, one = x[0].numpy(), h[0].numpy(), lambda v: 1 / (1 + np.exp(-v))
    of_input = v @ p["weight_ih"].T if float_input else by_integers(p["weight_ih"], v)
    a_a, a_b = np.split(of_input + p["bias_ih"], 2, 1)
    b_a, b_b = np.split(by_integers(p["weight_hh"], s, 2, 3) + p["bias_hh"], 2, 1)
    r = one(a_a + b_a + p["weight_D"] * s + p["bias_D"])
    low = s @ p["weight_R_v"].T @ p["weight_R_u"].T + p["bias_R"]
    z = gain[0].numpy()[:, None] * (v @ p["weight_Z_v"].T @ p["weight_Z_u"].T)
    s = np.tanh(a_b + r * b_b + by_integers(p["weight_V"], r * s) + p["bias_V"] + low + z)
    y = by_integers(p["weight_out"], s) + p["bias_out"]
    near(found, [torch.from_numpy(y)[None], torch.from_numpy(s)[None]])


def test_a_comparison_that_is_off_is_seen():
    right = torch.randn(4, 5)
    for off in (right + 1e-4, right.index_add(0, torch.tensor([0]), torch.full((1, 5), 0.1))):
        with pytest.raises(AssertionError):
            near(off, right)


@pytest.mark.skipif(bool(cpp.unavailable()), reason=str(cpp.unavailable()))
@pytest.mark.parametrize("float_input", [False, True])
@pytest.mark.parametrize("name", [name for name in cells.__all__ if isinstance(getattr(cells, name), type)])
def test_every_cell_of_the_library(name: str, float_input: bool):
    """The C++ engine gives what the same equations, rounded alike, give in torch."""
    torch.manual_seed(1)
    cell = getattr(cells, name)
    inputs = 16 if cell.square else 12
    net = fastrnn.Network(cell, inputs, 16).eval()
    narrow = fastrnn.quantize_dynamic(net, float_input=float_input)
    x = torch.randn(2, 3, inputs)
    extras = {}
    for extra, declared in net.extras.items():
        shape = (3,) if type(declared).__name__ == "SequenceInput" else (2, 3)
        extras[extra] = torch.rand(*shape, *(() if declared.size is None else (net.sizes[declared.size],)))
    with fastrnn.use_backend("cpp"):
        found = narrow(x, **extras)
    with fastrnn.use_backend("reference"):
        near(found, narrow(x, **extras), budget=1024 * EPS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["PeepholeLSTM", "IndRNN", "RHN"])
def test_the_first_product_in_float(backend: str, name: str):
    """By default where the input is narrow.  A feature above all others leaves what rounding by it would lose; a layer
    above is rounded."""
    torch.manual_seed(0)
    scales = torch.logspace(0, -4, 8)
    net = fastrnn.Network(getattr(cells, name), 8, 32, num_layers=2)
    with torch.no_grad():
        net.weight_ih_l0 /= scales
    x = torch.randn(5, 3, 8) * scales
    by_default, narrow = (fastrnn.quantize_dynamic(net, float_input=chosen) for chosen in (None, False))
    assert by_default.float_input and not narrow.float_input
    assert by_default.weight_ih_l0.dtype is torch.float32 and bool((by_default.scale_ih_l0 == 1).all())
    assert by_default.weight_ih_l1.dtype is narrow.weight_ih_l0.dtype is torch.int8
    with fastrnn.use_backend(backend), torch.no_grad():
        exact, found, lost = (each(x)[0] for each in (net, by_default, narrow))
    assert float((found - exact).norm() / exact.norm()) < 0.03 < float((lost - exact).norm() / exact.norm())
    assert not fastrnn.quantize_dynamic(fastrnn.NetworkCell(cells.MGU, 9, 32)).float_input
    with pytest.raises(RuntimeError, match="weight_ih_l0 of torch"):
        narrow.load_state_dict(by_default.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_options_of_the_network_and_of_a_call(backend: str):
    """A learned state and zoneout's mean go along; what is dropped in training alone is dropped nowhere."""
    torch.manual_seed(3)
    form: dict[str, Any] = dict(num_layers=2, dropout=0.5, learn_initial_state=True, recompute=True)
    form |= dict(zoneout=0.3, recurrent_dropout=0.5, weight_dropout=0.5)
    net = fastrnn.Network(cells.PeepholeLSTM, 12, 16, **form)
    nn.init.normal_(net.initial_h)
    narrow = fastrnn.quantize_dynamic(net).train()
    x, lengths = torch.randn(6, 3, 12), [6, 2, 4]
    reset = torch.zeros(6, 3, dtype=torch.bool)
    reset[3, 0] = True
    calls: list[dict[str, Any]] = [{}, dict(lengths=lengths), dict(reset=reset), dict(return_states=True)]
    with fastrnn.use_backend(backend), torch.no_grad():
        for call in calls:
            for found, right in zip(flat(narrow(x, **call)), flat(net.eval()(x, **call)), strict=True):
                assert 1e-5 < float((found - right).abs().max()) < 0.06
    tokens = torch.randint(12, (6, 3))
    table = nn.Embedding(12, 12)
    with fastrnn.use_backend(backend):
        near(narrow(tokens), narrow(nn.functional.one_hot(tokens, 12).float()))
        near(narrow(tokens, embedding=table), narrow(table(tokens)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_few_numbers_not_finite_small_and_zero_rows(backend: str):
    net = fastrnn.quantize_dynamic(fastrnn.Network(cells.GRU, 7, 9))
    x = torch.randn(3, 4, 7)
    with fastrnn.use_backend(backend):
        right = net(x)[0]
        x[1, 2, 3] = torch.nan
        x[1, 1, 3] = torch.inf
        x[0, 0] = 0
        found = net(x)[0]
        x[0, 0] = 1e-40
        assert torch.equal(net(x)[0][0, 0], found[0, 0])
    assert found[1:, 1:3].isnan().all() and not found[0].isnan().any()
    assert torch.equal(found[:, 3], right[:, 3])


def test_sums_are_exact_where_float32_has_too_few_digits():
    generator = torch.Generator().manual_seed(0)
    weight, v = (torch.rand(2, 3 * EXACT_TERMS, generator=generator) + 1 for _ in range(2))
    scales, q = quantize(weight)
    found = multiply(v, Int8(q, scales), None, 1, 1)
    torch.testing.assert_close(found.double().numpy(), by_integers(weight.numpy(), v.numpy()), rtol=4 * EPS, atol=0)


def test_state_pickle_and_copies():
    torch.manual_seed(0)
    net = fastrnn.quantize_dynamic(fastrnn.Network(cells.MGU, 6, 8, num_layers=2))
    x = torch.randn(5, 2, 6)
    right = flat(net(x))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fastrnn.quantize_dynamic(net), net.train()):
        assert type(other) is fastrnn.QuantizedNetwork
        assert all(torch.equal(a, b) for a, b in zip(flat(other(x)), right, strict=True))
    fresh = fastrnn.quantize_dynamic(fastrnn.Network(cells.MGU, 6, 8, num_layers=2))
    assert not torch.equal(fresh(x)[0], right[0])
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x)[0], right[0])
    floats = fastrnn.Network(cells.MGU, 6, 8, num_layers=2)
    with pytest.raises(RuntimeError, match=r"is of no QuantizedNetwork: it has weight_ih_l0 of torch.float32"):
        fresh.load_state_dict({**net.state_dict(), **floats.state_dict()})
    with pytest.raises(RuntimeError, match="scale_ih_l0"):
        floats.load_state_dict(net.state_dict())
    assert fastrnn.revert(net) is net and fastrnn.convert(net) is net
    assert "MGU" in repr(net) and not list(net.parameters())


def test_in_a_model():
    net = fastrnn.Network(cells.GRU, 4, 5)
    seen = []
    net.register_forward_hook(lambda *_: seen.append(1))
    net.label = "mine"  # type: ignore[assignment]
    cell = fastrnn.NetworkCell(cells.GRU, 4, 5)
    model = nn.ModuleDict({"one": net, "again": net, "cell": cell, "other": nn.Linear(2, 2)})
    narrow: Any = fastrnn.quantize_dynamic(model)
    assert narrow["one"] is narrow["again"] and narrow["one"].label == "mine" and type(model["one"]) is fastrnn.Network
    narrow["one"](torch.randn(3, 1, 4))
    assert seen == [1]
    assert fastrnn.quantize_dynamic(model, inplace=True) is model
    assert type(model["cell"]) is fastrnn.QuantizedNetworkCell and type(model["one"]) is fastrnn.QuantizedNetwork


def test_what_is_refused():
    net = fastrnn.Network(cells.LSTM, 4, 5)
    narrow, x = fastrnn.quantize_dynamic(net), torch.randn(3, 2, 4)
    for name in ENGINES.keys() - {"cpp"}:
        if getattr(fastrnn.backends.load(name), "unavailable")():  # noqa: B009
            continue
        with fastrnn.use_backend(name), pytest.raises(fastrnn.BackendError, match=f"{name!r}.*no weights of 8 bits"):
            narrow(x)
    with pytest.raises(RuntimeError, match="has no derivatives"):
        torch.func.grad(lambda x: narrow(x)[0].sum())(x)
    with pytest.raises(ValueError, match="float64"):
        fastrnn.quantize_dynamic(fastrnn.Network(cells.LSTM, 4, 5).double())
    with pytest.raises(ValueError, match="type torch.float32, got type torch.float64"):
        narrow(x.double())
    with pytest.raises(RuntimeError, match="Expected 4, got 3"):
        narrow(x[..., :3])
    with pytest.raises(TypeError, match="expected a module of Network"):
        fastrnn.QuantizedNetwork.from_float(nn.LSTM(4, 5))
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        narrow(x, mask=None)
    net.weight_ih_l0.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        fastrnn.quantize_dynamic(net)


def test_packed_rows_and_every_row_alone():
    torch.manual_seed(4)
    net = fastrnn.quantize_dynamic(fastrnn.Network(cells.LSTM, 40, 50, bidirectional=True))
    rows = [torch.randn(length, 40) for length in (7, 5, 5, 1)]
    y, _ = net(pack_sequence(rows))
    padded, lengths = nn.utils.rnn.pad_packed_sequence(y)
    for b, row in enumerate(rows):
        near(padded[: lengths[b], b], net(row)[0])
