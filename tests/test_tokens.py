"""Tokens in the place of one-hot rows: the same results and gradients, and nothing one-hot is built."""

from __future__ import annotations

import pytest
import torch
from memory_peak import MIB, measures, peak
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
@pytest.mark.parametrize("vocabulary, steps, rows", [(5, 7, 3), (300, 2, 3), (9, 1, 4), (40, 60, 20)])
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


EMBEDDED = [{}, {"lengths": torch.tensor([4, 6, 2, 5, 1])}, {"reset": torch.arange(30).view(6, 5) % 4 == 1}]


@pytest.mark.parametrize(
    "form", ["padded", "batch first", "one sequence", "packed", "function", "recompute", "learned"]
)
def test_tokens_of_32_bits_are_those_of_64(backend: str, form: str):
    """Wherever tokens go, with an embedding, small and large, or as they are."""
    torch.manual_seed(0)
    small, large = nn.Embedding(9, 4), nn.Embedding(900, 4)
    first, one = form == "batch first", form == "one sequence"
    own = {"recompute": {"recompute": True}, "learned": {"learn_initial_state": True}}.get(form, {})
    for kind in ("RNN", "LSTM", "GRU", "JordanRNN") if backend != "triton" else ("LSTM",):
        sizes = (5, 5) if kind == "JordanRNN" else (5,)
        networks = [getattr(fastrnn, kind)(size, *sizes, batch_first=first, **own) for size in (9, 4)]
        function = {"RNN": fastrnn.rnn, "LSTM": fastrnn.lstm, "GRU": fastrnn.gru}.get(kind, fastrnn.jordan_rnn)
        tokens = torch.randint(9, (6,) if one else (5, 6) if first else (6, 5))
        calls = [(networks[0], {})] + [(networks[1], {"embedding": each}) for each in (small, large, small.weight)]
        if form == "function":
            calls = [(lambda given, n=networks[0], f=function: f(given, None, n._flat_weights), {})]
        elif form not in ("packed", "one sequence"):
            turned = [{name: t.t() if first and t.dim() == 2 else t for name, t in o.items()} for o in EMBEDDED]
            calls = [(run, given | more) for run, given in calls for more in turned]
        for run, given in calls:
            found = []
            for dtype in (torch.int64, torch.int32):
                x = tokens.to(dtype)
                x = pack_padded_sequence(x, torch.tensor([6, 4, 4, 2, 1])) if form == "packed" else x
                y, last = run(x, **given)
                last = last if isinstance(last, Tensor) else last[0]
                found.append([y.data if isinstance(y, PackedSequence) else y, last])
            assert all(torch.equal(ours, right) for ours, right in zip(*found, strict=True)), (kind, given)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("given", EMBEDDED, ids=["", "lengths", "reset"])
def test_an_embedding_takes_what_torchs_takes(dtype: torch.dtype, given: dict):
    embedding, tokens = nn.Embedding(9, 4), torch.ones(6, 5).to(dtype)
    errors = []
    for call in (lambda: embedding(tokens), lambda: fastrnn.GRU(4, 5)(tokens, embedding=embedding, **given)):
        with pytest.raises(Exception) as caught:
            call()
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


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


def test_a_backend_without_the_path_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends.load("reference"), "TOKENS", False)
    with fastrnn.use_backend("reference"), pytest.raises(fastrnn.BackendError, match="tokens"):
        fastrnn.LSTM(9, 4)(torch.zeros(2, 3, dtype=torch.int64))


@measures
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_but_the_gradient_itself_is_as_large_as_the_vocabulary(backend: str, dtype: torch.dtype):
    """Of 10^6 tokens, of which 200 come."""
    if backend not in ("cpp", "numba") or (backend == "numba" and dtype is torch.bfloat16):
        pytest.skip("it widens all weights, or runs in an interpreter")
    torch.manual_seed(0)
    module = fastrnn.LSTM(10**6, 4, dtype=dtype)
    weight: torch.Tensor = module.weight_ih_l0  # type: ignore[assignment]
    tokens = torch.randint(10**6, (50, 4))
    for measured in (tokens[:2], tokens):  # the first compiles
        y = module(measured)[0].float().pow(2).sum()
        grown, (grad,) = peak(lambda y=y: torch.autograd.grad(y, weight))
    assert grown < weight.numel() * weight.element_size() + 16 * MIB
    assert torch.equal(grad.float().abs().sum(0).nonzero().flatten(), tokens.unique())
