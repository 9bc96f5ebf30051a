"""The recurrent product on each path: rows of x (ROWS, K) times COUNT matrices (K, UNITS), summed in float32.

Forward, x is the last h, K = H, and there is a matrix for each gate; backward, x is the gradients of all gates,
K = G*H, and there is one matrix.  Element (k, u) of matrix g is ``p_w[g * STRIDE_G + u * STRIDE_U + k * STRIDE_K]``.

    tile     x and the matrices, all of them, are in the program's registers
    spread   the matrices' columns of the program's units are in its registers, x is in global memory
    stream   both are in global memory
"""

import triton
import triton.language as tl

BAND = tl.constexpr(16)  # rows of one matrix instruction


@triton.jit
def dot(x, w, acc, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    # OPERAND is the arrays' dtype, but float32 under the interpreter, which multiplies bfloat16 as if it were integer.
    return tl.dot(x.to(OPERAND), w.to(OPERAND), acc, input_precision=PRECISION)


@triton.jit
def zeros_each(COUNT: tl.constexpr, shape: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros(shape, tl.float32),)
    return tiles


@triton.jit
def keep(w, PTX: tl.constexpr, PRECISION: tl.constexpr):
    """The same tile, in registers from here on where a tensor core takes it from there.

    Triton would sink the change to a product's layout, and so the fetch out of shared memory, into the time loop.  It
    does not sink what it cannot see through; the scans' first product, before the loop, is the second half of the hold.
    """
    if PTX and (w.dtype.primitive_bitwidth == 16 or PRECISION == "tf32"):
        w = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [w], dtype=w.dtype, is_pure=True, pack=32 // w.dtype.primitive_bitwidth
        )
    return w


@triton.jit
def tile_weights(
    p_w,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE_G: tl.constexpr,
    STRIDE_U: tl.constexpr,
    STRIDE_K: tl.constexpr,
    UNITS: tl.constexpr,
    PTX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All of the matrices, each K x K, as tiles (UNITS, UNITS)."""
    o = tl.arange(0, UNITS)
    m = (o < K)[:, None] & (o < K)[None, :]
    tiles = ()
    for g in tl.static_range(COUNT):
        p = p_w + g * STRIDE_G + o[None, :] * STRIDE_U + o[:, None] * STRIDE_K
        tiles = tiles + (keep(tl.load(p, mask=m, other=0.0), PTX, PRECISION),)
    return tiles


@triton.jit
def depth_slices(i_k, DEPTH: tl.constexpr, SLICES: tl.constexpr):
    """(SLICES, DEPTH) positions along K, from i_k on.

    Triton gives each slice of a batched product to a warp.  So the weights that a program keeps lie in its registers
    just once, however few its units, and each warp reads only its share of x.
    """
    return i_k + (tl.arange(0, SLICES) * DEPTH)[:, None] + tl.arange(0, DEPTH)[None, :]


@triton.jit
def spread_weights(
    p_w,
    o_u,
    m_u,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE_G: tl.constexpr,
    STRIDE_U: tl.constexpr,
    STRIDE_K: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICES: tl.constexpr,
    PTX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For each piece of K, and in it for each matrix, a tile (SLICES, DEPTH, UNITS)."""
    tiles = ()
    for i_k in tl.static_range(0, K, DEPTH * SLICES):
        o_k = depth_slices(i_k, DEPTH, SLICES)[:, :, None]
        for g in tl.static_range(COUNT):
            p = p_w + g * STRIDE_G + o_u[None, None, :] * STRIDE_U + o_k * STRIDE_K
            w = tl.load(p, mask=m_u[None, None, :] & (o_k < K), other=0.0)
            tiles = tiles + (keep(w, PTX, PRECISION),)
    return tiles


@triton.jit
def row_pointers(o_b, p_x, n_x, p_rest, STRIDE: tl.constexpr):
    """Rows below n_x lie one after another from p_x on, the others where they would lie from p_rest on."""
    return tl.where(o_b < n_x, p_x + o_b * STRIDE, p_rest + o_b * STRIDE)


@triton.jit
def share_out(x):
    """The same tile (rows, units), of which each warp holds its own part from here on.

    All warps hold all of a sum over the slices, and some of them the same part of a small product.  Triton would do the
    cell's arithmetic as often, and keep its states as often.  No layout passes through a gather.
    """
    return tl.gather(x, tl.broadcast_to(tl.arange(0, x.shape[1])[None, :], x.shape), 1)


@triton.jit
def stack(upper, lower):
    return tl.reshape(tl.permute(tl.join(upper, lower), (2, 0, 1)), (2 * upper.shape[0], upper.shape[1]))


@triton.jit
def spread_product(
    p_x,
    n_x,
    p_rest,
    n_rows,
    weights,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of the first n_rows rows of x (:func:`row_pointers`), BAND at a time: beside many weights there are registers
    for the sums of few rows."""
    bands = ()
    for i_r in tl.static_range(0, ROWS, BAND):
        o_r = i_r + tl.arange(0, BAND)
        p_r = row_pointers(o_r, p_x, n_x, p_rest, STRIDE)
        partial = zeros_each(COUNT, (SLICES, BAND, UNITS))
        for i_k in tl.static_range(0, K, DEPTH * SLICES):
            o_k = depth_slices(i_k, DEPTH, SLICES)[:, None, :]
            # Past the L1, which knows nothing of what other programs write.
            m = (o_r < n_rows)[None, :, None] & (o_k < K)
            b_x = tl.load(p_r[None, :, None] + o_k, mask=m, other=0.0, cache_modifier=".cg")
            grown = ()
            for g in tl.static_range(COUNT):
                w = weights[i_k // (DEPTH * SLICES) * COUNT + g]
                grown = grown + (dot(b_x, w, partial[g], OPERAND, PRECISION),)
            partial = grown
        sums = ()
        for g in tl.static_range(COUNT):
            sums = sums + (share_out(tl.sum(partial[g], 0)),)
        bands = bands + (sums,)
    total = ()
    for g in tl.static_range(COUNT):
        if ROWS == BAND:
            total = total + (bands[0][g],)
        elif ROWS == 2 * BAND:
            total = total + (stack(bands[0][g], bands[1][g]),)
        else:
            tl.static_assert(ROWS == 4 * BAND)
            total = total + (stack(stack(bands[0][g], bands[1][g]), stack(bands[2][g], bands[3][g])),)
    return total


@triton.jit
def stream_product(
    p_x,
    n_x,
    p_rest,
    n_rows,
    p_w,
    o_u,
    m_u,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE: tl.constexpr,
    STRIDE_G: tl.constexpr,
    STRIDE_U: tl.constexpr,
    STRIDE_K: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The first n_rows rows of x, as in :func:`spread_product`."""
    o_b = tl.arange(0, ROWS)
    p_r, m_r = row_pointers(o_b, p_x, n_x, p_rest, STRIDE), o_b < n_rows
    if K * STRIDE_U >= 2**31:  # a matrix of more numbers than int32 tells apart
        o_u = o_u.to(tl.int64)
    total = zeros_each(COUNT, (ROWS, UNITS))
    for i_k in range(0, K, DEPTH):
        o_k = i_k + tl.arange(0, DEPTH)
        m = m_r[:, None] & (o_k < K)[None, :]
        b_x = tl.load(p_r[:, None] + o_k[None, :], mask=m, other=0.0, cache_modifier=".cg")
        grown = ()
        for g in tl.static_range(COUNT):
            p = p_w + g * STRIDE_G + o_u[None, :] * STRIDE_U + o_k[:, None].to(tl.int64) * STRIDE_K
            b_w = tl.load(p, mask=(o_k < K)[:, None] & m_u[None, :], other=0.0)
            grown = grown + (dot(b_x, b_w, total[g], OPERAND, PRECISION),)
        total = grown
    shared = ()
    for g in tl.static_range(COUNT):
        shared = shared + (share_out(total[g]),)
    return shared
