"""learn_initial_state: parameters in the place of the zeros with which a network begins."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

STEPS, ROWS, INPUTS, HIDDEN = 4, 3, 2, 3


def build(name: str, **options: Any) -> Any:
    """With states that are no zeros, as after some training."""
    torch.manual_seed(0)
    network = getattr(fastrnn, name)(INPUTS, HIDDEN, learn_initial_state=True, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-1, 1)
    return network.double()


def initial(network: Any, rows: int) -> Any:
    """What the parameters stand for, as hx."""
    found = [network.initial_h, *([network.initial_c] if network.mode == "LSTM" else [])]
    found = [state.unsqueeze(1).repeat(1, rows, 1) for state in found]
    return tuple(found) if len(found) == 2 else found[0]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_begins_as_torch_does(name: str):
    torch.manual_seed(1)
    theirs = getattr(nn, name)(INPUTS, HIDDEN, num_layers=2, bidirectional=True)
    torch.manual_seed(1)
    ours = getattr(fastrnn, name)(INPUTS, HIDDEN, num_layers=2, bidirectional=True, learn_initial_state=True)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    new = ["initial_h", "initial_c"] if name == "LSTM" else ["initial_h"]
    assert list(found) == [*expected, *new]
    assert all(found[key].shape == (4, HIDDEN) and not found[key].any() for key in new)
    x = torch.randn(STEPS, ROWS, INPUTS)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.initial_h.data.fill_(1)
    ours.reset_parameters()
    assert not ours.initial_h.any()
    assert "learn_initial_state=True" in repr(ours) and "learn" not in repr(getattr(fastrnn, name)(2, 3))


CASES = [Case("each cell", mode, directions=2, dtype=torch.float64) for mode in ("LSTM", "GRU", "RNN_TANH")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_same_as_to_give_the_state(target, case: Case):
    network = build(case.mode.removesuffix("_TANH"), num_layers=2, bidirectional=True).to(target.device)
    x = torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64, device=target.device)
    hx = initial(network, ROWS)
    lengths = torch.tensor([2, 4, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    with fastrnn.use_backend(target.name):
        for given in (x, packed):
            (y, state), (right, end) = network(given), network(given, hx)
            ys = [each.data if given is packed else each for each in (y, right)]
            torch.testing.assert_close((ys[0], state), (ys[1], end))
            grads = [torch.autograd.grad(y.square().sum(), network.initial_h, retain_graph=True) for y in ys]
            torch.testing.assert_close(*grads)
        torch.testing.assert_close(network(x[:, 0])[0], network(x)[0][:, 0])
        reset = torch.zeros(STEPS, ROWS, dtype=torch.bool, device=target.device)
        reset[2] = True
        y, _ = network(x, lengths=lengths, reset=reset)
        torch.testing.assert_close(y[2:, 1], network(x[2:, 1])[0])
        reset[3] = True  # a piece in the middle begins anew in both directions, whatever hx is
        given = network(x, torch.utils._pytree.tree_map(torch.zeros_like, hx), reset=reset)[0]
        torch.testing.assert_close(given[2:3, 1], network(x[2:3, 1])[0])


@pytest.mark.parametrize("case", [Case("", dtype=torch.float64)], ids=str)
def test_gradcheck(target, case: Case):
    network = build("LSTM", proj_size=2).to(target.device)
    x = torch.randn(2, 2, INPUTS, dtype=torch.float64, device=target.device)

    def run(h: Tensor, c: Tensor) -> Any:
        return torch.func.functional_call(network, {"initial_h": h, "initial_c": c}, (x,))[0]

    with fastrnn.use_backend(target.name):
        assert torch.autograd.gradcheck(run, (network.initial_h, network.initial_c))


def test_batch_first_tokens_autocast_and_tracing():
    network, x = build("GRU", batch_first=True), torch.randn(ROWS, STEPS, INPUTS, dtype=torch.float64)
    hx = initial(network, ROWS)
    torch.testing.assert_close(network(x), network(x, hx))
    table, tokens = torch.randn(5, INPUTS, dtype=torch.float64), torch.randint(5, (ROWS, STEPS))
    torch.testing.assert_close(network(tokens, embedding=table), network(table[tokens], hx))
    network.float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x.float()), network(x.float(), initial(network, ROWS)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_and_not_scripted():
    network, x = build("LSTM").float(), torch.randn(STEPS, ROWS, INPUTS)
    traced: Any = torch.jit.trace(network, (x,))
    torch.testing.assert_close(traced(x), network(x))
    for module in (network, nn.Sequential(network)):
        with pytest.raises(NotImplementedError, match="learn_initial_state: torch.jit.trace does"):
            torch.jit.script(module)


def test_copies_pickles_and_modules_from_before_there_were_options():
    network, x = build("LSTM", recompute=True), torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert again.learn_initial_state and again.recompute and not again.return_cell_states
        torch.testing.assert_close(again(x), network(x))
    assert not {"learn_initial_state", "return_cell_states", "recompute"} & set(vars(fastrnn.LSTM(2, 3)))
    converted = fastrnn.convert(nn.LSTM(2, 3))
    converted(x.float())
    converted.recompute = True  # type: ignore[assignment]
    converted(x.float())[0].sum().backward()
    with torch.device("meta"):
        assert fastrnn.GRU(2, 3, learn_initial_state=True).initial_h.is_meta


def test_errors():
    with pytest.raises(TypeError, match="learn_initial_state should be of type bool, got: int"):
        fastrnn.LSTM(2, 3, learn_initial_state=1)
    with pytest.raises(TypeError, match="learn"):
        fastrnn.LSTM(2, 3, learn=True)
