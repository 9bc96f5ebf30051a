"""Networks of one product and one state: torch.nn's, the independent and the antisymmetric one.

Shapes: x (I,), h and every gate (H,).
"""

from fastrnn.cell import Antisymmetric, Cell, Diagonal, Input, Recurrent, activation, sigmoid, tanh


class RNN(Cell):
    """::

        h' = f(W x + U h)                  f: tanh or relu

    Source: torch.nn.RNN; Elman, "Finding structure in time" (1990).
    """

    nonlinearity = "tanh"
    W, U = Input(), Recurrent()

    def step(self, x, h):
        return dict(h=activation(self.nonlinearity)(self.W(x) + self.U(h)))


class IndRNN(Cell):
    """::

        h' = f(W x + u * h)                f: relu or tanh; u (H,), each unit sees itself alone

    Source: Li et al., "Independently recurrent neural network (IndRNN): building a longer and deeper RNN" (2018).
    """

    nonlinearity = "relu"
    W, U = Input(), Recurrent(kind=Diagonal())

    def step(self, x, h):
        return dict(h=activation(self.nonlinearity)(self.W(x) + self.U(h)))


class AntisymmetricRNN(Cell):
    """::

        h' = h + epsilon tanh(W x + (U - U^T - gamma I) h)

    gamma is the kind's: ``AntisymmetricRNN(kinds={"U": Antisymmetric(0.1)})``.

    Source: Chang et al., "AntisymmetricRNN: a dynamical system view on recurrent neural networks" (2019).
    """

    epsilon = 1.0
    nonlinearity = "tanh"
    W, U = Input(), Recurrent(kind=Antisymmetric())

    def step(self, x, h):
        return dict(h=h + self.epsilon * activation(self.nonlinearity)(self.W(x) + self.U(h)))


class GatedAntisymmetricRNN(Cell):
    """::

        b  = (U - U^T - gamma I) h         one product for both
        z  = sigmoid(W_z x + b)
        h' = h + epsilon z * tanh(W_n x + b)

    Source: Chang et al., "AntisymmetricRNN: a dynamical system view on recurrent neural networks" (2019).
    """

    epsilon = 1.0
    W, U = Input("z n"), Recurrent(bias=False, kind=Antisymmetric())

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        return dict(h=h + self.epsilon * sigmoid(a.z + b) * tanh(a.n + b))
