"""The closed-form continuous-time network: its step knows how much time has passed."""

from fastrnn.cell import Cell, Input, Recurrent, StepInput, sigmoid, tanh


class CfC(Cell):
    """::

        v  = 1.7159 tanh(0.666 (W x + U h))            of "backbone_size" units
        t  = sigmoid(ff_a v * ts + ff_b v)             ts: the time since the step before, one number a row
        h' = (1 - t) * tanh(ff_g v) + t * tanh(ff_h v)

    With ``mode = "no_gate"`` the first term is tanh(ff_g v).

    Source: Hasani et al., "Closed-form continuous-time neural networks" (2022), as in ncps.torch.CfCCell.
    """

    mode = "default"
    ts = StepInput()
    W, U = Input(size="backbone_size"), Recurrent(size="backbone_size", bias=False)
    ff = Recurrent("g h a b")

    def step(self, x, h, *, ts):
        f = self.ff(1.7159 * tanh(0.666 * (self.W(x) + self.U(h))))
        t = sigmoid(f.a * ts + f.b)
        first = tanh(f.g) if self.mode == "no_gate" else (1 - t) * tanh(f.g)
        return dict(h=first + t * tanh(f.h))
