"""How far two float32 computations of one network may lie apart: as far as its own roundings carry its results."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

EPS = torch.finfo(torch.float32).eps
# A sum of n products in float32 is the exact one of factors off by n eps at most; here n is below 12.  Functions are
# within some eps, ONNX Runtime's tanh and sigmoid, which are quotients of polynomials, within 8.
SHARE = 12 * EPS


def flat(result: Any) -> list[Tensor]:
    """The output and the states of a module's result."""
    y, states = result
    return [y, *(states if isinstance(states, tuple) else (states,))]


def doubled(hx: Any) -> Any:
    if hx is None:
        return None
    return tuple(state.double() for state in hx) if isinstance(hx, tuple) else hx.double()


@torch.no_grad()
def exact_and_budget(
    module: nn.Module, x: Tensor, hx: Any = None, seed: int = 0, **call: Any
) -> tuple[list[Tensor], list[float]]:
    """A module's results in float64, and for each how far float32 may be off.

    What changes where every parameter, input and state is off by a share of SHARE, of random sign, is what the network
    makes of roundings at their source; the largest change in six such runs is doubled for the roundings of later steps.
    A result is itself rounded, and what it is computed of, by 4 eps of the largest.
    """
    wide, generator = copy.deepcopy(module).double(), torch.Generator().manual_seed(seed)

    def shaken(tensor: Tensor) -> Tensor:
        return tensor * (1 + SHARE * (2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1))

    exact = flat(wide(x.double(), doubled(hx), **call))
    own, farthest = {name: each.clone() for name, each in wide.named_parameters()}, [0.0] * len(exact)
    for _ in range(6):
        for name, parameter in wide.named_parameters():
            parameter.copy_(shaken(own[name]))
        states = doubled(hx)
        if states is not None:
            states = tuple(map(shaken, states)) if isinstance(states, tuple) else shaken(states)
        for k, found in enumerate(flat(wide(shaken(x.double()), states, **call))):
            farthest[k] = max(farthest[k], (found - exact[k]).abs().max().item())
    sizes = [max(1.0, each.abs().max().item()) for each in exact]
    return exact, [2 * gap + 4 * EPS * size for gap, size in zip(farthest, sizes, strict=True)]


def hold(found: list[Tensor], exact: list[Tensor], budgets: list[float], message: str = "") -> None:
    """Raises AssertionError where a result lies farther from the exact one than its budget."""
    for k, (own, right, budget) in enumerate(zip(found, exact, budgets, strict=True)):
        assert own.shape == right.shape, f"{message}: result {k} has shape {own.shape}, expected {right.shape}"
        gap = (own.double() - right).abs().max().item()
        assert gap <= budget, f"{message}: result {k} is {gap:.1e} off, and its budget {budget:.1e}"
