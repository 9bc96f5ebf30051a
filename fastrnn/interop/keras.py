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

from fastrnn.cells import CELLS
from fastrnn.interop.layout import ends, reorder, require_layers, write
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
        TypeError: ``module`` is none of these.
        ValueError: a number or a shape of weights does not fit; a GRU's bias is that of ``reset_after=False``.  Without
            a bias nothing tells such a GRU: :func:`from_keras` sees it.
    """
    require_layers(module, "load_keras_weights")
    names = ends(module)
    each = len(weights) // len(names)
    if each * len(names) != len(weights) or each not in (2, 3):
        raise ValueError(f"expected 2 or 3 weights for each of {len(names)} layers and directions, got {len(weights)}")
    if each == 3 and not module.bias:
        raise ValueError("the Keras layer has a bias, expected a module with bias=True")
    gates, wanted = _GATES[module.mode], CELLS[module.mode].gates
    values: dict[str, Tensor] = {}
    for k, end in enumerate(names):
        kernel, recurrent, *biases = (_tensor(array) for array in weights[k * each : (k + 1) * each])
        own = {"weight_ih": kernel.mT, "weight_hh": recurrent.mT}
        if module.bias:
            rows = len(gates) * module.hidden_size
            bias = biases[0] if biases else kernel.new_zeros(rows)
            own["bias_ih"], own["bias_hh"] = _two_biases(module.mode, bias) if biases else (bias, bias)
        values |= {f"{name}_{end}": reorder(tensor, gates, wanted) for name, tensor in own.items()}
    write(module, values)
    return module


def keras_weights(module: nn.RNNBase) -> list[numpy.ndarray]:
    """A module's weights for Keras, the inverse of :func:`load_keras_weights`: of one layer, what ``set_weights`` of a
    Keras layer of the same sizes, with ``use_bias=module.bias`` and a GRU's ``reset_after=True``, takes.

    Raises:
        TypeError, ValueError: ``module`` is no RNN, LSTM or GRU; or an LSTM with a projection, which Keras has not.
    """
    require_layers(module, "keras_weights")
    gates, own = CELLS[module.mode].gates, _GATES[module.mode]
    arrays: list[Tensor] = []
    for end in ends(module):
        arrays += [
            reorder(getattr(module, f"{name}_{end}").detach(), gates, own).mT for name in ("weight_ih", "weight_hh")
        ]
        if module.bias:
            pair = [reorder(getattr(module, f"{name}_{end}").detach(), gates, own) for name in ("bias_ih", "bias_hh")]
            arrays.append(torch.stack(pair) if module.mode == "GRU" else pair[0] + pair[1])
    return [tensor.cpu().contiguous().numpy() for tensor in arrays]


def from_keras(layer: Any) -> RNN | LSTM | GRU:
    """A fastrnn module that computes what a built Keras LSTM, GRU or SimpleRNN, or a Bidirectional of one, computes.

    ``batch_first`` is true, as Keras's sequences are (B, T, I).  The module returns every step's output and the last
    states, whatever ``return_sequences`` and ``return_state`` say.  Keras's ``dropout``, ``stateful`` and masks are of
    its training and its calls, and are not carried over.

    Raises:
        TypeError: another layer.
        ValueError: an option that torch's equations have no place for: an activation other than tanh (or relu, of a
            SimpleRNN) and sigmoid, ``reset_after=False``, ``go_backwards``, a ``merge_mode`` other than "concat"; or a
            layer that has no weights yet.
    """
    both = type(layer).__name__ == "Bidirectional"
    parts = [layer.forward_layer, layer.backward_layer] if both else [layer]
    kinds = [type(part).__name__ for part in parts]
    kind = kinds[0]
    if kind not in ("LSTM", "GRU", "SimpleRNN") or len(set(kinds)) > 1:
        raise TypeError(
            f"from_keras expects an LSTM, GRU, SimpleRNN or a Bidirectional of one, got {' and '.join(kinds)}"
        )
    if both and layer.merge_mode != "concat":
        raise ValueError(f"from_keras: expected merge_mode='concat', got {layer.merge_mode!r}")
    configs = [part.get_config() for part in parts]
    for config, backwards in zip(configs, (False, True), strict=False):
        _refuse(kind, config, backwards)
    first = configs[0]
    if any(config[key] != first[key] for config in configs for key in ("units", "use_bias", "activation")):
        raise ValueError("from_keras: expected both directions to have the same units, use_bias and activation")
    weights = layer.get_weights()
    if not weights:
        raise ValueError(f"from_keras: {layer.name} has no weights yet; call it or its build() first")
    kernel = _tensor(weights[0])
    options = dict(bias=first["use_bias"], batch_first=True, bidirectional=both, dtype=kernel.dtype)
    if kind == "SimpleRNN":
        module = RNN(kernel.shape[0], first["units"], nonlinearity=first["activation"], **options)
    else:
        module = {"LSTM": LSTM, "GRU": GRU}[kind](kernel.shape[0], first["units"], **options)
    return load_keras_weights(module, weights)


def _refuse(kind: str, config: dict[str, Any], backwards: bool) -> None:
    """Raises where a Keras layer's configuration makes another network than torch has."""
    expected: dict[str, tuple[Any, ...]] = {"activation": ("tanh", "relu") if kind == "SimpleRNN" else ("tanh",)}
    if kind != "SimpleRNN":
        expected["recurrent_activation"] = ("sigmoid",)
    expected["go_backwards"] = (backwards,)
    for key, values in expected.items():
        if config[key] not in values:
            raise ValueError(f"from_keras: expected {key}={' or '.join(map(repr, values))}, got {config[key]!r}")
    if kind == "GRU" and not config["reset_after"]:
        raise ValueError(f"from_keras: expected reset_after=True, got False: {_BEFORE}")


def _two_biases(mode: str, bias: Tensor) -> tuple[Tensor, Tensor]:
    if mode != "GRU":
        return bias, torch.zeros_like(bias)
    if bias.dim() == 1:
        raise ValueError(f"expected a GRU's bias of shape (2, 3*H), got {tuple(bias.shape)}: {_BEFORE}")
    return bias[0], bias[1]


def _tensor(array: Any) -> Tensor:
    return array.detach() if isinstance(array, Tensor) else torch.tensor(array)
