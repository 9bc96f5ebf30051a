"""The recurrent highway network: several dependent products within a step."""

from fastrnn.cell import Cell, Input, Recurrent, sigmoid, tanh


class RHN(Cell):
    """With s_0 = h, for k = 1 ... depth::

        n, t = U_k s_(k-1), for k = 1 W x + U_1 s_0
        s_k = tanh(n) * sigmoid(t) + s_(k-1) * (1 - sigmoid(t))

    and h' = s_depth.  The biases, of every U_k, are ``bias_U_0`` ...

    Source: Zilly et al., "Recurrent highway networks" (2017), equations 6 to 9, with the carry gate coupled to t.
    """

    depth = 3
    W, U = Input("n t", bias=False), Recurrent("n t", copies="depth")

    def step(self, x, h):
        a = self.W(x)
        for k, product in enumerate(self.U):
            b = product(h)
            n, t = (tanh(a.n + b.n), sigmoid(a.t + b.t)) if k == 0 else (tanh(b.n), sigmoid(b.t))
            h = n * t + h * (1 - t)
        return dict(h=h)
