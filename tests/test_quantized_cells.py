"""Cells with weights of 8 bits: one step of the layer with the same numbers, and the errors of torch.nn's cells."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)

readable = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API of DLPack"
)

KINDS = ("RNN", "LSTM", "GRU")
MODES = {"RNN": "RNN_TANH", "LSTM": "LSTM", "GRU": "GRU"}


def made(kind: str, **form: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's cell, and ours with its weights of 8 bits."""
    torch.manual_seed(5)
    single = getattr(nn, f"{kind}Cell")(19, 33, **form)
    return single, fastrnn.quantize_dynamic(single)


def flat(state: Any) -> Sequence[Tensor]:
    return (state,) if isinstance(state, Tensor) else state


def same(found: Any, exact: Any) -> bool:
    pairs = list(zip(flat(found), flat(exact), strict=True))
    return all(torch.equal(f, e) and not f.requires_grad and f._base is None for f, e in pairs)


@readable
@pytest.mark.parametrize("lead", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize("form", [{}, {"bias": False}], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_a_layer(kind: str, form: dict[str, Any], lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    single, cell = made(kind, **form)
    twin = getattr(nn, kind)(19, 33, **form)
    twin.load_state_dict({f"{name}_l0": value for name, value in single.state_dict().items()})
    layer = fastrnn.quantize_dynamic(twin)
    x, h = torch.randn(*lead, 19, requires_grad=True), torch.randn(*lead, 33)
    for hx in (None, (h, h + 1) if kind == "LSTM" else h):
        first = None if hx is None else tuple(each[None] for each in hx) if kind == "LSTM" else hx[None]
        exact = [each[0] for each in flat(layer(x[None], first)[1])]
        found = cpp.fast_path_int8(vars(cell), x, hx, MODES[kind])
        assert found is not None
        assert same(found, exact) and same(cell(x, hx), exact)
        with monkeypatch.context() as patch:
            patch.setattr(cpp, "fast_path_int8", lambda *_: None)
            assert same(cell(x, hx), exact)
        assert not same(found, [each + 1e-6 for each in exact])
        with torch.no_grad():
            for f, e in zip(flat(found), flat(single(x, hx)), strict=True):  # held as the layers are
                assert f.shape == e.shape and float((f - e).norm() / e.norm()) < 0.03


@torch.no_grad()
def test_relu():
    single, cell = made("RNN", nonlinearity="relu")
    x = torch.randn(2, 19)
    assert repr(cell) == "QuantizedRNNCell(19, 33, nonlinearity=relu)"
    assert float((cell(x) - single(x)).norm() / single(x).norm()) < 0.03 and bool((cell(x) >= 0).all())
    single.nonlinearity = "elu"
    with pytest.raises(ValueError, match="Unknown nonlinearity: elu"):
        fastrnn.quantize_dynamic(single)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_errors_of_torch(kind: str, bias: bool):
    single, cell = made(kind, bias=bias)
    pair = kind == "LSTM"

    def state(*shape: int) -> Any:
        return (torch.zeros(*shape), torch.zeros(*shape)) if pair else torch.zeros(*shape)

    calls: list[tuple[Any, ...]] = [
        (torch.zeros(2, 18),),
        (torch.zeros(18), state(33)),
        (torch.zeros(1, 2, 19),),
        (torch.zeros(2, 19), state(2, 32)),
        (torch.zeros(2, 19), state(3, 33)),
        (torch.zeros(2, 19), state(1, 2, 33)),
        ([1.0],),
    ]
    for arguments in calls:
        with pytest.raises((ValueError, RuntimeError, AttributeError)) as theirs:
            single(*arguments)
        with pytest.raises(theirs.type) as ours:
            cell(*arguments)
        assert str(ours.value) == str(theirs.value)
    assert flat(cell(torch.zeros(0, 19), state(0, 33)))[0].shape == (0, 33)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_what_it_refuses():
    _, cell = made("GRU")
    x = torch.randn(2, 19)
    for other in (x.double(), x.bfloat16(), x.to("meta")):
        with pytest.raises(ValueError, match="float32 on the CPU"):
            cell(other)
    with pytest.raises(ValueError, match="input and state of float32"):
        cell(x, torch.zeros(2, 33).double())
    with pytest.raises(RuntimeError, match="trace"):
        torch.jit.trace(cell, (x,))
    with fastrnn.use_backend("reference"), pytest.raises(fastrnn.BackendError, match="reference"):
        cell(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cell(x), cell(x.clone())) and cell(x).dtype is torch.float32
    with pytest.raises(TypeError, match="expected a module of GRUCell, got LSTMCell"):
        fastrnn.QuantizedGRUCell.from_float(nn.LSTMCell(3, 3))
    with pytest.raises(ValueError, match="weight_ih: expected float32"):
        fastrnn.quantize_dynamic(nn.GRUCell(3, 3).double())


def test_in_a_model():
    model = nn.ModuleDict({"a": nn.GRUCell(4, 5), "b": fastrnn.LSTMCell(4, 6, bias=False), "c": nn.RNN(4, 5)})
    narrow = fastrnn.quantize_dynamic(model)
    assert type(narrow["a"]) is fastrnn.QuantizedGRUCell and type(narrow["b"]) is fastrnn.QuantizedLSTMCell
    assert repr(narrow["b"]) == "QuantizedLSTMCell(4, 6, bias=False)" and not list(narrow.parameters())
    assert list(narrow["b"].state_dict()) == ["scale_ih", "weight_ih", "scale_hh", "weight_hh"]
    x = torch.randn(2, 4)
    for twin in (copy.deepcopy(narrow), pickle.loads(pickle.dumps(narrow))):
        assert same(twin["b"](x), narrow["b"](x))
    other = fastrnn.quantize_dynamic(nn.LSTMCell(4, 6, bias=False))
    other.load_state_dict(narrow["b"].state_dict())
    assert same(other(x), narrow["b"](x)) and other.weight_ih.dtype is torch.int8
