"""A product of one step alone, for all directions in one launch: rows of x, or tokens, times their direction's matrix.

Program (i_b, i_u, i_d) computes COLUMNS columns of ROWS rows in direction i_d.  Of two pointers to what the directions
have of their own the second is not read where there is one direction; outputs that nobody asks for are None.  Every
array is contiguous but x, whose rows have strides, and may be the same for both directions:

    p_x       (D, B, K)
    p_w       (U, K); and p_w_reverse
    p_bias    (U,) where HAS_BIAS; and p_bias_reverse
    p_y       (B, D*U)  out: the directions side by side
    p_hn      (D, B, U) out: the same, one after the other
    p_hidden  (D, B, U) out: a copy of it
"""

import triton
import triton.language as tl
from fastrnn.kernels.triton_product import dot


@triton.jit(do_not_specialize=["B"])
def step_product(
    p_x,
    p_w,
    p_w_reverse,
    p_bias,
    p_bias_reverse,
    p_y,
    p_hn,
    p_hidden,
    stride_d,
    stride_b,
    B,
    K: tl.constexpr,
    U: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_d, i_row = tl.program_id(2).to(tl.int64), tl.program_id(0).to(tl.int64) * ROWS
    i_u = tl.program_id(1) * COLUMNS
    # Offsets within a tile are int32; what may pass 2^31 is added to the base pointers.
    o_b, o_u = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    m_b, m_u = o_b < B - i_row, o_u < U - i_u
    p_x += i_d * stride_d + i_row * stride_b
    p_w = tl.where(i_d == 0, p_w, p_w_reverse) + i_u.to(tl.int64) * K
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if HAS_BIAS:
        p_bias = tl.where(i_d == 0, p_bias, p_bias_reverse) + i_u
        total += tl.load(p_bias + o_u, mask=m_u, other=0.0).to(tl.float32)
    for i_k in range(0, K, DEPTH):
        o_k = i_k + tl.arange(0, DEPTH)
        b_x = tl.load(p_x + o_b * stride_b + o_k[None, :], mask=m_b & (o_k < K)[None, :], other=0.0)
        b_w = tl.load(p_w + o_u * K + o_k[:, None], mask=m_u & (o_k < K)[:, None], other=0.0)
        total = dot(b_x, b_w, total, OPERAND, PRECISION)
    found, o, m = total.to(p_x.dtype.element_ty), o_b * U + o_u, m_b & m_u
    first = (i_d * B + i_row) * U + i_u
    if p_y is not None:
        tl.store(p_y + (i_row * DIRECTIONS + i_d) * U + i_u + o_b * (DIRECTIONS * U) + o_u, found, mask=m)
    if p_hn is not None:
        tl.store(p_hn + first + o, found, mask=m)
    if p_hidden is not None:
        tl.store(p_hidden + first + o, found, mask=m)


@triton.jit(do_not_specialize=["B"])
def step_gather(
    p_tokens,
    p_w,
    p_w_reverse,
    p_bias,
    p_bias_reverse,
    p_hidden,
    stride_b,
    B,
    K,
    U: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The same of one-hot rows, given as tokens (B,), a program a row: its product is a column of the matrix.  Of
    tokens there are K; that there is no other is asserted, as in torch's own gather, and another reads nothing."""
    i_b, i_d, i_u = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64), tl.program_id(1) * COLUMNS
    o_u = i_u + tl.arange(0, COLUMNS)
    m_u = o_u < U
    token = tl.load(p_tokens + i_b * stride_b + tl.zeros_like(o_u))
    there = (token >= 0) & (token < K)
    tl.device_assert(there, "token out of range")
    p_w = tl.where(i_d == 0, p_w, p_w_reverse) + token
    found = tl.load(p_w + o_u.to(tl.int64) * K, mask=m_u & there, other=float("nan"))
    if HAS_BIAS:
        p_bias = tl.where(i_d == 0, p_bias, p_bias_reverse)
        found = (found.to(tl.float32) + tl.load(p_bias + o_u, mask=m_u, other=0.0).to(tl.float32)).to(found.dtype)
    tl.store(p_hidden + (i_d * B + i_b) * U + o_u, found, mask=m_u)
