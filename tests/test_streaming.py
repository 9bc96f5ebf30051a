"""Streams beside their modules: the same numbers, states, and weights that change."""

from __future__ import annotations

import copy
import threading
import tracemalloc
from typing import Any

import pytest
import torch
from streams import STEPS, Letters, inputs, made, streamed
from torch import Tensor, nn

import fastrnn
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)

FORMS: list[tuple[Any, tuple[int, int], dict[str, Any]]] = [
    (fastrnn.LSTM, (64, 64), {}),
    (fastrnn.GRU, (64, 64), {}),
    (nn.RNN, (9, 33), {}),
    (nn.RNN, (8, 16), {"nonlinearity": "relu"}),
    (nn.LSTM, (5, 7), {"num_layers": 3}),
    (nn.GRU, (1, 1), {"num_layers": 2}),
    (nn.LSTM, (12, 40), {"proj_size": 17, "num_layers": 2}),
    (fastrnn.GRU, (17, 130), {"bias": False}),
    (nn.LSTM, (3, 21), {"batch_first": True}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("build, sizes, options", FORMS)
def test_a_stream_is_its_module_on_the_whole_sequence_bit_for_bit(
    build: Any, sizes: tuple[int, int], options: dict[str, Any], batch: int, dtype: torch.dtype
):
    module = made(build, *sizes, **options).to(dtype)
    ours = fastrnn.convert(copy.deepcopy(module))
    ours.batch_first = False
    x = inputs(module, batch, dtype)
    handle = fastrnn.stream(module, batch)
    with torch.no_grad():
        y, last = ours(x)
    found = streamed(handle, x)
    assert found.dtype is dtype and torch.equal(found, y)
    for state, expected in zip(handle.state, last, strict=True) if isinstance(last, tuple) else [(handle.state, last)]:
        assert torch.equal(state.to(dtype), expected)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, of oneDNN
@pytest.mark.parametrize("build, sizes, options", FORMS)
def test_a_stream_is_near_float64(build: Any, sizes: tuple[int, int], options: dict[str, Any]):
    module = made(build, *sizes, **options)
    exact = copy.deepcopy(module).double()
    exact.batch_first = False
    x = inputs(module, 2)
    with torch.no_grad():
        y = exact(x.double())[0]
        module.batch_first = False
        theirs = module(x)[0]
    ours = (streamed(fastrnn.stream(module, 2), x) - y).abs().max()
    assert ours <= 4 * (theirs - y).abs().max() + 1e-6  # no worse than torch.nn's rounding by more than its spread


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("build, options", [(nn.LSTM, {}), (nn.GRU, {"num_layers": 2}), (nn.LSTM, {"proj_size": 9})])
@pytest.mark.parametrize("float_input", [False, True])
def test_weights_of_8_bits_give_the_modules_own_numbers(
    build: Any, options: dict[str, Any], batch: int, float_input: bool
):
    narrow = fastrnn.quantize_dynamic(made(build, 21, 40, **options), float_input=float_input)
    x = inputs(narrow, batch)
    with torch.no_grad():
        y = narrow(x)[0]
    assert torch.equal(streamed(fastrnn.stream(narrow, batch), x), y)


@pytest.mark.parametrize("build", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, fastrnn.LSTMCell])
def test_cells(build: Any):
    cell = made(build, 16, 24)
    handle, state, x = fastrnn.stream(cell, 2), None, inputs(cell, 2)
    with torch.no_grad():
        for step in x:
            state = cell(step, state)
            h = state[0] if isinstance(state, tuple) else state
            torch.testing.assert_close(handle.step(step), h, rtol=1e-5, atol=1e-5)
    own = handle.state
    assert type(own) is type(state)
    other = fastrnn.stream(cell, 2)
    other.state = own
    for ours, theirs in zip(own, state, strict=True) if isinstance(own, tuple) else [(own, state)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(other.step(x[0]), handle.step(x[0]))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_an_embedding_and_a_linear_layer(batch: int, dtype: torch.dtype):
    model = made(Letters).to(dtype)
    tokens = torch.randint(30, (STEPS, batch), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y, _ = model(tokens)
    found = streamed(fastrnn.stream(model, batch), tokens)
    small = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found, y, rtol=small, atol=small)
    chain = nn.Sequential(model.embedding, model.lstm, model.out)
    handle = fastrnn.stream(chain, batch)
    assert torch.equal(streamed(handle, tokens.int()), found)
    if batch == 1:
        handle.reset()
        assert torch.equal(torch.stack([handle.step(int(token)).clone() for token in tokens]), found[:, 0])


def test_modules_of_several_kinds_one_upon_the_other():
    torch.manual_seed(0)
    parts = nn.GRU(5, 8), nn.LSTM(8, 13, num_layers=2), fastrnn.RNN(13, 6)
    handle, x = fastrnn.stream(nn.Sequential(*parts, nn.Identity()), 2), torch.randn(STEPS, 2, 5)
    found, y = streamed(handle, x), x
    with torch.no_grad():
        for part in parts:
            y, _ = part(y)
    torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5)
    state = handle.state
    assert [type(each) for each in state] == [Tensor, tuple, Tensor] and state[1][1].shape == (2, 2, 13)
    again = fastrnn.stream(nn.Sequential(*parts), 2)
    again.state = state
    assert torch.equal(again.step(x[0]), handle.step(x[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_that_is_set_goes_on_bit_for_bit(dtype: torch.dtype):
    module = made(nn.LSTM, 9, 15, num_layers=2).to(dtype)
    x = inputs(module, 3, dtype)
    handle, other = fastrnn.stream(module, 3), fastrnn.stream(module, 3)
    streamed(handle, x[:5])
    h, c = handle.state
    assert h.dtype is dtype and c.dtype is torch.float32 and h.shape == c.shape == (2, 3, 15)
    other.state = h, c
    assert torch.equal(streamed(other, x[5:]), streamed(handle, x[5:]))
    other.state = None
    handle.reset()
    assert torch.equal(other.step(x[0]), handle.step(x[0]))


def test_rows_are_reset_apart():
    module = made(nn.LSTM, 4, 6)
    x = inputs(module, 4)
    handle = fastrnn.stream(module, 4)
    first = handle.step(x[0]).clone()
    for rows in (2, [0, 3], torch.tensor([False, True, False, False]), torch.tensor([1, 2])):
        handle.state = None
        handle.step(x[1])
        before = handle.state
        handle.reset(rows)
        chosen = torch.zeros(4, dtype=torch.bool)
        chosen[rows] = True
        for state, old in zip(handle.state, before, strict=True):
            assert not state[:, chosen].any() and torch.equal(state[:, ~chosen], old[:, ~chosen])
        assert torch.equal(handle.step(x[0])[chosen], first[chosen])
    handle.reset([])
    with pytest.raises(IndexError, match="expected 0 to 3, got 4"):
        handle.reset(4)
    with pytest.raises(ValueError, match=r"expected a mask of shape \(4,\)"):
        handle.reset(torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="expected integers or bool"):
        handle.reset(torch.ones(2))


def test_a_learned_initial_state_is_what_rows_begin_with():
    module = made(fastrnn.LSTM, 4, 6, num_layers=2, learn_initial_state=True)
    nn.init.normal_(module.initial_h), nn.init.normal_(module.initial_c)
    x = inputs(module, 2)
    handle = fastrnn.stream(module, 2)
    with torch.no_grad():
        y = module(x)[0]
    assert torch.equal(streamed(handle, x), y)
    handle.reset(1)
    assert torch.equal(handle.state[0][:, 1], module.initial_h) and torch.equal(handle.state[1][:, 1], module.initial_c)
    handle.reset()
    assert torch.equal(streamed(handle, x), y)


@pytest.mark.parametrize("change", ["in place", "data", "load_state_dict", "another parameter"])
@pytest.mark.parametrize("narrow", [False, True])
def test_changed_weights_are_taken_over_when_asked(change: str, narrow: bool):
    if narrow and change == "another parameter":
        pytest.skip("they are buffers")
    module = made(nn.GRU, 8, 12)
    other = made(nn.GRU, 8, 12)
    with torch.no_grad():
        other.weight_hh_l0[3, 5] += 0.5
    module, other = map(fastrnn.quantize_dynamic, (module, other)) if narrow else (module, other)
    x = inputs(module, 1)
    handle, right = fastrnn.stream(module), fastrnn.stream(other)
    old = streamed(handle, x)
    state = handle.state
    assert not handle.stale and not handle.update()
    with torch.no_grad():
        if change == "in place":
            module.weight_hh_l0.copy_(other.weight_hh_l0)
            if narrow:
                module.scale_hh_l0.copy_(other.scale_hh_l0)
        elif change == "data":
            module.weight_hh_l0.data = other.weight_hh_l0.data
            if narrow:
                module.scale_hh_l0.data = other.scale_hh_l0.data
        elif change == "load_state_dict":
            module.load_state_dict(other.state_dict())
        else:
            module.weight_hh_l0 = nn.Parameter(other.weight_hh_l0.clone())
    assert handle.stale
    with pytest.raises(RuntimeError, match=r"call update\(\) first"):
        handle.save("/dev/null")
    handle.reset()
    assert torch.equal(streamed(handle, x), old)  # nobody has asked
    assert handle.update() and not handle.stale and not handle.update()
    assert torch.equal(handle.state, state)
    handle.reset()
    expected = streamed(right, x)
    assert torch.equal(streamed(handle, x), expected) and not torch.equal(expected, old)


def test_an_update_that_cannot_be_leaves_all_as_it_was():
    module = made(nn.LSTM, 4, 4)
    handle, x = fastrnn.stream(module), torch.randn(4)
    before = handle.step(x).clone()
    module.bfloat16()
    with pytest.raises(ValueError, match="expected weights of torch.float32"):
        handle.update()
    module.double()
    with pytest.raises(ValueError, match="got torch.float64"):
        handle.update()
    handle.reset()
    assert torch.equal(handle.step(x), before)


def test_the_result_is_the_handles_own_and_has_no_gradient():
    module = made(nn.LSTM, 3, 5)
    handle = fastrnn.stream(module)
    x = torch.randn(1, 3, requires_grad=True)
    y = handle.step(x)
    kept = y.clone()
    assert y.shape == (1, 5) and not y.requires_grad and y.grad_fn is None
    assert handle.step(x) is y and not torch.equal(kept, y)
    flat = handle.step(x[0])
    assert flat.shape == (5,) and flat.data_ptr() == y.data_ptr()
    y.zero_()  # the state is not in there
    later = fastrnn.stream(module)
    for _ in range(3):
        later.step(x)
    assert torch.equal(handle.step(x), later.step(x))
    y.unsqueeze_(0)
    with pytest.raises(RuntimeError, match="changed in place"):
        handle.step(x)
    del handle
    assert y.sum().isfinite()  # the memory is the tensor's


def in_threads(module: Any, x: Tensor) -> None:
    """Each thread with a handle, at once; and one handle in two threads is an error, if they meet."""
    expected = streamed(fastrnn.stream(module), x)
    wrong: list[Any] = []

    def run() -> None:
        handle = fastrnn.stream(module)
        for _ in range(5):
            handle.reset()
            if not torch.equal(streamed(handle, x), expected):
                wrong.append("numbers")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("hidden", [32, 400])  # the larger lets other Python threads run meanwhile
def test_handles_of_their_own_in_two_threads(hidden: int):
    module = made(nn.LSTM, 16, hidden)
    in_threads(module, inputs(module, 1))


def test_one_handle_in_two_threads_is_an_error_where_they_meet():
    """The step of a large model lets other Python threads run; what they find is a handle in use."""
    handle = fastrnn.stream(made(nn.LSTM, 64, 700))
    x, stop = torch.randn(1, 64), threading.Event()
    others: list[str] = []

    def run() -> None:
        while not stop.is_set():
            try:
                handle.step(x)
            except RuntimeError as error:
                others.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(20000):
            try:
                handle.step(x)
            except RuntimeError as error:
                others.append(str(error))
            if others:
                break
    finally:
        stop.set()
        thread.join()
    assert others and "expected one thread at a time" in others[0]


def test_steps_take_no_memory_of_python():
    module = made(nn.LSTM, 16, 16)
    handle, x = fastrnn.stream(module), torch.randn(1, 16)
    handle.step(x)
    step, loop = handle.step, range(20000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in loop:
            step(x)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 512 and peak - before < 1024  # what the loop's own counter takes
