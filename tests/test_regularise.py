"""Zoneout, recurrent dropout and weight drop against their equations in float64, under the same masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrnn import Network, cells
from fastrnn.cell import Cell, Input, Recurrent, Vector, sigmoid, tanh
from fastrnn.cell.graph import ancestors
from fastrnn.cell.regularise import Regularised, operand_sizes
from fastrnn.cell.trace import trace

T, B, X, H = 7, 3, 4, 5


class Peephole(Cell):
    W, U, p = Input("i f g o"), Recurrent("i f g o"), Vector("i f o")

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        f = sigmoid(a.f + b.f + self.p.f * c)
        c = f * c + sigmoid(a.i + b.i + self.p.i * c) * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o + self.p.o * c) * tanh(c), c=c)


def by_hand(net: Network, x, zoneout, keep, training: bool):
    """The peephole LSTM written down once more, with the masks of the network's own draw."""
    w = {name.removesuffix("_l0"): value for name, value in net.named_parameters()}
    h, c = x.new_zeros(B, H), x.new_zeros(B, H)
    p_i, p_f, p_o = w["p"].chunk(3)
    outputs = []
    for t in range(T):
        k = 1.0 if keep is None else keep if keep.shape[0] == B and net.recurrent_dropout_per == "sequence" else keep[t]
        a = x[t] @ w["weight_ih"].t() + w["bias_ih"] + (h * k) @ w["weight_hh"].t() + w["bias_hh"]
        i, f, g, o = a.chunk(4, -1)
        new_c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        new_h = torch.sigmoid(o + p_o * new_c) * torch.tanh(new_c)
        if training and zoneout:
            h = torch.where(zoneout["h"][t] > 0, h, new_h)
            c = torch.where(zoneout["c"][t] > 0, c, new_c)
        else:
            rates = net.zoneout
            h = rates.get("h", 0.0) * h + (1 - rates.get("h", 0.0)) * new_h
            c = rates.get("c", 0.0) * c + (1 - rates.get("c", 0.0)) * new_c
        outputs.append(h)
    return torch.stack(outputs), h, c


@pytest.mark.parametrize("per", ["sequence", "step"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("zoneout", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_masks_of_torchs_generator_give_the_equations(per, rate, zoneout, training):
    torch.manual_seed(1)
    net = Network(
        Peephole, X, H, zoneout=zoneout, recurrent_dropout=rate, recurrent_dropout_per=per, dtype=torch.float64
    )
    net.train(training)
    x = torch.randn(T, B, X, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(2)
    y, (h, c) = net(x)
    torch.manual_seed(2)
    masks, keep = {}, None
    if training and zoneout:
        masks = {name: x.new_empty(T * B, H).bernoulli_(zoneout).view(T, B, H) for name in ("h", "c")}
    if training and rate:
        lead = (B, H) if per == "sequence" else (T * B, H)
        keep = x.new_empty(lead).bernoulli_(1 - rate) / (1 - rate)
        keep = keep if per == "sequence" else keep.view(T, B, H)
    found = by_hand(net, x, masks, keep, training)
    inputs = [x, *net.parameters()]
    seeds = [torch.randn_like(each) for each in found]
    for ours, theirs in zip((y, h[0], c[0]), found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((y, h[0], c[0]), inputs, seeds)
    for one, other in zip(ours, torch.autograd.grad(found, inputs, seeds), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_a_weight_that_is_dropped_is_scaled_and_only_in_training():
    torch.manual_seed(0)
    net = Network(Peephole, X, H, weight_dropout=0.5, dtype=torch.float64)
    x = torch.randn(T, B, X, dtype=torch.float64)
    plain = Network(Peephole, X, H, dtype=torch.float64)
    plain.load_state_dict(net.state_dict())
    torch.manual_seed(3)
    y = net(x)[0]
    torch.manual_seed(3)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(nn.functional.dropout(net.weight_hh_l0, 0.5))
    torch.testing.assert_close(y, plain(x)[0])
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net.eval()(x)[0], plain(x)[0])


@pytest.mark.parametrize(
    "wrong",
    [dict(zoneout=1.0), dict(zoneout=dict(q=0.1)), dict(recurrent_dropout=-0.1), dict(recurrent_dropout_per="row")],
)
def test_wrong_rates_are_refused(wrong):
    with pytest.raises(ValueError):
        Network(Peephole, X, H, **wrong)


class InMethods(cells.LSTM):
    """The LSTM with its product in a method, called through super()."""

    def gates(self, h):
        return self.U(h)

    def step(self, x, h, c):
        found = super().step(x, h, c)
        return dict(h=found["h"] + self.gates(h).i, c=found["c"])


@pytest.mark.parametrize("per", ["sequence", "step"])
@pytest.mark.parametrize("cell", [*(getattr(cells, name) for name in cells.__all__), InMethods])
def test_every_product_of_a_state_drops_of_its_operand(cell: type[Cell], per: str):
    """By structure: in the graph the mask stands in every operand of a recurrent matrix, and of no other."""
    sizes = operand_sizes(cell())
    plain = trace(cell())
    graph = trace(Regularised(cell(), {}, True, per, tuple(dict.fromkeys(sizes.values())))).graph
    masked = [node for node in graph.nodes if node.op == f"{per}_input" and node.about.startswith("keep_")]
    products = [node for node in graph.nodes if node.op == "product"]
    for node in products:
        recurrent = any(each.op == "state" for each in ancestors(node.args))
        assert (node.args[0].op == "mul" and node.args[0].args[1] in masked) == recurrent
    assert {node.about.removeprefix("keep_") for node in masked} == set(sizes.values())
    assert len(products) == sum(node.op == "product" for node in plain.graph.nodes)
    diagonal = {name for name, kind in plain.parts.kinds.items() if type(kind).__name__ == "Diagonal"}
    assert set(sizes) >= diagonal


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", cells.__all__)
def test_every_state_can_keep_of_itself(name: str, training: bool):
    """By structure: where the mask says so, or p of it, beside the equations' own next value."""
    cell = getattr(cells, name)()
    rates = {state: 0.1 + k / 100 for k, state in enumerate(trace(cell).next)}
    found = trace(Regularised(cell, rates, training, None, ())).next
    assert list(found) == list(rates)
    for state, node in found.items():
        if training:
            condition, old, _ = node.args
            assert (node.op, condition.op, condition.args[0].about) == ("where", "gt", f"zoneout_{state}")
        else:
            (p, old), (q, _) = (side.args for side in node.args)
            assert node.op == "add" and (p.about, q.about) == (rates[state], 1 - rates[state])
        assert (old.op, old.about) == ("state", state)
