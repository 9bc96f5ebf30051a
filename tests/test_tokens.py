"""Tokens in the place of one-hot rows: the same results and gradients, and nothing one-hot is built."""

from __future__ import annotations

import pytest
import torch
from support import assert_close
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import backends

BACKENDS = [name for name in backends.NAMES if backends.load(name).TOKENS]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    module, params = backends.load(request.param), request.node.callspec.params
    dtype = params.get("dtype", torch.float32)
    if reason := module.unavailable() or module.unsupported(torch.device("cpu"), dtype):
        pytest.skip(f"{request.param}: {reason}")
    if request.param == "triton" and params.get("steps", 0) > 10:
        pytest.skip("its interpreter takes milliseconds a step")
    with fastrnn.use_backend(request.param):
        yield request.param


def results(module: nn.Module, x: Tensor | PackedSequence) -> list[Tensor]:
    module.zero_grad()
    y, hx = module(x)
    y = y.data if isinstance(y, PackedSequence) else y
    hn = hx[0] if isinstance(hx, tuple) else hx
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, hn)]
    torch.autograd.backward([y, hn], seeds)
    return [y.detach(), hn.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("vocabulary, steps, rows", [(5, 7, 3), (300, 2, 3), (40, 60, 20)])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_one_hot(backend: str, name: str, vocabulary: int, steps: int, rows: int, packed: bool, dtype: torch.dtype):
    torch.manual_seed(0)
    ours = getattr(fastrnn, name)(vocabulary, 18, bidirectional=True).to(dtype)
    theirs = fastrnn.revert(getattr(fastrnn, name)(vocabulary, 18, bidirectional=True).to(dtype))
    theirs.load_state_dict(ours.state_dict())
    exact = getattr(nn, name)(vocabulary, 18, bidirectional=True).double()
    exact.load_state_dict(ours.state_dict())
    tokens = torch.randint(vocabulary, (steps, rows))

    def pack(x: Tensor) -> Tensor | PackedSequence:
        lengths = torch.linspace(1, steps, rows).long()
        return pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x

    rounded = results(theirs, pack(F.one_hot(tokens, vocabulary).to(dtype)))
    right = results(exact, pack(F.one_hot(tokens, vocabulary).double()))
    eps = torch.finfo(dtype).eps
    for k, (found, near, true) in enumerate(zip(results(ours, pack(tokens)), rounded, right, strict=True)):
        # As in support.expect, with its band for sums over all rows; in float64 torch.nn's own noise is not measurable.
        scale = true.abs().max().item()
        noise = (near.double() - true).abs().max().item() if dtype == torch.float32 else 8 * eps * scale
        assert_close(found, true, 2 * (noise + max(1, (steps * rows / 12) ** 0.5) * eps * scale), dtype, f"result {k}")


@pytest.mark.parametrize("dtype", [torch.float64], ids=str)
def test_unbatched_batch_first_and_no_grad(backend: str, dtype: torch.dtype):
    torch.manual_seed(0)
    module = fastrnn.LSTM(9, 4, num_layers=2, batch_first=True).to(dtype)
    tokens = torch.randint(9, (3, 5))
    y, _ = module(tokens)
    torch.testing.assert_close(y, module(F.one_hot(tokens, 9).to(dtype))[0])
    torch.testing.assert_close(module(tokens[1])[0], y[1])
    with torch.no_grad():
        torch.testing.assert_close(module(tokens)[0], y)


@pytest.mark.parametrize("dtype", [torch.float64], ids=str)
def test_second_derivatives(backend: str, dtype: torch.dtype):
    torch.manual_seed(0)
    module = fastrnn.GRU(4, 3).to(dtype)
    tokens = torch.randint(4, (3, 2))
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (tokens,))[0]

    assert torch.autograd.gradcheck(run, parameters)
    assert torch.autograd.gradgradcheck(run, parameters)


@pytest.mark.parametrize("token", [-1, 9])
def test_a_token_out_of_range_is_an_error(backend: str, token: int):
    module = fastrnn.LSTM(9, 4)
    with pytest.raises(IndexError):
        module(torch.tensor([[0, 3], [token, 1]]))


def test_a_narrow_dtype_takes_tokens_too():
    torch.manual_seed(0)
    module = fastrnn.LSTM(9, 4).bfloat16()
    tokens = torch.randint(9, (3, 5))
    # Each of the few roundings of a step is half an eps of a number below 1; three steps.
    rows = F.one_hot(tokens, 9).bfloat16()
    torch.testing.assert_close(module(tokens)[0], module(rows)[0], rtol=0, atol=3 * torch.finfo(torch.bfloat16).eps)


def test_a_backend_without_the_road_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends.load("reference"), "TOKENS", False)
    with fastrnn.use_backend("reference"), pytest.raises(fastrnn.BackendError, match="tokens"):
        fastrnn.LSTM(9, 4)(torch.zeros(2, 3, dtype=torch.int64))
