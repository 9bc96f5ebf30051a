"""Keras's LSTM, GRU and SimpleRNN: their weights into a module, and a module's weights for them.

A Keras layer keeps ``kernel`` (I, G*H), ``recurrent_kernel`` (H, G*H) and ``bias``: torch's matrices transposed, with
the gates i, f, c, o of an LSTM in torch's order and those of a GRU as z, r, h where torch has r, z, n.  LSTM and
SimpleRNN have one bias (G*H,), the sum of torch's two.  A GRU with ``reset_after=True`` has two, (2, 3*H), for the same
reason as torch: the reset gate stands between them.  With ``reset_after=False`` it multiplies h before the recurrent
product and has one; that is no network of torch's, but a :class:`fastrnn.Network` of
:class:`fastrnn.cells.ResetBeforeGRU`, as one is made for activations that torch has not.

Source: ``get_weights`` and the call of the cells of keras.layers (Keras 3; the layout is that of Keras 2).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrnn.interop.cells import Activation
from fastrnn.interop.equations import Equations, Layers, described, make
from fastrnn.interop.layout import as_array, as_tensor, ends, gather, orders, scatter, write
from fastrnn.modules import GRU, LSTM, RNN
from fastrnn.network import Network

if TYPE_CHECKING:
    import numpy

_KINDS = {"SimpleRNN": "RNN", "LSTM": "LSTM", "GRU": "GRU"}
_GATES = {"RNN": ("h",), "LSTM": ("i", "f", "g", "o"), "GRU": ("z", "r", "n")}
# Keras's activations, by the names in a configuration; what else it has is refused.
_FUNCTIONS: dict[str, Activation] = {
    **{name: (name,) for name in ("tanh", "sigmoid", "relu", "relu6", "softplus", "softsign", "silu", "selu")},
    "linear": ("identity",),
    "exponential": ("exp",),
    "elu": ("elu", 1.0),
    "leaky_relu": ("leaky_relu", 0.2),
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
}
_OF_KERAS_2: dict[str, Activation] = {"hard_sigmoid": ("hard_sigmoid", 0.2, 0.5)}
# How many of its equations' activations each argument of a layer names, the first last: f is the recurrent one.
_ACTIVATIONS = {"RNN": ("activation",), "LSTM": ("recurrent_activation", "activation", "activation")}
_ACTIVATIONS["GRU"] = _ACTIVATIONS["LSTM"][:2]


def load_keras_weights(module: Layers, weights: Sequence[Any]) -> Layers:
    """Copies Keras's weights into an RNN, LSTM or GRU, torch.nn's or ours, or a :class:`fastrnn.Network` that Keras has
    a layer for, in place; returns ``module``.

    Args:
        module: of the same sizes and equations; ``bias=True`` where Keras's layer has ``use_bias``.
        weights: what ``get_weights()`` of the Keras layer gives; of a ``Bidirectional`` the same, which is forward,
            then backward; for ``num_layers`` > 1 those of each layer, one after the other.

    Where Keras has one bias for torch's two, the second becomes 0, and both where it has none.

    Raises:
        TypeError: ``module`` is none of these; ``weights`` is no list of arrays of real numbers.
        ValueError: a number or a shape of weights does not fit, as a GRU's bias that is that of the other
            ``reset_after``.  Without a bias nothing tells such a GRU, as nothing tells activations: :func:`from_keras`
            sees both.
    """
    cell, equations = _described(module, "load_keras_weights")
    if isinstance(weights, str | bytes | dict | Tensor) or not hasattr(weights, "__len__"):
        raise TypeError(f"load_keras_weights expects a list of arrays, got {type(weights).__name__}")
    layers: Any = module
    names = ends(layers)
    each = len(weights) // len(names)
    if each * len(names) != len(weights) or each not in (2, 3):
        raise ValueError(f"expected 2 or 3 weights for each of {len(names)} layers and directions, got {len(weights)}")
    if each == 3 and not layers.bias:
        raise ValueError("the Keras layer has a bias, expected a module with bias=True")
    order = orders(_GATES[equations.kind])
    values: dict[str, Tensor] = {}
    for k, end in enumerate(names):
        given = (as_tensor(weights[n], f"weights[{n}]") for n in range(k * each, (k + 1) * each))
        kernel, recurrent, *biases = (
            tensor.mT if tensor.dim() > 1 and n < 2 else tensor for n, tensor in enumerate(given)
        )
        own = {"W": kernel, "R": recurrent}
        if layers.bias:
            zeros = kernel.new_zeros(len(_GATES[equations.kind]) * layers.hidden_size)
            own["Wb"], own["Rb"] = _two_biases(equations, biases[0]) if biases else (zeros, zeros)
        values |= scatter(cell, end, own, order)
    write(module, values)
    return module


def keras_weights(module: Any) -> list[numpy.ndarray]:
    """A module's weights for Keras, the inverse of :func:`load_keras_weights`: of one layer, what ``set_weights`` of a
    Keras layer of the same sizes and of the arguments that :func:`keras_options` gives takes.  The arrays have the
    module's dtype, but for bfloat16, which NumPy has not: that becomes float32.

    Raises:
        TypeError, ValueError: ``module`` is no RNN, LSTM or GRU, nor a Network that Keras has a layer for; or an LSTM
            with a projection, which Keras has not.
    """
    cell, equations = _described(module, "keras_weights")
    for activation in equations.activations:
        _name_of(activation, _FUNCTIONS, _OF_KERAS_2)
    order = orders(_GATES[equations.kind])
    arrays: list[Tensor] = []
    for end in ends(module):
        own = gather(module, cell, end, order)
        own = {name: array.float() if array.dtype == torch.bfloat16 else array for name, array in own.items()}
        arrays += [own["W"].mT, own["R"].mT]
        if "Wb" in own:
            arrays.append(torch.stack([own["Wb"], own["Rb"]]) if _both(equations) else own["Wb"] + own["Rb"])
    return [as_array(tensor) for tensor in arrays]


def keras_options(module: Any) -> tuple[str, dict[str, Any]]:
    """Which layer of Keras 3 takes a module's weights: the name of its class, and arguments that make it compute the
    same::

        name, options = fastrnn.interop.keras_options(module)
        layer = getattr(keras.layers, name)(return_sequences=True, **options)

    Raises:
        TypeError, ValueError: as :func:`keras_weights`; or an activation that Keras 3 has not.
    """
    _, equations = _described(module, "keras_options")
    names = [_name_of(activation, _FUNCTIONS) for activation in equations.activations]
    options = dict(units=module.hidden_size, use_bias=module.bias)
    options |= dict(zip(_ACTIVATIONS[equations.kind], names, strict=True))
    if equations.kind == "GRU":
        options["reset_after"] = equations.reset_after
    return next(name for name, kind in _KINDS.items() if kind == equations.kind), options


def from_keras(layer: Any) -> RNN | LSTM | GRU | Network:
    """A fastrnn module that computes what a built Keras LSTM, GRU or SimpleRNN, or a Bidirectional of one, computes:
    one of torch's classes, ours, or where torch has no such network a :class:`fastrnn.Network`.

    ``batch_first`` is true, as Keras's sequences are (B, T, I), unless the layer is of Keras 2 and ``time_major``.  The
    module returns every step's output and the last states, whatever ``return_sequences`` and ``return_state`` say.
    ``dropout`` and ``recurrent_dropout`` are at work in Keras's training alone, as are constraints and regularizers,
    and are not carried over; masks are of Keras's calls: of ours, ``lengths``.

    Raises:
        TypeError: another layer.
        ValueError: an activation other than linear, tanh, sigmoid, hard_sigmoid (which is another function in Keras 2
            and 3: the library must have its version), relu, relu6, leaky_relu, elu, selu, softplus, softsign, silu or
            exponential; ``go_backwards``, a ``merge_mode`` other than "concat"; an option that is not carried over and
            changes what a call gives: ``stateful``, a ``dtype`` policy that computes in another dtype than that of the
            variables, any that Keras adds; or a layer that has no weights yet.
    """
    both = type(layer).__name__ == "Bidirectional"
    parts = [getattr(layer, f"{part}_layer", None) for part in ("forward", "backward")] if both else [layer]
    kinds = [type(part).__name__ for part in parts]
    name = kinds[0]
    methods = ("get_config", "get_weights")
    if (
        name not in _KINDS
        or len(set(kinds)) > 1
        or not all(hasattr(part, method) for part in (layer, *parts) for method in methods)
    ):
        raise TypeError(
            "from_keras expects an LSTM, GRU, SimpleRNN of Keras or a Bidirectional of one, got "
            f"{type(layer).__name__}{' of ' + ' and '.join(kinds) if both else ''}"
        )
    if both and getattr(layer, "merge_mode", None) != "concat":
        raise ValueError(f"from_keras: expected merge_mode='concat', got {getattr(layer, 'merge_mode', None)!r}")
    if any(base.__name__ == name for part in parts for base in type(part).__mro__[1:]):
        raise TypeError(f"from_keras expects Keras's own {name}, got a subclass of that name, {type(parts[0])}")
    configs = [_configuration(name, part, back) for part, back in zip(parts, (False, True), strict=False)]
    first = configs[0]
    for key in ("units", "use_bias", "activation", "recurrent_activation", "reset_after", "time_major"):
        if any(config.get(key, False) != first.get(key, False) for config in configs):
            raise ValueError(f"from_keras: expected both directions to have the same {key}")
    weights = layer.get_weights()
    if not weights:
        raise ValueError(f"from_keras: {first.get('name', name)} has no weights yet; call it or its build() first")
    kernel = as_tensor(weights[0], "weights[0]")
    if kernel.dim() != 2:
        raise ValueError(f"from_keras: expected a kernel of shape (I, G*H), got {tuple(kernel.shape)}")
    activations = tuple(_function(parts[0], key, first[key]) for key in _ACTIVATIONS[_KINDS[name]])
    equations = Equations(_KINDS[name], activations, reset_after=first.get("reset_after", True))
    batch_first = not first.get("time_major", False)
    arguments = dict(bias=first["use_bias"], batch_first=batch_first, bidirectional=both, dtype=kernel.dtype)
    return load_keras_weights(make(equations, kernel.shape[0], first["units"], **arguments), weights)


# Of a layer's configuration: what is honoured or checked, and what changes neither weights nor results.
_CHECKED = "units use_bias activation recurrent_activation go_backwards stateful reset_after time_major dtype".split()
_HARMLESS = (
    "name trainable return_sequences return_state unroll zero_output_for_mask implementation batch_input_shape seed "
    "dropout recurrent_dropout unit_forget_bias kernel_initializer recurrent_initializer bias_initializer "
    "kernel_regularizer recurrent_regularizer bias_regularizer activity_regularizer "
    "kernel_constraint recurrent_constraint bias_constraint"
).split()


def _configuration(kind: str, layer: Any, backwards: bool) -> dict[str, Any]:
    """A Keras layer's configuration; raises where it makes a network that we have not."""
    config = layer.get_config()
    expected = {"go_backwards": (backwards,), "stateful": (False,), "use_bias": (True, False)}
    if kind == "GRU":
        expected["reset_after"] = (True, False)
    functions = dict.fromkeys(_ACTIVATIONS[_KINDS[kind]])
    for key in ("units", *functions, *expected):
        if key not in config:
            raise ValueError(f"from_keras: the layer's configuration has no {key}")
    for key, values in expected.items():
        if config[key] not in values:
            why = ": the state of the last call is given to a call as hx" if key == "stateful" else ""
            raise ValueError(f"from_keras: expected {key}={' or '.join(map(repr, values))}, got {config[key]!r}{why}")
    for key in sorted(config.keys() - {*_CHECKED, *_HARMLESS}):
        if config[key]:
            raise ValueError(f"from_keras: {key}={config[key]!r} is an option that it does not know")
    for key in functions:
        _function(layer, key, config[key])
        function = getattr(layer, key, None)
        # A function of another library that is called tanh is "tanh" in the configuration too.
        if function is not None and _library(function) != _library(type(layer)):
            raise ValueError(f"from_keras: expected Keras's own {key}, got {function}")
    computed, stored = (getattr(layer, f"{of}_dtype", None) for of in ("compute", "variable"))
    if computed != stored:
        raise ValueError(
            f"from_keras: expected a dtype policy of one dtype, got one that computes in {computed} with variables of "
            f"{stored}; load_keras_weights copies them into a module of the dtype you choose"
        )
    return config


def _library(of: Any) -> str:
    return str(getattr(of, "__module__", "")).split(".")[0]


def _function(layer: Any, key: str, name: Any) -> Activation:
    """What a name in a configuration stands for, in the version of Keras that the layer is of."""
    if not isinstance(name, str) or name not in _FUNCTIONS:
        raise ValueError(f"from_keras: expected {key} to be one of {', '.join(_FUNCTIONS)}, got {name!r}")
    if name not in _OF_KERAS_2:
        return _FUNCTIONS[name]
    version = str(getattr(sys.modules.get(_library(type(layer))), "__version__", ""))
    if not version[:1].isdigit():
        raise ValueError(f"from_keras: {key}={name!r} is another function in Keras 2 and 3; the layer is of neither")
    return (_OF_KERAS_2 if int(version.split(".")[0]) < 3 else _FUNCTIONS)[name]


def _rounded(numbers: Sequence[Any]) -> list[float]:
    """Numbers as float32 keeps them."""
    return torch.tensor(numbers, dtype=torch.float32, device="cpu").tolist()


def _name_of(activation: Activation, *tables: dict[str, Activation]) -> str:
    name, *numbers = activation
    for known, (own, *theirs) in (item for table in tables for item in table.items()):
        # ONNX keeps numbers in float32, so that 1/6 comes back as the nearest of these.
        if own == name and _rounded(theirs) == _rounded(numbers):
            return known
    raise ValueError(f"Keras 3 has no activation {name}({', '.join(map(str, numbers))})")


def _described(module: Any, function: str) -> tuple[Any, Equations]:
    cell, equations = described(module, function)
    if equations != Equations(equations.kind, equations.activations, reset_after=equations.reset_after):
        raise ValueError(f"{function}: Keras has no peepholes, coupled gates or clip, got {cell!r}")
    if equations.kind == "LSTM" and equations.activations[1] != equations.activations[2]:
        raise ValueError(f"{function}: Keras has one activation for g and h of an LSTM, got {cell!r}")
    return cell, equations


def _both(equations: Equations) -> bool:
    """Whether Keras keeps both biases: a reset gate stands between them."""
    return equations.kind == "GRU" and equations.reset_after


def _two_biases(equations: Equations, bias: Tensor) -> tuple[Tensor, Tensor]:
    if equations.kind == "GRU" and bias.dim() != (2 if equations.reset_after else 1):
        wanted = "(2, 3*H)" if equations.reset_after else "(3*H,)"
        raise ValueError(
            f"expected a GRU's bias of shape {wanted}, got {tuple(bias.shape)}: with reset_after="
            f"{not equations.reset_after} a GRU is another network, which from_keras makes"
        )
    return (bias[0], bias[1]) if _both(equations) else (bias, torch.zeros_like(bias))
