"""What a module is before it runs: initial values, names, repr, state_dict, copies, pickles."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ("RNN", {"bias": False}),
    ("LSTM", {"proj_size": 3, "bidirectional": True, "num_layers": 2, "dropout": 0.5}),
    ("LSTM", {}),
    ("GRU", {"batch_first": True, "bidirectional": True}),
    ("RNNCell", {"nonlinearity": "relu"}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
]
forms = pytest.mark.parametrize(("name", "options"), FORMS)


def pair(name: str, options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    return getattr(nn, name)(4, 5, **options), getattr(fastrnn, name)(4, 5, **options)


def inputs(name: str) -> torch.Tensor:
    return torch.randn(3, 4) if name.endswith("Cell") else torch.randn(6, 3, 4)


@forms
def test_one_seed_gives_one_start(name: str, options: dict[str, Any]):
    torch.manual_seed(1)
    theirs = getattr(nn, name)(4, 5, **options)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    ours = getattr(fastrnn, name)(4, 5, **options)
    assert torch.equal(torch.get_rng_state(), after)
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert isinstance(ours, getattr(nn, name)) and repr(ours) == repr(theirs) and type(ours).__doc__
    plain = {key: value for key, value in vars(theirs).items() if isinstance(value, str | int | float | bool)}
    assert plain == {key: vars(ours)[key] for key in plain}


@forms
def test_state_dicts_fit_both_ways(name: str, options: dict[str, Any]):
    theirs, ours = pair(name, options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    again = getattr(nn, name)(4, 5, **options)
    again.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))


@forms
@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_a_copy_is_equal_and_its_own(name: str, options: dict[str, Any], way: str):
    module, x = getattr(fastrnn, name)(4, 5, **options).eval(), inputs(name)
    module(x)[0].sum().backward()  # use leaves nothing behind that cannot be copied
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    elif way == "deepcopy":
        twin = copy.deepcopy(module)
    else:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    before = module(x)[0]
    assert type(twin) is type(module) and torch.equal(twin(x)[0], before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(module(x)[0], before) and not torch.equal(twin(x)[0], before)


def test_the_fourth_argument_of_rnn_is_the_nonlinearity():
    assert fastrnn.RNN(4, 5, 1, "relu").mode == "RNN_RELU"


@forms
@pytest.mark.parametrize("way", ["to_empty", "assign"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_built_on_meta_and_filled_later(name: str, options: dict[str, Any], way: str):
    source = getattr(nn, name)(4, 5, **options).eval()
    with torch.device("meta"):
        module = getattr(fastrnn, name)(4, 5, **options).eval()
    assert all(parameter.is_meta for parameter in module.parameters())
    if way == "to_empty":
        module = module.to_empty(device="cpu")
        module.load_state_dict(source.state_dict())
    else:
        module.load_state_dict(source.state_dict(), assign=True)
    x = inputs(name)
    torch.testing.assert_close(module(x), source(x))


def test_on_meta_shapes_alone_come_back():
    x = inputs("LSTM").to("meta")
    with pytest.raises(RuntimeError):
        fastrnn.LSTM(4, 5)(x)
    assert fastrnn.LSTM(4, 5, device="meta")(x)[0].shape == (6, 3, 5)
