"""Keras's LSTM, GRU and SimpleRNN: their weights into a module, and a module's weights for them.

A Keras layer keeps ``kernel`` (I, G*H), ``recurrent_kernel`` (H, G*H) and ``bias``: torch's matrices transposed, with
the gates i, f, c, o of an LSTM in torch's order and those of a GRU as z, r, h where torch has r, z, n.  LSTM and
SimpleRNN have one bias (G*H,), the sum of torch's two.  A GRU with ``reset_after=True`` has two, (2, 3*H), for the same
reason as torch: the reset gate stands between them.  With ``reset_after=False`` it multiplies h before the recurrent
product, which is another network than torch's GRU, and is refused.

Source: ``get_weights`` and the call of the cells of keras.layers (Keras 3; the layout is that of Keras 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fastrnn.interop.layout import as_array, as_tensor, ends, reorder, require_layers, write
from fastrnn.modes import CELLS
from fastrnn.modules import GRU, LSTM, RNN

if TYPE_CHECKING:
    import numpy

Layers = TypeVar("Layers", bound=nn.RNNBase)

_GATES = {"RNN_TANH": ("h",), "RNN_RELU": ("h",), "LSTM": ("i", "f", "g", "o"), "GRU": ("z", "r", "n")}
_BEFORE = "with reset_after=False a GRU multiplies h by the reset gate before the recurrent product; torch's cannot"


def load_keras_weights(module: Layers, weights: Sequence[Any]) -> Layers:
    """Copies Keras's weights into an RNN, LSTM or GRU, torch.nn's or ours, in place; returns ``module``.

    Args:
        module: of the same sizes; ``bias=True`` where Keras's layer has ``use_bias``.
        weights: what ``get_weights()`` of the Keras layer gives; of a ``Bidirectional`` the same, which is forward,
            then backward; for ``num_layers`` > 1 those of each layer, one after the other.

    The second bias of LSTM and RNN becomes 0, both where Keras has none.

    Raises:
        TypeError: ``module`` is none of these; ``weights`` is no list of arrays of real numbers.
        ValueError: a number or a shape of weights does not fit; a GRU's bias is that of ``reset_after=False``.  Without
            a bias nothing tells such a GRU: :func:`from_keras` sees it.
    """
    require_layers(module, "load_keras_weights")
    if isinstance(weights, str | bytes | dict | Tensor) or not hasattr(weights, "__len__"):
        raise TypeError(f"load_keras_weights expects a list of arrays, got {type(weights).__name__}")
    names = ends(module)
    each = len(weights) // len(names)
    if each * len(names) != len(weights) or each not in (2, 3):
        raise ValueError(f"expected 2 or 3 weights for each of {len(names)} layers and directions, got {len(weights)}")
    if each == 3 and not module.bias:
        raise ValueError("the Keras layer has a bias, expected a module with bias=True")
    gates, wanted = _GATES[module.mode], CELLS[module.mode].gates
    values: dict[str, Tensor] = {}
    for k, end in enumerate(names):
        given = (as_tensor(weights[n], f"weights[{n}]") for n in range(k * each, (k + 1) * each))
        kernel, recurrent, *biases = (
            tensor.mT if tensor.dim() > 1 and n < 2 else tensor for n, tensor in enumerate(given)
        )
        own = {"weight_ih": kernel, "weight_hh": recurrent}
        if module.bias:
            rows = len(gates) * module.hidden_size
            bias = biases[0] if biases else kernel.new_zeros(rows)
            own["bias_ih"], own["bias_hh"] = _two_biases(module.mode, bias) if biases else (bias, bias)
        values |= {f"{name}_{end}": reorder(tensor, gates, wanted) for name, tensor in own.items()}
    write(module, values)
    return module


def keras_weights(module: nn.RNNBase) -> list[numpy.ndarray]:
    """A module's weights for Keras, the inverse of :func:`load_keras_weights`: of one layer, what ``set_weights`` of a
    Keras layer of the same sizes, with ``use_bias=module.bias`` and a GRU's ``reset_after=True``, takes.  The arrays
    have the module's dtype, but for bfloat16, which NumPy has not: that becomes float32.

    Raises:
        TypeError, ValueError: ``module`` is no RNN, LSTM or GRU; or an LSTM with a projection, which Keras has not.
    """
    require_layers(module, "keras_weights")
    gates, own = CELLS[module.mode].gates, _GATES[module.mode]
    arrays: list[Tensor] = []
    for end in ends(module):

        def block(name: str, end: str = end) -> Tensor:
            weight = getattr(module, f"{name}_{end}").detach()
            return reorder(weight.float() if weight.dtype == torch.bfloat16 else weight, gates, own)

        arrays += [block(name).mT for name in ("weight_ih", "weight_hh")]
        if module.bias:
            pair = [block(name) for name in ("bias_ih", "bias_hh")]
            arrays.append(torch.stack(pair) if module.mode == "GRU" else pair[0] + pair[1])
    return [as_array(tensor) for tensor in arrays]


def from_keras(layer: Any) -> RNN | LSTM | GRU:
    """A fastrnn module that computes what a built Keras LSTM, GRU or SimpleRNN, or a Bidirectional of one, computes.

    ``batch_first`` is true, as Keras's sequences are (B, T, I), unless the layer is of Keras 2 and ``time_major``.  The
    module returns every step's output and the last states, whatever ``return_sequences`` and ``return_state`` say.
    ``dropout`` and ``recurrent_dropout`` are at work in Keras's training alone, as are constraints and regularizers,
    and are not carried over; masks are of Keras's calls: of ours, ``lengths``.

    Raises:
        TypeError: another layer.
        ValueError: an option that torch's equations have no place for: an activation other than tanh (or relu, of a
            SimpleRNN) and sigmoid, ``reset_after=False``, ``go_backwards``, a ``merge_mode`` other than "concat"; one
            that is not carried over and changes what a call gives: ``stateful``, a ``dtype`` policy that computes in
            another dtype than that of the variables, any that Keras adds; or a layer that has no weights yet.
    """
    both = type(layer).__name__ == "Bidirectional"
    parts = [getattr(layer, f"{part}_layer", None) for part in ("forward", "backward")] if both else [layer]
    kinds = [type(part).__name__ for part in parts]
    kind = kinds[0]
    methods = ("get_config", "get_weights")
    if (
        kind not in ("LSTM", "GRU", "SimpleRNN")
        or len(set(kinds)) > 1
        or not all(hasattr(part, method) for part in (layer, *parts) for method in methods)
    ):
        raise TypeError(
            "from_keras expects an LSTM, GRU, SimpleRNN of Keras or a Bidirectional of one, got "
            f"{type(layer).__name__}{' of ' + ' and '.join(kinds) if both else ''}"
        )
    if both and getattr(layer, "merge_mode", None) != "concat":
        raise ValueError(f"from_keras: expected merge_mode='concat', got {getattr(layer, 'merge_mode', None)!r}")
    if any(base.__name__ == kind for part in parts for base in type(part).__mro__[1:]):
        raise TypeError(f"from_keras expects Keras's own {kind}, got a subclass of that name, {type(parts[0])}")
    configs = [_configuration(kind, part, back) for part, back in zip(parts, (False, True), strict=False)]
    first = configs[0]
    for key in ("units", "use_bias", "activation", "time_major"):
        if any(config.get(key, False) != first.get(key, False) for config in configs):
            raise ValueError(f"from_keras: expected both directions to have the same {key}")
    weights = layer.get_weights()
    if not weights:
        raise ValueError(f"from_keras: {configs[0].get('name', kind)} has no weights yet; call it or its build() first")
    kernel = as_tensor(weights[0], "weights[0]")
    if kernel.dim() != 2:
        raise ValueError(f"from_keras: expected a kernel of shape (I, G*H), got {tuple(kernel.shape)}")
    batch_first = not first.get("time_major", False)
    options = dict(bias=first["use_bias"], batch_first=batch_first, bidirectional=both, dtype=kernel.dtype)
    if kind == "SimpleRNN":
        module = RNN(kernel.shape[0], first["units"], nonlinearity=first["activation"], **options)
    else:
        module = {"LSTM": LSTM, "GRU": GRU}[kind](kernel.shape[0], first["units"], **options)
    return load_keras_weights(module, weights)


# Of a layer's configuration: what is honoured or checked, and what changes neither weights nor results.
_CHECKED = "units use_bias activation recurrent_activation go_backwards stateful reset_after time_major dtype".split()
_HARMLESS = (
    "name trainable return_sequences return_state unroll zero_output_for_mask implementation batch_input_shape seed "
    "dropout recurrent_dropout unit_forget_bias kernel_initializer recurrent_initializer bias_initializer "
    "kernel_regularizer recurrent_regularizer bias_regularizer activity_regularizer "
    "kernel_constraint recurrent_constraint bias_constraint"
).split()


def _configuration(kind: str, layer: Any, backwards: bool) -> dict[str, Any]:
    """A Keras layer's configuration; raises where it makes another network than torch has."""
    config = layer.get_config()
    expected: dict[str, tuple[Any, ...]] = {"activation": ("tanh", "relu") if kind == "SimpleRNN" else ("tanh",)}
    if kind != "SimpleRNN":
        expected["recurrent_activation"] = ("sigmoid",)
    expected |= {"go_backwards": (backwards,), "stateful": (False,), "use_bias": (True, False)}
    if kind == "GRU":
        expected["reset_after"] = (True,)
    for key in ("units", *expected):
        if key not in config:
            raise ValueError(f"from_keras: the layer's configuration has no {key}")
    for key, values in expected.items():
        if config[key] not in values:
            why = {"reset_after": f": {_BEFORE}", "stateful": ": the state of the last call is given to a call as hx"}
            raise ValueError(
                f"from_keras: expected {key}={' or '.join(map(repr, values))}, got {config[key]!r}{why.get(key, '')}"
            )
    for key in sorted(config.keys() - {*_CHECKED, *_HARMLESS}):
        if config[key]:
            raise ValueError(f"from_keras: {key}={config[key]!r} is an option that it does not know")
    for key in ("activation", "recurrent_activation"):
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


def _two_biases(mode: str, bias: Tensor) -> tuple[Tensor, Tensor]:
    if mode != "GRU":
        return bias, torch.zeros_like(bias)
    if bias.dim() == 1:
        raise ValueError(f"expected a GRU's bias of shape (2, 3*H), got {tuple(bias.shape)}: {_BEFORE}")
    return bias[0], bias[1]
