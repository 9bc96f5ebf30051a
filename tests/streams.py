"""Modules and what runs them step by step, for the tests of :func:`fastrnn.stream`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn

STEPS = 24  # so many that a call of all of them packs weights, as a stream does: the same kernels, the same bits


def made(build: Callable[..., Any], *sizes: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return build(*sizes, **options).eval()


def inputs(module: Any, batch: int, dtype: torch.dtype = torch.float32, steps: int = STEPS) -> Tensor:
    return torch.randn(steps, batch, module.input_size, generator=torch.Generator().manual_seed(1)).to(dtype)


def streamed(handle: fastrnn.Stream, x: Tensor) -> Tensor:
    return torch.stack([handle.step(step).clone() for step in x])


class Letters(nn.Module):
    """A model as users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.drop = nn.Dropout(0.5)
        self.lstm = nn.LSTM(12, 20, num_layers=2)
        self.out = nn.Linear(20, 30)

    def forward(self, tokens: Tensor, state: Any = None) -> Any:
        y, (h, c) = self.lstm(self.drop(self.embedding(tokens)), state)
        return self.out(y), (h, c)
