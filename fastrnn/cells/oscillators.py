"""Networks that are steps of a differential equation.

Shapes: x (I,), states and every gate (H,).
"""

from fastrnn.cell import Cell, Diagonal, Input, Recurrent, Vector, sigmoid, tanh


class CoRNN(Cell):
    """Coupled oscillators, of place h and speed c::

        c' = c + dt (tanh(W x + U h + ch c) - gamma h - epsilon c)
        h' = h + dt c'

    Source: Rusch and Mishra, "Coupled oscillatory recurrent neural network (coRNN)" (2021).
    """

    dt, gamma, epsilon = 0.1, 1.0, 1.0
    W, U, ch = Input(), Recurrent(), Recurrent()

    def step(self, x, h, c):
        c = c + self.dt * (tanh(self.W(x) + self.U(h) + self.ch(c)) - self.gamma * h - self.epsilon * c)
        return dict(h=h + self.dt * c, c=c)


class UnICORNN(Cell):
    """Uncoupled oscillators, each with its own step::

        s  = dt sigmoid(a)                 a (H,)
        c' = c - s * (tanh(W x + u * h) + alpha h)
        h' = h + s * c'                    u (H,)

    Source: Rusch and Mishra, "UnICORNN: a recurrent model for learning very long time dependencies" (2021).
    """

    dt, alpha = 0.1, 0.0
    W, U, a = Input(), Recurrent(bias=False, kind=Diagonal()), Vector()

    def step(self, x, h, c):
        s = self.dt * sigmoid(self.a)
        c = c - s * (tanh(self.W(x) + self.U(h)) + self.alpha * h)
        return dict(h=h + s * c, c=c)


class LEM(Cell):
    """The long expressive memory, which learns how long its steps are::

        s, r = dt sigmoid(W x + U h)       r is the step of h, s that of c
        c' = (1 - s) * c + s * tanh(W_c x + U_c h)
        h' = (1 - r) * h + r * tanh(W_h x + ch c')

    With ``ahead = False`` h sees c in the place of c', as in torchrecurrent.

    Source: Rusch et al., "Long expressive memory for sequence modeling" (2022).
    """

    dt, ahead = 1.0, True
    W, U, ch = Input("r s c h"), Recurrent("r s c"), Recurrent()

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        s, r = self.dt * sigmoid(a.s + b.s), self.dt * sigmoid(a.r + b.r)
        c_next = (1 - s) * c + s * tanh(a.c + b.c)
        seen = c_next if self.ahead else c
        return dict(h=(1 - r) * h + r * tanh(a.h + self.ch(seen)), c=c_next)
