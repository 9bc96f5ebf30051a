"""Tokens with an embedding: what the embedding and then the network give, without a vector for every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Case, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import ops

VOCABULARY, INPUTS, HIDDEN = 5, 4, 3


def gradients(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    """Of both outputs, with a seed that is no constant."""
    y, state = outputs
    found = [y.data if isinstance(y, PackedSequence) else y, *(state if isinstance(state, tuple) else (state,))]
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in found]
    grads = torch.autograd.grad(found, leaves, seeds, allow_unused=True)
    return [*found, *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, grads, strict=True))]


CASES = [
    Case("each cell", mode, lengths=lengths, directions=2, dtype=torch.float64)
    for mode in ("RNN_TANH", "LSTM", "GRU")
    for lengths in ((), (7, 4, 2))
]
CASES.append(Case("a backend without float64", "LSTM", steps=2, small=True))


def module(mode: str, *sizes: int, **options: Any) -> nn.Module:
    return getattr(fastrnn, mode.removesuffix("_TANH"))(*sizes, **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_embedding_then_network(target, case: Case):
    torch.manual_seed(0)
    layers, directions = (2, 2) if case.directions == 2 else (1, 1)
    network = module(case.mode, INPUTS, HIDDEN, num_layers=layers, bidirectional=directions == 2)
    network, table = network.to(target.device, case.dtype), nn.Embedding(VOCABULARY, INPUTS, padding_idx=2)
    table = table.to(target.device, case.dtype)
    given: Any = torch.randint(VOCABULARY, (case.steps if not case.lengths else 7, 6)).to(target.device)
    if case.lengths:
        given = pack_padded_sequence(given[:, :3], torch.tensor(case.lengths))
    leaves = [*network.parameters(), table.weight]
    with fastrnn.use_backend(target.name):
        found = gradients(network(given, embedding=table), leaves)
        vectors = given._replace(data=table(given.data)) if case.lengths else table(given)
        expected = gradients(network(vectors), leaves)
    for ours, right in zip(found, expected, strict=True):
        # Sums of at most N = 24 rows' numbers, in another order: a rounding each, of at most the largest sum.
        assert_close(ours, right, 64 * torch.finfo(case.dtype).eps * max(1.0, right.abs().max().item()), case.dtype)


def test_one_sequence_alone():
    torch.manual_seed(0)
    network, table = fastrnn.GRU(INPUTS, HIDDEN).double(), nn.Embedding(VOCABULARY, INPUTS).double()
    tokens = torch.randint(VOCABULARY, (20,))
    torch.testing.assert_close(network(tokens, embedding=table), network(table(tokens)))


def test_batch_first_states_and_weights_alone():
    torch.manual_seed(0)
    network = fastrnn.LSTM(INPUTS, HIDDEN, batch_first=True).double()
    table = torch.randn(VOCABULARY, INPUTS, dtype=torch.float64)
    tokens, hx = torch.randint(VOCABULARY, (3, 7)), (torch.randn(1, 3, HIDDEN).double(),) * 2
    expected = network(table[tokens], hx)
    torch.testing.assert_close(network(tokens, hx, embedding=table), expected)
    torch.testing.assert_close(network(tokens.int(), hx, embedding=table), expected)
    with torch.no_grad():
        torch.testing.assert_close(network(tokens, hx, embedding=table), expected)


@pytest.mark.parametrize("case", [Case("", dtype=torch.float64)], ids=str)
def test_second_derivatives(target, case: Case):
    torch.manual_seed(0)
    network = fastrnn.GRU(2, 2).to(target.device, case.dtype)
    tokens = torch.randint(2, (3, 2), device=target.device)
    table = torch.randn(2, 2, dtype=case.dtype, device=target.device, requires_grad=True)
    names, parameters = zip(*network.named_parameters(), strict=True)

    def run(table: Tensor, *parameters: Tensor) -> Tensor:
        options = dict(zip(names, parameters, strict=True)), (tokens,), {"embedding": table}
        return torch.func.functional_call(network, *options)[0]

    with fastrnn.use_backend(target.name):
        assert torch.autograd.gradcheck(run, (table, *parameters))
        assert torch.autograd.gradgradcheck(run, (table, *parameters))


def test_the_road_is_the_gather_where_tokens_far_outnumber_the_vocabulary(monkeypatch: pytest.MonkeyPatch):
    kinds, layer = [], ops.layer

    def spy(*arguments: Any) -> Any:
        kinds.append(next(argument for argument in arguments if isinstance(argument, Tensor)).dtype)
        return layer(*arguments)

    monkeypatch.setattr(ops, "layer", spy)
    network, tokens = fastrnn.LSTM(INPUTS, HIDDEN), torch.randint(VOCABULARY, (7, 3))
    plain = {"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}
    with fastrnn.use_backend("reference"):
        network(tokens, embedding=nn.Embedding(VOCABULARY, INPUTS))
        network(tokens, embedding=nn.Embedding(100, INPUTS))
        for options in plain:
            network(tokens, embedding=nn.Embedding(VOCABULARY, INPUTS, **options))
    assert kinds == [torch.int64, *[torch.float32] * 4]


def test_errors():
    network, tokens = fastrnn.LSTM(INPUTS, HIDDEN), torch.randint(VOCABULARY, (7, 3))
    with pytest.raises(TypeError, match="embedding must be an nn.Embedding or its weight, got Linear"):
        network(tokens, embedding=nn.Linear(VOCABULARY, INPUTS))
    with pytest.raises(RuntimeError, match=f"Expected {INPUTS}, got {INPUTS + 1}"):
        network(tokens, embedding=nn.Embedding(VOCABULARY, INPUTS + 1))
    for token in (-1, VOCABULARY):
        with pytest.raises(IndexError):
            network(torch.full((7, 3), token), embedding=nn.Embedding(VOCABULARY, INPUTS))
    with pytest.raises(RuntimeError, match="hidden"):
        network(tokens, (torch.zeros(1, 2, HIDDEN),) * 2, embedding=nn.Embedding(VOCABULARY, INPUTS))
