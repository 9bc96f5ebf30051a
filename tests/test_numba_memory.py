"""Inference on the Numba engine takes steps in blocks: the same numbers, in memory that T steps do not add to."""

from __future__ import annotations

import pytest
import torch
from memory_peak import MIB, measures, peak
from support import Case, expect, run, verify
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import Network, backends, cells
from fastrnn.backends import numba_plan
from fastrnn.network import layers

numba_backend = backends.load("numba")
pytestmark = pytest.mark.skipif(numba_backend.unavailable() is not None, reason=str(numba_backend.unavailable()))


def of_outputs(found) -> int:
    y = found[0]
    y = y if isinstance(y, Tensor) else y.data
    return y.numel() * y.element_size()


@measures
def test_a_peak_is_seen():
    assert 60 * MIB < peak(lambda: torch.ones(64 * MIB // 4).sum())[0] < 80 * MIB


def beyond_output(make, steps: int, rows: int, inputs: int, hidden: int, packed: bool) -> int:
    torch.manual_seed(0)
    net, x = make(inputs, hidden), torch.randn(steps, rows, inputs)
    given = pack_padded_sequence(x, torch.linspace(steps, steps // 2, rows).long()) if packed else x
    with torch.no_grad(), fastrnn.use_backend("numba"):
        net(x[:2])  # compiles
        grown, found = peak(lambda: net(given))
    return grown - of_outputs(found)


MAKES = {"LSTM": fastrnn.LSTM, "GRU of the language": lambda *sizes: Network(cells.GRU, *sizes)}


@measures
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("name", MAKES)
def test_inference_takes_little_memory_beyond_its_output(name: str, packed: bool):
    """The gates of all steps would be 94 MiB, products of x for a GRU 70."""
    assert beyond_output(MAKES[name], 3000, 32, 16, 64, packed) < 24 * MIB


@measures
@pytest.mark.slow
@pytest.mark.parametrize("name", MAKES)
def test_long_inference_takes_64_mib_beyond_its_output(name: str):
    assert beyond_output(MAKES[name], 10_000, 64, 512, 512, False) <= 64 * MIB


CASES = [
    Case("blocks of packed steps, both directions", lengths=(9, 9, 7, 7, 2, 1), directions=2, inputs=37, hidden=50),
    Case("blocks, the last one shorter", "GRU", steps=11, rows=3, inputs=16, hidden=64, directions=2),
    Case("a step of more rows than a block", "RNN_TANH", steps=3, rows=9, inputs=5, hidden=20),
    Case("projection", steps=7, rows=5, inputs=21, hidden=50, proj_size=20),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blocks_of_steps_give_the_same(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numba_plan, "BLOCK_ROWS", 8)
    numba_plan.plan.cache_clear()
    try:
        expected = expect(case)
        found = run(numba_backend, expected.inputs)
        verify(found, expected)
        inferred = numba_backend.forward(*expected.inputs[:6], save=False)
        assert torch.equal(inferred.y, found["y"]) and torch.equal(inferred.hn, found["hn"])
        assert expected.inputs.c0 is None or torch.equal(inferred.cn, found["cn"])
    finally:
        numba_plan.plan.cache_clear()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_segments_of_any_cell_give_the_same(packed: bool, bidirectional: bool, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    net, x = Network(cells.GRU, 5, 20, bidirectional=bidirectional), torch.randn(11, 4, 5)
    given = pack_padded_sequence(x, torch.tensor([11, 9, 8, 1])) if packed else x
    with torch.no_grad(), fastrnn.use_backend("numba"):
        whole, whole_end = net(given)
        calls = 0
        direction = layers.direction

        def counted(*arguments, **options):
            nonlocal calls
            calls += 1
            return direction(*arguments, **options)

        monkeypatch.setattr(layers, "direction", counted)
        monkeypatch.setattr(layers, "SEGMENT_ROWS", 12)
        parts, parts_end = net(given)
    assert calls == 4 * (1 + bidirectional)
    y, others = (whole.data, parts.data) if packed else (whole, parts)
    torch.testing.assert_close(others, y, rtol=1e-6, atol=1e-6)  # torch's product of x chooses by the rows
    torch.testing.assert_close(parts_end, whole_end, rtol=1e-6, atol=1e-6)
