"""`quantize_dynamic` of models as they are in use: hooks, subclasses, parametrizations, a module in two places."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import fastrnn
from fastrnn import compilable
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)

KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
kinds = pytest.mark.parametrize("kind", KINDS)
inplace = pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])


def inputs(kind: str) -> Tensor:
    return torch.randn(*(() if kind.endswith("Cell") else (5,)), 2, 4)


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in flat(part)]


class Model(nn.Module):
    """A recurrent module, and hooks of every kind that a call has, which say when they are called and change things."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.seen, self.factor = rnn, [], 2.0
        rnn.register_forward_pre_hook(lambda module, args: (args[0] * self.factor,))
        rnn.register_forward_pre_hook(self.with_keywords, with_kwargs=True)
        self.handle = rnn.register_forward_hook(self.after)
        rnn.register_forward_hook(lambda module, args, kwargs, result: self.seen.append(kwargs), with_kwargs=True)
        rnn.register_forward_hook(lambda *_: self.seen.append("first"), prepend=True)
        rnn.register_forward_hook(lambda *_: self.seen.append("always"), always_call=True)

    def with_keywords(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self.seen.append(sorted(kwargs))
        return args, {"hx": None}

    def after(self, module: nn.Module, args: Any, result: Any) -> Any:
        self.seen.append(type(module).__name__.removeprefix("Quantized"))
        return [-tensor for tensor in flat(result)]

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x)


@kinds
@inplace
def test_hooks_go_along(kind: str, inplace: bool):
    torch.manual_seed(0)
    single = getattr(fastrnn, kind)(4, 5)
    bare = fastrnn.quantize_dynamic(copy.deepcopy(single))
    model = Model(single)
    narrow = fastrnn.quantize_dynamic(model, inplace=inplace)
    assert type(narrow.rnn) is type(bare) and (narrow is model) == inplace
    x = inputs(kind)
    model.seen.clear()
    right = [-tensor for tensor in flat(bare(2 * x))]
    assert all(torch.equal(a, b) for a, b in zip(narrow(x), right, strict=True))
    seen = [[], "first", kind, {"hx": None}, "always"]
    # Of a copied model a method is the copy's, while a function is the same: as of any module that is copied.
    assert model.seen + (narrow.seen if narrow is not model else []) == (
        seen if inplace else ["first", {"hx": None}, "always", [], kind]
    )
    model.seen.clear()
    with pytest.raises(RuntimeError):
        narrow(x[..., :3])
    assert "always" in model.seen
    if inplace:
        model.handle.remove()
        model.seen.clear()
        narrow(x)
        assert kind not in model.seen


@kinds
def test_hooks_of_a_module_by_itself(kind: str):
    single = getattr(nn, kind)(4, 5)
    single.register_forward_hook(lambda module, args, result: [-tensor for tensor in flat(result)])
    x = inputs(kind)
    for narrow in (fastrnn.quantize_dynamic(single), getattr(fastrnn, f"Quantized{kind}").from_float(single)):
        assert all(torch.equal(a, -b) for a, b in zip(narrow(x), flat(narrow.forward(x)), strict=True))


class Normed(nn.LSTM):
    """A subclass whose forward is its own."""

    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        y, state = super().forward(input, hx)
        return y / y.norm(dim=-1, keepdim=True), state


class OfOurs(fastrnn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        y, state = super().forward(input, hx)
        return 17 * y, state


class OfCompilable(compilable.RNN):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return 17 * input, input


@inplace
@pytest.mark.parametrize("cls", [Normed, OfOurs, OfCompilable])
def test_a_forward_of_others_stays(cls: type[nn.Module], inplace: bool):
    model = nn.Sequential(cls(4, 5), nn.Identity())
    x = torch.randn(3, 2, 4)
    before = flat(model(x))
    narrow = fastrnn.quantize_dynamic(model, inplace=inplace)
    assert type(narrow[0]) is cls
    torch.testing.assert_close(flat(narrow(x)), before, rtol=0, atol=0)


@kinds
def test_a_forward_put_on_the_module_stays(kind: str):
    single = getattr(nn, kind)(4, 5)
    own = single.forward
    single.forward = types.MethodType(lambda self, x: [3 * tensor for tensor in flat(own(x))], single)
    x = inputs(kind)
    before = single(x)
    assert fastrnn.quantize_dynamic(single, inplace=True) is single
    torch.testing.assert_close(single(x), before, rtol=0, atol=0)


@kinds
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_computed_weights_are_taken_as_they_are(kind: str, norm: Any):
    torch.manual_seed(0)
    name = "weight_hh" if kind.endswith("Cell") else "weight_hh_l0"
    single = norm(getattr(nn, kind)(4, 5), name).eval()
    with torch.no_grad():
        for parameter in single.parameters():
            parameter.mul_(1.5)
    plain = getattr(nn, kind)(4, 5)
    plain.load_state_dict({key: getattr(single, key).detach() for key, _ in plain.named_parameters()})
    narrow, x = fastrnn.quantize_dynamic(nn.Sequential(single))[0], inputs(kind)
    assert type(narrow).__name__ == f"Quantized{kind}"
    right = fastrnn.quantize_dynamic(plain)(x)
    assert all(torch.equal(a, b) for a, b in zip(flat(narrow(x)), flat(right), strict=True))


def dropped(module: nn.Module, name: str) -> None:
    """Weight drop, as it is done in language models: the parameter under another name, the weight an attribute."""
    raw = getattr(module, name)
    del module._parameters[name]
    module.register_parameter(f"{name}_raw", nn.Parameter(raw.detach()))
    setattr(module, name, raw.detach() * 2)


OLD = [weight_norm, spectral_norm, lambda module, name: prune.l1_unstructured(module, name, 0.3), dropped]


@kinds
@inplace
@pytest.mark.parametrize("change", OLD, ids=["weight_norm", "spectral_norm", "prune", "dropped"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_weights_that_hooks_compute_are_refused(kind: str, change: Any, inplace: bool):
    """Their numbers of now may not be those of the next call."""
    name = "weight_hh" if kind.endswith("Cell") else "weight_hh_l0"
    model = nn.Sequential(nn.GRU(4, 4), getattr(nn, kind)(4, 5))
    change(model[1], name)
    with pytest.raises(ValueError, match=f"{name} of {kind} is computed"):
        fastrnn.quantize_dynamic(model, inplace=inplace)
    assert [type(module) for module in model] == [nn.GRU, getattr(nn, kind)]


@kinds
@inplace
def test_a_module_in_two_places_and_weights_in_two_modules(kind: str, inplace: bool):
    made = getattr(nn, kind)
    one, other = made(4, 4), made(4, 4)
    other.__dict__["_parameters"].update(one._parameters)
    model = nn.ModuleDict({"a": one, "b": nn.ModuleList([one, other])})
    x = inputs(kind)
    narrow = fastrnn.quantize_dynamic(model, inplace=inplace)
    assert narrow["a"] is narrow["b"][0] and narrow["a"] is not narrow["b"][1]
    pairs = zip(flat(narrow["a"](x)), flat(narrow["b"][1](x)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@kinds
def test_attributes_of_users_go_along(kind: str):
    single = getattr(fastrnn, kind)(4, 5)
    single.note, single.parts, single.to_itself = "mine", [single, 3], single.extra_repr
    narrow = fastrnn.quantize_dynamic(single)
    assert narrow.note == "mine" and narrow.parts == [narrow, 3] and narrow.parts is not single.parts
    assert narrow.to_itself.__self__ is narrow
    assert fastrnn.quantize_dynamic(single, inplace=True).parts is single.parts
    plain = fastrnn.quantize_dynamic(getattr(nn, kind)(4, 5))
    assert vars(narrow).keys() - vars(plain).keys() == {"note", "parts", "to_itself"}


@kinds
@pytest.mark.parametrize("strict", [False, True])
def test_weights_of_floats_are_not_loaded_as_integers(kind: str, strict: bool):
    """Not even where missing keys are let go: under the same names they would be cut to zeros."""
    single = getattr(nn, kind)(4, 5)
    narrow, x = fastrnn.quantize_dynamic(single), inputs(kind)
    model, before = nn.ModuleDict({"rnn": narrow}), flat(narrow(x))
    for part, state in ((narrow, single.state_dict()), (model, nn.ModuleDict({"rnn": single}).state_dict())):
        with pytest.raises(RuntimeError, match=f"Quantized{kind}: it has weight_ih(_l0)? of torch.float32, .*int8"):
            part.load_state_dict(state, strict=strict)
    assert all(torch.equal(a, b) for a, b in zip(flat(narrow(x)), before, strict=True))
    other = fastrnn.quantize_dynamic(nn.ModuleDict({"rnn": getattr(nn, kind)(4, 5)}))
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(flat(other["rnn"](x)), before, strict=True))


@pytest.mark.parametrize("kind", KINDS[:3])
def test_what_models_ask_of_a_layer(kind: str):
    single = getattr(nn, kind)(4, 5, num_layers=2, bidirectional=True, batch_first=True)
    narrow: Any = fastrnn.quantize_dynamic(single)
    assert narrow.flatten_parameters() is None
    for name in (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "bidirectional",
        "proj_size",
        "mode",
    ):
        assert getattr(narrow, name) == getattr(single, name)
    assert getattr(narrow, "nonlinearity", None) == getattr(single, "nonlinearity", None)
    assert not isinstance(narrow, (nn.RNNBase, type(single)))
    with pytest.raises(TypeError, match=f"Quantized{kind}.forward.*'mask'.*none of torch.nn's classes"):
        narrow(torch.randn(2, 3, 4), mask=None)
