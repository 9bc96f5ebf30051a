"""A short run of what ``make fuzz`` does at length, the same at every run; and that it would see what it is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fuzz.bad import BadCall, bad_calls, play_bad
from fuzz.cases import Case
from fuzz.play import play
from fuzz.strategies import cases, of_8_bits
from hypothesis import HealthCheck, given, settings

import fastrnn

SHORT: dict[str, Any] = dict(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


@settings(max_examples=300, **SHORT)
@given(cases())
def test_networks_and_calls(case: Case):
    play(case)


@settings(max_examples=100, **SHORT)
@given(of_8_bits())
def test_weights_of_8_bits(case: Case):
    play(case)


@settings(max_examples=600, **SHORT)
@given(bad_calls())
def test_bad_calls(bad: BadCall):
    play_bad(bad)


FORMS = [
    Case(),
    Case(kind="GRU", form="unsorted", lengths=(1, 3), states="tuple"),
    Case(kind="RNN", layers=2, both=True, lengths=(3, 2), reset=True, learned=True),
    Case(kind="JordanRNN", outputs=2, form="single"),
    Case(outputs=2, cells=True, tokens="embedding", vocabulary=2, steps=5),
    Case(kind="LSTMCell", states="list"),
    Case(kind="GRUCell", dtype="bf16", form="single"),
    Case(kind="GRU", twice=True),
    Case(kind="RNN", path="vmap"),
]


@pytest.mark.parametrize("case", FORMS, ids=lambda case: f"{case.kind}-{case.form}")
def test_a_difference_is_seen(case: Case, monkeypatch: pytest.MonkeyPatch):
    """Of one part in four in the output of our module, of the gradient alone, or of a dtype."""
    play(case)
    kind = getattr(fastrnn, case.kind)
    forward = kind.forward

    def altered(change: Any) -> None:
        def first(result: Any) -> Any:
            return change(result) if isinstance(result, torch.Tensor) else (first(result[0]), *result[1:])

        def wrong(self: Any, *arguments: Any, **options: Any) -> Any:
            result = forward(self, *arguments, **options)
            if isinstance(result, torch.nn.utils.rnn.PackedSequence):
                return result._replace(data=change(result.data))
            y = result[0] if isinstance(result, tuple) else result
            if isinstance(y, torch.nn.utils.rnn.PackedSequence):
                return y._replace(data=change(y.data)), *result[1:]
            return first(result)

        monkeypatch.setattr(kind, "forward", wrong)

    for change in (
        lambda y: y * 1.25,
        lambda y: y.detach() + 1.25 * (y - y.detach()),
        lambda y: y.double(),
    ):
        altered(change)
        with pytest.raises(AssertionError):
            play(case)


def test_a_wrong_derivative_of_the_derivative_is_seen(monkeypatch: pytest.MonkeyPatch):
    class WeightCache(torch.autograd.Function):
        """y, whose gradient forgets where it came from."""

        @staticmethod
        def forward(ctx: Any, y: torch.Tensor) -> torch.Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0].detach()

    case, forward = Case(kind="RNN"), fastrnn.RNN.forward

    def wrong(*arguments: Any) -> Any:
        y, hn = forward(*arguments)
        return WeightCache.apply(y), hn

    monkeypatch.setattr(fastrnn.RNN, "forward", wrong)
    play(case)
    with pytest.raises((AssertionError, RuntimeError)):
        play(replace(case, twice=True))


def test_another_result_of_8_bits_is_seen(monkeypatch: pytest.MonkeyPatch):
    case = Case(kind="GRU", narrow=True, needs="")
    play(case)
    forward = fastrnn.QuantizedGRU.forward
    monkeypatch.setattr(fastrnn.QuantizedGRU, "forward", lambda *given: (forward(*given)[0] * 1.25, forward(*given)[1]))
    with pytest.raises(AssertionError):
        play(case)


def test_an_error_of_another_type_is_seen(monkeypatch: pytest.MonkeyPatch):
    bad = BadCall(Case(states="tuple"), ("x: wider",))
    play_bad(bad)

    def wrong(*arguments: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(fastrnn.LSTM, "forward", wrong)
    with pytest.raises(AssertionError):
        play_bad(bad)
