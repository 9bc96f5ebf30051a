"""Printed by ``python -m fastrnn.compiler.built_in`` from the definitions in ``fastrnn/cells``: change those.

The pointwise half of each cell, one unit of one row, once a step: :mod:`fastrnn.kernels.numba_cells` says what the
arguments and results are.
"""

from typing import Any

from .numba_functions import inlined, like, relu, sigmoid, tanh


@inlined
def _rnn_tanh_forward(p0, p1, p2, p3, h, c):
    h_next = tanh(p0)
    return (
        p0,
        p1,
        p2,
        p3,
        h_next,
        h_next,
    )


@inlined
def _rnn_tanh_backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc):
    zero = like(0.0, h)
    return (
        dh * (like(1.0, h) - h * h),
        zero,
        zero,
        zero,
        zero,
        dc,
        h,
    )


@inlined
def _rnn_relu_forward(p0, p1, p2, p3, h, c):
    h_next = relu(p0)
    return (
        p0,
        p1,
        p2,
        p3,
        h_next,
        h_next,
    )


@inlined
def _rnn_relu_backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc):
    zero = like(0.0, h)
    return (
        like(0.0, h) if like(0.0, h) >= h else dh,
        zero,
        zero,
        zero,
        zero,
        dc,
        h,
    )


@inlined
def _lstm_forward(p0, p1, p2, p3, h, c):
    i = sigmoid(p0)
    f = sigmoid(p1)
    g = tanh(p2)
    o = sigmoid(p3)
    c_next = f * c + i * g
    return (
        i,
        f,
        g,
        o,
        o * tanh(c_next),
        c_next,
    )


@inlined
def _lstm_backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc):
    i, f, g, o = s0, s1, s2, s3
    zero = like(0.0, h)
    v1 = tanh(c)
    v2 = dc + dh * (o * (like(1.0, h) - v1 * v1))
    return (
        v2 * (g * (i * (like(1.0, h) - i))),
        v2 * (c0 * (f * (like(1.0, h) - f))),
        v2 * (i * (like(1.0, h) - g * g)),
        dh * (v1 * (o * (like(1.0, h) - o))),
        zero,
        v2 * f,
        o * tanh(c),
    )


@inlined
def _gru_forward(p0, p1, p2, p3, h, c):
    r = sigmoid(p1)
    z = sigmoid(p2)
    n = tanh(p3 + r * p0)
    h_next = (like(1.0, h) - z) * n + z * h
    return (
        p0,
        r,
        z,
        n,
        h_next,
        h_next,
    )


@inlined
def _gru_backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc):
    b_n, r, z, n = s0, s1, s2, s3
    v1 = like(1.0, h) - z
    v2 = dh * (v1 * (like(1.0, h) - n * n))
    return (
        v2 * r,
        v2 * (b_n * (r * (like(1.0, h) - r))),
        dh * ((h0 - n) * (z * v1)),
        v2,
        dh * z,
        dc,
        h,
    )


PRINTED: dict[str, tuple[Any, Any, int, int, int, int]] = {
    "RNN_TANH": (_rnn_tanh_forward, _rnn_tanh_backward, 1, 1, 0, 0),
    "RNN_RELU": (_rnn_relu_forward, _rnn_relu_backward, 1, 1, 0, 0),
    "LSTM": (_lstm_forward, _lstm_backward, 4, 4, 0, 0),
    "GRU": (_gru_forward, _gru_backward, 3, 4, 1, 2),
}
