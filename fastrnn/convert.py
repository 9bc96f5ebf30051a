"""`convert`, `revert` and `quantize_dynamic`: swap the RNNs of any model, torch.nn's for fastrnn's and back."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastrnn import options
from fastrnn.compilable import Compilable
from fastrnn.derived import derive, made_from, refusal
from fastrnn.kinds import KINDS, kind, record

Model = TypeVar("Model", bound=nn.Module)
Classes = dict[type[nn.Module], Any]
Swap = tuple[str, nn.Module, type[nn.Module], Any]

_OURS: Classes = {each.theirs: each.ours for each in KINDS.values() if each.theirs}
_COMPILABLE: Classes = {
    cls: each.compilable for each in KINDS.values() if each.compilable for cls in (each.theirs, each.ours) if cls
}
_THEIRS: Classes = {
    cls: each.theirs for each in KINDS.values() if each.theirs for cls in (each.ours, each.compilable) if cls
}


class Report(NamedTuple):
    """What :func:`convert` did, by the names that modules have in the model.

    ``swapped``: the class before and the class now.  ``left``: why a recurrent module stayed.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name or 'the model'}: {what}" for name, what in self.swapped.items()]
        lines += [f"{name or 'the model'}: left, {why}" for name, why in self.left.items()]
        return "\n".join([*lines, f"{len(self.swapped)} swapped, {len(self.left)} left"])


@overload
def convert(model: Model, compilable: bool = False, *, report: Literal[False] = False) -> Model: ...


@overload
def convert(model: Model, compilable: bool = False, *, report: Literal[True]) -> tuple[Model, Report]: ...


def convert(model: Model, compilable: bool = False, *, report: bool = False) -> Model | tuple[Model, Report]:
    """Makes every torch.nn RNN, LSTM, GRU and cell in ``model``, itself included, one of fastrnn's; returns ``model``.

    In place: each module stays the very object it was and changes its class, so parameters (and the optimizers that
    hold them), buffers, hooks, parametrizations, train or eval state and every other reference to a module, tied ones
    included, stay as they are.  ``copy.deepcopy`` first where the original is still wanted.

    A module whose class derives from torch.nn's becomes one of a class that derives from that and from ours, of the
    same name, so that its ``super().forward`` runs on our kernels; it pickles.  It stays where its class overrides
    what torch.nn's forward calls inside, and where it has a metaclass, as Pyro's.

    With ``compilable``, RNN, LSTM and GRU, fastrnn's among them, become those of :mod:`fastrnn.compilable`, of which
    ``torch.compile(model, fullgraph=True)`` makes one graph, and ``torch.export`` one of any T and B.  They are no
    instances of torch.nn's classes, so modules of derived classes stay.

    Args:
        model: any module.
        compilable: whether to take the classes for compilers.
        report: whether to return, behind the model, a :class:`Report` of what was swapped, and what was left and why.

    Raises:
        ValueError: with ``compilable``, one of these has an option of :mod:`fastrnn.options` on, which no graph holds;
            then the model is unchanged.
    """
    swaps = list(_exactly(model, _OURS | _COMPILABLE if compilable else _OURS))
    if not compilable:
        swaps += [swap for name, module in model.named_modules() if (swap := _derived(name, module))]
    for name, module, _, new in swaps:
        if new in _COMPILABLE.values():
            options.refuse(module, "no graph holds", name, harmless=True)
    found = Report({name: f"{_name(old)} -> {_name(new)}" for name, _, old, new in swaps}, {})
    _swapped(model, swaps)
    if not report:
        return model
    found.left.update(left(model, compilable))
    return model, found


def left(model: nn.Module, compilable: bool = False) -> Iterator[tuple[str, str]]:
    """Name and reason of each recurrent module in a converted model that is not fastrnn's."""
    for name, module in model.named_modules():
        own, what = _own_class(module), kind(module)
        if isinstance(module, torch.jit.ScriptModule):
            if getattr(module, "original_name", "") in KINDS:
                yield name, "compiled by TorchScript: convert first"
        elif what in KINDS and (base := KINDS[what].theirs) and not isinstance(module, (KINDS[what].ours, Compilable)):
            refused = refusal(own, base) if not compilable else None
            yield name, refused or f"its class, {_name(own)}, derives from torch.nn's, which compilable ones do not"
        for attribute, held in vars(module).items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            for place, each in _listed(held):
                if isinstance(each, nn.Module) and any(map(kind, each.modules())):
                    where = f"{name}.{attribute}{place}".lstrip(".")
                    yield where, "held in a plain list or dict, where PyTorch looks for no modules: take nn.ModuleList"


def _listed(held: Any) -> list[tuple[str, Any]]:
    if isinstance(held, (list, tuple)):
        return [(f"[{k}]", each) for k, each in enumerate(held)]
    return [(f"[{key!r}]", each) for key, each in held.items()] if isinstance(held, dict) else []


def _name(cls: type) -> str:
    module = cls.__module__
    public = "torch.nn" if module.startswith("torch.nn.modules") else module
    public = "fastrnn" if module in ("fastrnn.modules", "fastrnn.cell_modules") else public
    return f"{public}.{cls.__qualname__}" + (" on fastrnn's kernels" if made_from(cls) else "")


def _derived(name: str, module: nn.Module) -> Swap | None:
    """The swap of a module whose class derives from torch.nn's, where it can be taken along."""
    own, what = _own_class(module), kind(module)
    if what not in KINDS or isinstance(module, torch.jit.ScriptModule) or own in _OURS:
        return None
    base, ours = KINDS[what].theirs, KINDS[what].ours
    if base is None or isinstance(module, (ours, Compilable)) or refusal(own, base):
        return None
    return name, module, own, derive(own, ours)


def revert(model: Model) -> Model:
    """Undoes :func:`convert`, in place: every fastrnn module in ``model`` becomes torch.nn's; returns ``model``.

    What torch.nn has not stays: :class:`fastrnn.JordanRNN`, :class:`fastrnn.Network` and its cell, and modules with
    weights of 8 bits.

    Raises:
        ValueError: a module has an option of :mod:`fastrnn.options` on that changes its numbers; then the model is
            unchanged.
    """
    swaps = list(_exactly(model, _THEIRS))
    made = [(name, module, _own_class(module)) for name, module in model.named_modules()]
    swaps += [(name, module, own, before) for name, module, own in made if (before := made_from(own))]
    for name, module, _, new in swaps:
        options.refuse(module, f"torch.nn's {new.__name__} has not", name)
    return _swapped(model, swaps)


def quantize_dynamic(
    model: Model, inplace: bool = False, *, float_input: bool | None = None, skip: Collection[str] = ()
) -> Model | Any:
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
        float_input: whether the first product with the input, ``W_ih`` of a first layer or a cell, stays float32; None:
            where that costs little (:mod:`fastrnn.quantized`).
        skip: names of modules, as ``named_modules`` has them, that stay as they are, with all that is in them.

    Returns:
        The model, or the module put in its place where it is itself one of these.

    Raises:
        ValueError: ``skip`` names what is no module of the model.
        ValueError, BackendError: see ``QuantizedLSTM.from_float``; then a model that was not copied is unchanged.
    """
    if isinstance(skip, str):
        raise ValueError(f"skip: expected a collection of names, got the string {skip!r}")
    if unknown := set(skip) - {name for name, _ in model.named_modules(remove_duplicate=False)}:
        raise ValueError(f"skip: expected names of modules of the model, got {sorted(unknown)}")
    stays = {module for name in skip for module in model.get_submodule(name).modules()}
    found: dict[nn.Module, Any] = {}
    classes: Classes = {cls: each.int8 for each in record().values() if each.int8 for cls in each[:3] if cls}
    for _, module, _, new in _exactly(model, classes):
        if (
            "forward" not in vars(module) and module not in stays
        ):  # one with a forward that somebody has put on it stays
            found[module] = new.from_float(module, float_input)
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


def _own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, behind that which torch.nn.utils.parametrize may have given it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _exactly(model: nn.Module, classes: Classes) -> Iterator[Swap]:
    """Name, module, class and new class of each module in ``model`` whose class is exactly one of these."""
    for name, module in model.named_modules():
        for own in (type(module), _own_class(module)):
            if own in classes:
                yield name, module, own, classes[own]
                break


def _swapped(model: Model, swaps: list[Swap]) -> Model:
    for _, module, old, new in swaps:
        own = type(module)
        if own is not old:  # with properties for the parameters that are computed
            members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
            new = type(own.__name__, (new,), members)
        module.__class__ = new
    return model
