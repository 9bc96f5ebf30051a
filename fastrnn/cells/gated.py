"""Small gated networks: one state, one or two gates, most of one product.

Shapes: x (I,), h and every gate (H,).
"""

from fastrnn.cell import Cell, Diagonal, Input, Recurrent, activation, hard_sigmoid, sigmoid, softplus, tanh


class ATR(Cell):
    """Gates are the sum and the difference of two terms, the addition-subtraction twin-gated network::

        p  = W x                           q = U h
        h' = sigmoid(p + q) * p + sigmoid(p - q) * h

    Source: Zhang et al., "Simplifying neural machine translation with addition-subtraction twin-gated recurrent
    networks" (2018).
    """

    W, U = Input(), Recurrent()

    def step(self, x, h):
        p, q = self.W(x), self.U(h)
        return dict(h=sigmoid(p + q) * p + sigmoid(p - q) * h)


class NBR(Cell):
    """The recurrently neuromodulated bistable cell::

        a  = 1 + tanh(W_a x + U_a h)       z = sigmoid(W_z x + U_z h)
        h' = z * h + (1 - z) * tanh(W_n x + a * h)

    Source: Vecoven et al., "A bio-inspired bistable recurrent cell allows for long-lasting memory" (2021), nBRC.
    """

    W, U = Input("a z n"), Recurrent("a z")

    def step(self, x, h):
        w, u = self.W(x), self.U(h)
        a, z = 1 + tanh(w.a + u.a), sigmoid(w.z + u.z)
        return dict(h=z * h + (1 - z) * tanh(w.n + a * h))


class BR(NBR):
    """The bistable cell: :class:`NBR` whose U is diagonal, (2H,), so that a unit sees itself alone.

    Source: Vecoven et al., "A bio-inspired bistable recurrent cell allows for long-lasting memory" (2021), BRC.
    """

    U = Recurrent("a z", kind=Diagonal())


class CFN(Cell):
    """The chaos free network::

        t, i = sigmoid(W x + U h)
        h' = t * tanh(h) + i * tanh(W_n x)

    Source: Laurent and von Brecht, "A recurrent neural network without chaos" (2017).
    """

    W, U = Input("t i n"), Recurrent("t i")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        return dict(h=sigmoid(a.t + b.t) * tanh(h) + sigmoid(a.i + b.i) * tanh(a.n))


class LightRU(Cell):
    """::

        f  = sigmoid(W_f x + U h)
        h' = (1 - f) * h + f * tanh(W_n x)

    Source: Ye et al., "Light recurrent unit: towards an interpretable recurrent neural network" (2024).
    """

    W, U = Input("n f"), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        f = sigmoid(a.f + self.U(h))
        return dict(h=(1 - f) * h + f * tanh(a.n))


class STAR(Cell):
    """The stackable network::

        k  = sigmoid(W_k x + U h)
        h' = tanh((1 - k) * h + k * tanh(W_n x))

    Source: Turkoglu et al., "Gating revisited: deep multi-layer RNNs that can be trained" (2021).
    """

    W, U = Input("n k"), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        k = sigmoid(a.k + self.U(h))
        return dict(h=tanh((1 - k) * h + k * tanh(a.n)))


class SGRN(Cell):
    """::

        a  = W x                           f = sigmoid(a + U h)
        h' = tanh((1 - f) * a + f * h)

    Source: the simple gated recurrent network, doi 10.1049/gtd2.12056, as in torchrecurrent.
    """

    W, U = Input(), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        f = sigmoid(a + self.U(h))
        return dict(h=tanh((1 - f) * a + f * h))


class MinimalRNN(Cell):
    """::

        v  = tanh(W x)                     u = sigmoid(U h + mm v)
        h' = u * h + (1 - u) * v

    Source: Chen, "MinimalRNN: toward more interpretable and trainable recurrent neural networks" (2017).
    """

    W, U, mm = Input(), Recurrent(), Input(bias=False)

    def step(self, x, h):
        v = tanh(self.W(x))
        u = sigmoid(self.U(h) + self.mm(v))
        return dict(h=u * h + (1 - u) * v)


class MiRU1(Cell):
    """::

        r  = sigmoid(W_r x + U h)
        h' = update * h + (1 - update) * tanh(W_n x + nh (r * h))

    Source: the minion recurrent unit, doi 10.1016/j.neucom.2026.132847; ``update`` is torchrecurrent's
    ``update_coefficient``.
    """

    update = 0.5
    W, U, nh = Input("r n"), Recurrent(), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        n = tanh(a.n + self.nh(sigmoid(a.r + self.U(h)) * h))
        return dict(h=self.update * h + (1 - self.update) * n)


class MiRU2(Cell):
    """::

        h' = update * h + (1 - update) * tanh(W x + U (reset h))

    Source: the minion recurrent unit, doi 10.1016/j.neucom.2026.132847; ``update`` and ``reset`` are torchrecurrent's
    coefficients.
    """

    update = 0.5
    reset = 0.5
    W, U = Input(), Recurrent()

    def step(self, x, h):
        n = tanh(self.W(x) + self.U(self.reset * h))
        return dict(h=self.update * h + (1 - self.update) * n)


class SGU(Cell):
    """The simple gated unit::

        z  = hard_sigmoid(W_z x + U h)     v = tanh(gh (W_g x * h))
        h' = (1 - z) * h + z * softplus(v * h)

    Source: Gao and Glowacka, "Deep gate recurrent neural network" (2016), SGU.
    """

    W, U, gh = Input("g z"), Recurrent(), Recurrent()

    def step(self, x, h):
        a = self.W(x)
        z = hard_sigmoid(a.z + self.U(h))
        return dict(h=(1 - z) * h + z * softplus(tanh(self.gh(a.g * h)) * h))


class DSGU(Cell):
    """The deep simple gated unit::

        z  = hard_sigmoid(W_z x + U h)     v = tanh(gh (W_g x * h))
        h' = (1 - z) * h + z * sigmoid(ho (v * h))

    Source: Gao and Glowacka, "Deep gate recurrent neural network" (2016), DSGU.
    """

    W, U, gh, ho = Input("g z"), Recurrent(), Recurrent(), Recurrent(bias=False)

    def step(self, x, h):
        a = self.W(x)
        z = hard_sigmoid(a.z + self.U(h))
        return dict(h=(1 - z) * h + z * sigmoid(self.ho(tanh(self.gh(a.g * h)) * h)))


class IntersectionRNN(Cell):
    """Gated towards the layer above and towards the next step; x and h have the same units::

        u = relu(W_u x + U_u h)            n = tanh(W_n x + U_n h)
        k, z = sigmoid(W x + U h)
        y  = k * x + (1 - k) * u           the output, no state
        h' = z * h + (1 - z) * n

    Source: Collins et al., "Capacity and trainability in recurrent neural networks" (2017), +RNN.
    """

    output, square = "y", True
    nonlinearity = "relu"
    W, U = Input("u n k z"), Recurrent("u n k z")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        k, z = sigmoid(a.k + b.k), sigmoid(a.z + b.z)
        u, n = activation(self.nonlinearity)(a.u + b.u), tanh(a.n + b.n)
        return dict(y=k * x + (1 - k) * u, h=z * h + (1 - z) * n)
