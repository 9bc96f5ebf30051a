"""Launches of the scans: their tensors as the kernels want them, on the tensors' own device."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import Saved
from fastrnn.backends.triton_paths import MOST_ROWS, Chip, Path, choose_path, product_path
from fastrnn.backends.triton_rows import Rows
from fastrnn.modes import CELLS

# Triton reads it when a kernel is defined; that is, once.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")
# What CUDA says where programs that wait for each other are not sure to run at once: a share of the chip is another
# process's, or a debugger holds it.  Such a launch has not begun.
REFUSALS = ("too many blocks in cooperative launch", "operation not supported")
GATHERED = 128  # numbers of a row that a program gathers
# Assertions are compiled on request alone; what else the request brings, looks for overflows, is not needed.
ASSERTING = dict(debug=True, sanitize_overflow=False)
_refused: set[torch.device] = set()  # devices that have said so


def launch_forward(
    mode: str,
    rows: Rows,
    a: Tensor,
    recurrent: Sequence[Tensor],
    biases: Sequence[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    want_y: bool,
    save: bool,
    path: str | None,
) -> tuple[Tensor, Tensor, Tensor, Saved]:
    """``a`` (D, N, G*H), ``recurrent`` (G*H, H) and ``biases`` (G*H,) of each direction, or none, ``h0`` and ``c0``
    (D, B, H), all contiguous -> h of every step as y (N, D*H) or, with ``want_y`` false, (0,); h and c of each
    sequence's last (D, B, H), c (0,) for a cell without; and what is saved, of which ``hidden`` (D, N, H) is there
    with ``save`` and where y is not.  Of one step alone ``recurrent`` may be (G*H, P), and ``h0`` (D, B, P)."""
    from fastrnn.kernels.triton_scan import scan_forward

    cell, (directions, sequences, width) = CELLS[mode], h0.shape
    hidden_size = a.shape[-1] // len(cell.gates)
    state, every, has_c = (directions, sequences, hidden_size), (directions, rows.total), c0 is not None
    y = a.new_empty(rows.total, directions * hidden_size) if want_y else a.new_empty(0)
    hidden = a.new_empty(*every, hidden_size) if save or not want_y else a.new_empty(0)
    last, last_c = a.new_empty(state), a.new_empty(state if has_c else 0)
    ring = a.new_empty(directions, 2, sequences, hidden_size)
    c = a.new_empty(state if has_c else 0, dtype=torch.float32)
    gates = a.new_empty((*every, len(cell.saved) * hidden_size) if save and cell.saved else 0)
    cells = a.new_empty((*every, hidden_size) if save and has_c else 0, dtype=torch.float32)
    flags = dict(P=width, SAVE=save, HAS_C=has_c, HAS_BIAS=bool(biases), HAS_Y=want_y)
    if width != hidden_size:
        path = "stream"  # which reads no more of the weights than one product takes
    tensors = (a, *of_directions(recurrent, biases), h0, c0, c, ring, y, hidden, last, last_c, gates, cells)
    _launch(scan_forward, mode, rows, recurrent, tensors, flags, path)
    return y, last, last_c, Saved(gates, cells, hidden)


def launch_backward(
    mode: str,
    rows: Rows,
    recurrent: Sequence[Tensor],
    saved: Saved,
    h0: Tensor,
    c0: Tensor | None,
    dy: Tensor | None,
    dhn: Tensor | None,
    dcells: Tensor | None,
    carry: Tensor,
    path: str | None,
) -> Tensor:
    """``recurrent`` as in forward; ``dy`` and ``dcells`` (D, N, H), ``dhn`` (D, B, H) and what forward saved, any
    strides; ``carry`` (D, B, H) float32, contiguous, becomes that before the first step -> pre-activation gradients
    (D, N, G'*H) as the kernel orders them."""
    from fastrnn.kernels.triton_scan_backward import scan_backward

    cell, (directions, _, hidden_size) = CELLS[mode], carry.shape
    stored = max(len(cell.gates), len(cell.saved))
    # With room behind, which is read, though for nothing, where a step has fewer rows than a tile.
    shape = directions, rows.total, stored * hidden_size
    behind = (rows.sequences + MOST_ROWS) * stored * hidden_size
    grads = h0.new_empty(math.prod(shape) + behind)[: math.prod(shape)].view(shape)
    c0 = None if c0 is None else c0.to(torch.float32).contiguous()
    dy = None if dy is None else dy.transpose(0, 1).contiguous()
    dhn = None if dhn is None else dhn.contiguous()
    dcells = None if dcells is None else dcells.to(torch.float32).contiguous()
    gates, cells, hidden = (tensor.contiguous() for tensor in saved)
    flags = dict(GRADS=stored, HAS_DY=dy is not None, HAS_DHN=dhn is not None, HAS_DCELLS=dcells is not None)
    parameters = recurrent[0], recurrent[-1]
    tensors = (grads, *parameters, gates, cells, hidden, h0.contiguous(), c0, dy, dhn, dcells, carry)
    _launch(scan_backward, mode, rows, recurrent, tensors, flags, path, backward=True)
    return grads


def of_directions(matrices: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """A kernel's pointers to matrices and biases, contiguous, of the first and the last direction, which may be one."""
    matrices, biases = ([parameter.contiguous() for parameter in each] for each in (matrices, biases))
    return matrices[0], matrices[-1], *((biases[0], biases[-1]) if biases else (None, None))


def launch_product(
    x: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    y: Tensor | None = None,
    hn: Tensor | None = None,
    hidden: Tensor | None = None,
) -> None:
    """``x`` (D, B, K), any strides, times the matrices (U, K) of each direction transposed, and biases (U,), or none,
    added: into ``y`` (B, D*U) and ``hn`` and ``hidden`` (D, B, U), which are contiguous.  Of both directions in one
    launch."""
    from fastrnn.kernels import triton_one_step

    count, (directions, sequences, width) = len(matrices[0]), x.shape
    if sequences == 0:
        return
    precision = precision_of(x, matmuls_may_use_tf32)
    path = product_path(Chip.of(x.device), sequences, count, directions, x.dtype, precision)
    if x.stride(2) != 1 or x.stride(1) * path.rows >= 1 << 31:  # offsets within a tile are int32
        x = x.contiguous()
    parameters = of_directions(matrices, biases)
    constants = dict(K=width, U=count, DIRECTIONS=directions, HAS_BIAS=bool(biases))
    constants |= dict(ROWS=path.rows, COLUMNS=path.units, DEPTH=path.depth)
    constants |= dict(OPERAND=operand(x.dtype), PRECISION=precision)
    kernel: Any = triton_one_step.step_product
    with on_device(x.device):
        grid = path.grid(sequences, count, directions)
        kernel[grid](x, *parameters, y, hn, hidden, *x.stride()[:2], sequences, **constants, **options_of(path))


def launch_gather(tokens: Tensor, matrices: Sequence[Tensor], biases: Sequence[Tensor], hidden: Tensor) -> None:
    """The same of ``tokens`` (B,) in the place of one-hot rows, into ``hidden``.  A token out of range is the
    IndexError of torch's gather on the CPU, and its assertion on a GPU, where nobody waits to look."""
    from fastrnn.kernels import triton_one_step

    (count, vocabulary), sequences = matrices[0].shape, len(tokens)
    if INTERPRETED and sequences and not (tokens.min() >= 0 and tokens.max() < vocabulary):
        raise IndexError(f"expected tokens of 0 to {vocabulary - 1}, got {int(tokens.min())} to {int(tokens.max())}")
    if sequences == 0:
        return
    parameters = of_directions(matrices, biases)
    constants = dict(U=count, HAS_BIAS=bool(biases), COLUMNS=GATHERED)
    kernel: Any = triton_one_step.step_gather
    with on_device(tokens.device):
        grid = sequences, -(-count // GATHERED), len(matrices)
        kernel[grid](tokens, *parameters, hidden, tokens.stride(0), sequences, vocabulary, **constants, **ASSERTING)


def _launch(
    kernel: Any,
    mode: str,
    rows: Rows,
    recurrent: Sequence[Tensor],
    tensors: tuple[Tensor | None, ...],
    flags: dict[str, Any],
    name: str | None,
    backward: bool = False,
) -> None:
    """The scan of all steps, on the device and current stream of ``recurrent``, (G*H, H) of each direction."""
    if rows.total == 0:
        return
    w, directions = recurrent[0], len(recurrent)
    hidden_size = len(w) // len(CELLS[mode].gates)
    precision, chip = precision_of(w), Chip.of(w.device)
    path = choose_path(chip, mode, rows.sequences, hidden_size, directions, w.dtype, precision, name)
    if backward:
        path = path.backward()
    if INTERPRETED:  # its programs run one after another: none can wait for another
        path = path._replace(whole=not path.has_barrier)
    if path.has_barrier and (rows.steps == 1 or w.device in _refused):
        path = path.stepwise()  # nobody to wait for, or not to be had
    constants = constants_of(mode, hidden_size, directions, path, w.dtype, precision, rows.offsets is not None)
    constants |= dict(flags, PTX=not (INTERPRETED or torch.version.hip))

    def launch(path: Path) -> None:
        tiles, units, _ = path.grid(rows.sequences, hidden_size, directions)
        tiles_at_once, steps_at_once = path.tiles or tiles, rows.steps if path.whole else 1
        whole = dict(WHOLE=steps_at_once == rows.steps)
        arrived = w.new_zeros(tiles * units * directions if path.has_barrier else 0, dtype=torch.int32)
        for tile in range(0, tiles, tiles_at_once):
            grid = min(tiles_at_once, tiles - tile), units, directions
            own = arrived[tile * units * directions :]
            for begin in range(0, rows.steps, steps_at_once):
                steps = (tile, begin, begin + steps_at_once, rows.steps, rows.sequences, rows.total)
                kernel[grid](*tensors, rows.offsets, own, *steps, **constants, **whole, **options_of(path))

    with on_device(w.device):
        try:
            launch(path)
        except RuntimeError as error:
            if not path.has_barrier or not any(reason in str(error) for reason in REFUSALS):
                raise
            warnings.warn(f"fastrnn launches scans on {w.device} step by step: {error}", RuntimeWarning, 2)
            _refused.add(w.device)
            launch(path.stepwise())


def constants_of(
    mode: str, hidden_size: int, directions: int, path: Path, dtype: torch.dtype, precision: str, packed: bool
) -> dict[str, Any]:
    """What both kernels are compiled for.  T, B and N are not in it: a new length compiles nothing."""
    return dict(
        H=hidden_size,
        DIRECTIONS=directions,
        CELL=mode,
        GATES=len(CELLS[mode].gates),
        WIDE=1 << (len(CELLS[mode].gates) - 1).bit_length(),
        SAVED=len(CELLS[mode].saved),
        ROAD=path.name,
        ROWS=path.rows,
        UNITS=path.units,
        DEPTH=path.depth,
        SLICE=path.slice,
        SLICES=path.warps,
        CHAINS=path.chains,
        PACKED=packed,
        OPERAND=operand(dtype),
        PRECISION=precision,
        PROGRAMS=1 << (-(-hidden_size // path.units) - 1).bit_length(),
    )


def operand(dtype: torch.dtype) -> Any:
    """What a kernel's products take: see ``dot``."""
    import triton.language as tl

    served = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return tl.float32 if INTERPRETED else served[dtype]


def options_of(path: Path) -> dict[str, Any]:
    """How Triton is to compile and launch them.  Programs that wait for each other must all run at once."""
    cooperative = dict(launch_cooperative_grid=True) if path.has_barrier else {}
    return dict(num_warps=path.warps, num_stages=path.stages, enable_fp_fusion=True, **cooperative)


def rnns_may_use_tf32() -> bool:
    """torch's own switch for RNNs on CUDA, on unless the user says otherwise."""
    rnn = getattr(torch.backends.cudnn, "rnn", None)  # torch 2.9 and later, where reading allow_tf32 may raise
    return torch.backends.cudnn.allow_tf32 if rnn is None else rnn.fp32_precision == "tf32"


def matmuls_may_use_tf32() -> bool:
    """torch's own switch for matrix products on CUDA, off unless the user says otherwise."""
    matmul: Any = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def precision_of(tensor: Tensor, may_use_tf32: Callable[[], bool] = rnns_may_use_tf32) -> str:
    """Of a product, by default the recurrent one, as in :func:`fastrnn.backends.triton_paths.choose_path`."""
    tf32 = tensor.is_cuda and not torch.version.hip and tensor.dtype == torch.float32 and may_use_tf32()
    return "tf32" if tf32 else "ieee"


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device.  The interpreter's NumPy would warn where a GPU computes inf - inf."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    import numpy

    return numpy.errstate(all="ignore")
