"""Streams that are given what they cannot take: what is wrong is named, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from streams import STEPS, Letters, inputs, made, streamed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)


def test_inputs_out_of_the_ordinary():
    module = made(nn.GRU, 6, 5)
    x = inputs(module, 2)
    expected = streamed(fastrnn.stream(module, 2), x)
    wide = torch.empty(STEPS, 2, 12)
    wide[..., ::2] = x
    for other in (nn.Parameter(x), wide[..., ::2], x.mT.contiguous().mT, torch._neg_view(-x)):
        handle = fastrnn.stream(module, 2)
        assert torch.equal(torch.stack([handle.step(step).clone() for step in other]), expected)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(2, 5), RuntimeError, "Expected 4, got 5"),
    (torch.zeros(3, 4), RuntimeError, "batch size 2, got 3"),
    (torch.zeros(4), ValueError, "2D, one step, got 1D"),
    (torch.zeros(1, 2, 4), ValueError, "2D, one step, got 3D"),
    (torch.zeros(2, 4).double(), ValueError, "Expected input to be torch.float32 on the CPU, got torch.float64"),
    (torch.zeros(2, 4, dtype=torch.int64), ValueError, "got torch.int64"),
    (torch.zeros(2, 4, device="meta"), ValueError, "on meta"),
    ([[0.0] * 4] * 2, TypeError, "Expected input to be a Tensor, got list"),
    (7, TypeError, "got int"),
    (None, TypeError, "got NoneType"),
]


@pytest.mark.parametrize("x, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_wrong_inputs_are_named_and_change_nothing(x: Any, error: type[Exception], message: str):
    module = made(nn.LSTM, 4, 6)
    handle = fastrnn.stream(module, 2)
    handle.step(torch.ones(2, 4))
    before = handle.state
    with pytest.raises(error, match=message):
        handle.step(x)
    assert all(torch.equal(a, b) for a, b in zip(before, handle.state, strict=True))


def tracing(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    return torch.jit.trace(lambda x: function(x), (x,), check_trace=False)


def under_fake_tensors(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    with FakeTensorMode():
        return function(torch.zeros(1, 4))


WATCHED: dict[str, Callable[..., Any]] = {
    "vmap": lambda f, x: torch.vmap(f)(torch.stack([x, x])),
    "grad": lambda f, x: torch.func.grad(lambda each: f(each).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "trace": tracing,
    "fake tensors": under_fake_tensors,
}


@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_who_wants_to_see_operators_is_told_that_there_are_none(name: str):
    handle = fastrnn.stream(made(nn.GRU, 4, 3))
    with pytest.raises(RuntimeError, match="no operator that a trace"):
        WATCHED[name](handle.step, torch.zeros(1, 4))
    assert not handle.state.any()


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_torch_compile_breaks_its_graph_around_a_step():
    handle, x = fastrnn.stream(made(nn.GRU, 4, 3)), torch.ones(1, 4)
    compiled = torch.compile(lambda x: handle.step(x) + 1, backend="eager")
    assert torch.equal(compiled(x), fastrnn.stream(made(nn.GRU, 4, 3)).step(x) + 1)


class Subclass(torch.Tensor):
    pass


def test_tensors_of_other_kinds():
    handle, x = fastrnn.stream(made(nn.GRU, 4, 3)), torch.ones(1, 4)
    expected = handle.step(x).clone()
    handle.reset()
    assert torch.equal(handle.step(x.as_subclass(Subclass)), expected)
    with FakeTensorMode():
        fake = torch.zeros(1, 4)
    for other in (fake, x.to_sparse(), x.to_mkldnn()):
        with pytest.raises((TypeError, RuntimeError), match="Expected input to be a dense Tensor|no operator"):
            handle.step(other)


@pytest.mark.parametrize("left", [0, 8])  # bytes
def test_freed_memory_is_an_error(left: int):
    handle = fastrnn.stream(made(nn.LSTM, 4, 6))
    x = torch.zeros(1, 4)
    x.untyped_storage().resize_(left)
    with pytest.raises(RuntimeError):
        handle.step(x)


@pytest.mark.parametrize("token", [-1, 30, torch.tensor([30]), torch.tensor(-1), 1 << 70])
def test_tokens_out_of_range(token: Any):
    handle = fastrnn.stream(made(Letters))
    with pytest.raises(IndexError, match="expected tokens from 0 to 29"):
        handle.step(token)


def test_wrong_states_are_named():
    handle = fastrnn.stream(made(nn.LSTM, 4, 6), 2)
    zeros = torch.zeros(1, 2, 6)
    for state, error, message in (
        (zeros, TypeError, r"expected a tuple \(h, c\) for LSTM, got Tensor"),
        ((zeros,), TypeError, "expected a tuple"),
        ((zeros, zeros[0]), RuntimeError, r"expected a shape of \(1, 2, 6\), got \(2, 6\)"),
        ((zeros, zeros.double()), RuntimeError, "got torch.float64"),
        ((zeros, 3), TypeError, "expected tensors, got int"),
    ):
        with pytest.raises(error, match=message):
            handle.state = state


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rnn(x)[0]


class Last(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][-1]


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0] if x.sum() > 0 else x


class Twice(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y, h = self.rnn(x)
        return h, y


class States(Residual):
    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        return h, h


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.GRU(4, 4)

    def forward(self, x: Tensor, lengths: Any = None) -> Tensor:
        return self.rnn(x, lengths=lengths)[0]


class Own(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(2 * input, hx)


def hooked() -> nn.Module:
    module = nn.GRU(4, 4)
    module.register_forward_pre_hook(lambda module, args: None)
    return module


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.LSTM(4, 4, bidirectional=True), "bidirectional: its second direction begins at the end"),
    (Residual, "Residual.forward has .*add.*expected an embedding, then recurrent layers"),
    (Last, "Last.forward has"),
    (Branching, "Branching.forward cannot be recorded"),
    (Twice, "Twice.forward has"),
    (States, "States.forward has"),
    (Padded, "Padded.forward has .*rnn"),
    (lambda: Own(4, 4), "a forward of its own class"),
    (hooked, "GRU has a hook"),
    (lambda: nn.Linear(4, 4), "no recurrent layer"),
    (lambda: nn.Sequential(nn.GRU(4, 4), nn.ReLU(), nn.Linear(4, 4)), "1, ReLU, stands between"),
    (lambda: nn.Sequential(nn.GRU(4, 5), nn.Linear(4, 4)), "takes 4 numbers, and 5 come to it"),
    (lambda: nn.Sequential(nn.GRU(4, 4), nn.Dropout(0.5)).train(), r"Dropout, drops in training: call eval\(\)"),
    (lambda: nn.LSTM(4, 4, 2, dropout=0.5).train(), r"dropout and is in training: call eval\(\)"),
    (lambda: nn.LSTM(4, 4).double(), "got torch.float64: convert the model first"),
    (lambda: nn.LSTM(4, 4, device="meta"), "got torch.float32 on meta"),
    (lambda: nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4).bfloat16()), "expected a weight of torch.float32"),
    (lambda: fastrnn.LSTM(4, 4, return_cell_states=True), "return_cell_states on"),
    (lambda: fastrnn.JordanRNN(4, 4, 4), "JordanRNN is no RNN, LSTM or GRU"),
    (lambda: fastrnn.Network(fastrnn.cells.LSTM, 4, 4), "Network stands"),
    (lambda: nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.GRU(4, 4)), "max_norm"),
]


@pytest.mark.parametrize("build, message", REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_no_chain_is_refused_by_name(build: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        fastrnn.stream(build())


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got int"):
        fastrnn.stream(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected an int, got float"):
        fastrnn.stream(nn.GRU(2, 2), 1.0)  # type: ignore[arg-type]
    for batch in (0, 1 << 21):
        with pytest.raises(ValueError, match="batch: expected 1 to"):
            fastrnn.stream(nn.GRU(2, 2), batch)
    with fastrnn.use_backend("reference"), pytest.raises(fastrnn.BackendError, match="has no streams"):
        fastrnn.stream(nn.GRU(2, 2))
