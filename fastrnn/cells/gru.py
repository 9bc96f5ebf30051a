"""The gated recurrent unit: torch.nn's, and those that keep its update gate.

Shapes: x (I,), h and every gate (H,).
"""

from fastrnn.cell import Cell, Input, Recurrent, State, activation, sigmoid, tanh


class GRU(Cell):
    """::

        r, z = sigmoid(W x + U h)          n = tanh(W_n x + r * U_n h)
        h' = (1 - z) * n + z * h           r multiplies the bias of U, too

    Source: torch.nn.GRU; Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014).
    """

    W, U = Input("r z n"), Recurrent("r z n")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        r, z = sigmoid(a.r + b.r), sigmoid(a.z + b.z)
        return dict(h=(1 - z) * tanh(a.n + r * b.n) + z * h)


class ResetBeforeGRU(Cell):
    """::

        r, z = sigmoid(W x + U h)          n = tanh(W_n x + nh (r * h))
        h' = (1 - z) * n + z * h

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014); Keras with
    ``reset_after=False``, ONNX with ``linear_before_reset=0``.
    """

    nonlinearity = "tanh"
    gate_nonlinearity = "sigmoid"
    W, U, nh = Input("r z n"), Recurrent("r z"), Recurrent()

    def step(self, x, h):
        a, b, gate = self.W(x), self.U(h), activation(self.gate_nonlinearity)
        z = gate(a.z + b.z)
        n = activation(self.nonlinearity)(a.n + self.nh(gate(a.r + b.r) * h))
        return dict(h=(1 - z) * n + z * h)


class LiGRU(Cell):
    """::

        z  = sigmoid(W_z x + U_z h)        n = relu(W_n x + U_n h)
        h' = (1 - z) * n + z * h

    Source: Ravanelli et al., "Light gated recurrent units for speech recognition" (2018); the batch normalisation of
    W x is left to a layer before this one.
    """

    nonlinearity = "relu"
    gate_nonlinearity = "sigmoid"
    W, U = Input("z n"), Recurrent("z n")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        z = activation(self.gate_nonlinearity)(a.z + b.z)
        return dict(h=(1 - z) * activation(self.nonlinearity)(a.n + b.n) + z * h)


class UGRNN(Cell):
    """::

        n  = tanh(W_n x + U_n h)           z = sigmoid(W_z x + U_z h)
        h' = (1 - z) * n + z * h

    Source: Collins et al., "Capacity and trainability in recurrent neural networks" (2017), the update gate RNN.
    """

    W, U = Input("n z"), Recurrent("n z")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        z = sigmoid(a.z + b.z)
        return dict(h=(1 - z) * tanh(a.n + b.n) + z * h)


class MGU(Cell):
    """The minimal gated unit, whose one gate resets and updates::

        f  = sigmoid(W_f x + U h)          n = tanh(W_n x + nh (f * h))
        h' = f * n + (1 - f) * h

    Source: Zhou et al., "Minimal gated unit for recurrent neural networks" (2016).
    """

    nonlinearity = "tanh"
    gate_nonlinearity = "sigmoid"
    W, U, nh = Input("f n"), Recurrent(), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        f = activation(self.gate_nonlinearity)(a.f + self.U(h))
        n = activation(self.nonlinearity)(a.n + self.nh(f * h))
        return dict(h=f * n + (1 - f) * h)


class TauGRU(Cell):
    """A GRU that sees a state of ``delay`` steps before, too; of d = delay, h_1 is the state one step before h::

        u  = tanh(W_u x + U_u h)           v = tanh(W_v x + dh h_d)
        g, a = sigmoid(W x + U h)
        h' = (1 - g) * h + g * (u + a * v)
        h_1' = h, h_2' = h_1 ...

    Source: Erichson et al., "Gated recurrent neural networks with weighted time-delay feedback" (2022).
    """

    delay = 1
    past = State(copies="delay")
    W, U, dh = Input("u v g a"), Recurrent("u g a"), Recurrent()

    def step(self, x, h, *past):
        a, b = self.W(x), self.U(h)
        v = tanh(a.v + self.dh(past[-1]))
        g = sigmoid(a.g + b.g)
        h_next = (1 - g) * h + g * (tanh(a.u + b.u) + sigmoid(a.a + b.a) * v)
        return dict(h=h_next, past=(h, *past[:-1]))
