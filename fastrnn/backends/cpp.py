"""The C++ kernels, on a CPU.

Thin: dense tensors and sizes (:mod:`fastrnn.backends.cpp_tensors`) go in, :mod:`fastrnn._core` checks them and runs.
float32 and float64 run as they are, and bfloat16, too: products of bfloat16, which a machine that does not multiply it
widens on the fly, all else in float32.  float16 runs in float32 between a conversion of what comes and one of what
goes.  Interface: :mod:`fastrnn.backends`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import Backward, Forward, Saved
from fastrnn.backends import cpp_tensors as tensors
from fastrnn.modes import CELLS

_missing = ""
_KERNELS: dict[torch.dtype, tuple[Callable, Callable]] = {}  # forward and backward of layers one upon the other
NATIVE = False  # whether the machine multiplies bfloat16 itself
_precision: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)
_MIXED: tuple[Callable, Callable] | None = None  # float32 but for what is multiplied, which is bfloat16
try:
    from fastrnn import _core

    _KERNELS[torch.float32] = _core.forward_float, _core.backward_float
    _KERNELS[torch.float64] = _core.forward_double, _core.backward_double
    _KERNELS[torch.bfloat16] = _core.forward_bfloat16, _core.backward_bfloat16
    _MIXED = _core.forward_mixed, _core.backward_mixed
    NATIVE = _core.multiplies_bfloat16()
except ImportError as _error:  # a pure-Python installation: `choose` asks unavailable() before it calls anything here
    _missing = str(_error)

FastPath = Callable[..., Any]
Guard = tuple[Callable[[], Any], tuple[Any, ...]]

MODES = tuple(CELLS)
STACKED = torch.float32, torch.float64, torch.bfloat16  # what forward_stack and backward_stack serve
TOKENS = True


def fast_path(attributes: dict[str, Any], input: Any, hx: Any, mode: str | None = None) -> Any:
    """The forward of a module in one call of :mod:`fastrnn._core`, where nothing about it is out of the ordinary; else
    None, and all is left to Python.  See ``_core.fast_path``, which stands here where there is a core."""
    return None


def prepare_fast_path(*guards: Guard, of_floats: Sequence[Guard]) -> None:
    """Lets :func:`fast_path` and ``_core.fast_path_int8`` serve calls at which each of these returns one of these
    very objects; those ``of_floats`` are asked by ``fast_path`` alone, and first."""
    if not _missing:
        torch_has = torch.nn.Parameter, torch.empty_like, torch.get_num_threads
        _core.prepare_fast_path(*torch_has, [*of_floats, *guards], list(guards))


def prepare_trained_steps(
    cells: dict[str, Callable[..., Any]],
    layers: dict[str, tuple[Callable[..., Any], int]],
    guards: Sequence[Guard],
) -> None:
    """Lets :func:`fast_path` call these functions of torch in training, by mode: of cells, and of layers of up to so
    many steps, while each guard gives what it should."""
    if not _missing:
        _core.prepare_trained_steps(cells, layers, list(guards))


def crowded() -> bool:
    """Whether torch has more threads than there are CPUs for this process; False where the core is missing."""
    return not _missing and torch.get_num_threads() > _core.usable_cpus()


fast_path_int8: FastPath
forward_int8: Callable[..., None]
weights_fingerprint: Callable[..., int]
Stream: Callable[..., Any]
if not _missing:
    fast_path, fast_path_int8 = _core.fast_path, _core.fast_path_int8
    forward_int8 = _core.forward_int8
    weights_fingerprint, Stream = _core.weights_fingerprint, _core.Stream


def core_file() -> str:
    """Where the compiled core is."""
    return str(_core.__file__)


def unavailable() -> str | None:
    if not _missing:
        return None
    return f"the compiled core is missing ({_missing}); reinstall fastrnn where a C++ compiler is at hand"


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {device}"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return f"it serves float32, float64, bfloat16 and float16, not {dtype}"
    return None


def multiplies_narrow(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether float32 operands of products are rounded to bfloat16: the user lets torch do so, and it pays.

    It pays where the machine multiplies bfloat16 and rows are so many that weights are packed.  torch is asked at every
    call: its setting for RNNs of oneDNN, by default that of products, which is "bf16" by
    ``torch.set_float32_matmul_precision("medium")``, too.  Early torch has that one alone.
    """
    if exact_products():
        return False
    return 16 * x.numel() >= x.shape[-1] * (weights[0].shape[1] + weights[1].shape[1])


def exact_products() -> bool:
    """Whether float32 is multiplied as such: the machine does not multiply bfloat16, or torch's user has not let it."""
    if not NATIVE:
        return True
    if _precision is None:
        return torch.get_float32_matmul_precision() != "medium"
    of_rnn = _precision("mkldnn", "rnn")
    return (_precision("mkldnn", "matmul") if of_rnn == "none" else of_rnn) != "bf16"


def isa() -> str:
    """Name of the instruction set in use: avx512_amx, avx512_bf16, avx512_vnni, avx512, avx2 or generic;
    on Arm neon_bf16, neon_dotprod or generic."""
    return _core.isa()


def thread_source() -> str:
    """Where the threads come from, as the build chose it: ``openmp``, or ``std``, a pool of the core's own."""
    return _core.thread_source()


def forward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    save: bool,
    narrow: bool = False,
) -> Forward:
    """See :mod:`fastrnn.backends`; ``narrow``: of float32 tensors, but with products of bfloat16."""
    kernels, dtype = _MIXED if narrow else _KERNELS.get(h0.dtype), h0.dtype
    if kernels is None:
        wide = tensors.wide(x), batch_sizes, tensors.wide(h0), tensors.wide(c0), [tensors.wide(w) for w in weights]
        y, hn, cn, saved = forward(mode, *wide, save)
        if saved is not None:
            saved = Saved(saved.gates.to(dtype), saved.cells, saved.hidden.to(dtype))
        return Forward(y.to(dtype), hn.to(dtype), cn.to(dtype), saved)
    y, saved = tensors.room(mode, x, h0, weights, save)
    hn = tensors.like(h0)
    cn = h0.new_empty(0) if c0 is None else tensors.like(c0)
    if h0.shape[1]:
        inputs = tensors.inputs(mode, x, batch_sizes, h0, c0, weights, narrow)
        kernels[0]([{**inputs, **saved, "y": y, "hn": hn, "cn": cn}])
    return Forward(y, hn, cn, tensors.saved(h0, saved) if save else None)


def backward(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    saved: Saved,
    grad_y: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    grad_cells: Tensor | None,
    need_x: bool,
    need_state: bool,
    need_weights: bool,
    narrow: bool = False,
) -> Backward:
    """See :mod:`fastrnn.backends`; ``narrow``: of float32 tensors, but with products of bfloat16."""
    kernels, dtype = _MIXED if narrow else _KERNELS.get(h0.dtype), h0.dtype
    if kernels is None:
        wide = tensors.wide(x), batch_sizes, tensors.wide(h0), tensors.wide(c0), [tensors.wide(w) for w in weights]
        saved_layers = Saved(tensors.wide(saved.gates), saved.cells, tensors.wide(saved.hidden))
        seeds = tensors.wide(grad_y), tensors.wide(grad_hn), tensors.wide(grad_cn), grad_cells
        found = backward(mode, *wide, saved_layers, *seeds, need_x, need_state, need_weights)
        grad_x, grad_h0, grad_c0 = (None if grad is None else grad.to(dtype) for grad in found[:3])
        return Backward(grad_x, grad_h0, grad_c0, found.weights and [g.to(dtype) for g in found.weights])
    grad_x = tensors.like(x) if need_x else None
    grad_h0 = grad_c0 = None
    if need_state:
        grad_h0 = tensors.like(h0)
        grad_c0 = None if c0 is None else tensors.like(c0)
    grads = [tensors.like(w) for w in weights] if need_weights else None
    if h0.shape[1] == 0:  # no rows: nothing ran
        return Backward(grad_x, grad_h0, grad_c0, grads and [g.zero_() for g in grads])
    inputs = tensors.inputs(mode, x, batch_sizes, h0, c0, weights, narrow)
    seeds = tensors.seeds(grad_y, grad_hn, grad_cn, grad_cells)
    kernels[1]([{**inputs, **saved._asdict(), **seeds, **tensors.results(grad_x, grad_h0, grad_c0, grads)}])
    return Backward(grad_x, grad_h0, grad_c0, grads)


def forward_stack(
    mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor],
    save: bool,
) -> tuple[list[Tensor], Tensor, Tensor, list[Saved] | None]:  # fmt: skip
    """Layers of one direction, one upon the other, in one call, where they may run in a wavefront.

    ``h0`` is (L, B, P) and ``c0`` (L, B, H) or None, with B >= 1; ``weights`` is the flat list of all parameters.
    Returns the y of each layer, hn and cn of all, and what each saves, whose ``hidden`` is its y but for the last.
    """
    each = len(weights) // h0.shape[0]
    hn = tensors.like(h0)
    cn = h0.new_empty(0) if c0 is None else tensors.like(c0)
    calls, ys, saved_layers = [], [], []
    for i in range(h0.shape[0]):
        own, h, c = weights[i * each : (i + 1) * each], h0[i : i + 1], None if c0 is None else c0[i : i + 1]
        last = i + 1 == h0.shape[0]
        y, saved = tensors.room(mode, x, h, own, save, hidden=last)
        if save and not last:
            saved["hidden"] = y.view(1, -1, y.shape[-1])
        ends = {"hn": hn[i : i + 1], "cn": None if c0 is None else cn[i : i + 1]}
        calls.append({**tensors.inputs(mode, x, batch_sizes, h, c, own), **saved, **ends, "y": y})
        ys.append(y)
        saved_layers.append(tensors.saved(h0, saved))
        x = y
    _KERNELS[h0.dtype][0](calls)
    return ys, hn, cn, saved_layers if save else None


def backward_stack(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    ys: Sequence[Tensor],
    saved: Sequence[Saved],
    grad_y: Tensor | None,
    grad_hn: Tensor | None,
    grad_cn: Tensor | None,
    grad_cells: Tensor | None,
    need_x: bool,
    need_state: bool,
    need_weights: Sequence[bool],
) -> Backward:
    """The gradients of what :func:`forward_stack` read, from those of the last y, of hn and cn and of the last layer's
    cells; ``need_weights`` is for each layer, and the gradients of those that need none are None."""
    count, each = h0.shape[0], len(weights) // h0.shape[0]
    grad_x = tensors.like(x) if need_x else None
    grad_h0 = tensors.like(h0) if need_state else None
    grad_c0 = tensors.like(c0) if need_state and c0 is not None else None
    # Gradients of what lies between layers, each of which lives until the layer below is done: a wavefront is at most
    # as high as there are threads.
    buffers = [torch.empty_like(ys[0]) for _ in range(min(count - 1, torch.get_num_threads() + 1))]
    grads: list[Any] = [None] * len(weights)

    def of_layer(states: Tensor | None, i: int) -> Tensor | None:
        return None if states is None else tensors.dense(states[i : i + 1])

    calls, grad = [], tensors.dense(grad_y)
    for i in reversed(range(count)):
        own = weights[i * each : (i + 1) * each]
        own_grads = None
        if need_weights[i]:
            own_grads = [tensors.like(w) for w in own]
            grads[i * each : (i + 1) * each] = own_grads
        inputs = tensors.inputs(mode, ys[i - 1] if i else x, batch_sizes, h0[i : i + 1], of_layer(c0, i), own)
        seeds = tensors.seeds(grad, of_layer(grad_hn, i), of_layer(grad_cn, i), grad_cells if i + 1 == count else None)
        grad = buffers[i % len(buffers)] if i else grad_x
        results = tensors.results(grad, of_layer(grad_h0, i), of_layer(grad_c0, i), own_grads)
        calls.append({**inputs, **saved[i]._asdict(), **seeds, **results})
    _KERNELS[h0.dtype][1](calls)
    return Backward(grad_x, grad_h0, grad_c0, grads)


# What `fastrnn.backends.load` knows as "cpp_bfloat16".
products_of_bfloat16: SimpleNamespace = SimpleNamespace(
    forward=functools.partial(forward, narrow=True), backward=functools.partial(backward, narrow=True)
)
