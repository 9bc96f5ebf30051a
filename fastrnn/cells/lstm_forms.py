"""Networks with an LSTM's two states and another way between them.

Shapes: x (I,), states and every gate (H,).
"""

from fastrnn.cell import Cell, Input, Recurrent, Vector, activation, relu, sigmoid, tanh


class MultiplicativeLSTM(Cell):
    """::

        m  = W_m x * U h
        i, f, o = sigmoid(W x + mh m)      g = tanh(W_g x + mh_g m)
        c' = f * c + i * g
        h' = o * tanh(c')

    Source: Krause et al., "Multiplicative LSTM for sequence modelling" (2016), with that of torchrecurrent's g.
    """

    W, U, mh = Input("m i f g o"), Recurrent(), Recurrent("i f g o")

    def step(self, x, h, c):
        a = self.W(x)
        b = self.mh(a.m * self.U(h))
        c = sigmoid(a.f + b.f) * c + sigmoid(a.i + b.i) * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o) * tanh(c), c=c)


class ResLSTM(Cell):
    """A peephole LSTM whose output is a projection beside one of x::

        i, f = sigmoid(W x + U h + p * c)  g = tanh(W_g x + U_g h)
        c' = f * c + i * g
        o  = sigmoid(W_o x + U_o h + p_o * c')
        h' = o * (proj tanh(c') + res x)   p (3H,)

    Source: Kim et al., "Residual LSTM: design of a deep recurrent architecture for distant speech recognition" (2017).
    """

    W, U, p = Input("i f g o"), Recurrent("i f g o"), Vector("i f o")
    proj, res = Recurrent(bias=False), Input(bias=False)

    def step(self, x, h, c):
        a, b, p = self.W(x), self.U(h), self.p
        i, f = sigmoid(a.i + b.i + p.i * c), sigmoid(a.f + b.f + p.f * c)
        c = f * c + i * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o + p.o * c) * (self.proj(tanh(c)) + self.res(x)), c=c)


class WMCLSTM(Cell):
    """An LSTM whose gates see the memory through a matrix and a tanh::

        i, f = sigmoid(W x + U h + tanh(mh c))
        c' = f * c + i * tanh(W_g x + U_g h)
        h' = sigmoid(W_o x + U_o h + tanh(oh c')) * tanh(c')

    Source: Landi et al., "Working memory connections for LSTM" (2021).
    """

    W, U, mh, oh = Input("i f g o"), Recurrent("i f g o"), Recurrent("i f"), Recurrent()

    def step(self, x, h, c):
        a, b, m = self.W(x), self.U(h), self.mh(c)
        i, f = sigmoid(a.i + b.i + tanh(m.i)), sigmoid(a.f + b.f + tanh(m.f))
        c = f * c + i * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o + tanh(self.oh(c))) * tanh(c), c=c)


class MCLSTM(Cell):
    """An LSTM of two output gates, one for what is seen above and one for what the next step sees::

        f, i, o, k = sigmoid(W x + U v)    g = tanh(W_g x + U_g v)
        c' = f * c + i * g
        h  = o * tanh(c')                  the output, no state
        v' = k * tanh(c')

    Source: the memory-controller LSTM of the sequence modelling workshop at NIPS 2017, as in torchrecurrent.
    """

    output = "h"
    W, U = Input("f i o k g"), Recurrent("f i o k g")

    def step(self, x, v, c):
        a, b = self.W(x), self.U(v)
        c = sigmoid(a.f + b.f) * c + sigmoid(a.i + b.i) * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o) * tanh(c), v=sigmoid(a.k + b.k) * tanh(c), c=c)


class NAS(Cell):
    """The cell that a search found; s_k = W_k x + U_k h of eight gates::

        u  = tanh(sigmoid(s_0) * relu(s_1))
        v  = tanh(sigmoid(s_2) + relu(s_3))
        w  = tanh(tanh(s_4) * sigmoid(s_5))
        y  = sigmoid(tanh(s_6) + sigmoid(s_7))
        c' = tanh(u + c) * v
        h' = tanh(c' * tanh(w + y))

    Source: Zoph and Le, "Neural architecture search with reinforcement learning" (2017), figure 8, as torchrecurrent
    reads it; TensorFlow's multiplies the two terms of s_3.
    """

    W, U = Input("g0 g1 g2 g3 g4 g5 g6 g7"), Recurrent("g0 g1 g2 g3 g4 g5 g6 g7")

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        u = tanh(sigmoid(a.g0 + b.g0) * relu(a.g1 + b.g1))
        v = tanh(sigmoid(a.g2 + b.g2) + relu(a.g3 + b.g3))
        w = tanh(tanh(a.g4 + b.g4) * sigmoid(a.g5 + b.g5))
        y = sigmoid(tanh(a.g6 + b.g6) + sigmoid(a.g7 + b.g7))
        c = tanh(u + c) * v
        return dict(h=tanh(c * tanh(w + y)), c=c)


class RAN(Cell):
    """The recurrent additive network, whose memory is a weighted sum of inputs::

        i, f = sigmoid(W x + U h)
        c' = i * ic x + f * c
        h' = tanh(c')

    Source: Lee et al., "Recurrent additive networks" (2017).
    """

    nonlinearity = "tanh"
    W, U, ic = Input("i f"), Recurrent("i f"), Input(bias=False)

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        c = sigmoid(a.i + b.i) * self.ic(x) + sigmoid(a.f + b.f) * c
        return dict(h=activation(self.nonlinearity)(c), c=c)
