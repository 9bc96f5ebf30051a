"""return_cell_states: c_t of the last layer at every step, against single steps of the equations, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Case, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

STEPS, ROWS, INPUTS, HIDDEN = 5, 3, 2, 4
LENGTHS = (3, 5, 1)


def build(dtype: torch.dtype = torch.float64, **options: Any) -> fastrnn.LSTM:
    torch.manual_seed(0)
    return fastrnn.LSTM(INPUTS, HIDDEN, **options).to(dtype)


def inputs() -> Tensor:
    return torch.randn(STEPS, ROWS, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_steps(network: Any, x: Tensor) -> Tensor:
    """c_t of the last layer, (T, B, D*H), from single steps."""
    parameters, width = dict(network.named_parameters()), 2 if network.bidirectional else 1
    for layer in range(network.num_layers):
        outputs, cells = [], []
        for end in ("", "_reverse")[:width]:
            w_ih, w_hh, b_ih, b_hh = (parameters[f"{name}_l{layer}{end}"] for name in
                                      ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))  # fmt: skip
            h, c = x.new_zeros(x.shape[1], w_hh.shape[1]), x.new_zeros(x.shape[1], HIDDEN)
            own: list[tuple[Tensor, Tensor]] = []
            for step in x.flip(0) if end else x:
                i, f, g, o = (step @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                h = h @ parameters[f"weight_hr_l{layer}{end}"].T if network.proj_size else h
                own.append((h, c))
            own = own[::-1] if end else own
            outputs.append(torch.stack([h for h, _ in own]))
            cells.append(torch.stack([c for _, c in own]))
        x = torch.cat(outputs, -1)
    return torch.cat(cells, -1)


CASES = [
    Case("layers and directions", directions=2, dtype=torch.float64),
    Case("projection", proj_size=3, dtype=torch.float64),
    Case("a backend without float64", small=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(target, case: Case):
    options = {"num_layers": 2, "bidirectional": True} if case.directions == 2 else {"proj_size": case.proj_size}
    exact = build(**options)
    seed = torch.randn(STEPS, ROWS, HIDDEN * case.directions, generator=torch.Generator().manual_seed(2)).double()
    x = inputs().requires_grad_()
    right = by_steps(exact, x)
    right = [right, *torch.autograd.grad(right, [x, *exact.parameters()], seed, allow_unused=True)]
    network = build(case.dtype, return_cell_states=True, **options).to(target.device)
    x = inputs().to(target.device, case.dtype).requires_grad_()
    with fastrnn.use_backend(target.name):
        _, _, cells = network(x)
        found = torch.autograd.grad(cells, [x, *network.parameters()], seed.to(cells), allow_unused=True)
        with torch.no_grad():
            without = network(x)[2]
    assert without.device == cells.device and torch.allclose(without, cells)
    for ours, exactly in zip([cells, *found], right, strict=True):
        exactly = torch.zeros_like(ours).double() if exactly is None else exactly
        ours = torch.zeros_like(exactly).to(case.dtype) if ours is None else ours
        # Rounding of at most T steps and sums of T * B rows, at the scale of the largest of a result.
        budget = 64 * torch.finfo(case.dtype).eps * max(1.0, exactly.abs().max().item())
        assert_close(ours, exactly, budget, case.dtype)


@pytest.mark.parametrize("case", [Case("", dtype=torch.float64)], ids=str)
def test_gradcheck(target, case: Case):
    network = fastrnn.LSTM(INPUTS, 2, bidirectional=True).to(target.device, torch.float64)
    x = torch.randn(3, 2, INPUTS, dtype=torch.float64, device=target.device, requires_grad=True)

    def run(x: Tensor, weight: Tensor) -> Any:
        y, (hn, _), cells = torch.func.functional_call(
            network, {"weight_hh_l0": weight}, (x,), {"return_cell_states": True}
        )
        return y, hn, cells

    with fastrnn.use_backend(target.name):
        assert torch.autograd.gradcheck(run, (x, network.weight_hh_l0))
        assert torch.autograd.gradgradcheck(run, (x, network.weight_hh_l0))


def test_forms():
    """Each form of a call beside the padded one."""
    network, x = build(bidirectional=True), inputs()
    y, state, cells = network(x, return_cell_states=True)
    torch.testing.assert_close((y, state), network(x))
    torch.testing.assert_close(cells[-1, :, :HIDDEN], state[1][0])
    torch.testing.assert_close(cells[0, :, HIDDEN:], state[1][1])
    torch.testing.assert_close(network(x[:, 1], return_cell_states=True)[2], cells[:, 1])
    turned = build(bidirectional=True, batch_first=True)
    torch.testing.assert_close(turned(x.transpose(0, 1), return_cell_states=True)[2], cells.transpose(0, 1))
    packed = network(pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False), return_cell_states=True)[2]
    padded = network(x, lengths=LENGTHS, return_cell_states=True)[2]
    torch.testing.assert_close(pad_packed_sequence(packed)[0], padded)
    torch.testing.assert_close(padded[:3, 0], network(x[:3, 0], return_cell_states=True)[2])
    assert (padded[3:, 0] == 0).all()
    tokens, table = torch.randint(3, (STEPS, ROWS)), torch.randn(3, INPUTS, dtype=torch.float64)
    for each in (table, nn.Embedding.from_pretrained(table)):
        found = network(tokens, embedding=each, return_cell_states=True)
        torch.testing.assert_close(found, network(table[tokens], return_cell_states=True))
    for given in (x, x.transpose(0, 1)):
        options = {"bidirectional": True, "return_cell_states": True, "batch_first": given is not x}
        found = fastrnn.lstm(given, None, network._flat_weights, **options)
        torch.testing.assert_close(found[2], cells if given is x else cells.transpose(0, 1))
    cells.detach().add_(1)


def test_the_attribute_says_what_a_call_does_that_does_not():
    network, x = build(), inputs()
    assert len(network(x)) == 2
    network.return_cell_states = True
    assert len(network(x)) == 3 and len(network(x, return_cell_states=False)) == 2
    assert repr(network) == "LSTM(2, 4, return_cell_states=True)"


def test_where_torch_runs_in_our_place():
    """Under autocast, which no kernel serves, and in a graph that others trace."""
    network, x = build(torch.float32), inputs().float()
    with torch.autocast("cpu", torch.bfloat16):
        y, _, cells = network(x, return_cell_states=True)
        assert y.dtype == cells.dtype == network(x)[0].dtype
        y, _, packed = network(x, lengths=LENGTHS, return_cell_states=True)
        assert y.dtype == packed.dtype == network(x, lengths=LENGTHS)[0].dtype
    expected = network(x, return_cell_states=True)
    # Gates below 1 that are rounded a few times in each of the steps.
    torch.testing.assert_close(cells.float(), expected[2], rtol=0, atol=4 * STEPS * torch.finfo(torch.bfloat16).eps)
    batched = torch.func.vmap(lambda x: network(x, return_cell_states=True)[2])(x.unsqueeze(0))
    torch.testing.assert_close(batched[0], expected[2])


def cells_of(x: Tensor) -> Tensor:
    return build(torch.float32)(x, return_cell_states=True)[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_dtype_gives_cell_states_of_its_own(dtype: torch.dtype):
    network, x = build(dtype), inputs().to(dtype)
    cells = network(x, return_cell_states=True)[2]
    assert cells.dtype == dtype
    # Gates below 1 that are rounded a few times in each of the steps.
    torch.testing.assert_close(cells.float(), cells_of(x.float()), rtol=0, atol=4 * STEPS * torch.finfo(dtype).eps)


def test_errors():
    with pytest.raises(ValueError, match="return_cell_states is for an LSTM; GRU has no cell state"):
        fastrnn.GRU(2, 3, return_cell_states=True)
    with pytest.raises(ValueError, match="RNN_TANH has no cell state"):
        fastrnn.RNN(2, 3)(torch.zeros(4, 1, 2), return_cell_states=True)
    with pytest.raises(TypeError, match="return_cell_states should be of type bool, got: int"):
        fastrnn.LSTM(2, 3, return_cell_states=1)
    network, x = build(), inputs()
    with pytest.raises(RuntimeError, match="hidden"):
        network(x, (torch.zeros(1, 2, HIDDEN).double(),) * 2, return_cell_states=True)
    with pytest.raises(ValueError, match="dtype"):
        network(x.float(), return_cell_states=True)
