"""The recurrent core of DreamerV3's world model."""

from fastrnn.cell import Cell, Heads, Input, Recurrent, StepInput, Vector, rms_norm, sigmoid, silu, tanh


def _unit(gain, v):
    return silu(gain * rms_norm(v, eps=1e-4))


class BlockGRU(Cell):
    """A GRU behind two layers, whose large matrices are of 8 blocks; N(v) = v / sqrt(mean(v^2) + 1e-4)::

        u_0, u_1, u_2 = silu(g * N(in h, x, action))   each of "units" units, with its own gain
        v  = silu(g * N(hid h + hid0 u_0 + hid1 u_1 + hid2 u_2))
        r, n, z = gru v                                hid, gru: block-diagonal
        z  = sigmoid(z - 1)
        h' = z * tanh(sigmoid(r) * n) + (1 - z) * h

    x is the stochastic state, and ``action`` comes with the step, of "action_size" numbers within [-1, 1].

    Source: Hafner et al., "Mastering diverse domains through world models" (2023), ``RSSM._core`` of its code.
    """

    action = StepInput("action_size")
    in0, in1, in2 = Recurrent(size="units"), Input(size="units"), Input(size="units")
    gain0, gain1, gain2 = Vector(size="units", init=1.0), Vector(size="units", init=1.0), Vector(size="units", init=1.0)
    hid, hid0, hid1, hid2 = Recurrent(kind=Heads(8)), Recurrent(bias=False), Input(bias=False), Input(bias=False)
    gain, gru = Vector(init=1.0), Recurrent("r n z", kind=Heads(8))

    def step(self, x, h, *, action):
        u0, u1 = _unit(self.gain0, self.in0(h)), _unit(self.gain1, self.in1(x))
        u2 = _unit(self.gain2, self.in2(action))
        v = _unit(self.gain, self.hid(h) + self.hid0(u0) + self.hid1(u1) + self.hid2(u2))
        a = self.gru(v)
        z = sigmoid(a.z - 1)
        return dict(h=z * tanh(sigmoid(a.r) * a.n) + (1 - z) * h)
