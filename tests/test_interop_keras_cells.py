"""Keras, on its torch backend, against the Networks that its layers make where torch has no such network, and back."""

from __future__ import annotations

import random
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from interop_budget import exact_and_budget, hold
from torch import Tensor

import fastrnn
from fastrnn import cells
from fastrnn.interop import cells as chosen
from fastrnn.interop import from_keras, keras_options, keras_weights, load_keras_weights

# Keras gives NumPy a tensor of torch, whose `__array__` is of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
INPUTS, HIDDEN, ROWS, STEPS = 4, 5, 3, 7
KINDS = ("SimpleRNN", "LSTM", "GRU")
KIND = pytest.mark.parametrize("kind", KINDS)
FUNCTIONS = "linear tanh sigmoid hard_sigmoid relu relu6 leaky_relu elu selu softplus softsign silu exponential".split()


def layer_of(keras: ModuleType, kind: str, seed: int = 1, bidirectional: bool = False, **options: Any) -> Any:
    """A built layer that returns its states, with weights that are all drawn, biases too."""
    layer = getattr(keras.layers, kind)(HIDDEN, return_sequences=True, return_state=True, **options)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    layer.build((None, None, INPUTS))
    draw = numpy.random.default_rng(seed)
    layer.set_weights([draw.uniform(-0.25, 0.25, array.shape) for array in layer.get_weights()])
    return layer


def theirs(layer: Any, x: Tensor, **call: Any) -> list[Tensor]:
    """Its results as ours: y, then each state (D, B, H)."""
    y, *states = (each.detach() for each in layer(x, **call))
    count = len(states) // (2 if type(layer).__name__ == "Bidirectional" else 1)
    return [y, *(torch.stack(states[k::count]) for k in range(count))]


def options_of(kind: str, draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = dict(activation=draw.choice(FUNCTIONS), use_bias=draw.random() < 0.7)
    if kind != "SimpleRNN":
        options["recurrent_activation"] = draw.choice(FUNCTIONS)
    if kind == "GRU":
        options["reset_after"] = draw.random() < 0.4
    return options


@KIND
def test_layers_of_every_choice_are_networks_and_networks_are_layers(keras: ModuleType, kind: str):
    """Generated layers, with masks and without; each is written back as the arguments and weights of another."""
    met, held = set(), 0
    for seed in range(50):
        draw = random.Random(seed)
        options, both = options_of(kind, draw), draw.random() < 0.4
        layer = layer_of(keras, kind, seed, both, **options)
        x = torch.randn(ROWS, STEPS, INPUTS, generator=torch.Generator().manual_seed(seed))
        lengths = torch.tensor([STEPS, 3, 1]) if draw.random() < 0.3 else None
        module = from_keras(layer)
        call = {} if lengths is None else {"lengths": lengths}
        exact, budgets = exact_and_budget(module, x, seed=seed, **call)
        if not all(each.abs().max() < 100 for each in exact):
            continue  # e^v of e^v and the like, which float32 cannot hold or where a rounding becomes all there is
        held += 1
        mask = {} if lengths is None else {"mask": torch.arange(STEPS) < lengths[:, None]}
        found = theirs(layer, x, **mask)
        if lengths is not None:  # where Keras repeats the last output, or has zeros, ours has zeros
            found[0] = found[0] * mask["mask"][..., None]
        hold(found, exact, budgets, f"seed {seed}, {options}")
        met |= {options["activation"], options.get("recurrent_activation"), type(getattr(module, "cell", module))}

        name, again = keras_options(module)
        assert name == kind and {key: again[key] for key in options} == options and again["units"] == HIDDEN
        other = layer_of(keras, kind, seed + 1, both, **{key: again[key] for key in again if key != "units"})
        other.set_weights(keras_weights(module))
        for left, right in zip(other.get_weights(), layer.get_weights(), strict=True):
            numpy.testing.assert_array_equal(left, right)
    assert met >= set(FUNCTIONS) and held > 35
    if kind == "GRU":
        assert {chosen.ChosenGRU, chosen.ChosenResetBeforeGRU} <= met


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_a_gru_with_its_reset_before(keras: ModuleType, bias: bool, bidirectional: bool):
    """The library's cell, with the gradients of Keras's weights."""
    layer = layer_of(keras, "GRU", 1, bidirectional, reset_after=False, use_bias=bias)
    x = torch.randn(ROWS, STEPS, INPUTS, generator=torch.Generator().manual_seed(2))
    module = from_keras(layer)
    assert module.cell == cells.ResetBeforeGRU() and module.bidirectional == bidirectional and module.bias == bias
    hold(theirs(layer, x), *exact_and_budget(module, x))

    module(x)[0].square().sum().backward()
    layer(x)[0].square().sum().backward()
    kernel = layer.trainable_weights[0].value.grad.mT
    z, r, n = kernel.chunk(3)
    torch.testing.assert_close(module.weight_ih_l0.grad, torch.cat([r, z, n]), rtol=1e-4, atol=1e-5)


def test_a_stack_of_networks_goes_to_keras(keras: ModuleType):
    """Two biases that are both drawn become one, in two layers of two directions; and back."""
    torch.manual_seed(0)
    cell = cells.ResetBeforeGRU(nonlinearity="softsign", gate_nonlinearity="hard_sigmoid")
    network = fastrnn.Network(cell, INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True)
    weights, (name, options), stack = keras_weights(network), keras_options(network), []
    for own in (weights[: len(weights) // 2], weights[len(weights) // 2 :]):
        stack.append(keras.layers.Bidirectional(getattr(keras.layers, name)(return_sequences=True, **options)))
        stack[-1].build((None, None, own[0].shape[0]))
        stack[-1].set_weights(own)
    x = torch.randn(ROWS, STEPS, INPUTS)
    exact, budgets = exact_and_budget(network, x)
    hold([stack[1](stack[0](x)).detach()], exact[:1], budgets[:1])
    again = fastrnn.Network(cell, INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True)
    hold([load_keras_weights(again, weights)(x)[0].detach()], exact[:1], budgets[:1])


def test_directions_of_a_bidirectional_layer_agree(keras: ModuleType):
    def both(left: dict[str, Any], right: dict[str, Any]) -> Any:
        backward = keras.layers.GRU(HIDDEN, go_backwards=True, **right)
        layer = keras.layers.Bidirectional(keras.layers.GRU(HIDDEN, **left), backward_layer=backward)
        layer.build((None, None, INPUTS))
        return layer

    for key, values in (("reset_after", (True, False)), ("recurrent_activation", ("sigmoid", "tanh"))):
        with pytest.raises(ValueError, match=f"both directions to have the same {key}"):
            from_keras(both(*({key: value} for value in values)))


def test_a_function_that_another_version_of_keras_has_under_the_name(keras: ModuleType, monkeypatch: Any):
    """hard_sigmoid of Keras 2 is min(max(0.2 v + 0.5, 0), 1); of a library that has no version it is neither."""
    layer = layer_of(keras, "LSTM", recurrent_activation="hard_sigmoid")
    assert from_keras(layer).cell.activations[0] == ("hard_sigmoid", 1 / 6, 0.5)

    members = {name: getattr(type(layer), name) for name in ("get_config", "get_weights")}
    old = type("LSTM", (), {**members, "__module__": "tf_keras.src.layers"})()
    old.get_config, old.get_weights = layer.get_config, layer.get_weights
    with pytest.raises(ValueError, match="recurrent_activation='hard_sigmoid' is another function in Keras 2 and 3"):
        from_keras(old)
    monkeypatch.setitem(sys.modules, "tf_keras", SimpleNamespace(__version__="2.19.0"))
    network = from_keras(old)
    assert network.cell.activations[0] == ("hard_sigmoid", 0.2, 0.5)
    assert len(keras_weights(network)) == 3
    with pytest.raises(ValueError, match=r"Keras 3 has no activation hard_sigmoid\(0.2, 0.5\)"):
        keras_options(network)


def test_functions_that_are_no_name(keras: ModuleType):
    layer = layer_of(keras, "GRU", activation=keras.layers.LeakyReLU(0.3))
    with pytest.raises(ValueError, match="expected activation to be one of"):
        from_keras(layer)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (cells.PeepholeLSTM(), "no peepholes, coupled gates or clip, got PeepholeLSTM"),
        (cells.CoupledLSTM(), "no peepholes, coupled gates or clip, got CoupledLSTM"),
        (chosen.ChosenGRU(clip=2.0), r"no peepholes, coupled gates or clip, got ChosenGRU\(clip=2.0\)"),
        (chosen.ChosenLSTM(activations=(("tanh",), ("relu",), ("tanh",))), "one activation for g and h of an LSTM"),
        (chosen.ChosenRNN(activations=(("affine", 0.5, 0.1),)), r"Keras 3 has no activation affine\(0.5, 0.1\)"),
        (cells.RNN(nonlinearity="leaky_relu"), r"Keras 3 has no activation leaky_relu\(0.01\)"),
        (cells.SLSTM(), "got SLSTM"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("function", [keras_weights, keras_options])
def test_what_keras_has_not_is_refused_by_name(function: Any, cell: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        function(fastrnn.Network(cell, 4, 4))


def test_weights_of_the_other_gru_are_refused():
    before, after = fastrnn.Network(cells.ResetBeforeGRU(), INPUTS, HIDDEN), fastrnn.GRU(INPUTS, HIDDEN)
    with pytest.raises(ValueError, match=r"\(3\*H,\), got \(2, 15\): with reset_after=True"):
        load_keras_weights(before, keras_weights(after))
    with pytest.raises(ValueError, match=r"\(2, 3\*H\), got \(15,\): with reset_after=False"):
        load_keras_weights(after, keras_weights(before))
