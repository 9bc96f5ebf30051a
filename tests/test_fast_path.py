"""A module's ordinary call as one call of the C++ core: what it serves, what it leaves to Python, the packed weights
that it keeps, and the wavefront over layers."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.backends import cpp

core = pytest.importorskip("fastrnn._core", reason="the compiled core is missing")
readable = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API of DLPack"
)

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "three layers, both ways": {"num_layers": 3, "bidirectional": True},
    "no bias": {"bias": False},
    "projected": {"num_layers": 2, "proj_size": 5},
}
SHAPES = {"step": (1, 1), "few": (3, 2), "packs": (40, 3)}


def flat(result: Any) -> list[Tensor]:
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def modules(kind: str, **form: Any) -> tuple[nn.Module, nn.Module]:
    """Ours in float32 and torch.nn's with the same numbers in float64."""
    torch.manual_seed(3)
    ours = getattr(fastrnn, kind)(19, 33, **form).eval()
    theirs = getattr(nn, kind)(19, 33, **form).double().eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def budget(theirs: nn.Module, x: Tensor, hx: Any, exact: list[Tensor]) -> list[float]:
    """Twice what torch.nn itself rounds in float32, and one rounding."""
    single = copy.deepcopy(theirs).float()
    rounded = flat(single(x, hx))
    eps = torch.finfo(torch.float32).eps
    return [2 * (float((r - e).abs().max()) + eps) for r, e in zip(rounded, exact, strict=True)]


def close(found: list[Tensor], exact: list[Tensor], allowed: list[float]) -> bool:
    pairs = zip(found, exact, allowed, strict=True)
    return all(f.shape == e.shape and float((f.double() - e).abs().max()) <= most for f, e, most in pairs)


def wide(hx: Any) -> Any:
    return tuple(h.double() for h in hx) if isinstance(hx, tuple) else hx.double()


@readable
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_what_it_serves_is_right(kind: str, form: dict[str, Any], shape: tuple[int, int], given: bool):
    if "proj_size" in form and kind != "LSTM":
        pytest.skip(f"{kind} has no projection")
    ours, theirs = modules(kind, **form)
    x = torch.randn(*shape, 19)
    hx = theirs(x.double())[1] if given else None
    hx = tuple(h.float() for h in hx) if isinstance(hx, tuple) else None if hx is None else hx.float()
    exact = flat(theirs(x.double(), None if hx is None else wide(hx)))
    allowed = budget(theirs, x, hx, exact)
    for _ in range(2):  # the second call finds the packed weights of the first
        found = cpp.fast_path(vars(ours), x, hx)
        assert found is not None
        assert close(flat(found), exact, allowed)
    spoilt = [tensor.clone() for tensor in flat(found)]
    spoilt[0].view(-1)[-1] += 1e-4
    assert not close(spoilt, exact, allowed)


@readable
@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_batch_first(kind: str, shape: tuple[int, int]):
    """Where rows are many, y is not shaped as the state that it equals."""
    ours, theirs = modules(kind, batch_first=True)
    x = torch.randn(*shape, 19)
    hx = ours(x)[1]
    found = cpp.fast_path(vars(ours), x, hx)
    assert found is not None
    for f, e in zip(flat(found), flat(theirs(x.double(), wide(hx))), strict=True):
        assert f.shape == e.shape
        torch.testing.assert_close(f.double(), e, atol=1e-6, rtol=0)


@readable
@torch.no_grad()
@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("lead", [(), (1,), (3,)], ids=str)
def test_cells(kind: str, lead: tuple[int, ...]):
    torch.manual_seed(3)
    ours = getattr(fastrnn, kind)(19, 33)
    theirs = getattr(nn, kind)(19, 33).double()
    theirs.load_state_dict(ours.state_dict())
    x, h = torch.randn(*lead, 19), torch.randn(*lead, 33)
    hx = (h, h + 1) if kind == "LSTMCell" else h
    for state in (hx, None):
        exact = theirs(x.double(), None if state is None else wide(state))
        found = ours(x, state)
        for f, e in zip(*((r if isinstance(r, tuple) else (r,)) for r in (found, exact)), strict=True):
            assert f.shape == e.shape and f._base is None
            torch.testing.assert_close(f.double(), e, atol=1e-6, rtol=0)
    mode = {"RNNCell": "RNN_TANH", "LSTMCell": "LSTM", "GRUCell": "GRU"}[kind]
    assert cpp.fast_path(vars(ours), x, hx, mode) is not None


@readable
def test_what_it_leaves_to_python():
    lstm = fastrnn.LSTM(4, 6, num_layers=2, dropout=0.5).eval()
    x, attributes = torch.randn(3, 2, 4), vars(lstm)
    h = torch.zeros(2, 2, 6)

    def left(input: Any = x, hx: Any = None) -> bool:
        return cpp.fast_path(attributes, input, hx) is None

    assert left()  # gradients are on
    with torch.no_grad():
        assert not left() and not left(hx=(h, h)) and not left(hx=[h, h])
        assert left(x[0, 0]) and left(x[:0]) and left(x[:, :0]) and left(x[..., :3])
        assert left(x.double()) and left(x.transpose(0, 1)) and left([1]) and left(None)
        assert left(torch._neg_view(x)) and left(x.to_sparse()) and left(nn.Parameter(x))
        assert left(hx=h) and left(hx=(h,)) and left(hx=(h, h[..., :5])) and left(hx=(h, h.double()))
        assert left(hx=(h, None)) and left(hx=(h[0], h[0])) and left(torch.zeros(3, 2, dtype=torch.int64))
        with torch.autocast("cpu", torch.bfloat16):
            assert left()
        with fastrnn.use_backend("reference"):
            assert left()
        with fastrnn.use_backend("cpp"):
            assert not left()
        with torch.autograd.forward_ad.dual_level():
            assert left()
        seen = []
        torch.func.vmap(lambda one: seen.append(left(one)) or one)(x[None])
        assert seen == [True]
        lstm.train()
        assert left()  # dropout
        lstm.eval()
        weight = lstm.weight_hh_l0
        lstm.weight_hh_l0 = nn.Parameter(weight[:-1].detach())
        assert left()
        lstm.weight_hh_l0 = nn.Parameter(weight.detach().t().contiguous().t())
        assert left()
        lstm.weight_hh_l0 = nn.Parameter(torch._neg_view(weight.detach()))
        assert left()
        lstm.weight_hh_l0 = weight
        assert not left()
        weight.data = torch._neg_view(weight.detach())
        assert left()
    with pytest.raises(TypeError, match="3 or 4"):
        core.fast_path(attributes)


@torch.no_grad()
def test_threads_may_share_a_module():
    gru = fastrnn.GRU(16, 48, num_layers=2)
    inputs = [torch.randn(30, batch, 16) for batch in (1, 2, 3, 4) * 8]
    wanted = [flat(copy.deepcopy(gru)(x)) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, exact in zip(pool.map(lambda x: flat(gru(x)), inputs), wanted, strict=True):
            assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("steps, rows", [(4, 60), (37, 1), (200, 3)])
def test_a_wavefront_gives_the_same_bits(kind: str, layers: int, steps: int, rows: int):
    network = getattr(fastrnn, kind)(40, 72, num_layers=layers)
    x, before = torch.randn(steps, rows, 40), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(flat(network(x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    y = x
    for layer in range(layers):  # and those of the layers one by one
        one = getattr(fastrnn, kind)(y.shape[-1], 72)
        state = {name: getattr(network, name.replace("l0", f"l{layer}")) for name in one.state_dict()}
        one.load_state_dict(state)
        y = one(y)[0]
    assert torch.equal(y, found[0][0])
