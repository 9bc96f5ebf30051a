"""Tokens with an embedding: what the embedding and then the network give, without a vector for every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Case, assert_close
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules
from torch.nn.utils import parametrizations
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


def test_the_path_is_the_gather_where_tokens_far_outnumber_the_vocabulary(monkeypatch: pytest.MonkeyPatch):
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


HOOKS: dict[str, Any] = {
    "pre": lambda table, see: table.register_forward_pre_hook(lambda module, args: see(*args)),
    "after": lambda table, see: table.register_forward_hook(lambda module, args, result: see(*args, result)),
    "keywords": lambda table, see: table.register_forward_hook(lambda m, a, k, result: see(result), with_kwargs=True),
    "always": lambda table, see: table.register_forward_hook(lambda m, a, result: see(result), always_call=True),
    "gradient": lambda table, see: table.register_full_backward_hook(lambda module, left, came: see(*came)),
    "gradient before": lambda table, see: table.register_full_backward_pre_hook(lambda module, came: see(*came)),
    "any pre": lambda _, see: of_all_modules.register_module_forward_pre_hook(lambda m, args: of_one(m, see, *args)),
    "any after": lambda _, see: of_all_modules.register_module_forward_hook(lambda m, a, y: of_one(m, see, y)),
    "any gradient": lambda _, see: of_all_modules.register_module_full_backward_hook(
        lambda m, left, came: of_one(m, see, *came)
    ),
}


def of_one(module: nn.Module, see: Any, *tensors: Tensor) -> None:
    if isinstance(module, nn.Embedding):
        see(*tensors)


def ways() -> dict[str, tuple[Tensor, Any, dict[str, Any]]]:
    """Tokens in each form that a call takes, as they are given to the embedding and what is done with its vectors."""
    tokens = torch.randint(VOCABULARY, (9, 4), generator=torch.Generator().manual_seed(1))
    packed = pack_padded_sequence(tokens, torch.tensor([9, 7, 7, 1]))
    return {
        "padded": (tokens, lambda x: x, {}),
        "one": (tokens.flatten(), lambda x: x, {}),
        "packed": (packed.data, lambda x: packed._replace(data=x), {}),
        "lengths": (tokens, lambda x: x, {"lengths": [3, 9, 1, 5]}),
        "reset": (tokens, lambda x: x, {"reset": tokens == 0}),
        "cells": (tokens, lambda x: x, {"return_cell_states": True}),
    }


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # no gradient leaves an embedding
def test_hooks_see_what_they_see_in_torch(hook: str, way: str):
    """However few tokens there are beside what they are chosen from."""
    torch.manual_seed(0)
    network, table = fastrnn.LSTM(INPUTS, HIDDEN), nn.Embedding(VOCABULARY, INPUTS)
    tokens, put, options = ways()[way]
    seen: list[Tensor] = []
    handle = HOOKS[hook](table, lambda *tensors: seen.extend(tensor.clone() for tensor in tensors))
    found = []
    try:
        for run in (
            lambda: network(put(tokens), embedding=table, **options),
            lambda: network(put(table(tokens)), **options),
        ):
            y = run()[0]
            (y.data if isinstance(y, PackedSequence) else y).square().sum().backward()
            found.append(list(seen))
            seen.clear()
    finally:
        handle.remove()
    assert found[0] and len(found[0]) == len(found[1])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right)


class Scaled(nn.Embedding):
    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input) * input.shape[0]


def by_itself(table: nn.Embedding) -> nn.Embedding:
    own = table.forward
    table.forward = lambda input: own(input) * input.shape[0]
    return table


def noisy(table: nn.Embedding) -> nn.Embedding:
    """NEFTune: noise by the length and the width of what is embedded."""

    def after(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result + torch.rand_like(result) / (result.shape[1] * result.shape[2]) ** 0.5

    table.register_forward_hook(after)
    return table


OTHERS = {
    "subclass": lambda table: Scaled.from_pretrained(table.weight, freeze=False),
    "own forward": by_itself,
    "NEFTune": noisy,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,  # in training each look at the weight changes it
}


@pytest.mark.parametrize("way", ["padded", "lengths", "reset"])
@pytest.mark.parametrize("other", OTHERS)
def test_an_embedding_that_does_more_is_called_as_it_is(other: str, way: str):
    torch.manual_seed(0)
    network, table = fastrnn.GRU(INPUTS, HIDDEN), OTHERS[other](nn.Embedding(VOCABULARY, INPUTS))
    tokens, _, options = ways()[way]
    before, found = {key: value.clone() for key, value in table.state_dict().items()}, []
    for run in (lambda: network(tokens, embedding=table, **options), lambda: network(table(tokens), **options)):
        table.load_state_dict(before)
        torch.manual_seed(1)
        found.append([*run(), *table.state_dict().values()])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=0)


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
