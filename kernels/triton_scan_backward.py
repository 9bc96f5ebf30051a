"""The time loop, backward: one kernel over a range of steps, the mirror of :mod:`fastrnn.kernels.triton_scan`.

Program (i_u, i_b, i_d) holds UNITS hidden units of ROWS rows; steps count from a direction's last one.  A step is:
the pre-activation gradients of the step after it times the program's columns of W_hh, the cell, this step's gradients
written to where the next step reads them.  From them the gradients of x and of the weights are one product each,
outside.  Every array is contiguous; G' is G, but 4 for GRU (n, r, z, b_n):

    p_grads   (D, N, G'*H) out: pre-activation gradients, of which the last G*H of a row face W_hh
    p_w       (D, G*H, H)  W_hh
    p_gates   (D, N, S*H)  as forward saved them
    p_cells   (D, N, H)    float32, as forward saved them
    p_hidden  (D, N, H)    h of every step
    p_h0      (D, B, H)    h before the first step
    p_c0      (D, B, H)    c before the first step
    p_dy      (N, D, H)    gradient of y where HAS_DY
    p_dhn     (D, B, H)    gradient of hn where HAS_DHN
    p_carry   (D, B, H)    float32, in and out: gradient of c (LSTM), of h past the gates (GRU); else not read
    p_offsets, p_arrived   as in forward
"""

import triton
import triton.language as tl

from fastrnn.kernels.triton_cells import cell_backward
from fastrnn.kernels.triton_scan import arrive, product, step_rows, wait


@triton.jit(do_not_specialize=["t_begin", "t_end", "T", "B", "N"])
def scan_backward(
    p_grads,
    p_w,
    p_gates,
    p_cells,
    p_hidden,
    p_h0,
    p_c0,
    p_dy,
    p_dhn,
    p_carry,
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
    GRADS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_DHN: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    POLL: tl.constexpr,
):
    i_u, i_b, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_u = i_u * UNITS + tl.arange(0, UNITS)
    o_b = i_b * ROWS + tl.arange(0, ROWS).to(tl.int64)
    m_u = (o_u < H)[None, :]
    o_state = (i_d * B + o_b)[:, None] * H
    o_d = i_d * N.to(tl.int64)
    p_arrived += i_d * tl.num_programs(1) + i_b
    p_w += i_d.to(tl.int64) * (GATES * H * H)
    p_grads += o_d * (GRADS * H)

    HAS_CARRY: tl.constexpr = CELL == "LSTM" or CELL == "GRU"
    b_carry = tl.zeros((ROWS, UNITS), tl.float32)
    if HAS_CARRY:
        b_carry = tl.load(p_carry + o_state + o_u[None, :], mask=(o_b < B)[:, None] & m_u, other=0.0)

    for s in range(t_begin, t_end):
        t = tl.where(i_d == 0, T - 1 - s, s)
        toward = tl.where(i_d == 0, 1, -1)
        o_t, n = step_rows(p_offsets, t, T, B, PACKED)
        o_from, n_from = step_rows(p_offsets, t - toward, T, B, PACKED)
        o_to, n_to = step_rows(p_offsets, t + toward, T, B, PACKED)
        m_b = (o_b < n)[:, None]
        m = m_b & m_u
        m_to = ((o_b < n) & (o_b < n_to))[:, None]
        o_row = (o_t + o_b)[:, None]

        b_dh = tl.zeros((ROWS, UNITS), tl.float32)
        if HAS_DY:
            p = p_dy + (o_row * tl.num_programs(2) + i_d) * H + o_u[None, :]
            b_dh += tl.load(p, mask=m, other=0.0).to(tl.float32)
        if HAS_DHN:
            m_last = m & (o_b >= n_to)[:, None]
            b_dh += tl.load(p_dhn + o_state + o_u[None, :], mask=m_last, other=0.0).to(tl.float32)
        b_saved = ()
        for g in tl.static_range(SAVED):
            p = p_gates + (o_d + o_row) * (SAVED * H) + g * H + o_u[None, :]
            b_saved = b_saved + (tl.load(p, mask=m, other=0.0).to(tl.float32),)
        was = (o_b < n_from)[:, None]
        b_h, b_h_last, b_c, b_c_last = b_dh, b_dh, b_dh, b_dh
        if CELL == "LSTM":
            b_c = tl.load(p_cells + (o_d + o_row) * H + o_u[None, :], mask=m, other=0.0)
            p = tl.where(was, p_cells + (o_d + o_from + o_b)[:, None] * H, p_c0 + o_state)
            b_c_last = tl.load(p + o_u[None, :], mask=m, other=0.0)
        elif CELL == "GRU":
            p = tl.where(was, p_hidden + (o_d + o_from + o_b)[:, None] * H, p_h0 + o_state)
            b_h_last = tl.load(p + o_u[None, :], mask=m, other=0.0).to(tl.float32)
        else:
            b_h = tl.load(p_hidden + (o_d + o_row) * H + o_u[None, :], mask=m, other=0.0).to(tl.float32)

        if s > t_begin:
            wait(p_arrived, (s - t_begin).to(tl.int64) * tl.num_programs(0), POLL)
        p_to = p_grads + (o_to + o_b)[:, None] * (GRADS * H) + (GRADS - GATES) * H
        for i_k in range(0, GATES * H, DEPTH):
            o_k = i_k + tl.arange(0, DEPTH)
            m_k = o_k < GATES * H
            b_g = tl.load(p_to + o_k[None, :], mask=m_to & m_k[None, :], other=0.0, cache_modifier=".cg")
            b_w = tl.load(p_w + o_k[:, None] * H + o_u[None, :], mask=m_k[:, None] & m_u, other=0.0)
            b_dh = product(b_g, b_w, b_dh, OPERAND, PRECISION)

        grads, b_carry_new = cell_backward(CELL, b_dh, b_carry, b_saved, b_h, b_h_last, b_c, b_c_last)
        b_carry = tl.where(m_b, b_carry_new, b_carry)
        for g in tl.static_range(GRADS):
            p = p_grads + o_row * (GRADS * H) + g * H + o_u[None, :]
            tl.store(p, grads[g].to(p_grads.dtype.element_ty), mask=m)
        if s + 1 < t_end:
            arrive(p_arrived)

    if HAS_CARRY:
        tl.store(p_carry + o_state + o_u[None, :], b_carry, mask=(o_b < B)[:, None] & m_u)
