"""The scalar LSTM of xLSTM: exponential gates, a normaliser, and heads."""

from fastrnn.cell import Cell, Heads, Input, Recurrent, exp, maximum, minimum, sigmoid, softplus, tanh, where


class SLSTM(Cell):
    """Of 4 states (H,): output h, memory c, normaliser n, and m, which keeps exponents small::

        i, f, z, o = W x + U h             U: of 4 heads, each unit sees those of its own
        e  = m + log sigmoid(f)
        m' = max(i, e)                     i where n is 0: nothing has been stored yet
        c' = k c + v tanh(z)               k = min(exp(e - m'), 1),  v = exp(i - m')
        n' = k n + v
        h' = sigmoid(o) c' / n'

    All states begin at 0.  Another number of heads: ``SLSTM(kinds={"U": Heads(8)})``.

    Source: Beck et al., "xLSTM: extended long short-term memory" (2024), equations 8 to 17, as in package xlstm.
    """

    W, U = Input("i f z o"), Recurrent("i f z o", bias=False, kind=Heads(4))

    def step(self, x, h, c, n, m):
        a, b = self.W(x), self.U(h)
        i, e = a.i + b.i, m - softplus(-(a.f + b.f))
        m = where(n > 0, maximum(i, e), i)
        k, v = minimum(exp(e - m), 1.0), exp(i - m)
        c, n = k * c + v * tanh(a.z + b.z), k * n + v
        return dict(h=sigmoid(a.o + b.o) * c / n, c=c, n=n, m=m)
