"""Classes for modules whose class derives from torch.nn's: the same class on fastrnn's kernels.

Of ``class Encoder(nn.LSTM)`` is made a class of the same name that derives from it and from :class:`fastrnn.LSTM`, so
that ``super().forward`` within it reaches our forward, and whatever else it does stays.
"""

from __future__ import annotations

import copyreg
from abc import ABCMeta
from typing import Any

from torch import nn

from fastrnn.kinds import KINDS

_MARK = "_fastrnn_made_from"
# What torch.nn's forward calls on the module itself, and ours does not.
_INNER = (
    "check_input",
    "check_forward_args",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
    "permute_hidden",
    "_update_flat_weights",
    "_flat_weights_names",
)


def made_from(cls: type) -> type[nn.Module] | None:
    """The class that :func:`derive` was given for this one; None for any other class."""
    return vars(cls).get(_MARK)


def refusal(cls: type[nn.Module], base: type[nn.Module]) -> str | None:
    """Why a class that derives from torch.nn's ``base`` cannot be taken along; None where it can."""
    if type(cls) not in (type, ABCMeta):  # any other may do more when a class is made
        return f"its class has a metaclass of its own, {type(cls).__name__}"
    if any(each.__module__.startswith("torch.distributed") for each in cls.__mro__):
        return "torch.distributed has wrapped it: convert first"
    between = cls.__mro__[: cls.__mro__.index(base)]
    for each in between:
        if inner := [name for name in _INNER if name in vars(each)]:
            return f"{each.__name__} overrides {inner[0]}, which torch.nn's forward calls and ours does not"
        if "__slots__" in vars(each) and vars(each)["__slots__"]:
            return f"{each.__name__} has __slots__, and so its objects can change their class to no other"
    return None


def derive(cls: type[nn.Module], ours: type[nn.Module]) -> type[nn.Module]:
    """The class that derives from ``cls`` and from ``ours``; one for each class, made once."""
    for known in cls.__subclasses__():
        if made_from(known) is cls:
            return known
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Any = type(cls)
    return metaclass(cls.__name__, (cls, ours), {**names, _MARK: cls, "__reduce_ex__": _reduce})


def _reduce(module: Any, protocol: int) -> Any:
    """A pickle names the class that is written in a file; it is derived from anew where it is read."""
    owner: Any = next(cls for cls in type(module).__mro__ if _MARK in vars(cls))
    made: Any = super(owner, module).__reduce_ex__(protocol)
    if made[0] is getattr(copyreg, "__newobj__") and made[1][0] is owner:  # noqa: B009
        return (_rebuilt, (made_from(owner), *made[1][1:]), *made[2:])
    return made


def _rebuilt(cls: type[nn.Module], *args: Any) -> nn.Module:
    ours = next(kind.ours for kind in KINDS.values() if kind.theirs and issubclass(cls, kind.theirs))
    new = derive(cls, ours)
    return new.__new__(new, *args)
