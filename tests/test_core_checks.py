"""The C++ core trusts no size: whatever memory depends on is checked where memory is touched.

Its callers are our own Python, which checks before; but a module's sizes may be changed after it was made, and a fault
there must not become a read of nobody's memory.  Every argument of a call that is right is spoilt, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn.modes import TORCH_MODES

core = pytest.importorskip("fastrnn._core", reason="the compiled core is missing")

STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS, DIRECTIONS = 3, 2, 5, 4, 3, 2
SIZES = torch.tensor([2, 2, 1])
ROWS = int(SIZES.sum())
LAYER: dict[str, Any] = dict(
    mode=TORCH_MODES.index("LSTM"), activation=0, threads=1, steps=STEPS, batch=BATCH, rows=ROWS, inputs=INPUTS,
    hidden_size=HIDDEN, outputs=OUTPUTS, directions=DIRECTIONS, batch_sizes=SIZES,
)  # fmt: skip


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def weights() -> list[Tensor]:
    own = [(4 * HIDDEN, INPUTS), (4 * HIDDEN, OUTPUTS), (4 * HIDDEN,), (4 * HIDDEN,), (OUTPUTS, HIDDEN)]
    return [zeros(*shape) for _ in range(DIRECTIONS) for shape in own]


def inputs() -> dict[str, Any]:
    states = dict(h0=zeros(DIRECTIONS, BATCH, OUTPUTS), c0=zeros(DIRECTIONS, BATCH, HIDDEN))
    return dict(layer=LAYER, x=zeros(ROWS, INPUTS), tokens=False, **states, weights=weights())


def saved() -> dict[str, Tensor]:
    units = dict(gates=4 * HIDDEN, cells=HIDDEN, hidden=OUTPUTS)
    return {name: zeros(DIRECTIONS, ROWS, count) for name, count in units.items()}


def forward() -> dict[str, Any]:
    given = inputs()
    results = dict(y=zeros(ROWS, DIRECTIONS * OUTPUTS), hn=given["h0"].clone(), cn=given["c0"].clone())
    return given | results | saved()


def backward() -> dict[str, Any]:
    given = inputs()
    seeds = dict(grad_y=zeros(ROWS, DIRECTIONS * OUTPUTS), grad_hn=given["h0"].clone(), grad_cn=given["c0"].clone())
    seeds |= dict(grad_cells=zeros(DIRECTIONS, ROWS, HIDDEN))
    results = {f"grad_{name}": given[name].clone() for name in ("x", "h0", "c0")} | dict(grad_weights=weights())
    return given | saved() | seeds | results


CALLS: dict[str, tuple[Callable[[], dict[str, Any]], Any]] = {
    "forward": (forward, core.forward_float),
    "backward": (backward, core.backward_float),
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


def refused(kernel: Any, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError, BufferError)) as caught:
        kernel([arguments])
    said = str(caught.value)
    assert said.startswith(name) or "meta" in said, said


def test_the_calls_to_be_spoilt_are_right():
    for make, kernel in CALLS.values():
        kernel([make()])


@pytest.mark.parametrize("call", CALLS)
def test_fields_that_are_missing_or_unknown(call: str):
    make, kernel = CALLS[call]
    for name in make():
        given = make()
        value = given.pop(name)
        refused(kernel, given, "layers")
        refused(kernel, given | {"another": value}, "layers")
    for name in LAYER:
        layer = {each: value for each, value in LAYER.items() if each != name}
        refused(kernel, make() | {"layer": layer}, "layer")
        refused(kernel, make() | {"layer": layer | {"another": 1}}, "layer")
    refused(kernel, make() | {"layer": tuple(LAYER.values())}, "layer")


@pytest.mark.parametrize("spoil", [longer, shorter, wider, spread, elsewhere, freed, none_at_all])
@pytest.mark.parametrize("call", CALLS)
def test_a_tensor_that_is_not_what_its_layer_says(call: str, spoil: Callable[[Tensor], Any]):
    make, kernel = CALLS[call]
    for name, right in make().items():
        spoilt = make()
        if isinstance(right, Tensor):
            spoilt[name] = spoil(spoilt[name])
            refused(kernel, spoilt, name)
        elif isinstance(right, list):
            for k in range(len(right)):
                spoilt = make()
                spoilt[name][k] = spoil(spoilt[name][k])
                refused(kernel, spoilt, name)


LAYERS = {
    "mode": [-1, len(TORCH_MODES)],
    "activation": [-1, 4],
    "steps": [0, -1, 1 << 41],
    "directions": [0, 3],
}


@pytest.mark.parametrize("name", LAYERS)
def test_numbers_of_a_layer_out_of_their_range(name: str):
    for make, kernel in CALLS.values():
        for value in LAYERS[name]:
            refused(kernel, make() | {"layer": LAYER | {name: value}}, name)


@pytest.mark.parametrize(
    "sizes", [[2, 1, 2], [1, 2, 2], [2, 2, 0], [2, 2, -1], [2, 1, 1], [2, 2, 2], [3, 1, 1], [2, 3]], ids=str
)
def test_rows_of_steps_that_are_none_of_a_packed_batch(sizes: list[int]):
    for make, kernel in CALLS.values():
        refused(kernel, make() | {"layer": LAYER | {"batch_sizes": torch.tensor(sizes)}}, "batch_sizes")
    same = LAYER | {"batch_sizes": None}  # of steps that all have the same
    refused(core.forward_float, forward() | {"layer": same}, "rows")


@pytest.mark.parametrize("token", [-1, INPUTS, 1 << 40])
def test_tokens_beyond_the_vocabulary(token: int):
    for make, kernel in CALLS.values():
        spoilt = make() | {"x": torch.tensor([0, 1, token, 2, 4]), "tokens": True}
        if "grad_x" in spoilt:
            spoilt["grad_x"] = None
        refused(kernel, spoilt, "x")


def test_weights_that_make_no_network():
    for make, kernel in CALLS.values():
        for count in (0, 1, 3, 9, 14):
            spoilt = make()
            spoilt["weights"] = (spoilt["weights"] * 2)[:count]
            refused(kernel, spoilt, "weights")
        spoilt = make()  # no projection, though outputs are not units
        spoilt["weights"] = [w for k, w in enumerate(spoilt["weights"]) if k % 5 != 4]
        refused(kernel, spoilt, "weights")


@pytest.mark.parametrize("spoil", [longer, shorter, spread, elsewhere, freed, none_at_all])
def test_weights_of_8_bits(spoil: Callable[[Tensor], Any]):
    def make() -> dict[str, Any]:
        rows, layer = 4 * HIDDEN, LAYER | {"outputs": HIDDEN, "directions": 1}
        own = [zeros(rows), torch.zeros(rows, INPUTS, dtype=torch.int8)]
        own += [zeros(rows), torch.zeros(rows, HIDDEN, dtype=torch.int8), zeros(rows), zeros(rows)]
        states = {name: zeros(1, BATCH, HIDDEN) for name in ("h0", "c0", "hn", "cn")}
        return dict(layer=layer, x=zeros(ROWS, INPUTS), weights=own, y=zeros(ROWS, HIDDEN), **states)

    core.forward_int8(**make())
    for name in ("x", "h0", "c0", "weights", "y", "hn", "cn"):
        for k in range(6) if name == "weights" else (0,):
            spoilt = make()
            if name == "weights":
                spoilt[name][k] = spoil(spoilt[name][k])
            else:
                spoilt[name] = spoil(spoilt[name])
            with pytest.raises((ValueError, TypeError, RuntimeError, BufferError)) as caught:
                core.forward_int8(**spoilt)
            said = str(caught.value)
            wanted = name if name != "weights" or k in (1, 3) else "scales and biases"
            assert said.startswith(wanted) or "meta" in said


# What each set of instructions needs, in the words of Linux.
NEEDS = {
    "avx512_amx": {"amx_tile", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f"},
    "avx512_bf16": {"avx512_bf16", "avx512_vnni", "avx512f"},
    "avx512_vnni": {"avx512_vnni", "avx512f"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma", "aes"},
    "avx2": {"avx2", "fma", "aes"},
    "generic": set(),
}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="/proc/cpuinfo is Linux's")
def test_what_was_compiled_and_the_cpu_has_is_found():
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    compiled = Path(core.__file__).read_bytes()
    expected = [name for name, needs in NEEDS.items() if needs <= {*flags.split()} and f"{name}\0".encode() in compiled]
    found = core.supported_isas()
    if "avx512_amx" not in found:  # for which the system has to be asked, and may say no
        expected = [name for name in expected if name != "avx512_amx"]
    assert expected and found == expected
