"""The cells as pointwise device functions: one forward and one backward, for every path and both languages of Triton.

Equations and gate order: :mod:`fastrnn.modes`.  Values are float32 tiles of one shape, gates come as tuples of
tiles in the cell's gate order, and ``CELL`` is a key of ``fastrnn.modes.CELLS``.
"""

import triton
import triton.language as tl
from fastrnn.kernels.triton_functions import sigmoid


@triton.jit
def tanh(x):
    # 1 - exp(-2|x|) cancels near zero, where a polynomial takes over (minimax on |x| < 0.6, relative error 3e-9).
    # It runs on min(|x|, 1), so that the branch not taken makes no inf - inf.
    e = tl.exp(-2.0 * tl.abs(x))
    m = tl.minimum(tl.abs(x), 1.0)
    s = m * m
    p = (((-0.00589514 * s + 0.02079595) * s - 0.05378382) * s + 0.13331924) * s - 0.33333298
    magnitude = tl.where(m < 0.6, m + m * s * p, (1.0 - e) / (1.0 + e))
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def cell_forward(CELL: tl.constexpr, a, b, b_hn, h, c):
    """One step: gates of the input ``a`` (with all biases but GRU's ``b_hn``), gates of the state ``b``, the last h and
    c -> h, c, and the tuple of values saved for backward.  A cell without c hands it through.

    ``a``, ``b_hn`` and ``h`` may be in a narrower type: Triton's arithmetic with a float32 beside is in float32.
    """
    if CELL == "LSTM":
        i = sigmoid(a[0] + b[0])
        f = sigmoid(a[1] + b[1])
        g = tanh(a[2] + b[2])
        o = sigmoid(a[3] + b[3])
        c = f * c + i * g
        h = o * tanh(c)
        saved = (i, f, g, o)
    elif CELL == "GRU":
        r = sigmoid(a[0] + b[0])
        z = sigmoid(a[1] + b[1])
        b_n = b[2] + b_hn[None, :]
        n = tanh(a[2] + r * b_n)
        h = n + z * (h - n)
        saved = (r, z, n, b_n)
    elif CELL == "RNN_TANH":
        h = tanh(a[0] + b[0])
        saved = ()
    else:
        tl.static_assert(CELL == "RNN_RELU")
        s = a[0] + b[0]
        h = tl.where(s > 0, s, tl.where(s == s, 0.0, s))  # relu hands a NaN on
        saved = ()
    return h, c, saved


@triton.jit
def cell_backward(CELL: tl.constexpr, dh, carry, values):
    """One step back: the gradient of h, and ``carry``, what the step after this one in time hands back beside it (LSTM:
    the gradient of c; GRU: that of h past the gates) ->
    the tuple of pre-activation gradients in the order they are stored, and the new carry.

    ``values`` are the cell's saved values, in float32 or narrower, and then for LSTM c and the last c, for GRU the
    last h, for RNN h.  GRU stores n, r, z, b_n: the first three belong to ``a`` and the last three to ``b``, each as
    one block.  A gate's slope meets what the gate multiplies before it meets a gradient, whose product with that may
    overflow: a closed gate's slope is 0.
    """
    if CELL == "LSTM":
        i = values[0].to(tl.float32)
        f = values[1].to(tl.float32)
        g = values[2].to(tl.float32)
        o = values[3].to(tl.float32)
        t = tanh(values[4])
        dc = carry + dh * o * (1 - t * t)
        d_i = dc * g * i * (1 - i)
        d_f = dc * (values[5] * (f * (1 - f)))
        d_g = dc * i * (1 - g * g)
        d_o = dh * t * o * (1 - o)
        grads = (d_i, d_f, d_g, d_o)
        carry = dc * f
    elif CELL == "GRU":
        r = values[0].to(tl.float32)
        z = values[1].to(tl.float32)
        n = values[2].to(tl.float32)
        b_n = values[3].to(tl.float32)
        dh += carry
        d_n = dh * (1 - z) * (1 - n * n)
        d_r = d_n * (b_n * (r * (1 - r)))
        d_z = dh * ((values[4].to(tl.float32) - n) * (z * (1 - z)))
        grads = (d_n, d_r, d_z, d_n * r)
        carry = dh * z
    elif CELL == "RNN_TANH":
        h = values[0].to(tl.float32)
        grads = (dh * (1 - h * h),)
    else:
        tl.static_assert(CELL == "RNN_RELU")
        grads = (tl.where(values[0] <= 0, 0.0, dh),)
    return grads, carry
