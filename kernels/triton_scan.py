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
    p_hidden  (D, N, H)    out: h of every step, and the way by which h passes from program to program
    p_hn      (D, B, H)    out: h of every row's last step
    p_gates   (D, N, S*H)  out where SAVE: the cell's saved values
    p_cells   (D, N, H)    float32, out where SAVE and HAS_C: c of every step
    p_offsets (T + 1,)     int64 where PACKED: the first row of every step
    p_arrived (D, row tiles) int64, in: zeros; the barrier's counters
"""

import triton
import triton.language as tl
from fastrnn.kernels.triton_cells import cell_forward
from fastrnn.kernels.triton_product import (
    dot,
    row_pointers,
    spread_product,
    spread_weights,
    stream_product,
    tile_weights,
)
from fastrnn.kernels.triton_steps import arrive, step_rows, wait


@triton.jit
def state_product(
    b_h,
    p_x,
    n_x,
    p_h0,
    n_rows,
    weights,
    p_w,
    o_u,
    m_u,
    H: tl.constexpr,
    GATES: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W_hh h for each gate, a tuple of (ROWS, UNITS).  h of the program's first n_x rows begins at p_x, of the rest, up
    to n_rows, at p_h0; b_h is that of its own units."""
    if ROAD == "tile":
        b_b = ()
        for g in tl.static_range(GATES):
            b_b = b_b + (dot(b_h, weights[g], tl.zeros((ROWS, UNITS), tl.float32), OPERAND, PRECISION),)
    elif ROAD == "spread":
        b_b = spread_product(
            p_x, n_x, p_h0, n_rows, weights, H, GATES, H, ROWS, UNITS, DEPTH, SLICES, OPERAND, PRECISION
        )
    else:
        tl.static_assert(ROAD == "stream")
        b_b = stream_product(
            p_x, n_x, p_h0, n_rows, p_w, o_u, m_u, H, GATES, H, H * H, H, 1, ROWS, UNITS, DEPTH, OPERAND, PRECISION
        )
    return b_b


@triton.jit
def load_gates(p, m, H: tl.constexpr, GATES: tl.constexpr):
    tiles = ()
    for g in tl.static_range(GATES):
        tiles = tiles + (tl.load(p + g * H, mask=m, other=0.0),)
    return tiles


@triton.jit(do_not_specialize=["t_begin", "t_end", "T", "B", "N"])
def scan_forward(
    p_a,
    p_w,
    p_bn,
    p_h0,
    p_c,
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
    SAVED: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICES: tl.constexpr,
    PACKED: tl.constexpr,
    SAVE: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BN: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PTX: tl.constexpr,
):
    i_b, i_u, i_d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    # Offsets within a tile are int32; what may pass 2^31 is added to the base pointers.
    o_b, o_u = tl.arange(0, ROWS), i_u * UNITS + tl.arange(0, UNITS)
    m_u = o_u < H
    o_hu, o_au = o_b[:, None] * H + o_u[None, :], o_b[:, None] * (GATES * H) + o_u[None, :]
    i_row = i_b * ROWS  # of the tile, among the rows of a step
    o_state = (i_d * B + i_row) * H
    m_state = (o_b < B - i_row)[:, None] & m_u[None, :]
    p_h0 += o_state
    p_a += (i_d * N + i_row) * (GATES * H)
    p_hidden += (i_d * N + i_row) * H
    p_gates += (i_d * N + i_row) * (SAVED * H)
    p_cells += (i_d * N + i_row) * H
    p_w += i_d * (GATES * H * H)
    p_arrived += i_d * tl.num_programs(0) + i_b

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
    m_b = o_b < n
    # Rows that the step before this one had read what it wrote, others begin here.
    p_x = p_hidden + o_from * H
    # h of the program's own units: GRU mixes it in, and on the tile path it is all of h.
    b_h = tl.load(row_pointers(o_b, p_x, n_from, p_h0, H)[:, None] + o_u[None, :], mask=m_state, other=0.0)

    weights = ()
    if ROAD == "tile":
        weights = tile_weights(p_w, H, GATES, H * H, H, 1, UNITS, PTX, PRECISION)
    elif ROAD == "spread":
        weights = spread_weights(p_w, o_u, m_u, H, GATES, H * H, H, 1, DEPTH, SLICES, PTX, PRECISION)
    b_a = load_gates(p_a + o_t * (GATES * H) + o_au, m_b[:, None] & m_u[None, :], H, GATES)
    # The product of the first step stands before the loop, those of the others at the end of the step before.
    b_b = state_product(
        b_h, p_x, n_from, p_h0, n, weights, p_w, o_u, m_u,
        H, GATES, ROAD, ROWS, UNITS, DEPTH, SLICES, OPERAND, PRECISION,
    )  # fmt: skip

    s = t_begin
    while s < t_end:  # of a `for`, Triton's pipeliner may load the next step's h before it is written
        b_h_new, b_c_new, saved = cell_forward(CELL, b_a, b_b, b_bn, b_h, b_c)
        m = m_b[:, None] & m_u[None, :]
        b_h = tl.where(m_b[:, None], b_h_new.to(b_h.dtype), b_h)
        b_c = tl.where(m_b[:, None], b_c_new, b_c)
        tl.store(p_hidden + o_t * H + o_hu, b_h, mask=m)
        s += 1
        if ROAD != "tile" and s < t_end:
            arrive(p_arrived)

        # Until the others arrive: what only backward reads, and what the next step needs beside h.
        if SAVE:
            p_g = p_gates + o_t * (SAVED * H) + o_b[:, None] * (SAVED * H) + o_u[None, :]
            for g in tl.static_range(SAVED):
                tl.store(p_g + g * H, saved[g].to(p_gates.dtype.element_ty), mask=m)
            if HAS_C:
                tl.store(p_cells + o_t * H + o_hu, b_c, mask=m)
        p_x, n_from = p_hidden + o_t * H, n
        t += toward
        o_t, n = step_rows(p_offsets, t, T, B, PACKED)
        n = n - i_row
        m_b = o_b < n
        tl.store(p_hn + o_state + o_hu, b_h, mask=m & (m_b == 0)[:, None])
        b_a = load_gates(p_a + o_t * (GATES * H) + o_au, m_b[:, None] & m_u[None, :], H, GATES)
        if s < t_end:
            if ROAD != "tile":
                wait(p_arrived, (s - t_begin).to(tl.int64) * tl.num_programs(1), PTX)
            b_b = state_product(
                b_h, p_x, n_from, p_h0, n, weights, p_w, o_u, m_u,
                H, GATES, ROAD, ROWS, UNITS, DEPTH, SLICES, OPERAND, PRECISION,
            )  # fmt: skip

    if HAS_C:
        tl.store(p_c + o_state + o_hu, b_c, mask=m_state)
