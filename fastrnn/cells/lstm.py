"""The long short-term memory: torch.nn's, with and without projection, and those that change a gate of it.

Shapes: x (I,), h, c and every gate (H,), h (P,) behind a projection.
"""

from fastrnn.cell import Cell, Input, Recurrent, Scalar, State, Vector, activation, sigmoid, tanh


class LSTM(Cell):
    """::

        i, f, o = sigmoid(W x + U h)       g = tanh(W_g x + U_g h)
        c' = f * c + i * g
        h' = o * tanh(c')

    Source: torch.nn.LSTM; Gers et al., "Learning to forget: continual prediction with LSTM" (2000).
    """

    W, U = Input("i f g o"), Recurrent("i f g o")

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        c = sigmoid(a.f + b.f) * c + sigmoid(a.i + b.i) * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o) * tanh(c), c=c)


class ProjectedLSTM(LSTM):
    """:class:`LSTM` with a smaller state h (P,)::

        h' = hr (o * tanh(c'))

    Source: torch.nn.LSTM with ``proj_size``; Sak et al., "Long short-term memory based recurrent neural network
    architectures for large vocabulary speech recognition" (2014).
    """

    h = State("proj_size")
    hr = Recurrent(size="proj_size", bias=False)

    def step(self, x, h, c):
        found = super().step(x, h, c)
        return dict(h=self.hr(found["h"]), c=found["c"])


class PeepholeLSTM(Cell):
    """::

        i, f = sigmoid(W x + U h + p * c)  g = tanh(W_g x + U_g h)
        c' = f * c + i * g
        o  = sigmoid(W_o x + U_o h + p_o * c')
        h' = o * tanh(c')                  p (3H,)

    Source: Gers and Schmidhuber, "Recurrent nets that time and count" (2000).
    """

    nonlinearity = "tanh"
    gate_nonlinearity = "sigmoid"
    W, U, p = Input("i f g o"), Recurrent("i f g o"), Vector("i f o")

    def step(self, x, h, c):
        act, gate = activation(self.nonlinearity), activation(self.gate_nonlinearity)
        a, b, p = self.W(x), self.U(h), self.p
        i, f = gate(a.i + b.i + p.i * c), gate(a.f + b.f + p.f * c)
        c = f * c + i * act(a.g + b.g)
        return dict(h=gate(a.o + b.o + p.o * c) * act(c), c=c)


class CoupledLSTM(Cell):
    """An LSTM that forgets as much as it takes in::

        i, o = sigmoid(W x + U h)          g = tanh(W_g x + U_g h)
        c' = (1 - i) * c + i * g
        h' = o * tanh(c')

    Source: Greff et al., "LSTM: a search space odyssey" (2015), variant CIFG; here without peepholes.
    """

    W, U = Input("i g o"), Recurrent("i g o")

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        i = sigmoid(a.i + b.i)
        c = (1 - i) * c + i * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o) * tanh(c), c=c)


class OriginalLSTM(Cell):
    """An LSTM that forgets nothing::

        i, o = sigmoid(W x + U h)          g = tanh(W_g x + U_g h)
        c' = c + i * g
        h' = o * tanh(c')

    Source: Hochreiter and Schmidhuber, "Long short-term memory" (1997); there 2 tanh(v / 2) stands for the first tanh
    and tanh(v / 2) for the second.
    """

    W, U = Input("i g o"), Recurrent("i g o")

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        c = c + sigmoid(a.i + b.i) * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o) * tanh(c), c=c)


class JANET(Cell):
    """An LSTM of a forget gate alone::

        s  = W_f x + U_f h
        h' = sigmoid(s) * h + (1 - sigmoid(s - beta)) * tanh(W_g x + U_g h)

    beta is learned, and begins as the paper's constant; a subclass with ``beta = 1.0`` keeps it.

    Source: van der Westhuizen and Lasenby, "The unreasonable effectiveness of the forget gate" (2018).
    """

    beta = Scalar(1.0)
    W, U = Input("f g"), Recurrent("f g")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        s = a.f + b.f
        return dict(h=sigmoid(s) * h + (1 - sigmoid(s - self.beta)) * tanh(a.g + b.g))
