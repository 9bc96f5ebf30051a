"""What of a model stays in float32 when its weights become 8 bits: the first product by choice, modules by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastrnn
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)

KINDS = ("RNN", "LSTM", "GRU")
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "both ways, two layers": {"bidirectional": True, "num_layers": 2},
}
SPECTRUM = torch.logspace(-3, 2, 19)  # features of sizes as far apart as those of powers of a spectrum


def fed(kind: str, **form: Any) -> nn.RNNBase:
    """A network that makes something of each feature, as one has learned to."""
    torch.manual_seed(3)
    single = getattr(nn, kind)(19, 80, **form)
    with torch.no_grad():
        for name, weight in single.named_parameters():
            if name.startswith("weight_ih_l0"):
                weight /= SPECTRUM
    return single


def run(module: nn.Module, x: Tensor, fast: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    with monkeypatch.context() as patch, torch.no_grad():
        if not fast:
            patch.setattr(cpp, "fast_path_int8", lambda *_: None)
        y, state = module(x)
    return [y, *(state if isinstance(state, tuple) else (state,))]


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_product_in_float(kind: str, form: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch):
    """What is left are roundings of the recurrent products, whose terms are below 1; where h is zero, not even these.
    Both ways into the core give the same bits."""
    single = fed(kind, **form)
    x = torch.randn(5, rows, 19) * SPECTRUM
    narrow, all_narrow = (fastrnn.quantize_dynamic(single, float_input=chosen) for chosen in (True, False))
    exact = run(single, x, True, monkeypatch)
    found, rounded = run(narrow, x, True, monkeypatch), run(all_narrow, x, True, monkeypatch)
    for ours, others, true in zip(found, rounded, exact, strict=True):
        assert float((ours - true).norm()) < 0.02 * float(true.norm())
        assert float((others - true).norm()) > 0.04 * float(true.norm())
    for ours, again in zip(found, run(narrow, x, False, monkeypatch), strict=True):
        assert torch.equal(ours, again)
    if form.get("num_layers", 1) == 1:  # h is zero: nothing is rounded
        first = run(narrow, x[:1], True, monkeypatch)[0]
        torch.testing.assert_close(first, run(single, x[:1], True, monkeypatch)[0], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(kind: str):
    torch.manual_seed(0)
    single, x = getattr(nn, kind)(19, 80), torch.randn(3, 19)
    with torch.no_grad():
        found, exact = fastrnn.quantize_dynamic(single, float_input=True)(x), single(x)
    for ours, true in zip(*((each if isinstance(each, tuple) else (each,)) for each in (found, exact)), strict=True):
        torch.testing.assert_close(ours, true, atol=2e-6, rtol=2e-6)


def test_by_default_where_the_input_is_narrow():
    for inputs, chosen, expected in ((20, None, True), (21, None, False), (20, False, False), (21, True, True)):
        narrow = fastrnn.quantize_dynamic(nn.LSTM(inputs, 80, num_layers=2), float_input=chosen)
        assert narrow.float_input is expected and narrow.weight_ih_l1.dtype is torch.int8
        assert narrow.weight_ih_l0.dtype is (torch.float32 if expected else torch.int8)
        assert ("float_input=True" in repr(narrow)) is expected
        assert bool((narrow.scale_ih_l0 == 1).all()) is expected
        twin = fastrnn.quantize_dynamic(nn.LSTM(inputs, 80, num_layers=2), float_input=expected)
        twin.load_state_dict(narrow.state_dict())
        other = fastrnn.quantize_dynamic(nn.LSTM(inputs, 80, num_layers=2), float_input=not expected)
        with pytest.raises(RuntimeError, match="weight_ih_l0 of torch"):
            other.load_state_dict(narrow.state_dict())


def test_one_feature_above_all():
    """The speaker encoder's fault in small: what rounding by the largest loses decides nothing here."""
    torch.manual_seed(1)
    single = fed("LSTM", num_layers=3)
    x = torch.randn(40, 8, 19).exp() * SPECTRUM
    with torch.no_grad():
        exact = single(x)[1][0][-1]
        by_default, narrow = (
            F.cosine_similarity(fastrnn.quantize_dynamic(single, float_input=chosen)(x)[1][0][-1], exact).min()
            for chosen in (None, False)
        )
    assert by_default > 0.99 > narrow


def test_modules_that_stay_by_name():
    model = nn.ModuleDict({"a": nn.GRU(4, 5), "b": nn.Sequential(nn.LSTM(4, 6), nn.GRUCell(3, 3)), "c": nn.RNN(2, 3)})
    model["again"] = model["c"]
    narrow = fastrnn.quantize_dynamic(model, skip=["b", "again"])
    assert type(narrow["a"]) is fastrnn.QuantizedGRU
    assert type(narrow["b"][0]) is nn.LSTM and type(narrow["b"][1]) is nn.GRUCell
    assert type(narrow["c"]) is nn.RNN and narrow["again"] is narrow["c"] is not model["c"]
    assert type(fastrnn.quantize_dynamic(nn.GRU(4, 5), skip=[""])) is nn.GRU
    fastrnn.quantize_dynamic(model, inplace=True, skip={"b.0"})
    assert type(model["b"][0]) is nn.LSTM and type(model["b"][1]) is fastrnn.QuantizedGRUCell
    assert type(model["c"]) is fastrnn.QuantizedRNN


def test_what_it_refuses():
    model = nn.Sequential(nn.GRU(4, 5))
    with pytest.raises(ValueError, match=r"names of modules of the model, got \['gru'\]"):
        fastrnn.quantize_dynamic(model, skip=["gru", "0"])
    with pytest.raises(ValueError, match="got the string '0'"):
        fastrnn.quantize_dynamic(model, skip="0")
