"""The pointwise half of each cell: one unit of one row, once a step.  Plain scalar code, which LLVM vectorises.

``forward(p0, p1, p2, p3, h, c) -> (s0, s1, s2, s3, h, c)`` takes the pre-activations and the state before the step, and
gives the values that backward needs and the state after it (a cell without c gives h for it).
``backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc) -> (d0, d1, d2, d3, dh0, dc0, h)`` takes those values, the state before
(``h0``, ``c0``) and after the step and the gradients of the state after; it gives the gradients of the
pre-activations, what reaches ``dh0`` past them, ``dc0``, and the output again (:class:`Cell` names the slots).

The equations are those of :mod:`fastrnn.modes`.  Numba makes float64 of float32 and a literal, so :func:`like` gives a
constant the type of a value.  A slope is ``i * (1 - i)``, not ``i - i * i``: near 1 that would lose its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from numba import types
from numba.extending import overload, register_jitable

# 'contract' lets a product and a sum become one FMA.  No other liberty: NaN and infinity must come through.
# The numpy error model drops the test for a zero divisor, whose branch would keep LLVM from vectorising.
OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
# A loop over 8 units is too short for LLVM to vectorise behind a test that its arrays lie apart, unless told otherwise:
# AVX2 would run it number by number.  It is told for the whole process, the only way there is.
llvm.set_option("fastrnn", "-vectorizer-min-trip-count=4")
# What is compiled is called with types of LLVM's, for which Python has none.
Jitable = Callable[[Callable[..., Any]], Callable[..., Any]]
device: Jitable = register_jitable(**OPTIONS)
# A call left standing in a loop keeps LLVM from vectorising it.
INLINED: dict[str, Any] = {**OPTIONS, "forceinline": True}
inlined: Jitable = register_jitable(**INLINED)


@inlined
def identity(v: float) -> float:
    return v


@inlined
def d_identity(d: float, y: float) -> float:
    return d


class Cell(NamedTuple):
    """A cell as the scan sees it.

    A unit owns ``slots`` values a step.  The recurrent product adds to the first ``gates`` of them and the product with
    the input to ``gates`` of them from ``input_slot`` on; only GRU needs them apart, because its b_n = W_hn h + b_hn
    stands behind r: its slots are b_n, r, z, n.  ``shift`` is by how many blocks its rows of W_hh are rotated for that.
    ``output`` and ``d_output`` stand behind a projection: y = output(v) and dv = d_output(dy, y).
    """

    forward: Callable[..., object]
    backward: Callable[..., object]
    gates: int
    slots: int
    input_slot: int = 0
    shift: int = 0
    output: Callable[..., object] = identity
    d_output: Callable[..., object] = d_identity


def like(value: Any, x: Any) -> Any:
    """``value`` in the type of ``x``."""
    raise NotImplementedError("only inside compiled code")


@overload(like, jit_options=INLINED)
def _like(value, x):
    if x == types.float32:
        return lambda value, x: np.float32(value)
    return lambda value, x: np.float64(value)


def _exp_parts_float32(x, shift):
    t = x * np.float32(1.44269504) + np.float32(12582912.0)
    n = t - np.float32(12582912.0)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    q = np.float32(1.9875691500e-4)
    q = q * r + np.float32(1.3981999507e-3)
    q = q * r + np.float32(8.3334519073e-3)
    q = q * r + np.float32(4.1665795894e-2)
    q = q * r + np.float32(1.6666665459e-1)
    q = q * r + np.float32(5.0000001201e-1)
    s = np.int32((np.float32(t).view(np.int32) + np.int32(127 + shift)) << np.int32(23)).view(np.float32)
    return q * (r * r) + r, s


def _exp_parts_float64(x, shift):
    t = x * 1.4426950408889634 + 6755399441055744.0
    n = t - 6755399441055744.0
    r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    q = 1.0 / 6227020800.0
    q = q * r + 1.0 / 479001600.0
    q = q * r + 1.0 / 39916800.0
    q = q * r + 1.0 / 3628800.0
    q = q * r + 1.0 / 362880.0
    q = q * r + 1.0 / 40320.0
    q = q * r + 1.0 / 5040.0
    q = q * r + 1.0 / 720.0
    q = q * r + 1.0 / 120.0
    q = q * r + 1.0 / 24.0
    q = q * r + 1.0 / 6.0
    q = q * r + 0.5
    return q * (r * r) + r, np.int64((np.float64(t).view(np.int64) + (1023 + shift)) << 52).view(np.float64)


def _exp_parts(x, shift):
    """p and s with 2^shift exp(x) = s (1 + p): x = n ln 2 + r, s = 2^(n + shift), p = exp(r) - 1 to full relative
    precision.

    Adding 1.5 * 2^(bits of the fraction) rounds to the integer n and leaves it in the lowest bits, where a shift makes
    it the exponent of s: that of a normal number or, one above them all, infinity.  ln 2 is subtracted in two parts,
    the first short enough that n times it is exact.
    Source of the constants: Cephes' expf for float32, the Taylor series (error 1e-17) for float64.
    """
    raise NotImplementedError("only inside compiled code")


@overload(_exp_parts, jit_options=INLINED)
def _exp_parts_for(x, shift):
    return _exp_parts_float32 if x == types.float32 else _exp_parts_float64


@inlined
def _clamp(x, low, high):
    x = low if x < low else x  # in this order NaN stays NaN
    return high if x > high else x


def _sigmoid_range(x):
    """A shift for :func:`_exp_parts`, 2^shift, and the range in which that of ``sigmoid`` is normal or infinite."""
    raise NotImplementedError("only inside compiled code")


@overload(_sigmoid_range, jit_options=INLINED)
def _sigmoid_range_for(x):
    if x == types.float32:
        return lambda x: (-32, np.float32(2.0**-32), np.float32(-64.0), np.float32(111.0))
    return lambda x: (-64, 2.0**-64, -640.0, 754.2)


@inlined
def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), both sides of the fraction times a power of two so small that the lower one is a number as
    long as the result is one: a gate closes entirely, by way of the least denormal numbers."""
    shift, unit, low, high = _sigmoid_range(x)
    p, s = _exp_parts(_clamp(-x, low, high), shift)
    return unit / (unit + s * (like(1.0, x) + p))  # not s p + s, which may be infinity less infinity


@inlined
def tanh(x: float) -> float:
    """(e^2|x| - 1) / (e^2|x| + 1) with the sign of x, and e^2|x| - 1 in one piece: small x keep their precision."""
    one, limit = like(1.0, x), like(22.0, x)  # from which on tanh is 1 to the last bit of float64
    size = _clamp(-x if x < like(0.0, x) else x, like(0.0, x), limit)
    p, s = _exp_parts(size + size, 0)
    m = s * p + (s - one)
    t = m / (m + like(2.0, x))
    return -t if x < like(0.0, x) else t


@inlined
def relu(x: float) -> float:
    zero = like(0.0, x)
    return zero if x < zero else x  # in this order NaN stays NaN


@inlined
def d_sigmoid(d: float, y: float) -> float:
    return d * (y * (like(1.0, d) - y))


@inlined
def d_tanh(d: float, y: float) -> float:
    return d * (like(1.0, d) - y * y)


@inlined
def d_relu(d: float, y: float) -> float:
    zero = like(0.0, d)
    return zero if y <= zero else d  # in this order a NaN has a slope, as torch's has


@inlined
def _lstm_forward(i, f, g, o, h, c):
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, o * tanh(c), c


@inlined
def _lstm_backward(i, f, g, o, h0, c0, h, c, dh, dc):
    t, one = tanh(c), like(1.0, dh)
    dc = dc + dh * o * (one - t * t)
    return (
        dc * g * (i * (one - i)),
        dc * (c0 * (f * (one - f))),
        dc * i * (one - g * g),
        dh * t * (o * (one - o)),
        like(0.0, dh),
        dc * f,
        o * t,
    )


@inlined
def _gru_forward(b_n, r, z, n, h, c):
    r, z = sigmoid(r), sigmoid(z)
    n = tanh(n + r * b_n)
    return b_n, r, z, n, n + z * (h - n), c


@inlined
def _gru_backward(b_n, r, z, n, h0, c0, h, c, dh, dc):
    one = like(1.0, dh)
    dn = dh * (one - z) * (one - n * n)
    return dn * r, dn * (b_n * (r * (one - r))), dh * ((h0 - n) * (z * (one - z))), dn, dh * z, dc, h


@inlined
def _tanh_forward(a, p1, p2, p3, h, c):
    h = tanh(a)
    return a, p1, p2, p3, h, h


@inlined
def _tanh_backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc):
    zero = like(0.0, dh)
    return d_tanh(dh, h), zero, zero, zero, zero, dc, h


@inlined
def _relu_forward(a, p1, p2, p3, h, c):
    h = relu(a)
    return a, p1, p2, p3, h, h


@inlined
def _relu_backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc):
    zero = like(0.0, dh)
    return d_relu(dh, h), zero, zero, zero, zero, dc, h


CELLS = {
    "RNN_TANH": Cell(_tanh_forward, _tanh_backward, gates=1, slots=1),
    "RNN_RELU": Cell(_relu_forward, _relu_backward, gates=1, slots=1),
    "LSTM": Cell(_lstm_forward, _lstm_backward, gates=4, slots=4),
    "GRU": Cell(_gru_forward, _gru_backward, gates=3, slots=4, input_slot=1, shift=2),
}
OUTPUTS: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
    "IDENTITY": (identity, d_identity),
    "TANH": (tanh, d_tanh),
    "RELU": (relu, d_relu),
    "SIGMOID": (sigmoid, d_sigmoid),
}
CELLS |= {
    f"JORDAN_{kind}_{name}": CELLS[f"RNN_{kind}"]._replace(output=output, d_output=d_output)
    for kind in ("TANH", "RELU")
    for name, (output, d_output) in OUTPUTS.items()
}
