"""What the phases of a printed kernel are made of: products and means over whole rows, and rows of a step beside.

A program has ROWS rows of a batch, and of a part UNITS units at a time, i_u on; Z are the units of a part, K the
numbers of the operand.  ``p_x`` (ROWS, 1) points to the first number of each row of the operand, ``m_r`` (ROWS, 1) says
which rows there are.  Operands are read from global memory, where earlier phases wrote them: the caller has a barrier
of the program's threads before.
"""

import triton
import triton.language as tl


@triton.jit
def zeros_each(COUNT: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, REAL: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros((ROWS, UNITS), REAL),)
    return tiles


@triton.jit
def multiply(
    total,
    p_x,
    m_r,
    p_w,
    i_u,
    K: tl.constexpr,
    Z: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HEADS: tl.constexpr,
    COUNT: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Adds the products of the operand with COUNT blocks of a matrix, one behind the other from ``p_w`` on, to a tuple
    of (ROWS, UNITS).

    A block is (Z, K / HEADS), or TRANSPOSED (K, Z / HEADS): numbers of one head meet units of the same head alone.
    """
    if HEADS == 1:
        total = multiply_head(total, p_x, m_r, p_w, i_u, 0, K, Z, TRANSPOSED, 1, COUNT, UNITS, DEPTH)
    else:
        ZH: tl.constexpr = Z // HEADS
        o_u = i_u + tl.arange(0, UNITS)[None, :]
        for i_h in range(i_u // ZH, (min(i_u + UNITS, Z) - 1) // ZH + 1):
            own = zeros_each(COUNT, m_r.shape[0], UNITS, total[0].dtype)
            own = multiply_head(own, p_x, m_r, p_w, i_u, i_h, K // HEADS, Z, TRANSPOSED, HEADS, COUNT, UNITS, DEPTH)
            grown = ()
            for g in tl.static_range(COUNT):
                # Chosen, not added to zeros: what is infinite in one head is nothing to another.
                grown = grown + (tl.where(o_u // ZH == i_h, total[g] + own[g], total[g]),)
            total = grown
    return total


@triton.jit
def multiply_head(
    total,
    p_x,
    m_r,
    p_w,
    i_u,
    i_h,
    KH: tl.constexpr,
    Z: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HEADS: tl.constexpr,
    COUNT: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The same of the KH numbers of head i_h."""
    ZH: tl.constexpr = Z // HEADS
    o_u = i_u + tl.arange(0, UNITS)[None, :]
    for i_k in range(0, KH, DEPTH):
        o_k = i_k + tl.arange(0, DEPTH)[:, None]
        m_k = o_k < KH
        o_x = i_k + tl.arange(0, DEPTH)[None, :]
        x = tl.load(p_x + i_h * KH + o_x, mask=m_r & (o_x < KH), other=0.0)
        if Z * KH * HEADS >= 2**31:  # more numbers than int32 tells apart
            o_k = o_k.to(tl.int64)
            o_u = o_u.to(tl.int64)
        if not TRANSPOSED:
            o_w = o_k + o_u * KH
        elif HEADS == 1:
            o_w = o_k * ZH + o_u
        else:
            o_w = (i_h * KH + o_k) * ZH + o_u % ZH
        grown = ()
        for g in tl.static_range(COUNT):
            w = tl.load(p_w + g * Z * KH + o_w, mask=m_k & (o_u < Z), other=0.0)
            grown = grown + (tl.dot(x, w.to(x.dtype), total[g], input_precision="ieee", out_dtype=total[g].dtype),)
        total = grown
    return total


@triton.jit
def mean(
    p_x,
    m_r,
    i_u,
    Z: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    REAL: tl.constexpr,
):
    """At each unit of (ROWS, UNITS) the mean over the units of its head."""
    ZH: tl.constexpr = Z // HEADS
    o_u = i_u + tl.arange(0, UNITS)[None, :]
    found = tl.zeros((ROWS, UNITS), REAL)
    for i_h in range(i_u // ZH, (min(i_u + UNITS, Z) - 1) // ZH + 1):
        total = tl.zeros((ROWS, 1), REAL)
        for i_z in range(i_h * ZH, (i_h + 1) * ZH, UNITS):
            o_z = i_z + tl.arange(0, UNITS)[None, :]
            x = tl.load(p_x + o_z, mask=m_r & (o_z < (i_h + 1) * ZH), other=0.0)
            total += tl.sum(x, 1, keep_dims=True)
        found = tl.where(o_u // ZH == i_h, total / ZH, found)
    return found


@triton.jit
def beside(p_there, m_there, p_rest, o_u, m):
    """Numbers of the step beside this one, and of rows that have none there those of ``p_rest``."""
    # Two loads, because a choice between two pointers would hide how they are aligned.
    there = tl.load(p_there + o_u, mask=m & m_there, other=0.0)
    return tl.where(m_there, there, tl.load(p_rest + o_u, mask=m & (m_there == 0), other=0.0))


@triton.jit
def load_rows(p, o, m, REAL: tl.constexpr):
    """Numbers, zeros where p is None."""
    if p is None:
        found = tl.zeros(m.shape, REAL)
    else:
        found = tl.load(p + o, mask=m, other=0.0)
    return found


@triton.jit
def store_rows(p, o, x, m):
    """Stores numbers, unless p is None."""
    if p is not None:
        tl.store(p + o, x, mask=m)


@triton.jit
def copy_rows(p_from, o_from, p_to, o_to, m_r, Z: tl.constexpr, UNITS: tl.constexpr, REAL: tl.constexpr):
    """Copies rows of Z numbers, each from and to where the offsets (ROWS, 1) say."""
    for i_u in range(0, Z, UNITS):
        o_u = i_u + tl.arange(0, UNITS)[None, :]
        m = m_r & (o_u < Z)
        store_rows(p_to, o_to + o_u, load_rows(p_from, o_from + o_u, m, REAL), m)
