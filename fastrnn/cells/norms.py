"""LSTM and GRU whose products are normalised over a row.

Shapes: x (I,), states and every gate (H,); LN(v) = (v - mean) / sqrt(variance + eps), over all gates of a product
together; gain (G*H,) and shift.
"""

from fastrnn.cell import Cell, Input, Recurrent, Vector, layer_norm, sigmoid, tanh


class LayerNormLSTM(Cell):
    """::

        s  = w * LN(W x) + u * LN(U h) + b            w, u, b (4H,)
        c' = sigmoid(s_f) * c + sigmoid(s_i) * tanh(s_g)
        h' = sigmoid(s_o) * tanh(k * LN(c') + d)      k, d (H,)

    Source: Ba et al., "Layer normalization" (2016), its supplement; haste.LayerNormLSTM.
    """

    W, U = Input("i f g o", bias=False), Recurrent("i f g o", bias=False)
    w, u, b = Vector("i f g o", init=1.0), Vector("i f g o", init=1.0), Vector("i f g o", init=0.0)
    k, d = Vector(init=1.0), Vector(init=0.0)

    def step(self, x, h, c):
        p, q, w, u, b = self.W(x), self.U(h), self.w, self.u, self.b
        a, r = layer_norm(p.i, p.f, p.g, p.o), layer_norm(q.i, q.f, q.g, q.o)
        i, f = sigmoid(w.i * a[0] + u.i * r[0] + b.i), sigmoid(w.f * a[1] + u.f * r[1] + b.f)
        g, o = tanh(w.g * a[2] + u.g * r[2] + b.g), sigmoid(w.o * a[3] + u.o * r[3] + b.o)
        c = f * c + i * g
        return dict(h=o * tanh(self.k * layer_norm(c) + self.d), c=c)


class LayerNormGRU(Cell):
    """::

        a  = w * LN(W x) + b                          w, b, u, e (3H,)
        q  = u * LN(U h) + e
        r, z = sigmoid(a + q)                         n = tanh(a_n + r * q_n)
        h' = (1 - z) * n + z * h

    Source: Ba et al., "Layer normalization" (2016), in the form of haste.LayerNormGRU.
    """

    W, U = Input("r z n", bias=False), Recurrent("r z n", bias=False)
    w, u = Vector("r z n", init=1.0), Vector("r z n", init=1.0)
    b, e = Vector("r z n", init=0.0), Vector("r z n", init=0.0)

    def step(self, x, h):
        p, q, w, u, b, e = self.W(x), self.U(h), self.w, self.u, self.b, self.e
        a, s = layer_norm(p.r, p.z, p.n), layer_norm(q.r, q.z, q.n)
        r = sigmoid(w.r * a[0] + b.r + u.r * s[0] + e.r)
        z = sigmoid(w.z * a[1] + b.z + u.z * s[1] + e.z)
        n = tanh(w.n * a[2] + b.n + r * (u.n * s[2] + e.n))
        return dict(h=(1 - z) * n + z * h)
