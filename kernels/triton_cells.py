"""Printed by ``python -m fastrnn.compiler.built_in`` from the definitions in ``fastrnn/cells``: change those.

The cells as pointwise device functions: one forward and one backward, for every path and both languages of Triton.
Values are float32 tiles of one shape, gates come as tuples of tiles in the cell's gate order, and ``CELL`` is a key of
``fastrnn.modes.CELLS``.
"""

import triton
import triton.language as tl
from fastrnn.kernels.triton_functions import relu, sigmoid, tanh


@triton.jit
def cell_forward(CELL: tl.constexpr, a, b, h, c):
    """One step: gates of the input ``a`` and of the state ``b``, each with its bias, the last h and c -> h, c, and the
    tuple of values saved for backward.  A cell without c hands it through.

    ``a`` and ``h`` may be in a narrower type: Triton's arithmetic with a float32 beside is in float32.
    """
    if CELL == "RNN_TANH":
        h = tanh(a[0] + b[0])
        saved = ()
    elif CELL == "RNN_RELU":
        h = relu(a[0] + b[0])
        saved = ()
    elif CELL == "LSTM":
        i = sigmoid(a[0] + b[0])
        f = sigmoid(a[1] + b[1])
        g = tanh(a[2] + b[2])
        o = sigmoid(a[3] + b[3])
        c_next = f * c + i * g
        c = c_next
        h = o * tanh(c)
        saved = (i, f, g, o)
    else:
        tl.static_assert(CELL == "GRU")
        b_n = b[2]
        r = sigmoid(a[0] + b[0])
        z = sigmoid(a[1] + b[1])
        n = tanh(a[2] + r * b_n)
        h = (1.0 - z) * n + z * h
        saved = (b_n, r, z, n)
    return h, c, saved


@triton.jit
def cell_backward(CELL: tl.constexpr, dh, carry, values):
    """One step back: the gradient of h, and ``carry``, what the step after this one in time hands back beside it (LSTM:
    the gradient of c; GRU: that of h past the gates) ->
    the tuple of gradients of the slots in the order they are stored, and the new carry.

    ``values`` are the cell's saved values, in float32 or narrower, and then for LSTM c and the last c, for GRU the
    last h, for RNN h.  GRU stores b_n, r, z, n: the first three belong to ``b`` and the last three to ``a``, each as
    one block.
    """
    if CELL == "RNN_TANH":
        h = values[0].to(tl.float32)
        grads = (dh * (1.0 - h * h),)
    elif CELL == "RNN_RELU":
        h = values[0].to(tl.float32)
        grads = (tl.where(0.0 >= h, 0.0, dh),)
    elif CELL == "LSTM":
        i = values[0].to(tl.float32)
        f = values[1].to(tl.float32)
        g = values[2].to(tl.float32)
        o = values[3].to(tl.float32)
        c = values[4].to(tl.float32)
        c_before = values[5].to(tl.float32)
        v1 = tanh(c)
        v2 = carry + dh * (o * (1.0 - v1 * v1))
        grads = (
            v2 * (g * (i * (1.0 - i))),
            v2 * (c_before * (f * (1.0 - f))),
            v2 * (i * (1.0 - g * g)),
            dh * (v1 * (o * (1.0 - o))),
        )
        carry = v2 * f
    else:
        tl.static_assert(CELL == "GRU")
        b_n = values[0].to(tl.float32)
        r = values[1].to(tl.float32)
        z = values[2].to(tl.float32)
        n = values[3].to(tl.float32)
        h_before = values[4].to(tl.float32)
        dh += carry
        v1 = 1.0 - z
        v2 = dh * (v1 * (1.0 - n * n))
        grads = (
            v2 * r,
            v2 * (b_n * (r * (1.0 - r))),
            dh * ((h_before - n) * (z * v1)),
            v2,
        )
        carry = dh * z
    return grads, carry
