"""Kinds of matrix: which parameters one has, and how they make the dense matrix, or its blocks, that a step multiplies.

A matrix of G gates of Z units on an operand of K units is (G*Z, K), a block of Z rows a gate.  What a kind makes of its
parameters is made once a call, outside of the time loop, by torch's own differentiable operators.

A kind is ``square`` if its operand must have the units of a gate, and ``gated`` if there may be several gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """``weight`` (G*Z, K)."""

    heads: ClassVar[int] = 1
    square: ClassVar[bool] = False
    gated: ClassVar[bool] = True

    def shapes(self, gates: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (gates * rows, columns)}

    def matrix(self, gates: int, weight: Tensor) -> Tensor:
        return weight


@dataclass(frozen=True)
class Diagonal:
    """``weight`` (G*Z,): the product is one of numbers, unit by unit, and Z == K."""

    heads: ClassVar[int] = 1
    square: ClassVar[bool] = True
    gated: ClassVar[bool] = True

    def shapes(self, gates: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (gates * rows,)}


@dataclass(frozen=True)
class Heads:
    """Block-diagonal: each of ``heads`` equal parts of the operand reaches the same part of every gate.

    ``weight`` is (G*Z, K / heads): row r of a gate, of head r // (Z / heads), holds the weights of that head's part.
    """

    heads: int
    square: ClassVar[bool] = False
    gated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.heads, int) or self.heads < 1:
            raise ValueError(f"heads: expected an integer of at least 1, got {self.heads!r}")

    def shapes(self, gates: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        if rows % self.heads or columns % self.heads:
            raise ValueError(f"expected sizes that {self.heads} heads divide, got {rows} and {columns}")
        return {"weight": (gates * rows, columns // self.heads)}

    def matrix(self, gates: int, weight: Tensor) -> Tensor:
        return weight


@dataclass(frozen=True)
class LowRank:
    """``weight_u`` (G*Z, rank) times ``weight_v`` (rank, K); the rank is at most both."""

    rank: int
    heads: ClassVar[int] = 1
    square: ClassVar[bool] = False
    gated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank: expected an integer of at least 1, got {self.rank!r}")

    def shapes(self, gates: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"weight_u": (gates * rows, self.rank), "weight_v": (self.rank, columns)}

    def matrix(self, gates: int, weight_u: Tensor, weight_v: Tensor) -> Tensor:
        return weight_u @ weight_v


@dataclass(frozen=True)
class Antisymmetric:
    """W - W^T - gamma I of ``weight`` W (Z, Z), one gate; source: Chang et al., "AntisymmetricRNN" (2019)."""

    gamma: float = 0.0
    heads: ClassVar[int] = 1
    square: ClassVar[bool] = True
    gated: ClassVar[bool] = False

    def shapes(self, gates: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (rows, columns)}

    def matrix(self, gates: int, weight: Tensor) -> Tensor:
        return weight - weight.t() - self.gamma * torch.eye(len(weight), dtype=weight.dtype, device=weight.device)


Kind = Dense | Diagonal | Heads | LowRank | Antisymmetric
