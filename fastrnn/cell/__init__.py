"""The language of cells: a cell is its equations, written once.

::

    class PeepholeLSTM(Cell):
        W, U = Input("i f g o"), Recurrent("i f g o")
        p = Vector("i f o")

        def step(self, x, h, c):
            a, b = self.W(x), self.U(h)
            i, f = sigmoid(a.i + b.i + self.p.i * c), sigmoid(a.f + b.f + self.p.f * c)
            c = f * c + i * tanh(a.g + b.g)
            return dict(h=sigmoid(a.o + b.o + self.p.o * c) * tanh(c), c=c)

What a step may say: arithmetic, comparisons within ``where``, the functions of :mod:`fastrnn.cell.functions`, products
of declared matrices with any named value.  Everything else, gradients and kernels included, is derived
(:mod:`fastrnn.compiler`); anything else a step says is an error that names it.
"""

from fastrnn.cell.declare import Cell, Input, Recurrent, Scalar, SequenceInput, State, StepInput, Vector
from fastrnn.cell.functions import (
    CellError,
    abs,
    activation,
    clip,
    exp,
    hard_sigmoid,
    identity,
    layer_norm,
    leaky_relu,
    log,
    maximum,
    mean,
    minimum,
    neg,
    relu,
    rms_norm,
    sigmoid,
    silu,
    softplus,
    softsign,
    sqrt,
    tanh,
    where,
)
from fastrnn.cell.kinds import Antisymmetric, Dense, Diagonal, Heads, LowRank

__all__ = [
    "Antisymmetric",
    "Cell",
    "CellError",
    "Dense",
    "Diagonal",
    "Heads",
    "Input",
    "LowRank",
    "Recurrent",
    "Scalar",
    "SequenceInput",
    "State",
    "StepInput",
    "Vector",
    "abs",
    "activation",
    "clip",
    "exp",
    "hard_sigmoid",
    "identity",
    "layer_norm",
    "leaky_relu",
    "log",
    "maximum",
    "mean",
    "minimum",
    "neg",
    "relu",
    "rms_norm",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "sqrt",
    "tanh",
    "where",
]
