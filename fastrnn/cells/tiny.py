"""Networks for small devices: two learned numbers beside one product, of a matrix of low rank where it shall be small.

Shapes: x (I,), h and every gate (H,).
"""

from fastrnn.cell import Cell, Input, Recurrent, Scalar, Vector, activation, sigmoid, tanh


class FastRNN(Cell):
    """::

        h' = sigmoid(alpha) tanh(W x + U h) + sigmoid(beta) h

    Source: Kusupati et al., "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated recurrent neural network"
    (2018).
    """

    nonlinearity = "tanh"
    alpha, beta = Scalar(-3.0), Scalar(3.0)
    W, U = Input(), Recurrent()

    def step(self, x, h):
        n = activation(self.nonlinearity)(self.W(x) + self.U(h))
        return dict(h=sigmoid(self.alpha) * n + sigmoid(self.beta) * h)


class FastGRNN(Cell):
    """One product for a gate and a candidate, which differ by their biases::

        s  = W x + U h                     z = sigmoid(s + b_z)
        h' = (sigmoid(zeta) (1 - z) + sigmoid(nu)) * tanh(s + b_n) + z * h

    Of low rank with ``FastGRNN(kinds={"W": LowRank(8), "U": LowRank(8)})``.

    Source: Kusupati et al., "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated recurrent neural network"
    (2018).
    """

    nonlinearity = "sigmoid"
    zeta, nu = Scalar(1.0), Scalar(-4.0)
    W, U, b = Input(bias=False), Recurrent(bias=False), Vector("z n")

    def step(self, x, h):
        s = self.W(x) + self.U(h)
        z = activation(self.nonlinearity)(s + self.b.z)
        return dict(h=(sigmoid(self.zeta) * (1 - z) + sigmoid(self.nu)) * tanh(s + self.b.n) + z * h)
