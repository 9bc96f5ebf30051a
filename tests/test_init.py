"""Each scheme sets what it says, gate by gate, and nothing else."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fastrnn
from fastrnn import init

LAYERS = pytest.mark.parametrize(
    "module", [(nn.RNN, 1), (fastrnn.LSTM, 4), (fastrnn.GRU, 3)], ids=["RNN", "LSTM", "GRU"]
)
INPUTS, HIDDEN = 5, 8


def unlike(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that differ from those of before."""
    return {name for name, now in model.state_dict().items() if not torch.equal(now, before[name])}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@LAYERS
def test_orthogonal_gate_by_gate(module: tuple[type, int]):
    model = module[0](INPUTS, HIDDEN, num_layers=2, bidirectional=True, dtype=torch.float64)
    before = snapshot(model)
    assert init.orthogonal_(model, gain=2.0) is model
    assert unlike(model, before) == {f"weight_hh_l{k}{suffix}" for k in (0, 1) for suffix in ("", "_reverse")}
    blocks = [block for name in unlike(model, before) for block in getattr(model, name).split(HIDDEN)]
    assert len(blocks) == 4 * module[1]
    for block in blocks:
        torch.testing.assert_close(block @ block.T, 4 * torch.eye(HIDDEN, dtype=torch.float64))
    assert len({block[0, 0].item() for block in blocks}) == len(blocks)


def test_orthogonal_projection_in_a_narrow_type():
    model = init.orthogonal_(fastrnn.LSTM(INPUTS, HIDDEN, proj_size=3, dtype=torch.bfloat16))
    blocks = [block.float() for block in model.weight_hh_l0.split(HIDDEN)] + [model.weight_hr_l0.float().T]
    for block in blocks:  # each product of 8 is off by at most twice a rounding, eps / 2, of each factor
        torch.testing.assert_close(block.T @ block, torch.eye(3), rtol=0, atol=8 * torch.finfo(torch.bfloat16).eps)


@LAYERS
def test_xavier_takes_one_gate_for_its_fan_out(module: tuple[type, int]):
    model = module[0](INPUTS, 400)
    before = snapshot(model)
    init.xavier_uniform_(model, gain=0.5)
    assert unlike(model, before) == {"weight_ih_l0"}
    bound = 0.5 * math.sqrt(6 / (INPUTS + 400))
    for block in model.weight_ih_l0.split(400):
        # The largest of n = 2000 uniform draws is below 0.98 of the bound with probability 0.98^2000 = 3e-18.
        assert 0.98 * bound < block.abs().max() <= bound


@pytest.mark.parametrize("make", [nn.LSTM, fastrnn.LSTM, nn.LSTMCell, fastrnn.LSTMCell], ids=lambda make: str(make))
def test_both_biases_of_the_forget_gate_make_one(make: type):
    model = make(INPUTS, HIDDEN)
    before = snapshot(model)
    init.forget_bias_(model)
    names = [name for name in before if "bias" in name]
    assert unlike(model, before) == set(names)
    forget = slice(HIDDEN, 2 * HIDDEN)
    assert sum(model.state_dict()[name][forget] for name in names).eq(1).all()
    for name in names:
        kept = torch.cat([model.state_dict()[name][:HIDDEN], model.state_dict()[name][2 * HIDDEN :]])
        assert torch.equal(kept, torch.cat([before[name][:HIDDEN], before[name][2 * HIDDEN :]]))


def test_the_forget_gate_is_the_one_that_forgets():
    model = fastrnn.LSTM(1, 1)
    for weight in model.parameters():
        nn.init.zeros_(weight)
    _, (_, kept) = init.forget_bias_(model, 50.0)(
        torch.zeros(9, 1, 1), (torch.zeros(1, 1, 1), torch.full((1, 1, 1), 7.0))
    )
    assert kept.item() == 7.0


@pytest.mark.parametrize("make", [nn.LSTM, fastrnn.LSTMCell, fastrnn.GRU, nn.GRUCell], ids=lambda make: str(make))
def test_time_scales_from_two_steps_to_the_longest(make: type):
    model = make(1, 1000)
    before = snapshot(model)
    init.chrono_(model, 100)
    names = [name for name in before if "bias" in name]
    assert unlike(model, before) == set(names)
    now = [model.state_dict()[name].view(-1, 1000) for name in names]
    scales = 1 + sum(now)[1].exp()
    # Of 1000 uniform draws none lies in a twentieth of the range with probability 0.95^1000 = 5e-23.
    assert 2 <= scales.min() < 2 + 98 / 20 and 100 - 98 / 20 < scales.max() < 100.001
    touched = [1]
    if len(now[0]) == 4:
        torch.testing.assert_close(sum(now)[0], -sum(now)[1])
        touched = [0, 1]
    for name, blocks in zip(names, now, strict=True):
        rest = [gate for gate in range(len(blocks)) if gate not in touched]
        assert torch.equal(blocks[rest], before[name].view(-1, 1000)[rest])


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_a_gate_of_bias_log_t_forgets_in_t_steps(cell: type):
    model = cell(1, 4).double()
    for weight in model.parameters():
        nn.init.zeros_(weight)
    init.chrono_(model, 50)
    bias = model.bias_ih.view(-1, 4)[1]
    state = torch.ones(1, 4, dtype=torch.float64)
    after = model(torch.zeros(1, 1, dtype=torch.float64), (state, state) if cell is nn.LSTMCell else state)
    kept = after[1] if isinstance(after, tuple) else after
    torch.testing.assert_close(1 / (1 - kept[0]), 1 + bias.exp())


@pytest.mark.parametrize("make", [nn.RNN, fastrnn.RNN, nn.RNNCell, fastrnn.RNNCell], ids=lambda make: str(make))
def test_an_irnn_adds_up_what_it_is_given(make: type):
    model = init.identity_(make(1, 4, nonlinearity="relu"), std=1.0)
    weight = next(weight for name, weight in model.named_parameters() if "weight_ih" in name)
    state = None
    for _ in range(5):
        out = model(torch.ones(1, 1), state)
        state = out[1] if isinstance(out, tuple) else out
    torch.testing.assert_close(state, 5 * weight.T.relu())


def test_a_jordan_network():
    model = fastrnn.JordanRNN(INPUTS, HIDDEN, 3)
    before = snapshot(model)
    init.orthogonal_(model)
    assert unlike(model, before) == {"weight_hh_l0", "weight_hr_l0"}
    torch.testing.assert_close(model.weight_hr_l0 @ model.weight_hr_l0.T, torch.eye(3))


def test_every_network_of_a_model_and_only_those_meant():
    parts = {
        "embedding": nn.Embedding(10, INPUTS),
        "lstm": nn.LSTM(INPUTS, HIDDEN, bias=False),
        "gru": nn.GRUCell(HIDDEN, HIDDEN, bias=False),
        "rnn": nn.RNN(HIDDEN, HIDDEN, nonlinearity="relu"),
    }
    model = nn.ModuleDict(parts)
    before = snapshot(model)
    init.orthogonal_(model)
    assert unlike(model, before) == {"lstm.weight_hh_l0", "gru.weight_hh", "rnn.weight_hh_l0"}
    before = snapshot(model)
    init.identity_(model)
    assert {name.split(".")[0] for name in unlike(model, before)} == {"rnn"}
    with pytest.raises(ValueError, match="ModuleDict has no LSTM with biases"):
        init.forget_bias_(model)


def test_one_generator_gives_one_draw():
    models = [fastrnn.LSTM(INPUTS, HIDDEN) for _ in range(2)]
    for scheme in (init.orthogonal_, init.xavier_uniform_, partial(init.chrono_, longest=9)):
        for model in models:
            scheme(model, generator=torch.Generator().manual_seed(1))
    assert torch.equal(models[0].weight_hh_l0, models[1].weight_hh_l0)
    for name, weight in models[0].named_parameters():
        rows = slice(2 * HIDDEN) if name == "bias_ih_l0" else slice(None)  # of the biases, those that chrono_ sets
        assert "bias_hh" in name or torch.equal(weight[rows], models[1].get_parameter(name)[rows])


def test_nothing_to_initialise_is_an_error():
    for scheme in (init.orthogonal_, init.xavier_uniform_, init.forget_bias_, init.identity_):
        with pytest.raises(ValueError, match="Linear has no"):
            scheme(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="RNN has no RNN of ReLUs"):
        init.identity_(nn.RNN(2, 2))
    with pytest.raises(ValueError, match="RNN has no LSTM or GRU"):
        init.chrono_(nn.RNN(2, 2), 10)
    with pytest.raises(ValueError, match="greater than 2, got 2"):
        init.chrono_(nn.LSTM(2, 2), 2)
    with pytest.raises(ValueError, match="weight_hh_l0 of .* is computed"):
        init.orthogonal_(weight_norm(nn.GRU(2, 2), "weight_hh_l0"))


def test_schemes_serve_any_cell():
    net = fastrnn.Network(fastrnn.cells.PeepholeLSTM, 4, 6, num_layers=2, bidirectional=True)
    fastrnn.init.orthogonal_(fastrnn.init.forget_bias_(net, 2.0))
    for name, parameter in net.named_parameters():
        if name.startswith("weight_hh"):
            for block in parameter.split(6):
                torch.testing.assert_close(block @ block.T, torch.eye(6), atol=1e-5, rtol=0)
        elif name.startswith("bias"):
            gates = net.parts.matrices["U" if name.startswith("bias_hh") else "W"].gates
            block = parameter.split(6)[gates.index("f")]
            assert torch.equal(block, torch.full((6,), 2.0 if name.startswith("bias_ih") else 0.0))
    before = net.weight_ih_l1.clone()
    fastrnn.init.chrono_(net, 10.0)
    keeping, entering = net.bias_ih_l0.split(6)[1], net.bias_ih_l0.split(6)[0]
    assert torch.equal(keeping, -entering) and (keeping >= 0).all() and (keeping <= math.log(9)).all()
    fastrnn.init.xavier_uniform_(net)
    assert not torch.equal(before, net.weight_ih_l1)
    with pytest.raises(ValueError, match="no RNN of ReLUs"):
        fastrnn.init.identity_(net)
