"""Three units that a search through ten thousand found; all update as a GRU does.

Shapes: x (I,), h and every gate (H,).  Source of all: Jozefowicz et al., "An empirical exploration of recurrent network
architectures" (2015).
"""

from fastrnn.cell import Cell, Input, Recurrent, sigmoid, tanh


class MUT1(Cell):
    """::

        z  = sigmoid(W_z x)                r = sigmoid(W_r x + U h)
        h' = tanh(nh (r * h) + tanh(W_n x)) * z + h * (1 - z)

    Source: as the file says, MUT1; its W_n x is x itself there.
    """

    W, U, nh = Input("z r n"), Recurrent(), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        z, r = sigmoid(a.z), sigmoid(a.r + self.U(h))
        return dict(h=tanh(self.nh(r * h) + tanh(a.n)) * z + h * (1 - z))


class MUT2(Cell):
    """::

        z, r = sigmoid(W x + U h)
        h' = tanh(nh (r * h) + W_n x) * z + h * (1 - z)

    Source: as the file says, MUT2; its gate r sees x itself there.
    """

    W, U, nh = Input("z r n"), Recurrent("z r"), Recurrent()

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        z, r = sigmoid(a.z + b.z), sigmoid(a.r + b.r)
        return dict(h=tanh(self.nh(r * h) + a.n) * z + h * (1 - z))


class MUT3(Cell):
    """::

        z  = sigmoid(W_z x + U tanh(h))    r = sigmoid(W_r x + rh h)
        h' = tanh(nh (r * h) + W_n x) * z + h * (1 - z)

    Source: as the file says, MUT3.
    """

    W, U, rh, nh = Input("z r n"), Recurrent(), Recurrent(), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        z, r = sigmoid(a.z + self.U(tanh(h))), sigmoid(a.r + self.rh(h))
        return dict(h=tanh(self.nh(r * h) + a.n) * z + h * (1 - z))
