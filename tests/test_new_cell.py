"""A new cell touches one file: it is defined here, and goes through all that the library's cells go through."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cell_oracles import CASES, Row, judge
from cell_runs import RUNS, unavailable

import fastrnn
from fastrnn import Network, NetworkCell, cells
from fastrnn.cell import Cell, Input, Recurrent, StepInput, Vector, layer_norm, sigmoid, tanh


class Leaky(Cell):
    """A gate that reads the memory, a span of time, a norm, and an output that is no state."""

    slope = 0.5
    output = "y"
    span = StepInput()
    W, U, V, p = Input("k n"), Recurrent("k n"), Recurrent(), Vector(init=0.3)

    def step(self, x, h, m, *, span):
        a, b = self.W(x), self.U(h)
        k = sigmoid(a.k + b.k + self.p * m) * span
        m = (1 - k) * m + k * tanh(layer_norm(a.n + b.n))
        h = tanh(m) + self.slope * h
        return dict(h=h, m=m, y=tanh(self.V(h)))


def by_hand(p, x, states, extras):
    """The same, written down once more, of gates by their rows."""
    h, m = states
    half = len(p["p"])
    a = x @ p["weight_ih"].T + p["bias_ih"]
    b = h @ p["weight_hh"].T + p["bias_hh"]
    k = torch.sigmoid(a[:, :half] + b[:, :half] + p["p"] * m) * extras["span"][:, None]
    n = a[:, half:] + b[:, half:]
    centred = n - n.mean(1, keepdim=True)
    n = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
    m = (1 - k) * m + k * torch.tanh(n)
    h = torch.tanh(m) + 0.5 * h
    return torch.tanh(h @ p["weight_V"].T + p["bias_V"]), (h, m)


ROW = Row(Leaky(), "by hand", by_hand)
T, B, X, H = 7, 3, 4, 6


@pytest.mark.parametrize("case", CASES[:4], ids=str)  # of one unit the norm's gradient is 0 over 0, but for its epsilon
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_results_and_gradients_on_every_engine(run, case):
    if reason := unavailable(run):
        pytest.skip(reason)
    judge(run, ROW, case)


def network(**options) -> Network:
    torch.manual_seed(0)
    return Network(Leaky(), X, H, dtype=torch.float64, **options)


def test_layers_directions_and_forms():
    net = network(num_layers=2, bidirectional=True, batch_first=True, dropout=0.1, learn_initial_state=True)
    x, span = torch.randn(B, T, X, dtype=torch.float64), torch.rand(B, T, dtype=torch.float64)
    y, (h, m) = net(x, span=span)
    assert y.shape == (B, T, 2 * H) and h.shape == m.shape == (4, B, H)
    net.eval()
    alone = [net(x[k : k + 1, :length], span=span[k : k + 1, :length])[0] for k, length in enumerate((5, 7, 2))]
    together = net(x, span=span, lengths=[5, 7, 2])[0]
    for row, length, wanted in zip(together, (5, 7, 2), alone, strict=True):
        torch.testing.assert_close(row[:length], wanted[0])
        assert not row[length:].any()
    torch.testing.assert_close(net(x[0], span=span[0])[0], net(x[:1], span=span[:1])[0][0])


def test_steps_one_by_one_are_the_sequence():
    net, step = network(), NetworkCell(Leaky(), X, H, dtype=torch.float64)
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in net.state_dict().items()})
    x, span = torch.randn(T, B, X, dtype=torch.float64), torch.rand(T, B, dtype=torch.float64)
    states, outputs = None, []
    for t in range(T):
        y, states = step(x[t], states, span=span[t])
        outputs.append(y)
    y, ends = net(x, span=span)
    torch.testing.assert_close(torch.stack(outputs), y)
    for one, other in zip(states, ends, strict=True):
        torch.testing.assert_close(one, other[0])


@pytest.mark.parametrize(
    "options",
    [
        dict(zoneout=0.2),
        dict(recurrent_dropout=0.3, recurrent_dropout_per="step"),
        dict(weight_dropout=0.2),
        dict(recompute=True),
    ],
    ids=str,
)
def test_options(options):
    x, span = torch.randn(T, B, X, dtype=torch.float64), torch.rand(T, B, dtype=torch.float64)
    net = network(**options)
    torch.manual_seed(1)
    y, _ = net(x, span=span)
    torch.manual_seed(1)
    torch.testing.assert_close(net(x, span=span)[0], y)
    grads = torch.autograd.grad(y.sum(), list(net.parameters()))
    assert all(grad.isfinite().all() for grad in grads)
    if "recompute" in options:
        torch.testing.assert_close(y, network()(x, span=span)[0])


def test_copies_graphs_init_and_diagnostics():
    net = network().float()
    x, span = torch.randn(T, B, X), torch.rand(T, B)
    wanted = net(x, span=span)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.compile(net, backend="aot_eager")):
        torch.testing.assert_close(other(x, span=span)[0], wanted)
    with fastrnn.diagnostics.gradient_norms(net) as norms:
        net(x, span=span)[0].sum().backward()
    assert norms["l0"].shape == (T,) and (norms["l0"] > 0).all()
    fastrnn.init.orthogonal_(net)
    block = net.weight_V_l0
    torch.testing.assert_close(block @ block.T, torch.eye(H), atol=1e-5, rtol=0)


def test_the_library_is_no_exception():
    """Its cells are in no list but their own package's."""
    assert all(issubclass(getattr(cells, name), Cell) for name in cells.__all__)
