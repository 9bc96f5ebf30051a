"""`convert`, `revert` and `quantize_dynamic`: swap the RNNs of any model, torch.nn's for fastrnn's and back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from fastrnn import options
from fastrnn.kinds import KINDS, record

Model = TypeVar("Model", bound=nn.Module)
Classes = dict[type[nn.Module], Any]
Swap = tuple[str, nn.Module, type[nn.Module], Any]

_OURS: Classes = {kind.theirs: kind.ours for kind in KINDS.values() if kind.theirs}
_COMPILABLE: Classes = {
    cls: kind.compilable for kind in KINDS.values() if kind.compilable for cls in (kind.theirs, kind.ours) if cls
}
_THEIRS: Classes = {
    cls: kind.theirs for kind in KINDS.values() if kind.theirs for cls in (kind.ours, kind.compilable) if cls
}


def convert(model: Model, compilable: bool = False) -> Model:
    """Makes every torch.nn RNN, LSTM, GRU and cell in ``model``, itself included, one of fastrnn's; returns ``model``.

    In place: each module stays the very object it was and changes its class, so parameters (and the optimizers that
    hold them), buffers, hooks, parametrizations, train or eval state and every other reference to a module, tied ones
    included, stay as they are.  ``copy.deepcopy`` first where the original is still wanted.

    Only modules whose class is exactly torch.nn's are swapped.  A subclass written by others may rely on what
    torch.nn's forward does inside, and stays.

    With ``compilable``, RNN, LSTM and GRU, fastrnn's among them, become those of :mod:`fastrnn.compilable`, of which
    ``torch.compile(model, fullgraph=True)`` makes one graph, and ``torch.export`` one of any T and B.  They are no
    instances of torch.nn's classes.

    Raises:
        ValueError: with ``compilable``, one of these has an option of :mod:`fastrnn.options` on, which no graph holds;
            then the model is unchanged.
    """
    swaps = list(_exactly(model, _OURS | _COMPILABLE if compilable else _OURS))
    for name, module, _, new in swaps:
        if new in _COMPILABLE.values():
            options.refuse(module, "no graph holds", name, harmless=True)
    return _swapped(model, swaps)


def revert(model: Model) -> Model:
    """Undoes :func:`convert`, in place: every fastrnn module in ``model`` becomes torch.nn's; returns ``model``.

    What torch.nn has not stays: :class:`fastrnn.JordanRNN`, :class:`fastrnn.Network` and its cell, and modules with
    weights of 8 bits.

    Raises:
        ValueError: a module has an option of :mod:`fastrnn.options` on that changes its numbers; then the model is
            unchanged.
    """
    swaps = list(_exactly(model, _THEIRS))
    for name, module, _, new in swaps:
        options.refuse(module, f"torch.nn's {new.__name__} has not", name)
    return _swapped(model, swaps)


def quantize_dynamic(model: Model, inplace: bool = False) -> Model | Any:
    """``model`` with every RNN, LSTM, GRU, cell, :class:`fastrnn.Network` and :class:`fastrnn.NetworkCell`, itself
    included, replaced by one with weights of 8 bits (:mod:`fastrnn.quantized`, :mod:`fastrnn.quantized_network`); all
    else stays.  For inference on a CPU.

    Replaced is what is exactly of torch.nn's class, of fastrnn's, or of one of :mod:`fastrnn.compilable`; a subclass
    written by others, whose forward may do more, stays, and so does :class:`fastrnn.JordanRNN`.  Hooks on calls and
    attributes that users have set go along.  Weights that a parametrization computes are taken as they are now, and are
    computed no more.

    Args:
        model: it is copied, unless ``inplace``.
        inplace: whether to change the model itself.

    Returns:
        The model, or the module put in its place where it is itself one of these.

    Raises:
        ValueError, BackendError: see ``QuantizedLSTM.from_float``; then a model that was not copied is unchanged.
    """
    found: dict[nn.Module, Any] = {}
    classes: Classes = {cls: kind.int8 for kind in record().values() if kind.int8 for cls in kind[:3] if cls}
    for _, module, _, new in _exactly(model, classes):
        if "forward" not in vars(module):  # else somebody has put a forward of his own on the module
            found[module] = new.from_float(module)
    if not inplace:
        memo: dict[int, Any] = {id(module): narrow for module, narrow in found.items()}
        copied = copy.deepcopy(model, memo)
        for module, narrow in found.items():  # last: a hook may belong to another module of the model
            shared = {name: value for name, value in vars(narrow).items() if vars(module).get(name, copy) is value}
            vars(narrow).update(copy.deepcopy(shared, memo))
        return copied
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in found:
                setattr(module, name, found[child])
    return found.get(model, model)


def _exactly(model: nn.Module, classes: Classes) -> Iterator[Swap]:
    """Name, module, class and new class of each module in ``model`` whose class is exactly one of these."""
    for name, module in model.named_modules():
        own = type(module)
        if own not in classes and parametrize.is_parametrized(module):
            own = own.__bases__[0]  # torch.nn.utils.parametrize has given the module a class of its own
        if own in classes:
            yield name, module, own, classes[own]


def _swapped(model: Model, swaps: list[Swap]) -> Model:
    for _, module, old, new in swaps:
        own = type(module)
        if own is not old:  # with properties for the parameters that are computed
            members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
            new = type(own.__name__, (new,), members)
        module.__class__ = new
    return model
