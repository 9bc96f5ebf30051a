"""Where the loops of the C++ kernels end and begin anew, where they meet other threads, and the digits that they keep.

Of numbers, so that whatever a kernel is made of, a wrong end or a lost digit shows.  What only touches memory it should
not is in ``test_guarded_memory.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import Case, Inputs, expect, make, run, verify
from torch import Tensor, nn

import fastrnn
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def shorter(rows: int, steps: int) -> tuple[int, ...]:
    """Lengths of a packed batch, the longest first."""
    return tuple(steps - k * (steps // (rows + 1)) for k in range(rows))


# Inputs are multiplied in chunks of some 120 rows, gradients in stretches of some 512: all about as long, so that the
# last is shorter only for some sizes, and where it begins depends on the direction.
CHUNKS = [
    Case("two chunks, 31 and 30 steps", mode, steps=61, rows=3, inputs=8, directions=2, hidden=9)
    for mode in ("LSTM", "GRU")
]
CHUNKS += [Case("the same, packed", lengths=shorter(3, 61), inputs=8, directions=2, hidden=9)]
CHUNKS += [Case("chunks of 18, 18 and 15", "GRU", steps=51, rows=6, directions=2, hidden=9, dtype=torch.bfloat16)]
CHUNKS += [Case("stretches of 102 and 27 steps", "LSTM", steps=129, rows=5, directions=2, hidden=9)]
CHUNKS += [Case("stretches, packed", "RNN_TANH", lengths=shorter(5, 129), directions=2, hidden=9)]
CHUNKS += [Case("stretches, projected", steps=129, rows=5, directions=2, hidden=9, proj_size=4)]


@pytest.mark.parametrize("case", CHUNKS, ids=str)
def test_the_last_chunk_and_the_last_stretch_are_shorter(case: Case):
    expected = expect(case)
    verify(run(cpp, expected.inputs), expected)


def one_hot(inputs: Inputs) -> Inputs:
    tokens = inputs.x.argmax(-1)
    return inputs._replace(x=torch.nn.functional.one_hot(tokens, inputs.x.shape[-1]).to(inputs.x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(), shorter(5, 129)], ids=["padded", "packed"])
def test_stretches_of_tokens(dtype: torch.dtype, lengths: tuple[int, ...]):
    case = Case("tokens", "GRU", steps=129, rows=5, lengths=lengths, directions=2, hidden=9, dtype=dtype)
    expected = expect(case, one_hot)
    found = run(cpp, expected.inputs._replace(x=expected.inputs.x.argmax(-1)), False, True, True)
    verify(found, expected._replace(exact={n: t for n, t in expected.exact.items() if n != "grad x"}))


@pytest.mark.parametrize("mode, proj_size", [("LSTM", 0), ("LSTM", 3), ("GRU", 0), ("RNN_TANH", 0)])
def test_nothing_stays_behind_in_bfloat16(mode: str, proj_size: int):
    """Products are of pairs of numbers: behind rows of an odd number stands what an earlier call has left."""
    wide = make(Case("", mode, steps=9, rows=9, inputs=33, hidden=65, directions=2, dtype=torch.bfloat16))
    run(cpp, wide.map(lambda tensor: torch.full_like(tensor, float("nan"))))
    case = Case(
        "odd", mode, steps=3, rows=5, inputs=7, hidden=9, proj_size=proj_size, directions=2, dtype=torch.bfloat16
    )
    expected = expect(case)
    verify(run(cpp, expected.inputs), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("steps, rows", [(61, 3), (7, 5), (40, 9)])
def test_chunks_of_8_bits(kind: str, steps: int, rows: int):
    """Bit for bit as step by step, and backwards as forwards through what is turned around: scales are a row's own."""
    both = fastrnn.quantize_dynamic(getattr(nn, kind)(19, 33, bidirectional=True))
    one = fastrnn.quantize_dynamic(getattr(nn, kind)(19, 33))
    x = torch.randn(steps, rows, 19)
    y = both(x)[0]
    for direction, end in enumerate(("", "_reverse")):
        for name in list(dict(one.named_buffers())):
            setattr(one, name, getattr(both, name + end))
        found, state = [], None
        for row in x.flip(0) if direction else x:
            step, state = one(row[None], state)
            found.append(step[0])
        expected = torch.stack(found[::-1] if direction else found)
        assert torch.equal(y[..., direction * 33 : (direction + 1) * 33], expected)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [1, 8, 21])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_cell_state_of_bfloat16_adds_up_what_is_small_beside_it(hidden: int, grad: bool, packed: bool):
    """c grows by 2^-10 a step, an eighth of the spacing of bfloat16 at 1: c in bfloat16 would stay where it is."""
    lstm, steps = fastrnn.LSTM(1, hidden, dtype=torch.bfloat16), 256
    for parameter in lstm.parameters():
        parameter.zero_()
    gates = lstm.bias_ih_l0.view(4, hidden)
    gates[:2], gates[2], gates[3] = 30, 2**-10, 30
    x: Any = torch.zeros(steps, 2, 1, dtype=torch.bfloat16)
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, [steps, steps // 2])
    ones = torch.ones(1, 2, hidden, dtype=torch.bfloat16)
    with torch.set_grad_enabled(grad):
        cn = lstm(x, (ones, ones))[1][1]
    right = torch.tensor([steps, steps // 2 if packed else steps]) * 2**-10 + 1
    assert torch.equal(cn, right.bfloat16()[None, :, None].expand_as(cn))


@torch.no_grad()
@pytest.mark.parametrize("hidden", [1, 8, 21])
@pytest.mark.parametrize("save", [False, True])
def test_the_state_of_float32_that_products_round_to_bfloat16_is_carried_in_float32(hidden: int, save: bool):
    """An update gate that is closed hands h on as it is, with digits that bfloat16 has not."""
    weights = [torch.zeros(3 * hidden, 1), torch.zeros(3 * hidden, hidden), torch.zeros(3 * hidden)]
    bias = torch.tensor([0.0, 40.0, 0.0]).repeat_interleave(hidden)
    h0 = 1 + torch.rand(1, 3, hidden) * 2**-8
    weights = [*weights[:2], bias, weights[2]]
    y, hn, *_ = cpp.products_of_bfloat16.forward("GRU", torch.zeros(70, 3, 1), None, h0, None, weights, save)
    for found in (hn[0], *y):
        torch.testing.assert_close(found, h0[0], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_and_tanh_are_good_to_a_few_ulp_of_themselves(dtype: torch.dtype):
    """However small: h = sigmoid(x) tanh(c) with c so large that tanh is 1, and h = tanh(x) of an RNN."""
    largest = 85 if dtype == torch.float32 else 700
    x = torch.cat([torch.linspace(-b, b, 4001, dtype=torch.float64) for b in (largest, 30, 8, 0.7, 1e-6)]).to(dtype)
    lstm, rnn = fastrnn.LSTM(1, 1, dtype=dtype), fastrnn.RNN(1, 1, dtype=dtype)
    for parameter in (*lstm.parameters(), *rnn.parameters()):
        parameter.zero_()
    lstm.weight_ih_l0[3], lstm.bias_ih_l0[:2], rnn.weight_ih_l0[0] = 1, torch.tensor([-100.0, 100.0]), 1
    state = torch.zeros(1, len(x), 1, dtype=dtype)
    found = [lstm(x[None, :, None], (state, state + 50))[0].flatten(), rnn(x[None, :, None])[0].flatten()]
    exact = [x.double().sigmoid(), x.double().tanh()]
    eps = torch.finfo(dtype).eps
    for values, right in zip(found, exact, strict=True):
        assert ((values.double() - right).abs() <= 4 * eps * right.abs()).all()


@torch.no_grad()
@pytest.mark.parametrize("kind, options", [("LSTM", {"proj_size": 128}), ("LSTM", {}), ("GRU", {}), ("RNN", {})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_alike_everywhere_are_packed_everywhere(kind: str, options: dict[str, int], dtype: torch.dtype):
    """Cached weights against those packed for one call: what says whether a part has changed is of that part alone.

    All parts are of one size, so that they have the same bytes: as many inputs as outputs, and a projection whose
    columns are cut evenly, into whole vectors of any instruction set."""
    inputs = options.get("proj_size", 150)
    network = getattr(fastrnn, kind)(inputs, 150, dtype=dtype, **options)
    x = torch.randn(15, 2, inputs, dtype=dtype)
    network(x)  # something else is kept
    for value in (0.01, -0.02, 0.0):
        for parameter in network.parameters():
            parameter.fill_(value)
        network.weight_ih_l0[0] = 0.03
        with torch.enable_grad():
            fresh = network(x)[0].detach()
        assert torch.equal(network(x)[0], fresh)


@torch.no_grad()
@pytest.mark.parametrize("inputs, hidden, outputs", [(4, 1024, 8), (4, 512, 40), (4, 700, 33)])
def test_threads_that_project_nothing_wait_for_those_that_do(inputs: int, hidden: int, outputs: int):
    """A projection to one panel is the work of one thread, while others could go on."""
    lstm = fastrnn.LSTM(inputs, hidden, proj_size=outputs)
    x, found = torch.randn(60, 1, inputs), []
    for count in (1, 2, 3, 6):
        torch.set_num_threads(count)
        found.append(lstm(x)[0])
    assert all(torch.equal(y, found[0]) for y in found)


WAVES = {"forward": (1000, 32, 7), "backward": (3, 96, 8), "backward, many rows": (3, 32, 16)}  # inputs, hidden, rows


@pytest.mark.parametrize("inputs, hidden, rows", WAVES.values(), ids=WAVES)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_layer_of_a_wavefront_waits_for_a_slower_one(kind: str, inputs: int, hidden: int, rows: int):
    """A piece of work is a single step here, and the layer that is waited for takes longer: forward the lower one with
    its many inputs, backward the upper one, since the lower one's input needs no gradient.  So what the other layer
    reads one step too early, it reads before it is there.  Packed, since threads share rows that are many and even; on
    more threads than cores, so that one is stopped in the middle of a step while another looks."""
    network = getattr(fastrnn, kind)(inputs, hidden, num_layers=6)
    x = nn.utils.rnn.pack_padded_sequence(torch.randn(15, rows, inputs), [15] * rows)
    exact: list[Tensor] = []
    for count in (1, *(6, 8) * 60):
        torch.set_num_threads(count)
        y = network(x)[0].data
        found = [y, *torch.autograd.grad(y.sum(), list(network.parameters()))]
        exact = exact or found
        assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_without_its_parents_threads():
    """It inherits the number of threads, and no thread."""
    program = """
import os, signal, torch, fastrnn
from fastrnn import _core
torch.set_num_threads(2)
_core.assume_rates(start=1e-6, meeting=1e-6, multiply_adds=1.0, read=1.0)  # a team repays, whatever the machine does
lstm, x = fastrnn.LSTM(64, 64), torch.randn(40, 2, 64)
with torch.no_grad():
    y = lstm(x)[0]
    child = os.fork()
    if child == 0:
        _core.forget_company()
        signal.alarm(30)  # where it waits for the other one
        os._exit(not torch.equal(lstm(x)[0], y))
assert os.waitpid(child, 0)[1] == 0
"""
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
