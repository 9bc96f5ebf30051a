"""The time loop, forward: one kernel over a range of steps, all rows, units and directions of a layer.

Program (i_u, i_b, i_d) computes UNITS hidden units of ROWS rows in direction i_d.  Rows are those of a PackedSequence,
step after step; a padded batch is one whose steps all have B rows.

The input product stands ready in ``p_a``, so a step is: the last h of the rows times the program's slice of W_hh,
the cell, h written to where the next step reads it.  Every array is contiguous:

    p_a       (D, N, G*H)  W_ih x + b_ih (+ b_hh, but for GRU's n)
    p_w       (D, G*H, H)  W_hh
    p_bn      (D, H)       GRU's b_hn; else not read
    p_h0      (D, B, H)    h before the first step
    p_c       (D, B, H)    float32, in: c before the range of steps, out: c after it; else not read
    p_hidden  (D, N, H)    out: h of every step, and the way by which h passes from program to program
    p_hn      (D, B, H)    out: h of every row's last step
    p_gates   (D, N, S*H)  out where SAVE: the cell's saved values
    p_cells   (D, N, H)    float32, out where SAVE: c of every step
    p_offsets (T + 1,)     int64 where PACKED: the first row of every step
    p_arrived (D, row tiles) int64 zeros: how many programs of the group have written their h, counted over all steps
"""

import triton
import triton.language as tl

from fastrnn.kernels.triton_cells import cell_forward


@triton.jit
def step_rows(p_offsets, t, T, B, PACKED: tl.constexpr):
    """First row of step t, and how many rows it has; 0 outside of [0, T)."""
    inside = (t >= 0) & (t < T)
    if PACKED:
        o_t = tl.load(p_offsets + t, mask=inside, other=0)
        return o_t, tl.load(p_offsets + t + 1, mask=inside, other=0) - o_t
    else:
        return t.to(tl.int64) * B, tl.where(inside, B, 0)


@triton.jit
def arrive(p_arrived):
    # The barrier makes the release of one thread cover what the others of its program have written.
    tl.debug_barrier()
    tl.atomic_add(p_arrived, 1, sem="release", scope="gpu")


@triton.jit
def wait(p_arrived, expected, POLL: tl.constexpr):
    """Until ``expected`` arrivals; the count only grows, so a program may be a step ahead of another."""
    arrived = poll(p_arrived, POLL)
    while arrived < expected:
        arrived = poll(p_arrived, POLL)
    tl.debug_barrier()


@triton.jit
def poll(p_arrived, POLL: tl.constexpr):
    if POLL == "load":  # reads in parallel, where read-modify-writes of many programs would queue up
        return tl.inline_asm_elementwise(
            "ld.acquire.gpu.global.b64 $0, [$1];", "=l,l", [p_arrived], dtype=tl.int64, is_pure=False, pack=1
        )
    else:
        return tl.atomic_add(p_arrived, 0, sem="acquire", scope="gpu")


@triton.jit
def product(x, w, acc, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    # OPERAND is the arrays' dtype, but float32 under the interpreter, which multiplies bfloat16 as if it were integer.
    return tl.dot(x.to(OPERAND), w.to(OPERAND), acc, input_precision=PRECISION)


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
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    PACKED: tl.constexpr,
    SAVE: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BN: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    POLL: tl.constexpr,
):
    i_u, i_b, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_u = i_u * UNITS + tl.arange(0, UNITS)
    o_b = i_b * ROWS + tl.arange(0, ROWS).to(tl.int64)
    m_u = (o_u < H)[None, :]
    o_state = (i_d * B + o_b)[:, None] * H
    p_arrived += i_d * tl.num_programs(1) + i_b
    p_a += i_d * N.to(tl.int64) * (GATES * H)
    p_w += i_d.to(tl.int64) * (GATES * H * H)
    p_hidden += i_d * N.to(tl.int64) * H

    b_c = tl.zeros((ROWS, UNITS), tl.float32)
    if HAS_C:
        b_c = tl.load(p_c + o_state + o_u[None, :], mask=(o_b < B)[:, None] & m_u, other=0.0)
    b_bn = tl.zeros((UNITS,), tl.float32)
    if HAS_BN:
        b_bn = tl.load(p_bn + i_d * H + o_u, mask=o_u < H, other=0.0).to(tl.float32)

    for s in range(t_begin, t_end):
        t = tl.where(i_d == 0, s, T - 1 - s)
        toward = tl.where(i_d == 0, 1, -1)
        o_t, n = step_rows(p_offsets, t, T, B, PACKED)
        o_from, n_from = step_rows(p_offsets, t - toward, T, B, PACKED)
        _, n_to = step_rows(p_offsets, t + toward, T, B, PACKED)
        m_b = (o_b < n)[:, None]
        m = m_b & m_u
        o_row = (o_t + o_b)[:, None]

        b_a = ()
        for g in tl.static_range(GATES):
            p = p_a + o_row * (GATES * H) + g * H + o_u[None, :]
            b_a = b_a + (tl.load(p, mask=m, other=0.0).to(tl.float32),)
        if s > t_begin:
            wait(p_arrived, (s - t_begin).to(tl.int64) * tl.num_programs(0), POLL)
        p_last = tl.where((o_b < n_from)[:, None], p_hidden + (o_from + o_b)[:, None] * H, p_h0 + o_state)
        b_b = ()
        for g in tl.static_range(GATES):
            b_b = b_b + (tl.zeros((ROWS, UNITS), tl.float32),)
        for i_k in range(0, H, DEPTH):
            o_k = i_k + tl.arange(0, DEPTH)
            b_h = tl.load(p_last + o_k[None, :], mask=m_b & (o_k < H)[None, :], other=0.0, cache_modifier=".cg")
            b_next = ()
            for g in tl.static_range(GATES):
                p = p_w + (g * H + o_u)[None, :] * H + o_k[:, None]
                b_w = tl.load(p, mask=m_u & (o_k < H)[:, None], other=0.0)
                b_next = b_next + (product(b_h, b_w, b_b[g], OPERAND, PRECISION),)
            b_b = b_next
        b_own = tl.zeros((ROWS, UNITS), tl.float32)
        if CELL == "GRU":
            b_own = tl.load(p_last + o_u[None, :], mask=m, other=0.0, cache_modifier=".cg").to(tl.float32)
            b_b = (b_b[0], b_b[1], b_b[2] + b_bn[None, :])

        b_h, b_c_new, saved = cell_forward(CELL, b_a, b_b, b_own, b_c)
        b_c = tl.where(m_b, b_c_new, b_c)
        p = p_hidden + o_row * H + o_u[None, :]
        tl.store(p, b_h.to(p_hidden.dtype.element_ty), mask=m)
        if s + 1 < t_end:
            arrive(p_arrived)
        m_last = m & (o_b >= n_to)[:, None]
        tl.store(p_hn + o_state + o_u[None, :], b_h.to(p_hn.dtype.element_ty), mask=m_last)
        if SAVE:
            o_d = i_d * N.to(tl.int64)
            for g in tl.static_range(len(saved)):
                p = p_gates + (o_d + o_row) * (len(saved) * H) + g * H + o_u[None, :]
                tl.store(p, saved[g].to(p_gates.dtype.element_ty), mask=m)
            if HAS_C:
                tl.store(p_cells + (o_d + o_row) * H + o_u[None, :], b_c, mask=m)

    if HAS_C:
        tl.store(p_c + o_state + o_u[None, :], b_c, mask=(o_b < B)[:, None] & m_u)
