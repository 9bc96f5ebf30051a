"""One name -> module table, and the choice among them.

A backend is one module with these members; its functions work on one whole layer (all its directions)::

    MODES: the keys of CELLS that it serves
    TOKENS: whether x may be tokens
    unavailable() -> str | None
        None where the backend can run in this process, else one sentence that says what is missing and what to do.
    unsupported(device, dtype) -> str | None
        None where it serves tensors of this device and dtype, else one sentence that says why not.
    forward(mode, x, batch_sizes, h0, c0, weights, save) -> Forward
    backward(mode, x, batch_sizes, h0, c0, weights, saved, grad_y, grad_hn, grad_cn, grad_cells, need_x, need_state,
             need_weights) -> Backward

``mode`` is a key of :data:`fastrnn.modes.CELLS`.  ``x`` is (T, B, I) with ``batch_sizes`` None, or the data of a
PackedSequence, (N, I), with ``batch_sizes`` its (T,) int64 CPU tensor, non-increasing, ``batch_sizes[0] == B``.
Tokens, an int64 tensor (T, B) or (N,), stand for one-hot rows, which are never built: the input product is a gather.
``h0`` is (D, B, P); ``c0`` is (D, B, H), or None for a cell without a cell state; ``weights`` is torch's flat list of
the layer's parameters (:func:`fastrnn.modes.split_weights`).  Any strides; callers have checked shapes and dtypes.
``grad_y``, ``grad_hn``, ``grad_cn`` and ``grad_cells``, the gradient of an LSTM's ``saved.cells``, may be None, which
stands for zeros.  No tensor that a backend returns shares memory with another or with an input, nor is it a view to
autograd, which could not be changed in place everywhere; ``detach()`` makes one none.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The automatic order: the first that is live and serves the tensors wins; where none does, torch's own functions run.
# `reference` is never chosen automatically: torch's own functions are faster and no less general.
AUTOMATIC = ("cpp", "numba", "triton")
NAMES = (*AUTOMATIC, "reference")


class Saved(NamedTuple):
    """What backward needs beside forward's inputs.

    ``gates`` (D, N, S*H), S values as :class:`fastrnn.modes.Cell` names them, layout within a direction private to the
    backend; (0,) where S is 0.  ``cells`` (D, N, H): c of every step, or u of a Jordan network; (0,) for other cells.
    ``hidden`` (D, N, P): h of every step; a copy, so that the user may change y in place.  Rows stand in the order of
    x.  For a dtype narrower than float32, ``cells`` is float32.
    """

    gates: Tensor
    cells: Tensor
    hidden: Tensor


class Forward(NamedTuple):
    """``y`` (T, B, D*P) or (N, D*P), ``hn`` (D, B, P), ``cn`` (D, B, H) or (0,), and what backward needs, or None
    with ``save=False``."""

    y: Tensor
    hn: Tensor
    cn: Tensor
    saved: Saved | None


class Backward(NamedTuple):
    """Gradients, shaped as their inputs, each None unless needed: ``x``, the state ``h0`` and, of a cell that has it,
    ``c0``, and ``weights``, a list as the flat list of parameters."""

    x: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    weights: list[Tensor] | None


# Read once: a look-up costs a microsecond a call.
_asked: ContextVar[str | None] = ContextVar(
    "fastrnn_backend", default=sys.intern(os.environ.get("FASTRNN_BACKEND", "")) or None
)


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve."""


@functools.cache
def load(name: str) -> Any:
    """The module of a backend; it may be imported where the backend is not live.

    Two kinds, which nobody can ask for by name, have forward and backward alone: ``"cpp_bfloat16"``, of float32
    tensors, whose products are of bfloat16 operands, as torch's autocast casts them; and ``"triton_tile"`` and its
    like, Triton's on the path of that name (:mod:`fastrnn.backends.triton_paths`).
    """
    if name == "cpp_bfloat16":
        return load("cpp").products_of_bfloat16
    if name.startswith("triton_"):
        return load("triton").on_path(name.removeprefix("triton_"))
    if name not in NAMES:
        raise BackendError(f"unknown fastrnn backend {name!r}: expected one of {', '.join(NAMES)}")
    return importlib.import_module(f"fastrnn.backends.{name}")


def available() -> dict[str, str | None]:
    """Each backend's name with None where it is live in this process, else the reason why it is not."""
    return {name: load(name).unavailable() for name in NAMES}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the context every fastrnn layer runs on this backend, or raises :class:`BackendError` with the reason.

    The choice belongs to the current thread (a context variable).  ``FASTRNN_BACKEND`` in the environment does
    the same for a whole process; the context wins over it.
    """
    _require_live(name)
    token = _asked.set(sys.intern(name))
    try:
        yield
    finally:
        _asked.reset(token)


asked: Callable[[], str | None] = _asked.get  # the same as `requested` for who counts calls of Python functions


def requested() -> str | None:
    """The backend asked for by name, by :func:`use_backend` or else by the environment; None for automatic choice."""
    return _asked.get()


def unable(name: str, reason: object) -> BackendError:
    """The error of a backend that was asked for by name and cannot serve."""
    return BackendError(f"fastrnn backend {name!r} was asked for by name but cannot serve: {reason}")


def choose(device: torch.device, dtype: torch.dtype, mode: str = "LSTM", tokens: bool = False) -> str | None:
    """Name of the backend to run a layer on; None hands the layer to torch's own functions.

    Raises:
        BackendError: a backend was asked for by name and cannot serve; the message says why.
    """
    name = requested()
    if name is None:
        return _automatic(device.type, dtype, mode, tokens)
    _require_live(name)
    if reason := unsupported(load(name), device, dtype, mode, tokens):
        raise unable(name, reason)
    return name


@functools.cache
def _automatic(device_type: str, dtype: torch.dtype, mode: str, tokens: bool) -> str | None:
    device = torch.device(device_type)
    for name in AUTOMATIC:
        module = load(name)
        if module.unavailable() is None and unsupported(module, device, dtype, mode, tokens) is None:
            return name
    return None


def unsupported(
    module: ModuleType, device: torch.device, dtype: torch.dtype, mode: str, tokens: bool = False
) -> str | None:
    """Why a backend's module does not serve such a layer; None where it does."""
    if mode not in module.MODES:
        return f"it has no kernel for the cell {mode}"
    if tokens and not module.TOKENS:
        return "it takes no tokens"
    return module.unsupported(device, dtype)


def _require_live(name: str) -> None:
    if reason := load(name).unavailable():
        raise BackendError(f"fastrnn backend {name!r} was asked for by name but is not live here: {reason}")
