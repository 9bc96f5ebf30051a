"""Networks without a product of a state: all of their matrices are of x, before the time loop.

Shapes: x (I,), states and every gate (H,).
"""

from fastrnn.cell import Cell, Input, Recurrent, State, Vector, sigmoid, tanh, where


class SRU(Cell):
    """::

        f, r = sigmoid(W x + v * c)        v (2H,)
        c' = f * c + (1 - f) * n x         n, s: matrices without a bias
        h  = r * c' + (1 - r) * s x        the output, no state

    Source: Lei et al., "Simple recurrent units for highly parallelizable recurrence" (2018), with the skip term of
    another size; c in both gates is the one before the step.
    """

    output = "h"
    W, v = Input("f r"), Vector("f r")
    n, s = Input(bias=False), Input(bias=False)

    def step(self, x, c):
        a = self.W(x)
        f, r = sigmoid(a.f + self.v.f * c), sigmoid(a.r + self.v.r * c)
        c = f * c + (1 - f) * self.n(x)
        return dict(h=r * c + (1 - r) * self.s(x), c=c)


class MinGRU(Cell):
    """::

        h' = (1 - z) * h + z * n           z = sigmoid(W_z x)
        n  = W_n x + 1/2 where W_n x >= 0, else sigmoid(W_n x)

    With ``positive = False`` n is W_n x.

    Source: Feng et al., "Were RNNs all we needed?" (2024); n of its form in log space, which keeps h positive.
    """

    positive = True
    W = Input("n z")

    def step(self, x, h):
        a = self.W(x)
        z, n = sigmoid(a.z), a.n + 0
        if self.positive:
            n = where(n >= 0, n + 0.5, sigmoid(n))
        return dict(h=(1 - z) * h + z * n)


class MinLSTM(Cell):
    """::

        f, i = sigmoid(W x)                n as of :class:`MinGRU`
        h' = (f * h + i * n) / (f + i)

    Source: Feng et al., "Were RNNs all we needed?" (2024); n as of its form in log space.
    """

    positive = True
    W = Input("f i n")

    def step(self, x, h):
        a = self.W(x)
        f, i, n = sigmoid(a.f), sigmoid(a.i), a.n + 0
        if self.positive:
            n = where(n >= 0, n + 0.5, sigmoid(n))
        return dict(h=(f * h + i * n) / (f + i))


class TRNN(Cell):
    """::

        h' = f * h + (1 - f) * W_n x       f = sigmoid(W_f x)

    Source: Balduzzi and Ghifary, "Strongly-typed recurrent neural networks" (2016), T-RNN.
    """

    W = Input("n f")

    def step(self, x, h):
        a = self.W(x)
        f = sigmoid(a.f)
        return dict(h=f * h + (1 - f) * a.n)


class TGRU(Cell):
    """The state ``past`` (I,) is the x of the step before::

        f  = sigmoid(W_f x + U_f past)     n, o likewise, without and with tanh
        h' = f * h + n * o

    Source: Balduzzi and Ghifary, "Strongly-typed recurrent neural networks" (2016), T-GRU.
    """

    past = State("input_size")
    W, U = Input("n f o"), Recurrent("n f o")

    def step(self, x, h, past):
        a, b = self.W(x), self.U(past)
        return dict(h=sigmoid(a.f + b.f) * h + (a.n + b.n) * tanh(a.o + b.o), past=x)


class TLSTM(Cell):
    """The state ``past`` (I,) is the x of the step before::

        f  = sigmoid(W_f x + U_f past)     n, o likewise, without and with tanh
        c' = f * c + (1 - f) * n
        h  = c' * o                        the output, no state

    Source: Balduzzi and Ghifary, "Strongly-typed recurrent neural networks" (2016), T-LSTM.
    """

    output = "h"
    past = State("input_size")
    W, U = Input("n f o"), Recurrent("n f o")

    def step(self, x, c, past):
        a, b = self.W(x), self.U(past)
        f = sigmoid(a.f + b.f)
        c = f * c + (1 - f) * (a.n + b.n)
        return dict(h=c * tanh(a.o + b.o), c=c, past=x)
