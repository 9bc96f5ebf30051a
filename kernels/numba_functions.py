"""What Numba's cells are made of: sigmoid, tanh and their kin on one number.  Plain scalar code, which LLVM vectorises.

Numba makes float64 of float32 and a literal, so :func:`like` gives a constant the type of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
