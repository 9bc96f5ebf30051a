"""What runs a layer, here and now: a path, which :func:`fastrnn.walk.walk` takes through layers and directions.

A *path* is what runs one layer: a backend's forward where no derivative is wanted, else the operator of
:mod:`fastrnn.ops`, or the equations themselves (:func:`fastrnn.backends.reference.layer`) under torch.func and
forward-mode derivatives, which no fused kernel serves.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastrnn import ops, profiling
from fastrnn.backends import asked, choose, cpp, load, reference, requested, unable
from fastrnn.checks import Sizes, is_tokens, misfit
from fastrnn.choices import TORCH
from fastrnn.dynamo import UNDISTURBED, transformed
from fastrnn.fastest import fastest, rivalled
from fastrnn.modes import CELLS
from fastrnn.walk import Path, by_torch_path, without_autocast, without_grad

# A path that `plan` gives in the current thread, whatever the backend: how fastrnn.diagnostics sees every state.
watching_path: ContextVar[Path | None] = ContextVar("fastrnn_watching_path", default=None)

# Whether oneDNN runs torch.nn's LSTM in bfloat16 on this machine; found here because Dynamo cannot ask.
_ONEDNN = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def first_states(mode: str, x: Tensor, rows: int, dtype: torch.dtype, sizes: Sizes) -> tuple[Tensor, Tensor | None]:
    """Zeros: h0 (num_layers * D, B, P), and c0 (num_layers * D, B, H) for a cell that has it; B is ``rows``."""
    count = sizes.num_layers * sizes.directions
    if not CELLS[mode].has_cell_state:
        return x.new_zeros(count, rows, sizes.outputs, dtype=dtype), None
    c0 = x.new_zeros(count, rows, sizes.hidden, dtype=dtype, layout=torch.strided)  # whatever that of x
    if sizes.hidden == sizes.outputs:
        return c0, c0
    # With a projection P < H: h0 has zeros of c0's, since nobody writes either.
    return c0.view(-1)[: count * rows * sizes.outputs].view(count, rows, sizes.outputs), c0


def plan(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    cells: bool = False,
    ours: bool = False,
) -> Path | Exception | None:
    """What runs a layer on these tensors here and now; None where torch's own functions do; or the error to raise.

    ``x`` is (T, B, I), or with ``batch_sizes`` (N, I); ``cells`` asks for the cell states of all steps; ``ours`` for a
    path that :mod:`fastrnn.choices` does not leave to torch.

    Raises:
        BackendError: a backend was asked for by name, and it or any kernel cannot serve.
    """
    tensors = (x, h0, *weights) if c0 is None else (x, h0, c0, *weights)
    foreign = ""  # why kernels cannot read one
    negative = False  # stored with the wrong sign, as the imaginary part of a conjugate is; only operators know of it
    for tensor in tensors:
        if type(tensor) is not Parameter and type(tensor) is not Tensor:
            if tensor is None:
                return TypeError("a network wants all of its parameters, got None in the place of one")
            foreign = foreign or f"it got a {type(tensor).__name__}, not a plain Tensor"
        elif tensor.layout is not torch.strided:
            foreign = foreign or f"it got a tensor of layout {tensor.layout}"
        negative = negative or not foreign and tensor.is_neg()
    if foreign:
        return _theirs(foreign, mode, x, batch_sizes, h0, c0, weights, sizes)
    if torch._C._is_any_autocast_enabled() and (dtype := autocast_dtype(x)):
        if any(tensor.is_floating_point() and tensor.dtype is not dtype for tensor in tensors):
            if not _casts_products(mode, tensors, dtype):
                reason = "autocast is on, and torch.nn casts no tensor here"
                return _theirs(reason, mode, x, batch_sizes, h0, c0, weights, sizes)
            if problem := misfit(mode, *_widened(x, batch_sizes, h0, c0, weights), sizes):
                return problem
            if negative or torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
                return functools.partial(
                    _with_products_cast, functools.partial(ops.layer, "cpp_bfloat16", cells, not negative)
                )
            run = load("cpp_bfloat16").forward
            return functools.partial(_with_products_cast, functools.partial(without_grad, run, cells))
        with torch._C._DisableAutocast():
            path = plan(mode, x, batch_sizes, h0, c0, weights, sizes, cells, ours)
        return functools.partial(without_autocast, path) if callable(path) else path
    if problem := misfit(mode, x, batch_sizes, h0, c0, weights, sizes):
        return problem
    if (watching := watching_path.get()) is not None:
        return watching
    if transformed():
        return reference.layer
    name = choose(x.device, h0.dtype, mode, is_tokens(x))
    if name is None:
        return None
    if name == "cpp" and h0.dtype is torch.float32 and load(name).multiplies_narrow(x, weights):
        name = "cpp_bfloat16"
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if name == "triton" and not (cells or ours or is_tokens(x)) and requested() is None:
        steps = x.shape[0] if batch_sizes is None else len(batch_sizes)
        if rivalled(h0, steps):
            name = fastest(mode, x, batch_sizes, h0, c0, weights, sizes, training)
            if name == TORCH:
                return by_torch_path
    if negative or training:
        return functools.partial(ops.layer, name, cells, not negative)
    return functools.partial(without_grad, load(name).forward, cells)


# What has to be the answer before the C++ core may take a module's call as it comes, without `plan`.  Most are
# functions in C: many in Python would take as long as a small step does.
cpp.prepare_fast_path(
    *((ask, (expected,)) for ask, expected in UNDISTURBED),
    (torch._C._is_any_autocast_enabled, (False,)),
    (asked, (None, "cpp")),
    (profiling.profiling, (False,)),
    of_floats=(
        (torch.is_grad_enabled, (False,)),
        (watching_path.get, (None,)),
        *([(cpp.exact_products, (True,))] if cpp.NATIVE else []),  # else they always are, and asking takes 70 ns
    ),
)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of autocast on the device of x; None where it is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@functools.cache
def _onednn_takes_packed() -> bool:
    """Whether torch.nn hands a packed LSTM whose sequences are of one length to oneDNN: some releases do."""
    ones = torch.ones(4, 1, device="cpu", dtype=torch.float32)
    weights = [ones, ones, ones[:, 0], ones[:, 0]]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        sizes, state = torch.ones(1, device="cpu", dtype=torch.int64), ones[:1, None]
        y, *_ = torch._VF.lstm(ones[:1], sizes, (state, state), weights, True, 1, 0.0, False, False)
    return y.dtype is torch.bfloat16


def casts(mode: str, x: Tensor, batch_sizes: Tensor | None, sizes: Sizes) -> torch.dtype | None:
    """The dtype to which torch.nn's modules cast a whole layer here: that of autocast, where they do; else None.

    On a CPU they cast RNN always, LSTM where oneDNN takes it, and of GRU and other LSTMs each product by itself.
    """
    dtype = autocast_dtype(x)
    if dtype is None or x.is_cuda or mode.startswith("RNN"):
        return dtype
    served = mode == "LSTM" and sizes.outputs == sizes.hidden and x.dtype in (torch.float32, dtype)
    if not (served and _ONEDNN and dtype is torch.bfloat16):
        return None
    even = batch_sizes is None or bool(batch_sizes[0] == batch_sizes[-1]) and _onednn_takes_packed()
    return dtype if even else None


def _casts_products(mode: str, tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether torch.nn's functions cast each product of such a layer by itself, and kernels do so in their place."""
    if dtype is not torch.bfloat16 or mode not in ("LSTM", "GRU") or requested() not in (None, "cpp"):
        return False
    served = torch.float32, torch.bfloat16, torch.float16, torch.int64
    if any(tensor.dtype not in served or not tensor.is_cpu for tensor in tensors):
        return False
    return load("cpp").unavailable() is None and watching_path.get() is None and not transformed()


def _widened(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, list[Tensor]]:
    rows = x if is_tokens(x) else x.float()
    return rows, batch_sizes, h0.float(), None if c0 is None else c0.float(), [weight.float() for weight in weights]


def _with_products_cast(
    path: Path, mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    """A path of float32 with products of bfloat16; results of the dtypes that torch.nn's have, where a product is
    bfloat16 and so is a projected h, while the state that is carried on pointwise keeps the wider of both."""
    carried = torch.promote_types((h0 if c0 is None else c0).dtype, torch.bfloat16)
    projected = c0 is not None and h0.shape[-1] != c0.shape[-1]
    with torch._C._DisableAutocast():
        y, hn, cn, cells = path(mode, *_widened(x, batch_sizes, h0, c0, weights))
        dtype = torch.bfloat16 if projected else carried
        return y.to(dtype), hn.to(dtype), cn.to(carried), cells


def cast(x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Any]:
    """What autocast makes of a layer's tensors before torch.nn's function: ``dtype`` in the place of float32."""

    def narrow(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor

    return narrow(x), narrow(h0), None if c0 is None else narrow(c0), [narrow(weight) for weight in weights]


def leave_to_torch(reason: str) -> None:
    """Raises a BackendError with the reason where a backend was asked for by name."""
    if name := requested():
        raise unable(name, reason)


def _theirs(
    reason: str, mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None,
    weights: Sequence[Tensor], sizes: Sizes,
) -> Exception | None:  # fmt: skip
    """None, where torch's own function is to run for this reason, or the error to raise: torch's packed LSTM checks no
    sizes, and reads memory beyond them."""
    leave_to_torch(reason)
    if type(batch_sizes) is not Tensor or not CELLS[mode].has_cell_state:  # of another type, they may have no values
        return None
    return misfit(mode, x, batch_sizes, h0, c0, weights, sizes, kinds=False)
