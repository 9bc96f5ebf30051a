"""Jordan's network, whose output is fed back, and SCRN, whose slow state is of x alone."""

from fastrnn.cell import Cell, Input, Recurrent, Scalar, State, activation, sigmoid, tanh


class Jordan(Cell):
    """::

        u  = f(W x + U h)                  f: tanh or relu; u (H,)
        h' = g(hr u)                       g: any; h (P,), the output, and what the next step sees

    Source: Jordan, "Serial order: a parallel distributed processing approach" (1986).
    """

    nonlinearity = "tanh"
    output_nonlinearity = "identity"
    h = State("output_size")
    W, U, hr = Input(), Recurrent(), Recurrent(size="output_size")

    def step(self, x, h):
        u = activation(self.nonlinearity)(self.W(x) + self.U(h))
        return dict(h=activation(self.output_nonlinearity)(self.hr(u)))


class SCRN(Cell):
    """::

        c' = (1 - alpha) W_c x + alpha c
        u  = sigmoid(W_u x + U h + ch_u c')
        h' = tanh(uh u + ch_h c')

    alpha is learned; a subclass with ``alpha = 0.95`` has the paper's constant.

    Source: Mikolov et al., "Learning longer memory in recurrent neural networks" (2015), with the output layer of
    torchrecurrent's, uh and ch_h.
    """

    alpha = Scalar(0.5)
    W, U, uh, ch = Input("c u"), Recurrent(), Recurrent(), Recurrent("u h")

    def step(self, x, h, c):
        a = self.W(x)
        c = (1 - self.alpha) * a.c + self.alpha * c
        b = self.ch(c)
        return dict(h=tanh(self.uh(sigmoid(a.u + self.U(h) + b.u)) + b.h), c=c)
