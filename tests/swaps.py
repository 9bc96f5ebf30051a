"""How a weight is exchanged for another while others read it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Swaps:
    """What a writer does to a module while others call it."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module: Any = module
        self.name = name
        self.is_parameter = name in dict(module.named_parameters())

    def assign_data(self, tensor: Tensor) -> None:
        getattr(self.module, self.name).data = tensor.clone()

    def assign(self, tensor: Tensor) -> None:
        setattr(self.module, self.name, nn.Parameter(tensor.clone()) if self.is_parameter else tensor.clone())

    def put(self, tensor: Tensor) -> None:
        store = self.module._parameters if self.is_parameter else self.module._buffers
        store[self.name] = nn.Parameter(tensor.clone()) if self.is_parameter else tensor.clone()
