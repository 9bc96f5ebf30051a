"""What a step of either scan needs beside its arithmetic: its rows, and the barrier between the programs of a group.

The programs of a group hold the units of the same rows in the same direction.  They count their arrivals in one
number in global memory, which only grows and starts at 0 with every launch: a launch that failed leaves nothing behind.
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


@triton.jit
def arrive(p_arrived):
    # The barrier makes the release of one thread cover what the others of its program have written.
    tl.debug_barrier()
    tl.atomic_add(p_arrived, 1, sem="release", scope="gpu")


@triton.jit
def wait(p_arrived, expected, PTX: tl.constexpr):
    """Until ``expected`` arrivals.  Others may be one step ahead, never two: they wait for this program too."""
    arrived = poll(p_arrived, PTX)
    while arrived < expected:
        arrived = poll(p_arrived, PTX)
    tl.debug_barrier()


@triton.jit
def poll(p_arrived, PTX: tl.constexpr):
    if PTX:  # loads run side by side, where the read-modify-writes of many programs would queue up
        return tl.inline_asm_elementwise(
            "ld.acquire.gpu.global.b64 $0, [$1];", "=l,l", [p_arrived], dtype=tl.int64, is_pure=False, pack=1
        )
    else:
        return tl.atomic_add(p_arrived, 0, sem="acquire", scope="gpu")
