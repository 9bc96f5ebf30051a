"""Keras, on its torch backend, against the modules that its weights make.

In float32: there Keras multiplies matrices in it, whatever their dtype is.
"""

from __future__ import annotations

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


def layer_of(keras: ModuleType, kind: str, bidirectional: bool = False, **options):
    """A built Keras layer with weights that are all drawn, biases too."""
    layer = getattr(keras.layers, kind)(HIDDEN, return_sequences=True, **options)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    layer.build((ROWS if options.get("stateful") else None, None, INPUTS))
    draw = numpy.random.default_rng(1)
    layer.set_weights([draw.uniform(-1, 1, array.shape) for array in layer.get_weights()])
    return layer


def tanh(x):
    """Not Keras's, which writes its bare name into a configuration nevertheless."""
    return 3 * x


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
        ("LSTM", {"activation": "gelu"}, "expected activation to be one of tanh, .*, got 'gelu'"),
        ("GRU", {"recurrent_activation": "softmax"}, "expected recurrent_activation to be one of .*, got 'softmax'"),
        ("GRU", {"go_backwards": True}, "go_backwards=False, got True"),
        ("SimpleRNN", {"activation": tanh}, "Keras's own activation, got"),
        ("LSTM", {"stateful": True}, "stateful=False, got True"),
        ("LSTM", {"dtype": "mixed_bfloat16"}, "computes in bfloat16 with variables of float32"),
        ("LSTM", {"dtype": "mixed_float16"}, "computes in float16 with variables of float32"),
    ],
)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_another_network_is_refused(keras, kind: str, options: dict, message: str, bidirectional: bool):
    if bidirectional and (options.get("go_backwards") or options.get("activation") is tanh):
        return  # Keras refuses the one and takes its own for the other
    layer = layer_of(keras, kind, bidirectional, **options)
    with pytest.raises(ValueError, match=message):
        from_keras(layer)


@KIND
def test_what_changes_no_result_is_taken(keras, kind: str):
    options = dict(
        dropout=0.5, recurrent_dropout=0.5, unroll=True, zero_output_for_mask=True, return_state=True, seed=1
    )
    options |= {f"{part}_regularizer": "l2" for part in ("kernel", "recurrent", "bias", "activity")}
    options |= {f"{part}_constraint": "non_neg" for part in ("kernel", "recurrent", "bias")}
    if kind == "LSTM":
        options["unit_forget_bias"] = False
    layer = getattr(keras.layers, kind)(HIDDEN, return_sequences=True, **options)
    layer.build((None, STEPS, INPUTS))
    y, *states = layer(values())
    found, last = from_keras(layer)(values())
    torch.testing.assert_close(found, y)
    torch.testing.assert_close(torch.cat(last if kind == "LSTM" else [last]), torch.stack(states))


@KIND
def test_a_mask_is_lengths(keras, kind: str):
    layer, lengths = layer_of(keras, kind, True, zero_output_for_mask=True), torch.tensor([STEPS, 3, 1])
    mask = torch.arange(STEPS) < lengths[:, None]
    torch.testing.assert_close(from_keras(layer)(values(), lengths=lengths)[0], layer(values(), mask=mask))


class Configured:
    """A layer as Keras has it, with another configuration or other weights."""

    def __init__(self, layer, change: dict, weights: list | None = None) -> None:
        self.config = {key: value for key, value in (layer.get_config() | change).items() if value is not KeyError}
        self.weights = layer.get_weights() if weights is None else weights

    def get_config(self) -> dict:
        return self.config

    def get_weights(self) -> list:
        return self.weights


@KIND
def test_every_field_of_a_configuration_is_asked(keras, kind: str):
    """Each taken away and each set to another value: the same module, or an error in words.  An option that is new is
    refused by its name where it is on; ``time_major``, of Keras 2, is honoured."""
    layer, x = layer_of(keras, kind), values()
    made = {kind: type(kind, (Configured,), {})}[kind]
    exact = from_keras(layer)(x)[0]
    weights = {"units", "use_bias", "activation", "recurrent_activation", "go_backwards", "stateful", "reset_after"}
    for key in layer.get_config():
        for value in (KeyError, None, "strange", float("nan"), -3):
            fake = made(layer, {key: value})
            try:
                found = from_keras(fake)(x)[0]
            except (ValueError, TypeError) as error:
                assert key in weights and any(word in str(error) for word in (key, "hidden_size", "weight_hh"))
            else:
                assert key not in weights and torch.equal(found, exact)
    with pytest.raises(ValueError, match="peephole=True"):
        from_keras(made(layer, {"peephole": True}))
    assert torch.equal(from_keras(made(layer, {"peephole": False}))(x)[0], exact)
    turned = from_keras(made(layer, {"time_major": True}))
    assert not turned.batch_first and torch.equal(turned(x.transpose(0, 1))[0].transpose(0, 1), exact)
    for broken in ([], [1], ["kernel"] * 3, [layer.get_weights()[0]] * 3, [numpy.zeros(3)] * 3, [None] * 3):
        with pytest.raises((ValueError, TypeError), match="weights|kernel|values of shape"):
            from_keras(made(layer, {}, broken))


@KIND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(keras, kind: str, dtype: torch.dtype):
    """NumPy has no bfloat16: weights go out as float32, and come in from Keras's arrays of bfloat16."""
    module = KINDS[kind](INPUTS, HIDDEN, bias=kind == "GRU", bidirectional=True, batch_first=True, dtype=dtype)
    arrays = keras_weights(module)
    assert {str(array.dtype) for array in arrays} == {{torch.bfloat16: "float32"}.get(dtype, str(dtype)[6:])}
    again = load_keras_weights(type(module)(INPUTS, HIDDEN, bias=module.bias, bidirectional=True, dtype=dtype), arrays)
    for name, weight in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)

    name, options = str(dtype)[6:], dict(return_sequences=True, use_bias=module.bias)
    layer = getattr(keras.layers, kind)(HIDDEN, dtype=name, recurrent_initializer="glorot_uniform", **options)
    layer = keras.layers.Bidirectional(layer, dtype=name)
    layer.build((None, None, INPUTS))
    layer.set_weights(arrays)
    found = from_keras(layer)
    assert found.weight_ih_l0.dtype == dtype
    for key, weight in module.state_dict().items():
        assert torch.equal(found.state_dict()[key], weight)
    atol = 1e-6 if dtype == torch.float64 else 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found(values().to(dtype))[0].float(), layer(values().to(dtype)).float(), rtol=0, atol=atol
    )


def test_other_layers_are_refused(keras):
    LSTM = type("LSTM", (), {})
    for other in (keras.layers.Dense(3), keras.layers.RNN(keras.layers.LSTMCell(3)), keras.Sequential(), "lstm", None):
        with pytest.raises(TypeError, match=f"got {type(other).__name__}"):
            from_keras(other)
    for other in (LSTM(), type("Bidirectional", (), {"forward_layer": LSTM(), "backward_layer": LSTM()})()):
        with pytest.raises(TypeError, match="LSTM"):
            from_keras(other)
    own = type("LSTM", (keras.layers.LSTM,), {"call": lambda self, sequence: sequence})
    with pytest.raises(TypeError, match="got a subclass of that name"):
        from_keras(own(3))
    with pytest.raises(TypeError, match="got Bidirectional of LSTM and GRU"):
        backward = keras.layers.GRU(3, go_backwards=True)
        from_keras(keras.layers.Bidirectional(keras.layers.LSTM(3), backward_layer=backward))
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
        ([good[0][:, :-1], *good[1:]], r"weight_ih_l0: expected values of shape \(15, 4\), got \(14, 4\)"),
        ([good[0][0], *good[1:]], r"weight_ih_l0: expected values of shape \(15, 4\), got \(15,\)"),
        ([good[0], 3.0, good[2]], r"weight_hh_l0: expected values of shape \(15, 5\), got \(\)"),
        ([good[0], "R", good[2]], r"weights\[1\]: expected an array of real numbers, got str"),
        (
            [good[0], good[1].astype(object), good[2]],
            r"weights\[1\]: expected an array of real numbers, got ndarray of",
        ),
        (
            [good[0].astype(complex), *good[1:]],
            r"weights\[0\]: expected an array of real numbers, got torch.complex128",
        ),
        ([None, *good[1:]], r"weights\[0\]: expected an array of real numbers, got NoneType"),
        (None, "expects a list of arrays, got NoneType"),
        (dict(enumerate(good)), "expects a list of arrays, got dict"),
        ("weights.h5", "expects a list of arrays, got str"),
        (iter(good), "expects a list of arrays, got list_iterator"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            load_keras_weights(module, weights)
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    with pytest.raises(ValueError, match="bias=True"):
        load_keras_weights(fastrnn.GRU(INPUTS, HIDDEN, bias=False), good)
    with pytest.raises(TypeError, match="got Linear"):
        load_keras_weights(nn.Linear(2, 2), good)
    with pytest.raises(ValueError, match="weight_hh_l0 is no parameter of its own"):
        load_keras_weights(nn.utils.parametrizations.weight_norm(fastrnn.GRU(INPUTS, HIDDEN), "weight_hh_l0"), good)
    with pytest.raises(ValueError, match="proj_size=2"):
        keras_weights(nn.LSTM(INPUTS, HIDDEN, proj_size=2))


def test_a_module_with_biases_takes_weights_without():
    module = load_keras_weights(fastrnn.LSTM(INPUTS, HIDDEN), keras_weights(fastrnn.LSTM(INPUTS, HIDDEN, bias=False)))
    assert not module.bias_ih_l0.any() and not module.bias_hh_l0.any()
