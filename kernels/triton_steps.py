"""What a step of either scan needs beside its arithmetic: its rows, and the barrier between the programs of a group.

The programs of a group hold the units of the same rows in the same direction.  Each counts its arrivals in a flag of
its own in global memory, which only grows and starts at 0 with every launch: one that failed leaves nothing behind.
"""

import triton
import triton.language as tl


@triton.jit
def step_rows(p_offsets, t, T, B, PACKED: tl.constexpr):
    """First row of step t (int64), and how many rows it has; 0 outside of [0, T)."""
    inside = (t >= 0) & (t < T)
    if PACKED:
        o_t = tl.load(p_offsets + t, mask=inside, other=0)
        return o_t, (tl.load(p_offsets + t + 1, mask=inside, other=0) - o_t).to(tl.int32)
    else:
        return t.to(tl.int64) * B, tl.where(inside, B, 0)


# Why h is there when a wait has ended, and not written over before it has been read (PTX ISA, "Memory Consistency
# Model": release and acquire patterns, synchronizes-with, and causality order, which is transitive):
#   each thread of a program writes its part of h -> barrier of that program -> one thread's release on the flag
#   -> another program's thread reads it, relaxed, and then fences: both together are an acquire pattern
#   -> barrier of that program -> each of its threads reads h.
# The same chain the other way round: what a program read of the step before stands before its arrival, so that whoever
# has waited for that arrival may write over it.  tests/test_barrier_model.py tries all interleavings.
@triton.jit
def arrive(p_flag):
    tl.debug_barrier()
    tl.atomic_add(p_flag, 1, sem="release", scope="gpu")


@triton.jit
def wait(p_flags, programs, expected, PTX: tl.constexpr, PROGRAMS: tl.constexpr):
    """Until the flag of each program of the group is at least ``expected``.  PROGRAMS is the next power of two."""
    if PTX:
        poll_by_threads(p_flags, programs, expected)
    else:
        waiting = poll_by_all(p_flags, programs, expected, PROGRAMS)
        while waiting > 0:
            waiting = poll_by_all(p_flags, programs, expected, PROGRAMS)
    tl.debug_barrier()


@triton.jit
def poll_by_threads(p_flags, programs, expected):
    """A thread for each flag, the others none: loads that run side by side, and one fence when they have ended."""
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred p;
            .reg .b32 i, n, v;
            .reg .b64 a;
            mov.u32 i, %tid.x;
            mov.u32 n, %ntid.x;
            setp.ge.s32 p, i, $2;
            @p bra DONE;
        FLAG:
            mad.wide.u32 a, i, 4, $1;
        AGAIN:
            ld.relaxed.gpu.global.s32 v, [a];
            setp.lt.s32 p, v, $3;
            @p bra AGAIN;
            add.s32 i, i, n;
            setp.lt.s32 p, i, $2;
            @p bra FLAG;
            fence.acq_rel.gpu;
        DONE:
            mov.u32 $0, 0;
        }
        """,
        "=r,l,r,r",
        [p_flags, programs, expected],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def poll_by_all(p_flags, programs, expected, PROGRAMS: tl.constexpr):
    """How many flags are below ``expected``."""
    o = tl.arange(0, PROGRAMS)
    found = tl.atomic_add(p_flags + o, 0, mask=o < programs, sem="acquire", scope="gpu")
    return tl.sum(((o < programs) & (found < expected)).to(tl.int32), 0)
