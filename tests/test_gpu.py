"""What only a GPU shows: the barrier between programs under stress, every path on the machine, streams, CUDA graphs.

The correctness suite itself runs on the GPU too: ``pytest -m gpu`` selects both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as Folder

import pytest
import torch
from support import Case, Inputs, expect, make, run, verify

import fastrnn
from fastrnn import choices
from fastrnn.backends import triton as backend
from fastrnn.backends import triton_launch
from fastrnn.backends.triton_paths import Chip, Path, choose_path

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)

SHAPES = [
    Case("tile: weights in one program's registers", hidden=64, rows=20, steps=30),
    Case("tile, the largest", hidden=128, rows=33, steps=30, directions=2, dtype=torch.bfloat16),
    Case("spread: few programs", hidden=256, rows=16, steps=30, dtype=torch.bfloat16),
    Case("spread: several groups, both directions", hidden=320, rows=40, steps=30, directions=2, dtype=torch.float16),
    Case("spread: nearly all multiprocessors", hidden=1000, rows=64, steps=20, dtype=torch.bfloat16),
    Case("spread in float32", hidden=512, rows=16, steps=20),
    Case("spread, packed", hidden=512, lengths=tuple(range(40, 4, -2)), directions=2, dtype=torch.bfloat16),
    Case("stream: weights fit no chip", hidden=1600, rows=16, steps=10, dtype=torch.bfloat16),
    Case("stream, a launch a step", hidden=2100, rows=600, steps=4, dtype=torch.bfloat16),
    Case("spread, rows in launches of their own", hidden=1024, rows=200, steps=20, dtype=torch.bfloat16),
]
IDS = [case.isolates for case in SHAPES]


def on_gpu(inputs: Inputs) -> Inputs:
    return inputs.map(lambda tensor: tensor.to(CUDA))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("case", SHAPES, ids=IDS)
def test_values_at_sizes_of_models(case: Case, mode: str):
    expected = expect(replace(case, mode=mode))
    found = run(backend, on_gpu(expected.inputs))
    verify(found, expected)
    assert same(found, run(backend, on_gpu(expected.inputs))), "two runs differ"


@pytest.mark.parametrize("rows", [16, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_step_with_a_projection(dtype: torch.dtype, rows: int):
    case = Case("", steps=1, rows=rows, inputs=200, hidden=1000, proj_size=260, directions=2, dtype=dtype)
    expected = expect(case)
    verify(run(backend, on_gpu(expected.inputs)), expected)


def test_tf32_is_used_where_torch_allows_it_for_rnns_and_nowhere_else(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def spy(chip: Chip, mode: str, sequences: int, hidden: int, directions: int, dtype: torch.dtype, precision: str):
        seen.append(precision)
        return choose_path(chip, mode, sequences, hidden, directions, dtype, precision)

    monkeypatch.setattr(triton_launch, "choose_path", spy)
    inputs = on_gpu(make(Case("")))
    for allowed in (True, False):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            backend.forward(*inputs[:6], save=False)
    assert seen == ["tf32", "ieee"]


def barrier_inputs(programs: str) -> Inputs:
    """A forward whose programs fill the chip, or a few of its multiprocessors, for a few steps."""
    multiprocessors = torch.cuda.get_device_properties(CUDA).multi_processor_count
    hidden, rows = (256, 16 * (multiprocessors // 16)) if programs == "full" else (256, 16)
    case = Case("", "LSTM", steps=6, rows=rows, inputs=16, hidden=hidden, dtype=torch.bfloat16)
    path = choose_path(Chip.of(CUDA), "LSTM", rows, hidden, 1, torch.bfloat16, "ieee")
    assert path.has_barrier
    assert path.name == "spread"
    return on_gpu(make(case))


@pytest.mark.parametrize("programs", ["few", "full"])
def test_ten_thousand_launches_of_the_barrier_give_the_same_bits(programs: str):
    """With other work on two streams that takes multiprocessors away and gives them back."""
    inputs = barrier_inputs(programs)
    first = backend.forward(*inputs[:6], save=False).y
    wrong = torch.zeros((), dtype=torch.int64, device=CUDA)
    others = [torch.cuda.Stream(), torch.cuda.Stream()]
    noise = torch.randn(1024, 1024, device=CUDA)
    for launch in range(10_000):
        if launch % 50 == 0:
            for stream in others:
                with torch.cuda.stream(stream):
                    torch.mm(noise, noise)
        wrong += (backend.forward(*inputs[:6], save=False).y != first).sum()
    torch.cuda.synchronize()
    assert int(wrong) == 0


def test_two_streams_run_the_barrier_side_by_side():
    inputs = barrier_inputs("few")
    first = run(backend, inputs)
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(4)], []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(run(backend, inputs))
    torch.cuda.synchronize()
    assert all(same(first, other) for other in found)


@pytest.mark.parametrize("name", ["tile", "spread", "stream"])
def test_a_long_sequence(monkeypatch: pytest.MonkeyPatch, name: str):
    """T beyond 65,535, where cuDNN fails."""
    paths = {"tile": Path("tile", 16, 32, 32, 4, 1, whole=True), "spread": Path("spread", 16, 16, 16, 8, 1, whole=True)}
    paths["stream"] = Path("stream", 16, 16, 16, 4, 1, whole=True)
    monkeypatch.setattr(triton_launch, "choose_path", lambda *shape: paths[name])
    inputs = on_gpu(make(Case("", "GRU", steps=70_000, rows=2, inputs=4, hidden=32)))
    y, hn, _, _ = backend.forward(*inputs[:6], save=False)
    tail = inputs.x[-200:]  # a GRU forgets where it began
    end = backend.forward(inputs.mode, tail, None, torch.zeros_like(inputs.h0), None, inputs.weights, save=False)
    torch.testing.assert_close(end.hn, hn, rtol=0, atol=1e-4)
    assert torch.equal(y[-1], hn[0])


@pytest.mark.parametrize("case", [SHAPES[2], SHAPES[6], SHAPES[-1]], ids=["one launch", "packed", "rows apart"])
def test_a_cuda_graph_replays_a_forward(case: Case):
    inputs = on_gpu(make(case))
    expected = backend.forward(*inputs[:6], save=False).y
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        backend.forward(*inputs[:6], save=False)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = backend.forward(*inputs[:6], save=False).y
    for _ in range(3):
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, expected)


def one_hot(inputs: Inputs) -> Inputs:
    return inputs._replace(x=torch.nn.functional.one_hot(inputs.x.argmax(-1), inputs.x.shape[-1]).to(inputs.x.dtype))


def test_tokens_are_gathered_and_their_gradients_summed_the_same_way_each_time():
    torch.use_deterministic_algorithms(False)
    expected = expect(Case("", hidden=64, rows=20, steps=200, inputs=50), one_hot)
    inputs = on_gpu(expected.inputs)
    inputs = inputs._replace(x=inputs.x.argmax(-1))
    found = run(backend, inputs)
    verify(found, expected._replace(exact={name: t for name, t in expected.exact.items() if name != "grad x"}))
    assert all(same(found, run(backend, inputs)) for _ in range(20))


@pytest.fixture
def no_choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Folder) -> Iterator[None]:
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    choices.table.cache_clear()
    yield
    choices.table.cache_clear()


def test_cudnn_runs_what_was_not_measured_and_ours_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, no_choices: None):
    calls: list[str] = []
    forward = backend.forward
    monkeypatch.setattr(backend, "forward", lambda *values: calls.append("triton") or forward(*values))
    module, x = fastrnn.GRU(5, 7, device=CUDA), torch.randn(6, 3, 5, device=CUDA)
    with torch.no_grad():
        module(x)
        assert calls == []
        with fastrnn.use_backend("triton"):
            module(x)
    assert calls == ["triton"]


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_tuned_is_right_and_stays_chosen(no_choices: None, packed: bool):
    case = fastrnn.TuningCase("LSTM", 64, 64, 16, 50, torch.bfloat16, packed=packed)
    (choice,) = fastrnn.tune([case], device=CUDA)
    assert not choice.refused and choice.winner in choice.milliseconds
    assert fastrnn.tune([case], device=CUDA) == [choice]
    choices.table.cache_clear()
    assert choices.table(CUDA).all() == [choice]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_what_cudnn_runs_is_differentiable_twice(no_choices: None, name: str):
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        module, x = getattr(fastrnn, name)(4, 5, num_layers=2), torch.randn(6, 3, 4)
        module, x = module.to(device), x.to(device).requires_grad_()
        (grad,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        results.append([t.cpu() for t in torch.autograd.grad(grad.square().sum(), [x, *module.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_tensors_own_device():
    inputs = make(SHAPES[0])
    found = [run(backend, inputs.map(lambda tensor: tensor.to(f"cuda:{i}"))) for i in range(2)]  # noqa: B023
    assert all(torch.equal(found[0][name].cpu(), found[1][name].cpu()) for name in found[0])
