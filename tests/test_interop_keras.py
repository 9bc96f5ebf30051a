"""Keras, on its torch backend, against the modules that its weights make.

In float32: there Keras multiplies matrices in it, whatever their dtype is.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import numpy
import pytest
import torch
from torch import nn

import fastrnn
from fastrnn.interop import from_keras, keras_weights, load_keras_weights

# Keras gives NumPy a tensor of torch, whose `__array__` is of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
INPUTS, HIDDEN, ROWS, STEPS = 4, 5, 3, 7
KINDS = {"SimpleRNN": fastrnn.RNN, "LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU}
KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu"}
    try:
        return importlib.import_module("keras")
    except ImportError as error:
        pytest.skip(f"these tests compare with Keras: {error}")


def layer_of(keras: ModuleType, kind: str, bidirectional: bool = False, **options):
    """A built Keras layer with weights that are all drawn, biases too."""
    layer = getattr(keras.layers, kind)(HIDDEN, return_sequences=True, **options)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    layer.build((None, None, INPUTS))
    draw = numpy.random.default_rng(1)
    layer.set_weights([draw.uniform(-1, 1, array.shape) for array in layer.get_weights()])
    return layer


def values() -> torch.Tensor:
    return torch.randn(ROWS, STEPS, INPUTS, generator=torch.Generator().manual_seed(2))


@KIND
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_a_layer_becomes_a_module_and_its_weights_come_back(keras, kind: str, bias: bool, bidirectional: bool):
    layer, x = layer_of(keras, kind, bidirectional, use_bias=bias), values()
    module = from_keras(layer)
    assert type(module) is KINDS[kind] and module.bias == bias and module.bidirectional == bidirectional
    torch.testing.assert_close(module(x)[0], layer(x))
    for found, given in zip(keras_weights(module), layer.get_weights(), strict=True):
        numpy.testing.assert_array_equal(found, given)


@KIND
def test_weights_of_a_stack_of_torch_nn_into_keras(keras, kind: str):
    """Two biases that are both drawn, two layers, two directions: and back into a module."""
    module = getattr(nn, {"SimpleRNN": "RNN"}.get(kind, kind))(INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True)
    stack, x, weights = [], values(), keras_weights(module)
    for own in (weights[: len(weights) // 2], weights[len(weights) // 2 :]):
        stack.append(keras.layers.Bidirectional(getattr(keras.layers, kind)(HIDDEN, return_sequences=True)))
        stack[-1].build((None, None, own[0].shape[0]))
        stack[-1].set_weights(own)
    expected = module(x)[0]
    torch.testing.assert_close(stack[1](stack[0](x)), expected)
    again = type(module)(INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True)
    torch.testing.assert_close(load_keras_weights(again, weights)(x)[0], expected)


def test_relu(keras):
    layer, x = layer_of(keras, "SimpleRNN", activation="relu"), values()
    module = from_keras(layer)
    assert module.mode == "RNN_RELU"
    torch.testing.assert_close(module(x)[0], layer(x))


def test_the_model_of_the_tutorial(keras):
    """Keras's Embedding(1000, 64), LSTM(128), Dense(10), 164,106 parameters, in both libraries."""
    layers = keras.layers
    theirs = keras.Sequential([keras.Input((None,)), layers.Embedding(1000, 64), layers.LSTM(128), layers.Dense(10)])
    embedding, lstm, dense = theirs.layers
    ours = nn.ModuleDict({"embedding": nn.Embedding(1000, 64), "lstm": from_keras(lstm), "dense": nn.Linear(128, 10)})
    ours["embedding"].weight.data = torch.tensor(embedding.get_weights()[0])
    kernel, bias = dense.get_weights()
    ours["dense"].weight.data, ours["dense"].bias.data = torch.tensor(kernel.T), torch.tensor(bias)

    # torch has two biases in an LSTM where Keras has one; the second is zero.
    extra = ours["lstm"].bias_hh_l0
    count = sum(weight.numel() for weight in ours.parameters())
    assert theirs.count_params() == 164_106 == count - extra.numel() and not extra.any()

    tokens = torch.randint(1000, (8, 30), generator=torch.Generator().manual_seed(3))
    expected = theirs(tokens)
    torch.testing.assert_close(ours["dense"](ours["lstm"](ours["embedding"](tokens))[0][:, -1]), expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("GRU", {"reset_after": False}, "reset_after=False"),
        ("LSTM", {"activation": "relu"}, "activation='tanh', got 'relu'"),
        ("LSTM", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='sigmoid', got 'hard_sigmoid'"),
        ("GRU", {"go_backwards": True}, "go_backwards=False, got True"),
    ],
)
def test_another_network_is_refused(keras, kind: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        from_keras(layer_of(keras, kind, **options))


def test_other_layers_are_refused(keras):
    with pytest.raises(TypeError, match="got Dense"):
        from_keras(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="merge_mode='concat', got 'sum'"):
        from_keras(keras.layers.Bidirectional(keras.layers.LSTM(3), merge_mode="sum"))
    with pytest.raises(ValueError, match="no weights yet"):
        from_keras(keras.layers.LSTM(3))


def test_weights_that_do_not_fit_change_nothing():
    module = fastrnn.GRU(INPUTS, HIDDEN)
    before = [weight.clone() for weight in module.parameters()]
    good = keras_weights(module)
    for weights, message in (
        (good[:1], "2 or 3 weights for each of 1 layers and directions, got 1"),
        ([*good[:2], good[2][0]], r"\(2, 3\*H\), got \(15,\): with reset_after=False"),
        ([good[0], good[1][:-1], good[2]], r"weight_hh_l0: expected values of shape \(15, 5\), got \(15, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_keras_weights(module, weights)
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    with pytest.raises(ValueError, match="bias=True"):
        load_keras_weights(fastrnn.GRU(INPUTS, HIDDEN, bias=False), good)
    with pytest.raises(TypeError, match="got Linear"):
        load_keras_weights(nn.Linear(2, 2), good)
    with pytest.raises(ValueError, match="proj_size=2"):
        keras_weights(nn.LSTM(INPUTS, HIDDEN, proj_size=2))


def test_a_module_with_biases_takes_weights_without():
    module = load_keras_weights(fastrnn.LSTM(INPUTS, HIDDEN), keras_weights(fastrnn.LSTM(INPUTS, HIDDEN, bias=False)))
    assert not module.bias_ih_l0.any() and not module.bias_hh_l0.any()
