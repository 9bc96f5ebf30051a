"""Which path runs on a GPU, without one: torch's function unless a measurement says otherwise, by a clock and paths
that these tests supply; and torch's function differentiated twice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import backends, by_torch, cell_modules, choices, fastest, modules, paths, trials, tuning, walk
from fastrnn.backends import reference
from fastrnn.choices import TORCH, Choice, Kind

CPU = torch.device("cpu")
KIND = Kind("LSTM", "float32", False, 1, 1, False, 8, 8, 4, 16, True)


pytestmark = pytest.mark.usefixtures("own_folder")


class Gpu:
    """A CPU that says it is a GPU with cuDNN: the backend of Triton is the equations, under as many names as paths, and
    a clock gives each the milliseconds that a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.milliseconds = {TORCH: 2.0, "triton_tile": 1.0, "triton_stream": 3.0}
        self.measured = 0
        self.wrong: Callable[[Tensor], Tensor] = lambda y: y
        load = backends.load

        def fake(name: str) -> Any:
            if not name.startswith("triton"):
                return load(name)
            forward = functools.partial(self.forward, name)
            own = SimpleNamespace(paths=lambda *shape: ["tile", "stream"], precision_of=lambda tensor: "ieee")
            return SimpleNamespace(forward=forward, backward=reference.backward, **vars(own))

        for module in (backends, fastest, paths, fastrnn.ops, fastrnn.schemas):
            monkeypatch.setattr(module, "load", fake)
        monkeypatch.setattr(paths, "choose", lambda *layer: backends.requested() or "triton")
        monkeypatch.setattr(walk, "choose", lambda *layer: "reference")
        monkeypatch.setattr(paths, "rivalled", lambda h0, steps: True)
        monkeypatch.setattr(trials, "measure", functools.partial(trials.measure, clock=self.clock))
        monkeypatch.setattr(by_torch, "call", self.spy(by_torch.call))
        for module in (modules, cell_modules):  # of a CPU
            monkeypatch.setattr(module, "fast_path", lambda *call: None)

    def forward(self, name: str, *layer: Any, **named: Any) -> Any:
        self.ran.append(name)
        found = reference.forward(*layer, **named)
        return found._replace(y=self.wrong(found.y)) if name == "triton_tile" else found

    def spy(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*network: Any) -> Any:
            self.ran.append(TORCH)
            return function(*network)

        return call

    def clock(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        self.measured += 1
        found = []
        for call in calls:
            self.ran.clear()
            call()
            found.append(self.milliseconds[self.ran[0]])
        return found

    def runs(self, module: Any, *inputs: Any, **options: Any) -> str:
        """What runs a call."""
        self.ran.clear()
        module(*inputs, **options)
        return self.ran[0] if self.ran else "torch.nn"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_table_means_torch_and_a_name_means_ours(gpu: Gpu, name: str, training: bool):
    module, x = getattr(fastrnn, name)(5, 8, num_layers=2, bidirectional=True), torch.randn(6, 3, 5)
    with torch.set_grad_enabled(training):
        assert gpu.runs(module, x) == TORCH
        assert gpu.runs(module, pack_padded_sequence(x, torch.tensor([6, 4, 1]))) == TORCH
        torch.testing.assert_close(module(x)[0], getattr(nn, name).forward(module, x)[0])
        with fastrnn.use_backend("reference"):
            assert gpu.runs(module, x) != TORCH
    assert gpu.measured == 0


def test_ours_runs_where_torch_has_no_fused_function(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    lstm, x = fastrnn.LSTM(5, 8), torch.randn(6, 3, 5)
    assert gpu.runs(lstm, torch.randint(5, (6, 3))) == "triton"
    assert gpu.runs(lstm, x, return_cell_states=True) == "triton"
    lstm.recompute = True
    assert gpu.runs(lstm, x) == "triton"
    lstm.recompute = False
    assert gpu.runs(lstm, x) == TORCH
    monkeypatch.setattr(paths, "rivalled", lambda h0, steps: False)  # T too large for cuDNN, or cuDNN switched off
    assert gpu.runs(lstm, x) == "triton"


def test_what_rivals_ours(monkeypatch: pytest.MonkeyPatch):
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    assert fastest.rivalled(on_gpu, 65_535) and not fastest.rivalled(on_gpu, 65_536)
    assert not fastest.rivalled(torch.zeros(1), 5)
    with torch.backends.cudnn.flags(enabled=False):
        assert not fastest.rivalled(on_gpu, 5)


def test_cells_are_torchs(gpu: Gpu):
    cell, x = fastrnn.LSTMCell(5, 8), torch.randn(3, 5)
    assert gpu.runs(cell, x) == "torch.nn"


@pytest.mark.parametrize("training", [True, False])
def test_the_winner_of_the_first_call_runs_the_others(gpu: Gpu, training: bool):
    module, x = fastrnn.GRU(5, 8, num_layers=2), torch.randn(6, 3, 5)
    with torch.set_grad_enabled(training):
        with fastrnn.use_tuning():
            module(x)
            assert gpu.measured == 1
            assert gpu.runs(module, x) == "triton_tile"
            assert gpu.runs(module, torch.randn(8, 4, 5)) == "triton_tile"  # T and B of the same buckets
            assert gpu.measured == 1
            gpu.runs(module, torch.randn(9, 4, 5))
            assert gpu.measured == 2
        assert gpu.runs(module, x) == "triton_tile"  # what is known holds where nothing is measured, too
        assert gpu.runs(module, torch.randn(20, 4, 5)) == TORCH
    with torch.set_grad_enabled(not training):
        assert gpu.runs(module, x) == TORCH  # another kind
    assert gpu.measured == 2


def test_torch_stays_where_ours_is_faster_by_less_than_noise(gpu: Gpu):
    gpu.milliseconds = {TORCH: 1.0, "triton_tile": 0.98, "triton_stream": 5.0}
    module, x = fastrnn.GRU(5, 8), torch.randn(6, 3, 5)
    with fastrnn.use_tuning():
        module(x)
        assert gpu.runs(module, x) == TORCH


@pytest.mark.parametrize("how", ["off", "NaN", "raises"])
def test_a_path_that_is_wrong_is_refused_and_reported(gpu: Gpu, how: str):
    def raises(y: Tensor) -> Tensor:
        raise RuntimeError("out of resource: registers")

    gpu.wrong = {"off": lambda y: y + 1e-4, "NaN": lambda y: y * float("nan"), "raises": raises}[how]
    module, x = fastrnn.LSTM(5, 8), torch.randn(6, 3, 5)
    with fastrnn.use_tuning(), pytest.warns(RuntimeWarning, match="does not use triton_tile"):
        module(x)
    (choice,) = choices.table(CPU).all()
    assert choice.winner == TORCH and set(choice.milliseconds) == {TORCH, "triton_stream"}
    assert set(choice.refused) == {"triton_tile"}
    assert ("registers" if how == "raises" else "is off by") in choice.refused["triton_tile"]
    text = "\n".join(choices.report(choices.table(CPU)))
    assert "refused triton_tile" in text and "LSTM float32 H8 B<=4 T<=8" in text and "training: torch" in text


def test_an_error_of_one_gradient_is_seen():
    """The gate compares every result, each by its own size."""
    truth = [torch.randn(4, 4, dtype=torch.float64) for _ in range(3)]
    base = [t.float() for t in truth]
    assert trials.fault(base, base, truth, 1e-7) is None
    off = [*base[:2], base[2] + 1e-5]
    assert "result 2 of 3 is off by" in str(trials.fault(off, base, truth, 1e-7))


def test_without_memory_for_the_comparison_nothing_is_kept(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    def full(*network: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trials, "once", full)
    module, x = fastrnn.LSTM(5, 8), torch.randn(6, 3, 5)
    with fastrnn.use_tuning():
        assert gpu.runs(module, x) == TORCH
    assert choices.table(CPU).all() == []


def test_measuring_leaves_gradients_random_numbers_and_memory_of_the_user_alone(gpu: Gpu):
    module, x = fastrnn.LSTM(5, 8), torch.randn(6, 3, 5, requires_grad=True)
    before, state = [p.clone() for p in module.parameters()], torch.get_rng_state()
    with fastrnn.use_tuning():
        module(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None and all(p.grad is None for p in module.parameters())
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_nothing_is_measured_while_a_graph_is_captured(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with fastrnn.use_tuning():
        assert gpu.runs(fastrnn.LSTM(5, 8), torch.randn(6, 3, 5)) == TORCH
    assert gpu.measured == 0


def test_a_path_that_serves_some_sizes_of_a_kind_runs_those_alone(gpu: Gpu):
    module, x = fastrnn.LSTM(5, 8), torch.randn(6, 3, 5)
    kind = KIND._replace(steps=8)
    choices.table(CPU).get(kind, lambda: Choice(kind, "triton_spread", {TORCH: 2.0, "triton_spread": 1.0}, {}))
    assert gpu.runs(module, x) == TORCH  # here paths are tile and stream
    found = choices.table(CPU).get(kind)
    assert found is not None and found.winner == "triton_spread"


def test_tune_takes_a_model_or_cases(gpu: Gpu):
    model = nn.Sequential(fastrnn.LSTM(5, 8))
    assert {c.kind.training for c in fastrnn.tune(model, torch.randn(6, 3, 5), device="cpu")} == {True, False}
    cases = [
        tuning.TuningCase("GRU", 5, 8, 3, 6, packed=True),
        tuning.TuningCase("LSTM", 5, 8, 3, 6, bidirectional=True, dtype=torch.float64, training=False),
    ]
    found = {choice.kind[:8] for choice in fastrnn.tune(cases, device="cpu")}
    assert ("GRU", "float32", False, 1, 1, True, 8, 8) in found
    assert ("LSTM", "float64", False, 1, 2, False, 8, 8) in found
    measured = gpu.measured
    fastrnn.tune(cases, device="cpu")
    assert gpu.measured == measured


@pytest.mark.parametrize("given", ["LSTM", 5, tuning.TuningCase("LSTM", 1, 1, 1, 1), [5]])
def test_tune_says_what_it_takes(given: Any):
    with pytest.raises(TypeError, match="expected a .*TuningCase, got"):
        fastrnn.tune(given, device="cpu")
    with pytest.raises(ValueError, match="expected a cell of RNN, LSTM, GRU, got 'SRU'"):
        fastrnn.tune([tuning.TuningCase("SRU", 1, 1, 1, 1)], device="cpu")


MODES = ["RNN", "LSTM", "GRU"]


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("packed", [False, True])
def test_torchs_function_is_differentiable_twice(gpu: Gpu, name: str, packed: bool):
    """First derivatives are torch's own, second ones those of torch.nn on the CPU, which has them."""
    options: dict[str, Any] = dict(num_layers=2, bidirectional=True, dtype=torch.float64)
    theirs, ours = (getattr(package, name)(4, 5, **options) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    results = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        given: Any = pack_padded_sequence(leaf, torch.tensor([5, 3, 2])) if packed else leaf
        gpu.ran.clear()
        y, _ = module(given)
        assert (TORCH in gpu.ran) == (module is ours)
        loss = (y.data if packed else y).square().sum()
        leaves = [leaf, *module.parameters()]
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        again = torch.autograd.grad(loss, leaves, retain_graph=True)  # the graph was freed: it runs again
        graph = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in graph), leaves, retain_graph=True)
        batched = torch.autograd.grad(
            y.data.sum(0).flatten()[:5] if packed else y.sum((0, 1))[:5], leaf, torch.eye(5, dtype=torch.float64),
            is_grads_batched=True,
        )  # fmt: skip
        results.append([*first, *again, *graph, *second, *batched])
    torch.testing.assert_close(results[1], results[0])


def test_torchs_own_graph_is_freed_by_its_backward(gpu: Gpu):
    module, x = fastrnn.LSTM(4, 5), torch.randn(5, 3, 4, requires_grad=True)
    y, _ = module(x)
    node = y.grad_fn
    while type(node).__name__ != "_TwiceBackward":
        node = node.next_functions[0][0]
    assert node.graph is not None
    y.sum().backward(retain_graph=True)
    assert node.graph is None
    kept = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * kept)


def test_dropout_between_layers_is_torchs(gpu: Gpu):
    module, x = fastrnn.LSTM(4, 5, num_layers=2, dropout=0.5), torch.randn(5, 3, 4)
    torch.manual_seed(3)
    ours = module(x)[0]
    assert TORCH in gpu.ran
    torch.manual_seed(3)
    torch.testing.assert_close(nn.LSTM.forward(module, x)[0], ours)
    ours.sum().backward()
    assert module.weight_hh_l0.grad is not None


def test_under_autocast_torchs_function_takes_all_layers(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    call = by_torch.call
    monkeypatch.setattr(by_torch, "call", lambda *a: seen.append(a[6].num_layers) or call(*a))
    module, x = fastrnn.RNN(4, 5, num_layers=3), torch.randn(5, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = module(x)
    assert y.dtype is torch.bfloat16 and seen == [3]
