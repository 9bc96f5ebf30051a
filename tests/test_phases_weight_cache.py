"""Packed weights that the engine of programs keeps between runs: no change of the weights goes unnoticed."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite")
core = pytest.importorskip("fastrnn._core")

from program_functions import Compiled  # noqa: E402

STEPS, BATCH = 9, 5


class Network:
    """Two results, of two matrices on h and one on x; h becomes their bounded sum.  Both on h are terms of the one
    result, or with ``apart`` each of one, so that as many packed weights stand in another order."""

    def __init__(self, dtype: str = "float32", apart: bool = False) -> None:
        total = ("add", ("load", 0), ("load", 1))
        bounded = "div", total, ("add", ("const", 1.0), ("mul", total, total))
        self.function = Compiled(dtype, [True] * 4, {2: bounded, 3: bounded})
        matrix = {"kind": "matrix", "size": 0, "columns_size": 0, "blocks": 2}
        arrays = [
            {"kind": "state", "size": 0},
            {"kind": "step", "size": 0},
            {"kind": "step", "size": 0},
            matrix,
            matrix,
        ]
        on_h = [{"array": 0, "matrix": 3, "row_block": 1}, {"array": 0, "matrix": 4}]
        on_x = [{"array": 1, "matrix": 3}]
        results = [{"terms": on_h[:1]}, {"terms": on_h[1:] + on_x}] if apart else [{"terms": on_h}, {"terms": on_x}]
        operands: list[dict[str, Any]] = [{"result": 0}, {"result": 1}]
        operands += [{"array": 0, "write": True}, {"array": 2, "write": True}]
        part = {"size": 0, "results": results, "operands": operands, "function": self.function.address}
        spec = {"dtype": dtype, "sizes": 1, "arrays": arrays, "phases": [{"parts": [part]}]}
        self.program = core.Program(spec)
        self.dtype = getattr(torch, dtype)

    def run(self, weights: list[torch.Tensor], keep: bool, threads: int = 1, steps: int = STEPS) -> torch.Tensor:
        size = weights[0].shape[1]
        x = torch.linspace(-1, 1, steps * BATCH * size, dtype=self.dtype).view(-1, size)
        y = torch.empty_like(x)
        arrays = [{"initial": None, "final": None}, x, y, *weights]
        rows = steps * BATCH
        options: dict[str, Any] = dict(batch_sizes=None, reverse=False, threads=threads, sizes=[size], keep=keep)
        self.program.run(steps=steps, batch=BATCH, rows=rows, arrays=arrays, **options)
        return y


def parameters(size: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(2 * size, size, dtype=dtype) / size**0.5) for _ in range(2)]


def change(weights: list[nn.Parameter], rng: random.Random) -> None:
    """In ways of which torch's version counters tell nothing, and in one of which they do."""
    weight = rng.choice(weights)
    row, column = rng.randrange(weight.shape[0]), rng.randrange(weight.shape[1])
    how = rng.randrange(5)
    if how == 0:
        weight.data[row, column] += 0.5
    elif how == 1:
        weight.detach().numpy()[row] *= -1
    elif how == 2:
        weight.data = torch.randn_like(weight.data)
    elif how == 3:
        weight.data[:, [column, 0]] = weight.data[:, [0, column]]
    else:
        with torch.no_grad():
            weight.add_(0.25)


@pytest.mark.parametrize("seed", range(8))
def test_every_change_is_noticed(seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice(("float32", "float64"))
    networks = [Network(dtype), Network(dtype), Network(dtype, apart=True)]
    sets = [parameters(size, networks[0].dtype) for size in (rng.choice((31, 64, 100)), rng.choice((16, 70, 200)))]
    for _ in range(30):
        weights, network = rng.choice(sets), rng.choices(networks, (6, 1, 1))[0]
        if rng.random() < 0.5:
            change(weights, rng)
        threads, steps = rng.choice((1, 1, 2)), rng.choice((STEPS, 40))
        found = network.run(weights, True, threads, steps)
        expected = network.run([weight.detach().clone() for weight in weights], False, threads, steps)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_is_kept_goes_with_the_memory_of_the_parameter() -> None:
    network, before = Network(), core.weight_cache_count()
    weights = parameters(48)
    network.run(weights, True)
    assert core.weight_cache_count() == before + 1
    network.run(weights, True)
    assert core.weight_cache_count() == before + 1
    del weights
    gc.collect()
    assert core.weight_cache_count() == before


def test_nothing_is_kept_of_tensors_that_may_be_gone_after_the_call() -> None:
    network, before = Network(), core.weight_cache_count()
    network.run([weight.detach() for weight in parameters(48)], True)
    network.run(parameters(48), False)
    assert core.weight_cache_count() == before
