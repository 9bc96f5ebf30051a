"""RNN, LSTM and GRU with functions of one's choice, as Keras's layers and ONNX's nodes have them.

An activation is the name of one of :data:`FUNCTIONS` with its numbers: ``("tanh",)``, ``("leaky_relu", 0.01)``.  A
``clip`` of c holds what products give within [-c, c] before an activation takes it.  A memory is no such value: what
h' = o * h(c') takes is not clipped, in ONNX Runtime nor here.

Shapes: x (I,), states and every gate (H,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastrnn.cell import (
    Cell,
    Input,
    Recurrent,
    Vector,
    exp,
    hard_sigmoid,
    identity,
    leaky_relu,
    minimum,
    relu,
    sigmoid,
    silu,
    softplus,
    softsign,
    tanh,
    where,
)
from fastrnn.cell import clip as within

Activation = tuple[Any, ...]


def elu(v: Any, alpha: float) -> Any:
    """v where it is positive, else alpha (e^v - 1)."""
    return relu(v) + alpha * (exp(minimum(v, 0.0)) - 1)  # of no large number, whose e^v would have no gradient


def selu(v: Any) -> Any:
    """1.0507 times the ELU of 1.6733; source: Klambauer et al., "Self-normalizing neural networks" (2017)."""
    return 1.0507009873554805 * elu(v, 1.6732632423543772)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{each.__name__: each for each in (identity, tanh, sigmoid, relu, softplus, softsign, silu, exp)},
    **{each.__name__: each for each in (leaky_relu, hard_sigmoid, elu, selu)},
    "relu6": lambda v: within(v, 0.0, 6.0),
    "affine": lambda v, alpha, beta: alpha * v + beta,
    "scaled_tanh": lambda v, alpha, beta: alpha * tanh(beta * v),
    "thresholded_relu": lambda v, alpha: where(v >= alpha, v, 0.0),
}


class Chosen(Cell):
    """What the cells have in common: ``activations`` f, g, h in the order of their equations, and ``clip``."""

    activations: tuple[Activation, ...] = ()
    clip: float = math.inf

    def apply(self, k: int, v: Any) -> Any:
        """Activation k of v."""
        name, *numbers = self.activations[k]
        return FUNCTIONS[name](v, *numbers)

    def gate(self, k: int, v: Any) -> Any:
        """Activation k of v, a sum of products, within the bounds."""
        return self.apply(k, v if math.isinf(self.clip) else within(v, -self.clip, self.clip))


class ChosenRNN(Chosen):
    """::

        h' = f(W x + U h)

    Source: ONNX's RNN; keras.layers.SimpleRNN.
    """

    activations: tuple[Activation, ...] = (("tanh",),)
    W: Input = Input()
    U: Recurrent = Recurrent()

    def step(self, x: Any, h: Any) -> dict[str, Any]:
        return dict(h=self.gate(0, self.W(x) + self.U(h)))


class ChosenLSTM(Chosen):
    """::

        i, f, o = f(W x + U h)             g = g(W_g x + U_g h)
        c' = f * c + i * g
        h' = o * h(c')

    Source: ONNX's LSTM; keras.layers.LSTM.
    """

    activations: tuple[Activation, ...] = (("sigmoid",), ("tanh",), ("tanh",))
    W: Input = Input("i f g o")
    U: Recurrent = Recurrent("i f g o")

    def step(self, x: Any, h: Any, c: Any) -> dict[str, Any]:
        a, b = self.W(x), self.U(h)
        i = self.gate(0, self.peep(a.i + b.i, "i", c))
        f = self.forget(a, b, c, i)
        c = f * c + i * self.gate(1, a.g + b.g)
        return dict(h=self.gate(0, self.peep(a.o + b.o, "o", c)) * self.apply(2, c), c=c)

    def peep(self, v: Any, gate: str, c: Any) -> Any:
        """What a gate's activation takes, of the sum v of its products and the memory."""
        return v

    def forget(self, a: Any, b: Any, c: Any, i: Any) -> Any:
        return self.gate(0, self.peep(a.f + b.f, "f", c))


class ChosenPeepholeLSTM(ChosenLSTM):
    """:class:`ChosenLSTM` whose gates see the memory: i and f add p * c, and o adds p_o * c'; p (3H,).

    Source: ONNX's LSTM with its input P.
    """

    p: Vector = Vector("i f o")

    def peep(self, v: Any, gate: str, c: Any) -> Any:
        return v + getattr(self.p, gate) * c


class ChosenCoupledLSTM(ChosenLSTM):
    """:class:`ChosenLSTM` that forgets as much as it takes in: f = 1 - i, and no gate f.

    Source: ONNX's LSTM with ``input_forget=1``.
    """

    W: Input = Input("i g o")
    U: Recurrent = Recurrent("i g o")

    def forget(self, a: Any, b: Any, c: Any, i: Any) -> Any:
        return 1 - i


class ChosenCoupledPeepholeLSTM(ChosenCoupledLSTM, ChosenPeepholeLSTM):
    """:class:`ChosenPeepholeLSTM` with f = 1 - i; p (2H,).

    Source: ONNX's LSTM with ``input_forget=1`` and its input P.
    """

    p: Vector = Vector("i o")


class ChosenGRU(Chosen):
    """::

        r, z = f(W x + U h)                n = g(W_n x + r * U_n h)
        h' = (1 - z) * n + z * h           r multiplies the bias of U, too

    Source: ONNX's GRU with ``linear_before_reset=1``; keras.layers.GRU with ``reset_after=True``.
    """

    activations: tuple[Activation, ...] = (("sigmoid",), ("tanh",))
    W: Input = Input("r z n")
    U: Recurrent = Recurrent("r z n")

    def step(self, x: Any, h: Any) -> dict[str, Any]:
        a, b = self.W(x), self.U(h)
        r, z = self.gate(0, a.r + b.r), self.gate(0, a.z + b.z)
        return dict(h=(1 - z) * self.gate(1, a.n + r * b.n) + z * h)


class ChosenResetBeforeGRU(Chosen):
    """::

        r, z = f(W x + U h)                n = g(W_n x + nh (r * h))
        h' = (1 - z) * n + z * h

    Source: ONNX's GRU with ``linear_before_reset=0``; keras.layers.GRU with ``reset_after=False``.
    """

    activations: tuple[Activation, ...] = (("sigmoid",), ("tanh",))
    W: Input = Input("r z n")
    U: Recurrent = Recurrent("r z")
    nh: Recurrent = Recurrent()

    def step(self, x: Any, h: Any) -> dict[str, Any]:
        a, b = self.W(x), self.U(h)
        r, z = self.gate(0, a.r + b.r), self.gate(0, a.z + b.z)
        return dict(h=(1 - z) * self.gate(1, a.n + self.nh(r * h)) + z * h)
