"""The C++ core trusts no size: whatever memory depends on is checked where memory is touched.

Its callers are our own Python, which checks before; but a module's sizes may be changed after it was made, and a fault
there must not become a read of nobody's memory.  Every argument of a call that is right is spoilt, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn.modes import TORCH_MODES

core = pytest.importorskip("fastrnn._core", reason="the compiled core is missing")

STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS, DIRECTIONS = 3, 2, 5, 4, 3, 2
SIZES = torch.tensor([2, 2, 1])
ROWS = int(SIZES.sum())
LAYER = (TORCH_MODES.index("LSTM"), 0, 1, STEPS, BATCH, ROWS, INPUTS, HIDDEN, OUTPUTS, DIRECTIONS, SIZES)
NAMES = ["x", None, "h0", "c0", "weights"]
FORWARD = [*NAMES, "y", "hn", "cn", "gates", "cells", "hidden"]
BACKWARD = [*NAMES, "gates", "cells", "hidden", "grad_y", "grad_hn", "grad_cn", "grad_cells", "grad_x", "grad_h0"]
BACKWARD += ["grad_c0", "grad_weights"]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def weights() -> list[Tensor]:
    own = [(4 * HIDDEN, INPUTS), (4 * HIDDEN, OUTPUTS), (4 * HIDDEN,), (4 * HIDDEN,), (OUTPUTS, HIDDEN)]
    return [zeros(*shape) for _ in range(DIRECTIONS) for shape in own]


def inputs() -> list[Any]:
    states = zeros(DIRECTIONS, BATCH, OUTPUTS), zeros(DIRECTIONS, BATCH, HIDDEN)
    return [LAYER, zeros(ROWS, INPUTS), False, *states, weights()]


def saved() -> list[Tensor]:
    return [zeros(DIRECTIONS, ROWS, units) for units in (4 * HIDDEN, HIDDEN, OUTPUTS)]


def forward() -> list[Any]:
    given = inputs()
    return [*given, zeros(ROWS, DIRECTIONS * OUTPUTS), given[3].clone(), given[4].clone(), *saved()]


def backward() -> list[Any]:
    given = inputs()
    seeds = [zeros(ROWS, DIRECTIONS * OUTPUTS), given[3].clone(), given[4].clone(), zeros(DIRECTIONS, ROWS, HIDDEN)]
    return [*given, *saved(), *seeds, given[1].clone(), given[3].clone(), given[4].clone(), weights()]


CALLS: dict[str, tuple[Callable[[], list[Any]], Any, list[str | None]]] = {
    "forward": (forward, core.forward_float, FORWARD),
    "backward": (backward, core.backward_float, BACKWARD),
}


def longer(tensor: Tensor) -> Any:
    return torch.zeros(tensor.numel() + 1)


def shorter(tensor: Tensor) -> Any:
    return torch.zeros(tensor.numel() - 1)


def wider(tensor: Tensor) -> Any:
    return tensor.double()


def spread(tensor: Tensor) -> Any:
    return torch.zeros(tensor.numel(), 2)[:, 0]


def elsewhere(tensor: Tensor) -> Any:
    return tensor.to("meta")


def freed(tensor: Tensor) -> Any:
    tensor.untyped_storage().resize_(tensor.nbytes - 1)
    return tensor


def none_at_all(tensor: Tensor) -> Any:
    return "tensor"


def refused(kernel: Any, arguments: list[Any], name: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError, BufferError)) as caught:
        kernel([tuple(arguments)])
    said = str(caught.value)
    assert said.startswith(name) or "meta" in said, said


def test_the_calls_to_be_spoilt_are_right():
    for make, kernel, names in CALLS.values():
        assert len(make()) == len(names) + 1
        kernel([tuple(make())])


@pytest.mark.parametrize("spoil", [longer, shorter, wider, spread, elsewhere, freed, none_at_all])
@pytest.mark.parametrize("call", CALLS)
def test_a_tensor_that_is_not_what_its_layer_says(call: str, spoil: Callable[[Tensor], Any]):
    make, kernel, names = CALLS[call]
    for at, name in enumerate(names, 1):
        spoilt = make()
        if isinstance(spoilt[at], Tensor):
            spoilt[at] = spoil(spoilt[at])
            refused(kernel, spoilt, str(name))
        elif isinstance(spoilt[at], list):
            for k in range(len(spoilt[at])):
                spoilt = make()
                spoilt[at][k] = spoil(spoilt[at][k])
                refused(kernel, spoilt, str(name))


LAYERS = {
    "mode": (0, [-1, 4]),
    "activation": (1, [-1, 4]),
    "layer": (3, [0, -1, 1 << 41]),
    "directions": (9, [0, 3]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_numbers_of_a_layer_out_of_their_range(name: str):
    at, values = LAYERS[name]
    for make, kernel, _ in CALLS.values():
        for value in values:
            layer = [*LAYER]
            layer[at] = value
            refused(kernel, [tuple(layer), *make()[1:]], name)


@pytest.mark.parametrize(
    "sizes", [[2, 1, 2], [1, 2, 2], [2, 2, 0], [2, 2, -1], [2, 1, 1], [2, 2, 2], [3, 1, 1], [2, 3]], ids=str
)
def test_rows_of_steps_that_are_none_of_a_packed_batch(sizes: list[int]):
    for make, kernel, _ in CALLS.values():
        refused(kernel, [(*LAYER[:10], torch.tensor(sizes)), *make()[1:]], "batch_sizes")
    refused(core.forward_float, [(*LAYER[:10], None), *forward()[1:]], "rows")  # of steps that all have the same


@pytest.mark.parametrize("token", [-1, INPUTS, 1 << 40])
def test_tokens_beyond_the_vocabulary(token: int):
    for make, kernel, names in CALLS.values():
        spoilt = make()
        spoilt[1], spoilt[2] = torch.tensor([0, 1, token, 2, 4]), True
        if "grad_x" in names:
            spoilt[names.index("grad_x") + 1] = None
        refused(kernel, spoilt, "x")


def test_weights_that_make_no_network():
    for make, kernel, _ in CALLS.values():
        for count in (0, 1, 3, 9, 14):
            spoilt = make()
            spoilt[5] = (spoilt[5] * 2)[:count]
            refused(kernel, spoilt, "weights")
        spoilt = make()
        spoilt[5] = [w for k, w in enumerate(spoilt[5]) if k % 5 != 4]  # no projection, though outputs are not units
        refused(kernel, spoilt, "weights")


@pytest.mark.parametrize("spoil", [longer, shorter, spread, elsewhere, freed, none_at_all])
def test_weights_of_8_bits(spoil: Callable[[Tensor], Any]):
    def make() -> list[Any]:
        rows, layer = 4 * HIDDEN, (*LAYER[:8], HIDDEN, 1, SIZES)
        own = [zeros(rows), torch.zeros(rows, INPUTS, dtype=torch.int8)]
        own += [zeros(rows), torch.zeros(rows, HIDDEN, dtype=torch.int8), zeros(rows), zeros(rows)]
        states = [zeros(1, BATCH, HIDDEN) for _ in range(4)]
        return [layer, zeros(ROWS, INPUTS), *states[:2], own, zeros(ROWS, HIDDEN), *states[2:]]

    core.forward_int8(*make())
    for at, name in enumerate(("x", "h0", "c0", None, "y", "hn", "cn"), 1):
        for k in range(6) if name is None else (0,):
            spoilt = make()
            if name is None:
                spoilt[at][k] = spoil(spoilt[at][k])
            else:
                spoilt[at] = spoil(spoilt[at])
            with pytest.raises((ValueError, TypeError, RuntimeError, BufferError)) as caught:
                core.forward_int8(*spoilt)
            said = str(caught.value)
            assert said.startswith(name or ("weights" if k in (1, 3) else "scales and biases")) or "meta" in said
