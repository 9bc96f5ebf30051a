"""`convert` and `revert`: swap the RNNs of any model, torch.nn's for fastrnn's and back."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from fastrnn import cell_modules, modules, options
from fastrnn import compilable as compiled

Model = TypeVar("Model", bound=nn.Module)

_PAIRS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: modules.RNN,
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNNCell: cell_modules.RNNCell,
    nn.LSTMCell: cell_modules.LSTMCell,
    nn.GRUCell: cell_modules.GRUCell,
}


_COMPILABLE: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: compiled.RNN,
    nn.LSTM: compiled.LSTM,
    nn.GRU: compiled.GRU,
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
        ValueError: with ``compilable``, a module has an option of :mod:`fastrnn.options` on, which no graph holds.
    """
    if not compilable:
        return _swap(model, _PAIRS)
    for name, module in model.named_modules():
        if used := [option for option in options.NAMES if getattr(module, option, False)]:
            raise ValueError(f"{name or type(module).__name__} has {' and '.join(used)} on, which no graph holds")
    return _swap(model, _PAIRS | _COMPILABLE | {_PAIRS[theirs]: ours for theirs, ours in _COMPILABLE.items()})


def revert(model: Model) -> Model:
    """Undoes :func:`convert`, in place: every fastrnn module in ``model`` becomes torch.nn's; returns ``model``."""
    return _swap(model, {ours: theirs for pairs in (_PAIRS, _COMPILABLE) for theirs, ours in pairs.items()})


def _swap(model: Model, classes: dict[type[nn.Module], type[nn.Module]]) -> Model:
    for module in model.modules():
        own = type(module)
        if own in classes:
            module.__class__ = classes[own]
        elif own.__bases__[0] in classes and parametrize.is_parametrized(module):
            # torch.nn.utils.parametrize has given the module a class of its own, with properties for the parameters.
            members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(own.__name__, (classes[own.__bases__[0]],), members)
    return model
