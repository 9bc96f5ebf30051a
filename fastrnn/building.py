"""A context in which code that builds torch.nn's recurrent modules gets fastrnn's."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from fastrnn.convert import convert
from fastrnn.kinds import KINDS

_on: ContextVar[bool] = ContextVar("fastrnn_in_place_of_torch", default=False)
_lock = threading.Lock()
_open = 0  # contexts, of all threads
_before: dict[type, dict[str, Any]] = {}


@contextmanager
def in_place_of_torch() -> Iterator[None]:
    """``with fastrnn.in_place_of_torch(): model = library.build()``: its RNNs, LSTMs, GRUs and cells are fastrnn's.

    For code that builds models itself, or loads them, in a function that gives no chance to :func:`fastrnn.convert`
    them: whatever name it knows ``torch.nn.LSTM`` by, the module becomes ours when torch.nn's ``__init__`` is through,
    or when it has been unpickled; a derived class as in :func:`fastrnn.convert`.  Arguments, initial values for a seed
    and errors are torch.nn's.

    Of the current thread, or asyncio task; what other threads build meanwhile stays torch.nn's.
    """
    _enter()
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)
        _leave()


def _enter() -> None:
    global _open
    with _lock:
        _open += 1
        if _open == 1:
            for cls in {kind.theirs for kind in KINDS.values() if kind.theirs}:
                for name in ("__init__", "__setstate__"):
                    _before.setdefault(cls, {})[name] = vars(cls).get(name)
                    setattr(cls, name, _then_converted(getattr(cls, name)))


def _leave() -> None:
    global _open
    with _lock:
        _open -= 1
        if _open == 0:
            for cls, methods in _before.items():
                for name, method in methods.items():
                    setattr(cls, name, method) if method is not None else delattr(cls, name)
            _before.clear()


def _then_converted(method: Any) -> Any:
    @functools.wraps(method)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs)
        if _on.get():
            convert(self)

    return wrapped
