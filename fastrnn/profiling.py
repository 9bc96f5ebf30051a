"""What torch.profiler shows of a network: one entry a call, ``fastrnn::lstm`` say, with the shapes of its tensors.

And ``fastrnn::lstm_backward``.  The entry is an operator that runs the call within itself, whichever way that goes, and
only while a profiler is on; else a call costs no more than the look at it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import profiler

Result = TypeVar("Result")
NAMES = ("rnn", "lstm", "gru", "jordan_rnn")

_library = torch.library.Library("fastrnn", "FRAGMENT")
_within: ContextVar[Callable[[], None]] = ContextVar("fastrnn_profiled_call")

# In C, and so the cheapest look there is; `_profiler_enabled` takes three times as long.
profiling: Callable[[], bool] = functools.partial(vars(profiler).__getitem__, "_is_profiler_enabled")


def _run(*_: Any) -> None:
    _within.get()()


for _name in NAMES:
    _library.define(f"{_name}(Tensor input, Tensor h0, Tensor[] weights) -> ()")
    _library.define(f"{_name}_backward(Tensor? grad_output, Tensor input, Tensor[] weights) -> ()")
    for _kind in (_name, f"{_name}_backward"):
        _library.impl(_kind, _run, "CompositeImplicitAutograd")


def operator(mode: str) -> str:
    """The entry's name of a mode of :data:`fastrnn.modes.CELLS`."""
    kind = mode.split("_")[0].lower()
    return "jordan_rnn" if kind == "jordan" else kind


def forward(mode: str, x: Tensor, h0: Tensor, weights: Sequence[Tensor], call: Callable[[], Result]) -> Result:
    """What ``call`` returns, within an entry."""
    return _entry(operator(mode), (x, h0, list(weights)), call)


def backward(
    mode: str, grad: Tensor | None, x: Tensor, weights: Sequence[Tensor], call: Callable[[], Result]
) -> Result:
    """What ``call`` returns, within an entry; ``grad`` is the gradient of the output, if there is one."""
    return _entry(f"{operator(mode)}_backward", (grad, x, list(weights)), call)


def _entry(name: str, tensors: tuple[Any, ...], call: Callable[[], Result]) -> Result:
    found: list[Result] = []
    token = _within.set(lambda: found.append(call()))
    try:
        getattr(torch.ops.fastrnn, name)(*tensors)
    finally:
        _within.reset(token)
    return found[0]
