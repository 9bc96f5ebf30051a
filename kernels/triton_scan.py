"""The time loop, forward: one kernel over a range of steps, all rows, units and directions of a layer.

Program (i_b, i_u, i_d) computes UNITS hidden units of ROWS rows in direction i_d.  Rows are those of a PackedSequence,
step after step; a padded batch is one whose steps all have B rows.

The input product stands ready in ``p_a``, so a step is: the last h of the rows times the program's slice of W_hh, added
to b_hh (:mod:`fastrnn.kernels.triton_product` has the paths), the cell, h written to where the next step reads it, and
where programs share rows, a barrier among them (:mod:`fastrnn.kernels.triton_steps`).  A launch may have a part of the
row tiles, from ``tile_begin`` on.  Every array is contiguous; what the two directions have as parameters of their own
comes as two pointers, of which the second is not read where there is one direction:

    p_a       (D, N, G*H)  W_ih x + b_ih
    p_w       (G*H, H)     W_hh; and p_w_reverse
    p_bias    (G*H,)       b_hh where HAS_BIAS; and p_bias_reverse
    p_h0      (D, B, P)    h before the first step; P = H, but where there is one step alone, of a layer with a
                           projection, on the stream path: then W_hh is (G*H, P), and no other product follows
    p_c0      (D, B, H)    c before the first step; where HAS_C
    p_c       (D, B, H)    float32, between launches: c after the range of steps; where HAS_C
    p_ring    (D, 2, B, H) the way by which h passes from program to program: of odd and of even steps, all rows, those
                           that have not begun with their first h; between launches, that of the last step
    p_y       (N, D*H)     out where HAS_Y: h of every step
    p_hidden  (D, N, H)    out where SAVE or without y: the same
    p_hn      (D, B, H)    out: h of every row's last step
    p_cn      (D, B, H)    out: c of every row's last step; where HAS_C
    p_gates   (D, N, S*H)  out where SAVE: the cell's saved values
    p_cells   (D, N, H)    float32, out where SAVE and HAS_C: c of every step
    p_offsets (T + 1,)     int64 where PACKED: the first row of every step
    p_arrived (D, row tiles, unit tiles) int32, in: zeros; the barrier's flags
"""

import triton
import triton.language as tl
from fastrnn.kernels.triton_cells import cell_forward
from fastrnn.kernels.triton_product import (
    columns,
    columns_product,
    dot,
    first_sums,
    join_columns,
    side_by_side,
    split_columns,
    stream_product,
    tile_weights,
)
from fastrnn.kernels.triton_steps import arrive, step_rows, wait


@triton.jit
def state_product(
    b_h,
    p_x,
    n_x,
    weights,
    p_w,
    total,
    i_u,
    H: tl.constexpr,
    K: tl.constexpr,
    GATES: tl.constexpr,
    WIDE: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAINS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W_hh h + b_hh for each gate, a tuple of (ROWS, UNITS).  h of the program's first n_x rows, K numbers each, begins
    at p_x; b_h is that of its own units; ``total`` is the biases, (ROWS, WIDE * UNITS)."""
    if ROAD == "tile":
        b_b = ()
        for g in tl.static_range(GATES):
            b_b = b_b + (dot(b_h, weights[g], tl.zeros((ROWS, UNITS), tl.float32), OPERAND, PRECISION),)
    elif ROAD == "spread":
        b_b = columns_product(
            p_x, n_x, weights, total, H, GATES, WIDE, H, ROWS, UNITS, DEPTH, CHAINS, OPERAND, PRECISION
        )
    else:
        tl.static_assert(ROAD == "stream")
        b_b = stream_product(
            p_x, n_x, p_w, i_u, total, H, K, GATES, WIDE, K, H * K, K, 1, ROWS, UNITS, DEPTH, OPERAND, PRECISION
        )
    return b_b


@triton.jit
def add_biases(tiles, p_bias, m_u, o_u, H: tl.constexpr, GATES: tl.constexpr):
    """On the tile path, whose registers are full of weights, the biases are read in every step."""
    grown = ()
    for g in tl.static_range(GATES):
        bias = tl.load(p_bias + g * H + o_u, mask=m_u, other=0.0).to(tl.float32)
        grown = grown + (tiles[g] + bias[None, :],)
    return grown


@triton.jit
def load_gates(
    p,
    m_b,
    m_u,
    o_u,
    H: tl.constexpr,
    GATES: tl.constexpr,
    WIDE: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """The gates of the input, whose rows begin at p: a tile for each, or on the tile path one of all side by side,
    which takes one change of layout in the place of several."""
    o_b = tl.arange(0, ROWS)
    if ROAD == "tile":
        o_g, o_c, m_c = columns(0, H, GATES, WIDE, UNITS)
        o = o_b[:, None] * (GATES * H) + (o_g * H + o_c)[None, :]
        tiles = (tl.load(p + o, mask=m_b[:, None] & m_c[None, :], other=0.0),)
    else:
        tiles = ()
        for g in tl.static_range(GATES):
            o = o_b[:, None] * (GATES * H) + (g * H + o_u)[None, :]
            tiles = tiles + (tl.load(p + o, mask=m_b[:, None] & m_u[None, :], other=0.0),)
    return tiles


@triton.jit
def store_saved(
    p,
    saved,
    m_b,
    m_u,
    o_u,
    H: tl.constexpr,
    SAVED: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    o_b = tl.arange(0, ROWS)
    if ROAD == "tile" and SAVED == 4:
        o_g, o_c, m_c = columns(0, H, 4, 4, UNITS)
        o = o_b[:, None] * (SAVED * H) + (o_g * H + o_c)[None, :]
        tl.store(p + o, join_columns(saved, ROWS, UNITS).to(p.dtype.element_ty), mask=m_b[:, None] & m_c[None, :])
    else:
        for g in tl.static_range(SAVED):
            o = o_b[:, None] * (SAVED * H) + (g * H + o_u)[None, :]
            tl.store(p + o, saved[g].to(p.dtype.element_ty), mask=m_b[:, None] & m_u[None, :])


@triton.jit
def store_as_it_lies(p, x, m):
    """Stores float32 from where a product left it, eight numbers in a row, without a change of layout through shared
    memory: a sector of memory is written at once all the same."""
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred p;
            setp.ne.s32 p, $3, 0;
            @p st.global.f32 [$1], $2;
            mov.u32 $0, 0;
        }
        """,
        "=r,l,r,r",
        [p.to(tl.int64), x, m.to(tl.int32)],  # of Triton 3.6, operands may be no pointers beside numbers
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["tile_begin", "t_begin", "t_end", "T", "B", "N"])
def scan_forward(
    p_a,
    p_w,
    p_w_reverse,
    p_bias,
    p_bias_reverse,
    p_h0,
    p_c0,
    p_c,
    p_ring,
    p_y,
    p_hidden,
    p_hn,
    p_cn,
    p_gates,
    p_cells,
    p_offsets,
    p_arrived,
    tile_begin,
    t_begin,
    t_end,
    T,
    B,
    N,
    H: tl.constexpr,
    P: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    WIDE: tl.constexpr,
    SAVED: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICES: tl.constexpr,
    CHAINS: tl.constexpr,
    WHOLE: tl.constexpr,
    PACKED: tl.constexpr,
    SAVE: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Y: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PTX: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    D: tl.constexpr = DIRECTIONS
    if WHOLE:
        t_begin, t_end = t_begin * 0, T
    i_b, i_u, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    # Offsets within a tile are int32; what may pass 2^31 is added to the base pointers.
    o_b, o_u = tl.arange(0, ROWS), i_u * UNITS + tl.arange(0, UNITS)
    m_u = o_u < H
    o_hu = o_b[:, None] * H + o_u[None, :]
    o_yu = o_b[:, None] * (D * H) + o_u[None, :]
    i_row = (tile_begin + i_b).to(tl.int64) * ROWS  # of the tile, among the rows of a step
    o_state = (i_d * B + i_row) * H
    m_state = (o_b < B - i_row)[:, None] & m_u[None, :]
    p_h0 += (i_d * B + i_row) * P
    o_slot = B.to(tl.int64) * H
    p_ring += (i_d * 2 * B + i_row) * H
    p_a += (i_d * N + i_row) * (GATES * H)
    p_y += (i_row * D + i_d) * H
    p_hidden += (i_d * N + i_row) * H
    p_gates += (i_d * N + i_row) * (SAVED * H)
    p_cells += (i_d * N + i_row) * H
    p_w = tl.where(i_d == 0, p_w, p_w_reverse)
    p_arrived += (i_d * tl.num_programs(0) + i_b) * tl.num_programs(1)

    # The product of the first step stands before the loop, those of the others at the end of the step before: so that
    # the loop has no choice of pointers, which would hide from the compiler that rows begin at multiples of 16 bytes.
    p_x = tl.where(t_begin == 0, p_h0, p_ring + ((t_begin + 1) % 2) * o_slot)
    # h of the program's own units, which GRU mixes in, and on the tile path all of h.
    b_h = tl.zeros((ROWS, UNITS), p_h0.dtype.element_ty)
    if P == H:
        b_h = tl.load(p_x + o_hu, mask=m_state, other=0.0)
    b_c = tl.zeros((ROWS, UNITS), tl.float32)
    if HAS_C:
        n_first = tl.where(t_begin == 0, B, 0) - i_row
        b_c += tl.load(p_c0 + o_state + o_hu, mask=(o_b < n_first)[:, None] & m_u[None, :], other=0.0)
        if not WHOLE:
            n_rest = tl.where(t_begin == 0, 0, B) - i_row
            b_c += tl.load(p_c + o_state + o_hu, mask=(o_b < n_rest)[:, None] & m_u[None, :], other=0.0)
    if HAS_BIAS:
        p_bias = tl.where(i_d == 0, p_bias, p_bias_reverse)
    total = first_sums(p_bias, i_u, H, GATES, WIDE, ROWS, UNITS, HAS_BIAS and ROAD != "tile")

    toward = tl.where(i_d == 0, 1, -1)
    t = tl.where(i_d == 0, t_begin, T - 1 - t_begin)
    o_t, n = step_rows(p_offsets, t, T, B, PACKED)
    n = n - i_row

    weights = ()
    if ROAD == "tile":
        weights = tile_weights(p_w, H, GATES, UNITS, 1, H, PTX, PRECISION)
    elif ROAD == "spread":
        weights = side_by_side(p_w, i_u, H, H, GATES, WIDE, H * H, H, 1, UNITS, DEPTH, PTX, PRECISION)
    b_a = load_gates(p_a + o_t * (GATES * H), o_b < n, m_u, o_u, H, GATES, WIDE, ROAD, ROWS, UNITS)
    if ROAD != "tile":
        b_b = state_product(
            b_h, p_x, n, weights, p_w, total, i_u,
            H, P, GATES, WIDE, ROAD, ROWS, UNITS, DEPTH, CHAINS, OPERAND, PRECISION,
        )  # fmt: skip

    s = t_begin
    while s < t_end:  # of a `for`, Triton's pipeliner may load the next step's h before it is written
        gates = b_a
        if ROAD == "tile":
            b_b = state_product(
                b_h, p_x, n, weights, p_w, total, i_u,
                H, H, GATES, WIDE, ROAD, ROWS, UNITS, DEPTH, CHAINS, OPERAND, PRECISION,
            )  # fmt: skip
            gates = split_columns(b_a[0], GATES, WIDE, ROWS, UNITS)
            # With the input's gates the compiler takes them as what the product is added to; but where a gate of the
            # state is of use by itself, its bias has to be there.
            if HAS_BIAS and SAVED > GATES:
                b_b = add_biases(b_b, p_bias, m_u, o_u, H, GATES)
            elif HAS_BIAS:
                gates = add_biases(gates, p_bias, m_u, o_u, H, GATES)
        b_h_new, b_c_new, saved = cell_forward(CELL, gates, b_b, b_h, b_c)
        # Of n, not a tile that the loop carries: that would change its layout in every step.
        m_b = o_b < n
        m = m_b[:, None] & m_u[None, :]
        if PACKED:  # rows that have ended, or not begun, stay as they are
            b_h = tl.where(m_b[:, None], b_h_new.to(b_h.dtype), b_h)
            b_c = tl.where(m_b[:, None], b_c_new, b_c)
        else:
            b_h = b_h_new.to(b_h.dtype)
            b_c = b_c_new
        s += 1
        p_x = p_ring + ((s + 1) % 2) * o_slot
        if ROAD != "tile" and s < T:
            tl.store(p_x + o_hu, b_h, mask=m_state)
            if WHOLE or s < t_end:
                arrive(p_arrived + i_u)

        # Until the others arrive: what none of them reads, and what the next step needs beside h.
        if HAS_Y:
            tl.store(p_y + o_t * (D * H) + o_yu, b_h, mask=m)
        if SAVE or not HAS_Y:
            tl.store(p_hidden + o_t * H + o_hu, b_h, mask=m)
        if SAVE:
            store_saved(p_gates + o_t * (SAVED * H), saved, m_b, m_u, o_u, H, SAVED, ROAD, ROWS, UNITS)
            if HAS_C:
                if ROAD == "tile" and PTX:
                    store_as_it_lies(p_cells + o_t * H + o_hu, b_c, m)
                else:
                    tl.store(p_cells + o_t * H + o_hu, b_c, mask=m)
        t += toward
        o_t, n = step_rows(p_offsets, t, T, B, PACKED)
        n = n - i_row
        if PACKED:  # else all rows end with the last step
            tl.store(p_hn + o_state + o_hu, b_h, mask=m & (o_b >= n)[:, None])
        b_a = load_gates(p_a + o_t * (GATES * H), o_b < n, m_u, o_u, H, GATES, WIDE, ROAD, ROWS, UNITS)
        if ROAD != "tile" and P == H and s < t_end:
            wait(p_arrived, tl.num_programs(1), s - t_begin, PTX, PROGRAMS)
            b_b = state_product(
                b_h, p_x, n, weights, p_w, total, i_u,
                H, H, GATES, WIDE, ROAD, ROWS, UNITS, DEPTH, CHAINS, OPERAND, PRECISION,
            )  # fmt: skip

    # Of the last launch hn and cn, else what the next one begins with.
    m_last = (o_b < tl.where(t_end == T, B, 0) - i_row)[:, None] & m_u[None, :]
    m_rest = (o_b < tl.where(t_end == T, 0, B) - i_row)[:, None] & m_u[None, :]
    if not PACKED:
        tl.store(p_hn + o_state + o_hu, b_h, mask=m_last)
    if ROAD == "tile" and not WHOLE:  # on the others it is there already
        tl.store(p_ring + ((t_end + 1) % 2) * o_slot + o_hu, b_h, mask=m_rest)
    if HAS_C:
        tl.store(p_cn + o_state + o_hu, b_c, mask=m_last)
        if not WHOLE:
            tl.store(p_c + o_state + o_hu, b_c, mask=m_rest)
