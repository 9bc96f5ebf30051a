"""The recurrent product on each path: rows of x (ROWS, K) times COUNT matrices (K, UNITS), summed in float32.

Forward, x is the last h, K = H, and there is a matrix for each gate; backward, x is the gradients of all gates,
K = G*H, and there is one matrix.  Element (k, u) of matrix g is ``p_w[g * STRIDE_G + u * STRIDE_U + k * STRIDE_K]``.

    tile     x and the matrices, all of them, are in the program's registers
    spread   the matrices' columns of the program's units are in its registers, x is in global memory.  Forward, warps
             divide the columns, of all gates side by side, among them; backward, where there is one matrix, the depth
    stream   both are in global memory
"""

import triton
import triton.language as tl


@triton.jit
def dot(x, w, acc, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    # OPERAND is the arrays' dtype, but float32 under the interpreter, which multiplies bfloat16 as if it were integer.
    return tl.dot(x.to(OPERAND), w.to(OPERAND), acc, input_precision=PRECISION)


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
    H: tl.constexpr,
    GATES: tl.constexpr,
    UNITS: tl.constexpr,
    STRIDE_K: tl.constexpr,
    STRIDE_U: tl.constexpr,
    PTX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W_hh of each gate as a tile (UNITS, UNITS) of (k, u)."""
    o = tl.arange(0, UNITS)
    m = (o < H)[:, None] & (o < H)[None, :]
    tiles = ()
    for g in tl.static_range(GATES):
        w = tl.load(p_w + g * H * H + o[:, None] * STRIDE_K + o[None, :] * STRIDE_U, mask=m, other=0.0)
        tiles = tiles + (keep(w, PTX, PRECISION),)
    return tiles


@triton.jit
def depth_slices(i_k, DEPTH: tl.constexpr, SLICES: tl.constexpr):
    """(SLICES, DEPTH) positions along K, from i_k on.

    Triton gives each slice of a batched product to a warp.  So the weights that a program keeps lie in its registers
    just once, however few its units, and each warp reads only its share of x.
    """
    return i_k + (tl.arange(0, SLICES) * DEPTH)[:, None] + tl.arange(0, DEPTH)[None, :]


@triton.jit
def sliced_weights(
    p_w,
    o_u,
    m_u,
    K: tl.constexpr,
    STRIDE_U: tl.constexpr,
    STRIDE_K: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    PTX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For each piece of K a tile (SLICES, SLICE, UNITS) of one matrix."""
    tiles = ()
    for i_k in tl.static_range(0, K, SLICE * SLICES):
        o_k = depth_slices(i_k, SLICE, SLICES)[:, :, None]
        p = p_w + o_u[None, None, :] * STRIDE_U + o_k * STRIDE_K
        w = tl.load(p, mask=m_u[None, None, :] & (o_k < K), other=0.0)
        tiles = tiles + (keep(w, PTX, PRECISION),)
    return tiles


@triton.jit
def row_pointers(o_b, p_x, n_x, p_rest, STRIDE: tl.constexpr):
    """Rows below n_x lie one after another from p_x on, the others where they would lie from p_rest on."""
    return tl.where(o_b < n_x, p_x + o_b * STRIDE, p_rest + o_b * STRIDE)


@triton.jit
def sliced_product(
    p_x,
    weights,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of rows of x, which lie STRIDE apart from p_x on, with one matrix: a tile (ROWS, UNITS).

    What lies where rows are that a step has not has to be memory, too: so that no load has a mask, which takes two
    instructions more of each.
    """
    o_b = tl.arange(0, ROWS)[None, :, None]
    partial = tl.zeros((SLICES, ROWS, UNITS), tl.float32)
    for i_k in tl.static_range(0, K, SLICE * SLICES):
        o_k = depth_slices(i_k, SLICE, SLICES)[:, None, :]
        # Past the L1, which knows nothing of what other programs write.
        p = p_x + o_b * STRIDE + o_k
        if i_k + SLICE * SLICES > K:
            b_x = tl.load(p, mask=(o_k < K) & (o_b < ROWS), other=0.0, cache_modifier=".cg")
        else:
            b_x = tl.load(p, cache_modifier=".cg")
        partial = dot(b_x, weights[i_k // (SLICE * SLICES)], partial, OPERAND, PRECISION)
    return sum_slices(partial, SLICES, ROWS, UNITS)


@triton.jit
def sum_slices(x, SLICES: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """The sum of x (SLICES, ROWS, UNITS) over its slices, half onto half: each warp adds up its own part of the rows
    and units.  `tl.sum` would give all of it to every warp."""
    x = tl.permute(x, (1, 2, 0))
    LEVELS: tl.constexpr = (SLICES > 2) + (SLICES > 4) + (SLICES > 8)
    for _ in tl.static_range(LEVELS):
        first, second = tl.split(tl.reshape(x, (ROWS, UNITS, x.shape[2] // 2, 2)))
        x = first + second
    first, second = tl.split(x)
    return first + second


@triton.jit
def columns(i_u, K, COUNT: tl.constexpr, WIDE: tl.constexpr, UNITS: tl.constexpr):
    """Of each column of matrices side by side: its matrix, its unit, and whether both are there."""
    o = tl.arange(0, WIDE * UNITS)
    o_g, o_u = o // UNITS, i_u * UNITS + o % UNITS
    return o_g, o_u, (o_g < COUNT) & (o_u < K)


@triton.jit
def first_sums(
    p_bias,
    i_u,
    H: tl.constexpr,
    COUNT: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """What a product of columns side by side is added to, (ROWS, WIDE * UNITS): the bias of each column, or zeros."""
    total = tl.zeros((ROWS, WIDE * UNITS), tl.float32)
    if HAS_BIAS:
        o_g, o_u, m = columns(i_u, H, COUNT, WIDE, UNITS)
        total += tl.load(p_bias + o_g * H + o_u, mask=m, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def side_by_side(
    p_w,
    i_u,
    H: tl.constexpr,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    WIDE: tl.constexpr,
    STRIDE_G: tl.constexpr,
    STRIDE_U: tl.constexpr,
    STRIDE_K: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    PTX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For each piece of K a tile (DEPTH, WIDE * UNITS): the matrices' columns of the program's units, matrix after
    matrix.  WIDE is COUNT's next power of two; columns beyond it are zero.  Warps divide the columns among them."""
    o_g, o_u, m = columns(i_u, H, COUNT, WIDE, UNITS)
    tiles = ()
    for i_k in tl.static_range(0, K, DEPTH):
        o_k = i_k + tl.arange(0, DEPTH)
        p = p_w + (o_g * STRIDE_G + o_u * STRIDE_U)[None, :] + o_k[:, None] * STRIDE_K
        tiles = tiles + (keep(tl.load(p, mask=m[None, :] & (o_k < K)[:, None], other=0.0), PTX, PRECISION),)
    return tiles


@triton.jit
def columns_product(
    p_x,
    n_rows,
    weights,
    total,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    WIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAINS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of the first n_rows rows of x, which lie STRIDE apart from p_x on, added to ``total`` (ROWS, WIDE * UNITS): COUNT
    tiles (ROWS, UNITS).

    CHAINS partial sums, because the products into one sum wait for each other.
    """
    o_b = tl.arange(0, ROWS)
    pieces = ()
    for i_k in tl.static_range(0, K, DEPTH):
        o_k = i_k + tl.arange(0, DEPTH)
        # Past the L1, which knows nothing of what other programs write.
        m = (o_b < n_rows)[:, None] & (o_k < K)[None, :]
        pieces = pieces + (
            tl.load(p_x + o_b[:, None] * STRIDE + o_k[None, :], mask=m, other=0.0, cache_modifier=".cg"),
        )
    sums = (total,)
    for _ in tl.static_range(1, CHAINS):
        sums = sums + (tl.zeros((ROWS, WIDE * UNITS), tl.float32),)
    for i in tl.static_range(0, (K + DEPTH - 1) // DEPTH):
        grown = ()
        for j in tl.static_range(CHAINS):
            if j == i % CHAINS:
                grown = grown + (dot(pieces[i], weights[i], sums[j], OPERAND, PRECISION),)
            else:
                grown = grown + (sums[j],)
        sums = grown
    total = sums[0]
    for j in tl.static_range(1, CHAINS):
        total += sums[j]
    return split_columns(total, COUNT, WIDE, ROWS, UNITS)


@triton.jit
def split_columns(x, COUNT: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """The COUNT tiles (ROWS, UNITS) of x (ROWS, WIDE * UNITS)."""
    if WIDE == 1:
        return (x,)
    else:
        tl.static_assert(WIDE == 4)  # no cell has two
        even, odd = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, 2, UNITS)), (0, 3, 1, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        tiles = (first, second, third, fourth)
        return tiles if COUNT == 4 else (first, second, third)


@triton.jit
def join_columns(tiles, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Four tiles (ROWS, UNITS) as one (ROWS, 4 * UNITS)."""
    x = tl.join(tl.join(tiles[0], tiles[2]), tl.join(tiles[1], tiles[3]))
    return tl.reshape(tl.permute(x, (0, 2, 3, 1)), (ROWS, 4 * UNITS))


@triton.jit
def stream_product(
    p_x,
    n_rows,
    p_w,
    i_u,
    total,
    H: tl.constexpr,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    WIDE: tl.constexpr,
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
    """As :func:`columns_product`, with matrices in global memory."""
    o_b = tl.arange(0, ROWS)
    o_g, o_u, m_c = columns(i_u, H, COUNT, WIDE, UNITS)
    # A matrix may have more numbers than int32 tells apart.
    p_c = p_w + (o_g.to(tl.int64) * STRIDE_G + o_u.to(tl.int64) * STRIDE_U)[None, :]
    for i_k in range(0, K, DEPTH):
        o_k = i_k + tl.arange(0, DEPTH)
        m = (o_b < n_rows)[:, None] & (o_k < K)[None, :]
        b_x = tl.load(p_x + o_b[:, None] * STRIDE + o_k[None, :], mask=m, other=0.0, cache_modifier=".cg")
        b_w = tl.load(p_c + o_k[:, None].to(tl.int64) * STRIDE_K, mask=(o_k < K)[:, None] & m_c[None, :], other=0.0)
        total = dot(b_x, b_w, total, OPERAND, PRECISION)
    return split_columns(total, COUNT, WIDE, ROWS, UNITS)
