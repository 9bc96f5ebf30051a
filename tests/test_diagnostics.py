"""Norms of dL/dh_t against autograd on a loop over torch.nn's cells, which knows nothing of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.diagnostics import gradient_norms, plot

MODES = pytest.mark.parametrize("mode", ["RNN", "LSTM", "GRU"])
STEPS, ROWS, INPUTS, HIDDEN, LAYERS = 6, 3, 4, 5, 2


def network(mode: str, library: object = fastrnn, **options) -> nn.RNNBase:
    torch.manual_seed(0)
    return getattr(library, mode)(INPUTS, HIDDEN, LAYERS, bidirectional=True, dtype=torch.float64, **options)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(y: Tensor, state: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A loss with other weights at every element of the output and the last states."""
    states = state if isinstance(state, tuple) else (state,)
    return sum((tensor * draw(*tensor.shape, seed=2 + k)).sum() for k, tensor in enumerate((y, *states)))


def unrolled(module: nn.RNNBase, x: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    """dL/dh_t, (T, B, H) for each layer and direction, of a loop over cells, sequence by sequence and step by step."""
    kept: dict[str, list[list[Tensor]]] = {}
    ends_h, ends_c, outputs = [], [], []
    columns = [[x[t, b] for t in range(lengths[b])] for b in range(len(lengths))]
    for layer in range(module.num_layers):
        found = []
        for suffix in ("", "_reverse"):
            cell = getattr(nn, f"{module.mode.split('_')[0]}Cell")(columns[0][0].shape[-1], HIDDEN, dtype=x.dtype)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(cell, name).data = getattr(module, f"{name}_l{layer}{suffix}").data
            rows, last = [], []
            for column in columns:
                state, steps = None, []
                for value in reversed(column) if suffix else column:
                    state = cell(value, state)
                    h = state[0] if isinstance(state, tuple) else state
                    h.retain_grad()
                    steps.append(h)
                last.append(state)
                rows.append(steps[::-1] if suffix else steps)
            kept[f"l{layer}{suffix}"] = rows
            found.append(rows)
            ends_h.append(torch.stack([state[0] if isinstance(state, tuple) else state for state in last]))
            if isinstance(last[0], tuple):
                ends_c.append(torch.stack([state[1] for state in last]))
        columns = [[torch.cat(pair) for pair in zip(*both, strict=True)] for both in zip(*found, strict=True)]
    outputs = torch.stack([torch.stack(c + [c[0] * 0] * (x.shape[0] - len(c))) for c in columns], 1)
    hn = torch.stack(ends_h)
    loss_of(outputs, (hn, torch.stack(ends_c)) if ends_c else hn).backward()
    zero = torch.zeros(HIDDEN, dtype=x.dtype)
    return {
        name: torch.stack([torch.stack([h.grad for h in row] + [zero] * (x.shape[0] - len(row))) for row in rows], 1)
        for name, rows in kept.items()
    }


def exact_norms(module: nn.RNNBase, x: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    return {name: grad.square().sum((1, 2)).sqrt() for name, grad in unrolled(module, x, lengths).items()}


@MODES
@pytest.mark.parametrize("library", [nn, fastrnn], ids=["torch", "fastrnn"])
def test_norms_are_those_of_an_unrolled_loop(mode: str, library: object):
    module, x = network(mode, library), draw(STEPS, ROWS, INPUTS)
    own = type(module)
    with gradient_norms(module) as norms:
        loss_of(*module(x)).backward()
    expected = exact_norms(module, x, [STEPS] * ROWS)
    assert norms.keys() == expected.keys() == {"l0", "l0_reverse", "l1", "l1_reverse"}
    torch.testing.assert_close(norms, expected)
    assert type(module) is own and not module._forward_hooks and not module._forward_pre_hooks


@MODES
def test_packed_sequences_of_any_order(mode: str):
    module, x, lengths = network(mode), draw(STEPS, ROWS, INPUTS), [2, 6, 4]
    with gradient_norms(module) as norms:
        y, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        loss_of(pad_packed_sequence(y)[0], state).backward()
    torch.testing.assert_close(norms, exact_norms(module, x, lengths))


def test_the_judge_sees_a_wrong_gradient():
    module, x = network("LSTM"), draw(STEPS, ROWS, INPUTS)
    norms = exact_norms(module, x, [STEPS] * ROWS)
    norms["l0"][2] *= 1 + 1e-5
    with pytest.raises(AssertionError):
        torch.testing.assert_close(norms, exact_norms(module, x, [STEPS] * ROWS))


@MODES
def test_a_cell_in_a_loop_equals_the_layer(mode: str):
    torch.manual_seed(0)
    layer = getattr(fastrnn, mode)(INPUTS, HIDDEN, dtype=torch.float64)
    cell = getattr(fastrnn, f"{mode}Cell")(INPUTS, HIDDEN, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    x = draw(STEPS, ROWS, INPUTS)
    with gradient_norms(layer) as whole:
        layer(x)[0].square().sum().backward()
    with gradient_norms(nn.ModuleDict({"cell": cell})) as steps:
        state, loss = None, 0.0
        for value in x:
            state = cell(value, state)
            loss = loss + (state[0] if isinstance(state, tuple) else state).square().sum()
        loss.backward()
    torch.testing.assert_close(steps["cell"], whole["l0"])


def test_watching_changes_neither_results_nor_dropout_nor_gradients():
    module, x = network("GRU", dropout=0.5, batch_first=True), draw(ROWS, STEPS, INPUTS)

    def run() -> list[Tensor]:
        torch.manual_seed(3)
        module.zero_grad()
        y, hn = module(x)
        loss_of(y, hn).backward()
        return [y, hn, *(weight.grad for weight in module.parameters()), torch.rand(1)]

    plain = run()
    with gradient_norms(module) as norms:
        observed = run()
    torch.testing.assert_close(observed, plain)
    assert all(norm.shape == (STEPS,) and norm.all() for norm in norms.values())


@MODES
@pytest.mark.parametrize("option", [{"recompute": True}, {"recompute": True, "learn_initial_state": True}], ids=str)
def test_options_change_no_norms(mode: str, option: dict[str, bool]):
    module, x = network(mode, **option), draw(STEPS, ROWS, INPUTS)
    with gradient_norms(module) as norms:
        loss_of(*module(x)).backward()
    torch.testing.assert_close(norms, exact_norms(module, x, [STEPS] * ROWS))


@pytest.mark.parametrize("library", [nn, fastrnn], ids=["torch", "fastrnn"])
def test_blocks_within_blocks(library: object):
    """Of the whole model around one of a part of it, twice; each sees what it sees alone."""
    first, second = network("LSTM", library), library.GRU(2 * HIDDEN, HIDDEN, dtype=torch.float64)  # type: ignore
    model, x = nn.ModuleDict({"a": first, "b": second}), draw(STEPS, ROWS, INPUTS)

    def run() -> None:
        loss_of(*model["b"](model["a"](x)[0])).backward()

    with gradient_norms(model) as alone:
        run()
    with gradient_norms(model) as outer:
        with gradient_norms(first) as inner, gradient_norms(model) as again:
            run()
        torch.testing.assert_close((inner, again), ({k[2:]: v for k, v in alone.items() if k[0] == "a"}, alone))
    torch.testing.assert_close(outer, alone)
    assert fastrnn.paths.watching_path.get() is None
    assert type(first) is library.LSTM and type(second) is library.GRU  # type: ignore
    for module in (first, second):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_names_pieces_projection_and_calls_without_gradient():
    model = nn.ModuleDict({"rnn": nn.LSTM(INPUTS, HIDDEN, proj_size=2), "out": nn.Linear(2, 1)})
    x = torch.randn(STEPS, ROWS, INPUTS)
    with gradient_norms(model) as norms:
        with torch.no_grad():
            model["rnn"](x)
        y, state = model["rnn"](x[:4])
        model["out"](y).sum().backward()
        model["rnn"](x[4:], tuple(s.detach() for s in state))[0][:1].sum().backward()
    assert norms.keys() == {"rnn.l0"} and norms["rnn.l0"].shape == (STEPS,)
    # The last piece: every output's gradient is 1 at its first step, nothing comes from the second.
    torch.testing.assert_close(norms["rnn.l0"][4:], torch.tensor([(2 * ROWS) ** 0.5, 0.0]))


def test_the_long_memory_problem_is_seen():
    """A recurrent matrix a * Q, Q orthogonal, in the linear range of tanh scales dL/dh_t by a every step."""
    module = fastrnn.RNN(1, 8, bias=False, dtype=torch.float64)
    for scale in (0.5, 2.0):
        fastrnn.init.orthogonal_(module, gain=scale)
        with gradient_norms(module) as norms:
            module(torch.zeros(11, 1, 1, dtype=torch.float64))[1].sum().backward()
        torch.testing.assert_close(norms["l0"], 8**0.5 * scale ** torch.arange(10, -1, -1, dtype=torch.float64))


def test_a_jordan_network_is_seen():
    """Linear output, relu in its positive range: dL/dh_(t-1) is W_hh^T W_hr^T dL/dh_t."""
    module = fastrnn.JordanRNN(1, 4, 2, nonlinearity="relu", bias=False, dtype=torch.float64)
    for weight in module.parameters():
        weight.data.abs_()
    with gradient_norms(module) as norms:
        module(torch.ones(4, 1, 1, dtype=torch.float64))[1].sum().backward()
    grads = [torch.ones(2, dtype=torch.float64)]
    for _ in range(3):
        grads.insert(0, grads[0] @ module.weight_hr_l0.detach() @ module.weight_hh_l0.detach())
    torch.testing.assert_close(norms["l0"], torch.stack(grads).norm(dim=1))


def test_a_packed_jordan_network_is_each_sequence_alone():
    torch.manual_seed(0)
    module = fastrnn.JordanRNN(INPUTS, HIDDEN, 3, LAYERS, bidirectional=True, dtype=torch.float64)
    x, lengths = draw(STEPS, ROWS, INPUTS), [2, 6, 4]
    with gradient_norms(module) as norms:
        y, hn = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        (y.data.square().sum() + hn.square().sum()).backward()
    squares = {name: torch.zeros(STEPS, dtype=torch.float64) for name in ("l0", "l0_reverse", "l1", "l1_reverse")}
    for row, length in enumerate(lengths):
        with gradient_norms(module) as alone:
            y, hn = module(x[:length, row])
            (y.square().sum() + hn.square().sum()).backward()
        for name, norm in alone.items():
            squares[name][:length] += norm.square()
    torch.testing.assert_close(norms, {name: square.sqrt() for name, square in squares.items()})


class Theirs(nn.LSTM):
    """A class that others derived from torch.nn's."""


def test_a_class_that_derives_from_torch_nns_is_seen():
    theirs, x = Theirs(INPUTS, HIDDEN), torch.randn(STEPS, ROWS, INPUTS)
    ours = fastrnn.LSTM(INPUTS, HIDDEN)
    ours.load_state_dict(theirs.state_dict())
    found = []
    for module in (theirs, ours):
        with gradient_norms(module) as norms:
            module(x)[0].square().sum().backward()
        found.append(norms["l0"])
    torch.testing.assert_close(*found)
    assert type(theirs) is Theirs


def test_what_cannot_be_seen_is_an_error():
    with pytest.raises(TypeError, match="Linear has none"), gradient_norms(nn.Linear(1, 1)):
        pass
    module, x = fastrnn.LSTM(INPUTS, HIDDEN), torch.randn(STEPS, ROWS, INPUTS)
    with pytest.raises(RuntimeError, match="forward and the backward"), gradient_norms(module):
        module(x)
    gru = fastrnn.GRU(INPUTS, HIDDEN)
    with pytest.raises(RuntimeError, match="torch's own functions"), gradient_norms(gru), torch.autocast("cpu"):
        gru(x)
    with pytest.raises(RuntimeError, match="input.size"), gradient_norms(module):
        module(x[..., 1:])
    assert not module._forward_hooks and not module._forward_pre_hooks
    assert fastrnn.paths.watching_path.get() is None


def test_plot(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")
    matplotlib.use("agg")
    axes = plot({"Elman": torch.tensor([0.0, 1e-9, 1.0]), "LSTM": torch.tensor([0.1, 0.5, 1.0])})
    axes.figure.savefig(tmp_path / "norms.png")
    assert axes.get_yscale() == "log" and [line.get_label() for line in axes.lines] == ["Elman", "LSTM"]
    assert plot({"GRU": torch.ones(3)}, axes) is axes and len(axes.lines) == 3


@pytest.mark.parametrize("bidirectional", [False, True])
def test_of_any_cell_as_of_torch_nns(bidirectional: bool):
    torch.manual_seed(0)
    plain = nn.LSTM(3, 4, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    net = fastrnn.Network(fastrnn.cells.LSTM, 3, 4, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    net.load_state_dict(plain.state_dict())
    x, found = torch.randn(6, 2, 3, dtype=torch.float64), []
    for model in (net, plain):
        with gradient_norms(model) as norms:
            y, (h, c) = model(x)
            (y.pow(2).sum() + c.sum()).backward()
        found.append(norms)
    assert list(found[0]) == list(found[1])
    for name, norms in found[1].items():
        torch.testing.assert_close(found[0][name], norms)


def test_of_steps_of_any_cell():
    step = fastrnn.NetworkCell(fastrnn.cells.GRU, 3, 4)
    with gradient_norms(step) as norms:
        h = torch.zeros(2, 4)
        for x in torch.randn(5, 2, 3):
            h = step(x, h)
        h.sum().backward()
    assert norms[""].shape == (5,) and (norms[""] > 0).all()
