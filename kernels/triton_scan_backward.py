"""The time loop, backward: one kernel over a range of steps, the mirror of :mod:`fastrnn.kernels.triton_scan`.

Program (i_b, i_u, i_d) holds UNITS hidden units of ROWS rows; steps count from a direction's last one.  A step is:
the pre-activation gradients of the step after it in time times the program's columns of W_hh, the cell, this step's
gradients written to where the next step reads them.  From them the gradients of x and of the weights are one product
each, outside.  Every array is contiguous; G' is G, but 4 for GRU (b_n, r, z, n):

    p_grads   (D, N, G'*H) out: pre-activation gradients, of which the first G*H of a row face W_hh
    p_w       (G*H, H)     W_hh, its rows in the order of those; and p_w_reverse
    p_gates   (D, N, S*H)  as forward saved them
    p_cells   (D, N, H)    float32, as forward saved them; LSTM
    p_hidden  (D, N, H)    h of every step; but LSTM
    p_h0      (D, B, H)    h before the first step; GRU
    p_c0      (D, B, H)    float32, c before the first step; LSTM
    p_dy      (N, D, H)    gradient of y where HAS_DY
    p_dhn     (D, B, H)    gradient of hn where HAS_DHN
    p_dcells  (D, N, H)    float32, gradient of c of every step where HAS_DCELLS; LSTM
    p_carry   (D, B, H)    float32, in and out: gradient of c (LSTM), of h past the gates (GRU); but RNN
    p_offsets, p_arrived   as in forward
"""

import triton
import triton.language as tl
from fastrnn.kernels.triton_cells import cell_backward
from fastrnn.kernels.triton_product import (
    dot,
    row_pointers,
    sliced_product,
    sliced_weights,
    stream_product,
    tile_weights,
)
from fastrnn.kernels.triton_steps import arrive, step_rows, wait


@triton.jit
def grads_product(
    grads,
    p_x,
    n_x,
    weights,
    p_w,
    o_u,
    m_u,
    i_u,
    H: tl.constexpr,
    GATES: tl.constexpr,
    GRADS: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of h (ROWS, UNITS) through the gates, of the first n_x rows, and anything of others.  ``grads`` are
    the gates', of the program's own units; those of all units begin at p_x."""
    if ROAD == "tile":
        b_dh = tl.zeros((ROWS, UNITS), tl.float32)
        for g in tl.static_range(GATES):
            own = tl.where((tl.arange(0, ROWS) < n_x)[:, None], grads[g], 0.0)
            b_dh = dot(own, weights[g], b_dh, OPERAND, PRECISION)
    elif ROAD == "spread":
        b_dh = sliced_product(p_x, weights, GATES * H, GRADS * H, ROWS, UNITS, SLICE, SLICES, OPERAND, PRECISION)
    else:
        tl.static_assert(ROAD == "stream")
        b_dh = stream_product(
            p_x, n_x, p_w, i_u, tl.zeros((ROWS, UNITS), tl.float32),
            H, GATES * H, 1, 1, GRADS * H, 0, 1, H, ROWS, UNITS, DEPTH, OPERAND, PRECISION,
        )[0]  # fmt: skip
    return b_dh


@triton.jit
def load_before(p_from, n_from, p_first, o_b, o_u, m, H: tl.constexpr, PACKED: tl.constexpr):
    """A state before a step: of the rows that the step before it had, below n_from, from p_from on, of others their
    first."""
    if PACKED:
        p = row_pointers(o_b, p_from, n_from, p_first, H)[:, None] + o_u[None, :]
    else:  # that step had all rows, or there is none
        p = tl.where(n_from > 0, p_from, p_first) + o_b[:, None] * H + o_u[None, :]
    return tl.load(p, mask=m, other=0.0)


@triton.jit
def load_values(
    p_gates,
    p_cells,
    p_hidden,
    p_h0,
    p_c0,
    o_t,
    o_from,
    n_from,
    m,
    o_b,
    o_u,
    late,
    H: tl.constexpr,
    CELL: tl.constexpr,
    SAVED: tl.constexpr,
    PACKED: tl.constexpr,
):
    """What cell_backward asks for, of the rows where ``m``; the step before in time has ``n_from`` of them, and that
    after it had the values ``late``, or () where there is none."""
    values = ()
    p = p_gates + (o_t * (SAVED * H) + (o_b[:, None] * (SAVED * H) + o_u[None, :]))
    for g in tl.static_range(SAVED):
        values = values + (tl.load(p + g * H, mask=m, other=0.0),)
    if CELL == "LSTM":
        if PACKED or len(late) == 0:
            values = values + (tl.load(p_cells + o_t * H + o_b[:, None] * H + o_u[None, :], mask=m, other=0.0),)
        else:  # c, which was c before the step after
            values = values + (late[SAVED + 1],)
        values = values + (load_before(p_cells + o_from * H, n_from, p_c0, o_b, o_u, m, H, PACKED),)
    elif SAVED > 0:  # GRU
        values = values + (load_before(p_hidden + o_from * H, n_from, p_h0, o_b, o_u, m, H, PACKED),)
    else:
        values = values + (tl.load(p_hidden + o_t * H + o_b[:, None] * H + o_u[None, :], mask=m, other=0.0),)
    return values


@triton.jit
def load_outer(p_dy, p_dhn, o_hu, o_du, m, m_last, HAS_DY: tl.constexpr, HAS_DHN: tl.constexpr):
    """The gradient of h from outside of the recurrence: from y, and at a row's last step from hn."""
    b_dh = tl.zeros(o_hu.shape, tl.float32)
    if HAS_DY:
        b_dh += tl.load(p_dy + o_du, mask=m, other=0.0)
    if HAS_DHN:
        b_dh += tl.load(p_dhn + o_hu, mask=m_last, other=0.0)
    return b_dh


@triton.jit(do_not_specialize=["tile_begin", "t_begin", "t_end", "T", "B", "N"])
def scan_backward(
    p_grads,
    p_w,
    p_w_reverse,
    p_gates,
    p_cells,
    p_hidden,
    p_h0,
    p_c0,
    p_dy,
    p_dhn,
    p_dcells,
    p_carry,
    p_offsets,
    p_arrived,
    tile_begin,
    t_begin,
    t_end,
    T,
    B,
    N,
    H: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    SAVED: tl.constexpr,
    GRADS: tl.constexpr,
    ROAD: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_DHN: tl.constexpr,
    HAS_DCELLS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PTX: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    D: tl.constexpr = DIRECTIONS
    if WHOLE:
        t_begin, t_end = t_begin * 0, T
    HAS_CARRY: tl.constexpr = SAVED > 0
    i_b, i_u, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    # Offsets within a tile are int32; what may pass 2^31 is added to the base pointers.
    o_b, o_u = tl.arange(0, ROWS), i_u * UNITS + tl.arange(0, UNITS)
    m_u = tl.arange(0, UNITS) < (UNITS if H % UNITS == 0 else H - i_u * UNITS)
    o_hu = o_b[:, None] * H + o_u[None, :]
    i_row = (tile_begin + i_b).to(tl.int64) * ROWS  # of the tile, among the rows of a step
    o_state = (i_d * B + i_row) * H
    m_state = (o_b < B - i_row)[:, None] & m_u[None, :]
    o_du = o_b[:, None] * (D * H) + o_u[None, :]
    p_grads += (i_d * N + i_row) * (GRADS * H)
    p_gates += (i_d * N + i_row) * (SAVED * H)
    p_w = tl.where(i_d == 0, p_w, p_w_reverse)
    p_arrived += (i_d * tl.num_programs(0) + i_b) * tl.num_programs(1)
    if CELL == "LSTM":
        p_cells += (i_d * N + i_row) * H
        p_c0 += o_state
    else:
        p_hidden += (i_d * N + i_row) * H
        p_h0 += o_state
    if HAS_DY:
        p_dy += (i_row * D + i_d) * H
    if HAS_DHN:
        p_dhn += o_state
    if HAS_DCELLS:
        p_dcells += (i_d * N + i_row) * H

    earlier = tl.where(i_d == 0, -1, 1)
    t = tl.where(i_d == 0, T - 1 - t_begin, t_begin)
    o_late, n_late = step_rows(p_offsets, t - earlier, T, B, PACKED)
    o_t, n = step_rows(p_offsets, t, T, B, PACKED)
    o_from, n_from = step_rows(p_offsets, t + earlier, T, B, PACKED)
    m = (o_b < n - i_row)[:, None] & m_u[None, :]
    n_x = tl.minimum(n, n_late) - i_row  # rows that go on to the step after this one in time
    m_x = o_b < n_x
    weights = ()
    if ROAD == "tile":
        weights = tile_weights(p_w, H, GATES, UNITS, H, 1, PTX, PRECISION)
    elif ROAD == "spread":
        weights = sliced_weights(p_w, o_u, m_u, GATES * H, 1, H, SLICE, SLICES, PTX, PRECISION)
    # As in forward: the first step's product before the loop, the others at the end of the step before.
    p_x = p_grads + o_late * (GRADS * H)
    received = ()
    if ROAD == "tile":
        for g in tl.static_range(GATES):
            p_g = p_x + g * H + o_b[:, None] * (GRADS * H) + o_u[None, :]
            received = received + (tl.load(p_g, mask=m_x[:, None] & m_u[None, :], other=0.0),)
    # Of a launch of all steps that product is of no gradients, but makes the compiler keep weights in registers.
    b_dh = grads_product(
        received, p_x, n_x, weights, p_w, o_u, m_u, i_u,
        H, GATES, GRADS, ROAD, ROWS, UNITS, DEPTH, SLICE, SLICES, OPERAND, PRECISION,
    )  # fmt: skip
    b_dh = tl.where(m_x[:, None], b_dh, 0.0)

    b_carry = tl.zeros((ROWS, UNITS), tl.float32)
    if HAS_CARRY:
        b_carry = tl.load(p_carry + o_state + o_hu, mask=m_state, other=0.0)
    b_outer = load_outer(p_dy, p_dhn, o_hu, o_t * (D * H) + o_du, m, m & (m_x == 0)[:, None], HAS_DY, HAS_DHN)
    values = load_values(
        p_gates, p_cells, p_hidden, p_h0, p_c0, o_t, o_from, n_from - i_row, m, o_b, o_u, (), H, CELL, SAVED, PACKED
    )
    if HAS_DCELLS:
        b_carry += tl.load(p_dcells + o_t * H + o_hu, mask=m, other=0.0)

    s = t_begin
    while s < t_end:
        grads, b_carry_new = cell_backward(CELL, b_dh + b_outer, b_carry, values)
        # Of n, not a tile that the loop carries: that would change its layout in every step.
        m = (o_b < n - i_row)[:, None] & m_u[None, :]
        if PACKED:  # rows that have ended, or not begun, stay as they are
            b_carry = tl.where((o_b < n - i_row)[:, None], b_carry_new, b_carry)
        else:
            b_carry = b_carry_new
        p = p_grads + (o_t * (GRADS * H) + (o_b[:, None] * (GRADS * H) + o_u[None, :]))
        stored = ()
        for g in tl.static_range(GRADS):
            stored = stored + (grads[g].to(p_grads.dtype.element_ty),)
            tl.store(p + g * H, stored[g], mask=m)
        s += 1
        if ROAD != "tile" and s < t_end:
            arrive(p_arrived + i_u)

        # Until the others arrive: what the next step needs beside the product.
        p_x = p_grads + o_t * (GRADS * H)
        t += earlier
        n_late, o_t, n = n, o_from, n_from
        o_from, n_from = step_rows(p_offsets, t + earlier, T, B, PACKED)
        n_x = tl.minimum(n, n_late) - i_row
        m = (o_b < n - i_row)[:, None] & m_u[None, :]
        # Of hn there is a gradient at a row's last step: where no row is shorter than others, at the first step here.
        m_last = m & (o_b >= n_x)[:, None]
        b_outer = load_outer(p_dy, p_dhn, o_hu, o_t * (D * H) + o_du, m, m_last, HAS_DY, HAS_DHN and PACKED)
        values = load_values(
            p_gates, p_cells, p_hidden, p_h0, p_c0, o_t, o_from, n_from - i_row, m, o_b, o_u, values,
            H, CELL, SAVED, PACKED,
        )  # fmt: skip
        if s < t_end:
            if HAS_DCELLS:  # only here: what a launch hands to the next has none of the next one's
                b_carry += tl.load(p_dcells + o_t * H + o_hu, mask=m, other=0.0)
            if ROAD != "tile":
                wait(p_arrived, tl.num_programs(1), s - t_begin, PTX, PROGRAMS)
            facing = ()
            for g in tl.static_range(GATES):
                facing = facing + (stored[g],)
            b_dh = grads_product(
                facing, p_x, n_x, weights, p_w, o_u, m_u, i_u,
                H, GATES, GRADS, ROAD, ROWS, UNITS, DEPTH, SLICE, SLICES, OPERAND, PRECISION,
            )  # fmt: skip
            if PACKED:  # else all rows go on
                b_dh = tl.where((o_b < n_x)[:, None], b_dh, 0.0)

    if HAS_CARRY:
        tl.store(p_carry + o_state + o_hu, b_carry, mask=m_state)
