"""The time loop, forward: one kernel over a range of steps, all rows, units and directions of a layer.

Program (i_b, i_u, i_d) computes UNITS hidden units of ROWS rows in direction i_d.  Rows are those of a PackedSequence,
step after step; a padded batch is one whose steps all have B rows.

The input product stands ready in ``p_a``, so a step is: the last h of the rows times the program's slice of W_hh
(:mod:`fastrnn.kernels.triton_product` has the paths), the cell, h written to where the next step reads it, and where
programs share rows, a barrier among them (:mod:`fastrnn.kernels.triton_steps`).  Every array is contiguous:

    p_a       (D, N, G*H)  W_ih x + b_ih (+ b_hh, but for GRU's n)
    p_w       (D, G*H, H)  W_hh
    p_bn      (D, H)       GRU's b_hn where HAS_BN
    p_h0      (D, B, H)    h before the first step
    p_c       (D, B, H)    float32, in: c before the range of steps, out: c after it; where HAS_C
    p_ring    (D, 2, B, H) the way by which h passes from program to program: of odd and of even steps, all rows, those
                           that have not begun with their first h; between launches, that of the last step
    p_hidden  (D, N, H)    out: h of every step
    p_hn      (D, B, H)    out: h of every row's last step
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
    join_columns,
    row_pointers,
    side_by_side,
    split_columns,
    stream_product,
)
from fastrnn.kernels.triton_steps import arrive, step_rows, wait


@triton.jit
def state_product(
    b_h,
    p_x,
    n_x,
    weights,
    p_w,
    i_u,
    H: tl.constexpr,
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
    """W_hh h for each gate, a tuple of (ROWS, UNITS).  h of the program's first n_x rows begins at p_x; b_h is that of
    its own units."""
    if ROAD == "tile":
        total = dot(b_h, weights[0], tl.zeros((ROWS, WIDE * UNITS), tl.float32), OPERAND, PRECISION)
        b_b = split_columns(total, GATES, WIDE, ROWS, UNITS)
    elif ROAD == "spread":
        b_b = columns_product(p_x, n_x, weights, H, GATES, WIDE, H, ROWS, UNITS, DEPTH, CHAINS, OPERAND, PRECISION)
    else:
        tl.static_assert(ROAD == "stream")
        b_b = stream_product(
            p_x, n_x, p_w, i_u, H, H, GATES, WIDE, H, H * H, H, 1, ROWS, UNITS, DEPTH, OPERAND, PRECISION
        )
    return b_b


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


@triton.jit(do_not_specialize=["t_begin", "t_end", "T", "B", "N"])
def scan_forward(
    p_a,
    p_w,
    p_bn,
    p_h0,
    p_c,
    p_ring,
    p_hidden,
    p_hn,
    p_gates,
    p_cells,
    p_offsets,
    p_arrived,
    t_begin,
    t_end,
    T,
    B,
    N,
    H: tl.constexpr,
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
    PACKED: tl.constexpr,
    SAVE: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BN: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PTX: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    i_b, i_u, i_d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    # Offsets within a tile are int32; what may pass 2^31 is added to the base pointers.
    o_b, o_u = tl.arange(0, ROWS), i_u * UNITS + tl.arange(0, UNITS)
    m_u = o_u < H
    o_hu = o_b[:, None] * H + o_u[None, :]
    i_row = i_b * ROWS  # of the tile, among the rows of a step
    o_state = (i_d * B + i_row) * H
    m_state = (o_b < B - i_row)[:, None] & m_u[None, :]
    p_h0 += o_state
    o_slot = B.to(tl.int64) * H
    p_ring += (i_d * 2 * B + i_row) * H
    p_a += (i_d * N + i_row) * (GATES * H)
    p_hidden += (i_d * N + i_row) * H
    p_gates += (i_d * N + i_row) * (SAVED * H)
    p_cells += (i_d * N + i_row) * H
    p_w += i_d * (GATES * H * H)
    p_arrived += (i_d * tl.num_programs(0) + i_b) * tl.num_programs(1)

    b_c = tl.zeros((ROWS, UNITS), tl.float32)
    if HAS_C:
        b_c = tl.load(p_c + o_state + o_hu, mask=m_state, other=0.0)
    b_bn = tl.zeros((UNITS,), tl.float32)
    if HAS_BN:
        b_bn = tl.load(p_bn + i_d * H + o_u, mask=m_u, other=0.0).to(tl.float32)

    toward = tl.where(i_d == 0, 1, -1)
    t = tl.where(i_d == 0, t_begin, T - 1 - t_begin)
    o_t, n = step_rows(p_offsets, t, T, B, PACKED)
    o_from, n_from = step_rows(p_offsets, t - toward, T, B, PACKED)
    n, n_from = n - i_row, n_from - i_row
    # h of the program's own units, which GRU mixes in, and on the tile path all of h.  Rows that the step before this
    # one had read what it wrote, others begin here or later.
    p_from = row_pointers(o_b, p_hidden + o_from * H, n_from, p_h0, H)
    b_h = tl.load(p_from[:, None] + o_u[None, :], mask=m_state, other=0.0)

    weights = ()
    if ROAD != "stream":
        weights = side_by_side(p_w, i_u, H, H, GATES, WIDE, H * H, H, 1, UNITS, DEPTH, PTX, PRECISION)
    b_a = load_gates(p_a + o_t * (GATES * H), o_b < n, m_u, o_u, H, GATES, WIDE, ROAD, ROWS, UNITS)
    # The product of the first step stands before the loop, those of the others at the end of the step before: so that
    # the loop has no choice of pointers, which would hide from the compiler that rows begin at multiples of 16 bytes.
    p_x = tl.where(t_begin == 0, p_h0, p_ring + ((t_begin + 1) % 2) * o_slot)
    b_b = state_product(
        b_h, p_x, n, weights, p_w, i_u, H, GATES, WIDE, ROAD, ROWS, UNITS, DEPTH, CHAINS, OPERAND, PRECISION
    )

    s = t_begin
    while s < t_end:  # of a `for`, Triton's pipeliner may load the next step's h before it is written
        gates = split_columns(b_a[0], GATES, WIDE, ROWS, UNITS) if ROAD == "tile" else b_a
        b_h_new, b_c_new, saved = cell_forward(CELL, gates, b_b, b_bn, b_h, b_c)
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
            if s < t_end:
                arrive(p_arrived + i_u)

        # Until the others arrive: what none of them reads, and what the next step needs beside h.
        tl.store(p_hidden + o_t * H + o_hu, b_h, mask=m)
        if SAVE:
            store_saved(p_gates + o_t * (SAVED * H), saved, m_b, m_u, o_u, H, SAVED, ROAD, ROWS, UNITS)
            if HAS_C:
                tl.store(p_cells + o_t * H + o_hu, b_c, mask=m)
        t += toward
        o_t, n = step_rows(p_offsets, t, T, B, PACKED)
        n = n - i_row
        if PACKED:  # else all rows end with the last step
            tl.store(p_hn + o_state + o_hu, b_h, mask=m & (o_b >= n)[:, None])
        b_a = load_gates(p_a + o_t * (GATES * H), o_b < n, m_u, o_u, H, GATES, WIDE, ROAD, ROWS, UNITS)
        if s < t_end:
            if ROAD != "tile":
                wait(p_arrived, tl.num_programs(1), s - t_begin, PTX, PROGRAMS)
            b_b = state_product(
                b_h, p_x, n, weights, p_w, i_u, H, GATES, WIDE, ROAD, ROWS, UNITS, DEPTH, CHAINS, OPERAND, PRECISION
            )

    if not PACKED:
        n_end = tl.where(t_end == T, B, 0)
        tl.store(p_hn + o_state + o_hu, b_h, mask=(o_b < n_end - i_row)[:, None] & m_u[None, :])
    if HAS_C:
        tl.store(p_c + o_state + o_hu, b_c, mask=m_state)
