"""Ways to change a module's weights between two calls, each through another door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _written(change: Callable[[Tensor, torch.Generator], Any]) -> Callable[[Any, torch.Generator], None]:
    """In place, which bumps the version counter."""

    def apply(module: Any, generator: torch.Generator) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                change(parameter, generator)

    return apply


def _unseen(change: Callable[[Tensor, torch.Generator], Any]) -> Callable[[Any, torch.Generator], None]:
    """In place through ``.data``, which bumps nothing."""

    def apply(module: Any, generator: torch.Generator) -> None:
        for parameter in module.parameters():
            change(parameter.data, generator)

    return apply


def _new(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5).to(tensor.dtype)


def _pair(tensor: Tensor, generator: torch.Generator) -> None:
    """Two elements change their signs."""
    for _ in range(2):
        place = tuple(int(torch.randint(size, (), generator=generator)) for size in tensor.shape)
        tensor[place] = -tensor[place]


def _columns(tensor: Tensor, generator: torch.Generator) -> None:
    tensor[..., :2].neg_()


def _data(module: Any, generator: torch.Generator) -> None:
    for parameter in module.parameters():
        parameter.data = _new(parameter, generator)


def _parameters(module: Any, generator: torch.Generator) -> None:
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(_new(parameter, generator)))


def _loaded(module: Any, generator: torch.Generator) -> None:
    module.load_state_dict({name: -value for name, value in module.state_dict().items()})


def _step(module: Any, generator: torch.Generator) -> None:
    """As optimizers do: all parameters at once."""
    parameters = list(module.parameters())
    with torch.no_grad():
        torch._foreach_add_(parameters, [_new(parameter, generator) for parameter in parameters], alpha=-0.1)


def _flat(module: Any, generator: torch.Generator) -> None:
    if hasattr(module, "flatten_parameters"):
        module.flatten_parameters()


CHANGES: dict[str, Callable[[Any, torch.Generator], None]] = {
    "none": lambda module, generator: None,
    "neg": _written(lambda tensor, _: tensor.neg_()),
    "neg unseen": _unseen(lambda tensor, _: tensor.neg_()),
    "double": _unseen(lambda tensor, _: tensor.mul_(2)),
    "half": _unseen(lambda tensor, _: tensor.mul_(0.5)),
    "new": _unseen(lambda tensor, generator: tensor.copy_(_new(tensor, generator))),
    "zero": _unseen(lambda tensor, _: tensor.zero_()),
    "two": _written(lambda tensor, _: tensor.fill_(0.125)),
    "pair": _unseen(_pair),
    "columns": _unseen(_columns),
    "roll": _unseen(lambda tensor, _: tensor.copy_(tensor.roll(1, -1))),
    "rows": _unseen(lambda tensor, _: tensor.copy_(tensor.flip(0))),
    "data": _data,
    "parameters": _parameters,
    "loaded": _loaded,
    "step": _step,
    "flat": _flat,
}
