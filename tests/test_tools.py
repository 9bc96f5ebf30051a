"""torch's own tools: the profiler's entries, and what its counter of operations says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fastrnn
from fastrnn import profiling

X = torch.linspace(-1, 1, 5 * 3 * 8).view(5, 3, 8)


def entries(call) -> list[tuple[str, list[list[int]]]]:
    """Ours, with the shapes of their tensors."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        call()
    names = {f"fastrnn::{name}{end}" for name in profiling.NAMES for end in ("", "_backward")}
    return [(event.name, event.input_shapes) for event in found.events() if event.name in names]


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_profiler_shows_a_network_with_its_shapes(kind: str, layers: int):
    module, name = getattr(fastrnn, kind)(8, 16, layers), f"fastrnn::{kind.lower()}"
    forward = name, [[5, 3, 8], [layers, 3, 16], []]
    with torch.no_grad():
        assert entries(lambda: module(X)) == [forward]
    if layers == 1:
        backward = f"{name}_backward", [[5, 3, 16], [5, 3, 8], []]
        assert entries(lambda: module(X)[0].sum().backward()) == [forward, backward]
    else:
        found = [name for name, _ in entries(lambda: module(X)[0].sum().backward())]
        assert found[0] == name and set(found[1:]) == {f"{name}_backward"}


def test_cells_and_the_jordan_network_are_shown():
    cell = fastrnn.GRUCell(8, 16)
    with fastrnn.use_backend("reference"):  # by default torch trains it
        assert [name for name, _ in entries(lambda: cell(X[0]).sum().backward())] == [
            "fastrnn::gru",
            "fastrnn::gru_backward",
        ]
    with torch.no_grad():
        assert [name for name, _ in entries(lambda: cell(X[0]))] == ["fastrnn::gru"]
    assert entries(lambda: fastrnn.JordanRNN(8, 16, 4)(X))[0][0] == "fastrnn::jordan_rnn"


def test_results_and_gradients_are_those_without_a_profiler():
    module = fastrnn.LSTM(8, 16, 2)
    found = []
    for run in (lambda call: call(), entries):
        module.zero_grad()
        results: list[torch.Tensor] = []

        def call(results: list[torch.Tensor] = results) -> None:
            results.append(module(X)[0])
            results[0].square().sum().backward()

        run(call)
        found.append([results[0], *(parameter.grad for parameter in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_an_error_within_an_entry_comes_through():
    module = fastrnn.LSTM(8, 16)
    with pytest.raises(RuntimeError, match="input"):
        entries(lambda: module(X[..., :3]))
    assert entries(lambda: module(X))


def saved(node, seen: set) -> list[object]:
    """All that the functions of a graph have saved for backward, as torchviz asks for it."""
    if node is None or node in seen:
        return []
    seen.add(node)
    found = list(getattr(node, "saved_tensors", ()))
    return found + [one for following, _ in node.next_functions for one in saved(following, seen)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastrnn.RNN(8, 16)(X),
        lambda: fastrnn.LSTM(8, 16, 2, bidirectional=True)(X),
        lambda: fastrnn.GRU(8, 16, bias=False)(X),
        lambda: fastrnn.LSTM(8, 16, proj_size=4, return_cell_states=True)(X),
        lambda: fastrnn.LSTM(8, 16, recompute=True)(X),
        lambda: fastrnn.GRU(8, 16, learn_initial_state=True)(X, lengths=torch.tensor([5, 2, 3])),
        lambda: fastrnn.LSTM(8, 16)(torch.randint(8, (5, 3)), embedding=nn.Embedding(8, 8)),
        lambda: fastrnn.JordanRNN(8, 16, 4)(X),
        lambda: fastrnn.Network(fastrnn.cells.PeepholeLSTM, 8, 16)(X),
        lambda: fastrnn.convert(nn.GRU(8, 16), compilable=True)(X),
    ],
)
def test_nothing_but_tensors_is_saved_for_backward(call):
    kept = saved(call()[0].grad_fn, set())
    assert kept and all(isinstance(one, torch.Tensor) for one in kept)


def counted(call) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["RNN", "GRU"])  # torch counts its LSTM on a CPU, one operator of oneDNN's, as nothing
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_counter_counts_as_it_does_for_torch_nn(kind: str, layers: int, bidirectional: bool):
    theirs = getattr(nn, kind)(8, 16, layers, bidirectional=bidirectional)
    ours = fastrnn.convert(getattr(nn, kind)(8, 16, layers, bidirectional=bidirectional))
    graph = fastrnn.convert(getattr(nn, kind)(8, 16, layers, bidirectional=bidirectional), compilable=True)
    expected = counted(lambda: theirs(X))
    assert expected > 0
    for module in (ours, graph):
        assert counted(lambda module=module: module(X)) == expected
    losses = [module(X)[0].sum() for module in (theirs, ours, graph)]
    back, *own = [counted(loss.backward) for loss in losses]
    assert own == [back, back]


def test_the_counter_counts_projections_packed_rows_and_tokens():
    x = nn.utils.rnn.pack_padded_sequence(X, torch.tensor([5, 4, 2]))
    rows, gates = 11, 4
    lstm = fastrnn.convert(nn.LSTM(8, 16, proj_size=4), compilable=True)
    assert counted(lambda: lstm(x)) == 2 * rows * (gates * 16 * (8 + 4) + 16 * 4)
    loss = lstm(x)[0].data.sum()
    weights, carried = rows * (gates * 16 * (8 + 4) + 16 * 4), (rows - 3) * gates * 16 * 4 + rows * 16 * 4
    assert counted(loss.backward) == 2 * (weights + carried)
    tokens = torch.randint(8, (5, 3))
    assert counted(lambda: fastrnn.convert(nn.GRU(8, 16), compilable=True)(tokens)) in (
        2 * 15 * 3 * 16 * 16,
        2 * 15 * 3 * 16 * (16 + 8),  # where torch's own operators take one-hot rows
    )
