"""The functions of Triton's cells, unit by unit, on float32 or float64: what tl has not, or has less exactly."""

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def exp_below_zero(x):
    """e^x of x <= 0.  As 2^x, which takes one instruction: that of e^x first looks whether the result is subnormal."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return tl.exp2(x * 1.4426950408889634)


@triton.jit
def quotient(a, b):
    """a / b of a b that is neither subnormal nor so large that 1 / b is: within 2 units in the last place, as `/`."""
    if INTERPRETED or a.dtype == tl.float64:
        return a / b
    else:
        return libdevice.fast_dividef(a, b)


@triton.jit
def exp(x):
    """e^x = 2^n e^r with |r| <= ln(2) / 2: the hardware's is as wrong as x is large.  2^n is taken in two factors,
    since it may be too large or too small itself.  A NaN stays."""
    x = tl.where(x > 710.0, 710.0, tl.where(x < -750.0, -750.0, x))
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    if x.dtype == tl.float64:
        r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    else:
        r = x - n * 0.693359375 + n * 2.12194440e-4
    half = tl.floor(n * 0.5)
    return tl.exp(r) * tl.exp2(half) * tl.exp2(n - half)


@triton.jit
def sigmoid(x):
    # exp of a negative number only: no overflow at either end.
    e = exp_below_zero(-tl.abs(x))
    return quotient(tl.where(x >= 0, 1.0, e), 1.0 + e)


@triton.jit
def tanh(x):
    # 1 - exp(-2|x|) cancels near zero, where a polynomial takes over.  It runs on min(|x|, 1), so that the branch not
    # taken makes no inf - inf.
    e = exp_below_zero(-2.0 * tl.abs(x))
    m = tl.minimum(tl.abs(x), 1.0)
    if x.dtype == tl.float64:
        # e^y - 1 with y = -2m, by its series, to the last bit for |y| < 1
        y = -2.0 * m
        p = y * 0.0 + 1.0
        for k in tl.static_range(18, 1, -1):
            p = 1.0 + p * y * (1.0 / k)
        near = -(p * y) / (2.0 + p * y)
        edge = 0.5
    else:
        # minimax on |x| < 0.6, relative error 3e-9
        s = m * m
        p = (((-0.00589514 * s + 0.02079595) * s - 0.05378382) * s + 0.13331924) * s - 0.33333298
        near = m + m * s * p
        edge = 0.6
    magnitude = tl.where(m < edge, near, quotient(1.0 - e, 1.0 + e))
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def relu(x):
    # A NaN is handed on.
    return tl.where(x < 0, 0.0, x)


@triton.jit
def softplus(x):
    """max(x, 0) + log(1 + u) with u = e^-|x|, the logarithm as 2 atanh(u / (u + 2)), whose argument is at most 1/3."""
    u = exp_below_zero(-tl.abs(x))
    s = quotient(u, u + 2.0)
    square = s * s  # pyright: ignore[reportOptionalOperand]
    p = square * 0.0
    for k in tl.static_range(17 if x.dtype == tl.float64 else 8, 0, -1):
        p = (p + 1.0 / (2 * k + 1)) * square
    return relu(x) + 2.0 * s * (1.0 + p)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
