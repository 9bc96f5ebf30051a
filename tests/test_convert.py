"""convert and revert: what is swapped, and that nothing else about a model changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastrnn
from fastrnn import options

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


class Model(nn.Module):
    """Every class, in containers, one module used twice, and one of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(getattr(nn, name)(4, 4) for name in NAMES)
        self.table = nn.ModuleDict({"first": nn.Sequential(nn.GRU(4, 4)), "tied": self.parts[1]})
        self.own = type("Own", (nn.LSTM,), {})(4, 4)
        self.linear = nn.Linear(4, 4)


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def test_every_module_is_swapped_and_swapped_back():
    model = Model()
    before = classes(model)
    assert fastrnn.convert(model) is model
    assert [type(part) for part in model.parts] == [getattr(fastrnn, name) for name in NAMES]
    assert type(model.table["first"][0]) is fastrnn.GRU
    assert type(model.own).__name__ == "Own" and isinstance(model.own, fastrnn.LSTM)
    assert fastrnn.convert(model) is model  # once more changes nothing
    assert fastrnn.revert(model) is model
    assert classes(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_itself_the_module(name: str):
    module = getattr(nn, name)(4, 4)
    assert fastrnn.convert(module) is module and type(module) is getattr(fastrnn, name)
    assert fastrnn.revert(module) is module and type(module) is getattr(nn, name)


def test_parameters_hooks_and_state_stay():
    model = Model().eval()
    lstm = model.parts[1]
    calls: list[type] = []
    lstm.register_forward_hook(lambda module, *_: calls.append(type(module)))
    lstm.register_buffer("extra", torch.ones(1))
    lstm.weight_hh_l0.requires_grad_(False)
    lstm.note = "mine"
    parameters, keys = list(model.parameters()), list(model.state_dict())
    fastrnn.convert(model)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    assert model.table["tied"] is model.parts[1] is lstm
    assert not lstm.training and lstm.note == "mine" and not lstm.weight_hh_l0.requires_grad
    lstm(torch.randn(2, 3, 4))
    assert calls == [fastrnn.LSTM]


def test_an_optimizer_made_before_still_trains():
    model = nn.Sequential(nn.LSTM(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    fastrnn.convert(model)
    x = torch.randn(3, 2, 4)
    before = model(x)[0]
    before.sum().backward()
    optimizer.step()
    assert not torch.equal(model(x)[0], before)


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_a_parametrized_module(name: str):
    torch.manual_seed(0)
    module = getattr(nn, name)(4, 4)
    weight = next(key for key, _ in module.named_parameters())
    parametrizations.weight_norm(module, weight)
    twin = copy.deepcopy(module)
    x = torch.randn(2, 3, 4) if name == "LSTM" else torch.randn(3, 4)
    fastrnn.convert(module)
    assert isinstance(module, getattr(fastrnn, name)) and type(module).__name__ == f"Parametrized{name}"
    assert not isinstance(twin, getattr(fastrnn, name))
    torch.testing.assert_close(module(x), twin(x))
    fastrnn.revert(module)
    assert not isinstance(module, getattr(fastrnn, name)) and parametrize.is_parametrized(module)
    fastrnn.convert(module)
    parametrize.remove_parametrizations(module, weight)
    assert type(module) is getattr(fastrnn, name)


def test_a_copy_can_be_converted_alone():
    model = nn.Sequential(nn.GRU(4, 4))
    converted = fastrnn.convert(copy.deepcopy(model))
    assert type(model[0]) is nn.GRU and type(converted[0]) is fastrnn.GRU
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize("name", options.NAMES)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_an_option_set_later_where_there_are_none_is_an_error(kind: str, name: str):
    compilable = fastrnn.convert(getattr(nn, kind)(3, 4), compilable=True)
    modules = [compilable, *(fastrnn.quantize_dynamic(getattr(nn, k)(3, 4)) for k in (kind, f"{kind}Cell"))]
    for module in modules:
        setattr(module, name, False)
        with pytest.raises(ValueError, match=f"{type(module).__name__} has no {name}: set it on the module"):
            setattr(module, name, True)
        assert getattr(module, name) is False
    reverted = fastrnn.convert(fastrnn.revert(compilable))
    setattr(reverted, name, True)
    assert options.on(reverted) == [name]
