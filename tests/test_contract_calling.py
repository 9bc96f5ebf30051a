"""Calls as torch.nn's modules take them, and what a caller may do with what comes back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import assert_close, needs_torch_under_autocast
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn

LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")
layers = pytest.mark.parametrize("name", LAYERS)
everyone = pytest.mark.parametrize("name", [*LAYERS, *CELLS])


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours, of the same parameters."""
    theirs, ours = (getattr(package, name)(4, 5, **options) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((3, 4) if name in CELLS else (6, 3, 4), dtype=dtype)


def state(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A state of these inputs; for an LSTM, a list of two."""
    shape = (3, 5) if name in CELLS else (1, 3, 5)
    parts = [torch.randn(shape, dtype=dtype) for _ in range(2)]
    return parts if name.startswith("LSTM") else parts[0]


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of any nest of results, in order."""
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from tensors(part)


@everyone
def test_a_state_may_be_a_list_and_arguments_have_torchs_names(target, name: str):
    module, x, hx = getattr(fastrnn, name)(4, 5).to(target.device), inputs(name), state(name)
    x = x.to(target.device)
    hx = [h.to(target.device) for h in hx] if isinstance(hx, list) else hx.to(target.device)
    with fastrnn.use_backend(target.name):
        found = [
            module(x, hx),
            module(input=x, hx=hx),
            module(hx=tuple(hx) if isinstance(hx, list) else hx, input=x),
        ]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tensors(found[0]), tensors(other), strict=True))
    for method in ("__init__", "forward"):
        theirs, ours = (inspect.signature(getattr(getattr(p, name), method)).parameters for p in (nn, fastrnn))
        assert [key for key, each in ours.items() if each.kind is not each.KEYWORD_ONLY] == list(theirs)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def results_and_gradients(module: nn.Module, x: Tensor, hx: list[Tensor], seeds: list[Tensor]) -> list[Tensor]:
    """In the dtype of the parameters, from values that may have another."""
    dtype = next(module.parameters()).dtype
    x, *hx = (tensor.detach().clone().to(dtype).requires_grad_() for tensor in (x, *hx))
    results = list(tensors(module(x, hx if len(hx) == 2 else hx[0])))
    torch.autograd.backward(results, [seed.to(dtype) for seed in seeds])
    return [result.detach() for result in results] + [leaf.grad for leaf in (x, *hx, *module.parameters())]


@everyone
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_with_gradients(name: str, dtype: torch.dtype):
    """Results and gradients have the dtype of the parameters, whichever path serves it.

    Budgets as in :func:`support.expect`, of torch.nn's own errors in float32 on the same values.
    """
    torch.manual_seed(0)
    ours = getattr(fastrnn, name)(4, 5, dtype=dtype)
    x, hx = inputs(name, dtype), list(tensors(state(name, dtype)))
    seeds = [torch.randn_like(result) for result in tensors(ours(x, hx if len(hx) == 2 else hx[0]))]
    theirs = [getattr(nn, name)(4, 5, dtype=wide) for wide in (torch.float64, torch.float32)]
    for module in theirs:
        module.load_state_dict(ours.state_dict())
    exact, rounded = (results_and_gradients(module, x, hx, seeds) for module in theirs)
    eps = torch.finfo(dtype).eps
    share = eps / torch.finfo(torch.float32).eps * (2 if dtype == torch.float64 else 1)
    noise = max(float((r.double() - e).abs().max()) for r, e in zip(rounded, exact, strict=True))
    for result, one in zip(results_and_gradients(ours, x, hx, seeds), exact, strict=True):
        assert_close(result, one, 2 * (share * noise + eps * float(one.abs().max())), dtype)


@layers
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_under_autocast_an_input_may_have_another_dtype(name: str, dtype: torch.dtype):
    """But for float64, of which autocast keeps off: then the error is torch.nn's."""
    if dtype is torch.float32:
        needs_torch_under_autocast(name)
    x, modules, found = inputs(name).to(dtype), pair(name), []
    for module in modules:
        with torch.autocast("cpu", torch.bfloat16):
            try:
                found.append(list(tensors(module(x))))
            except RuntimeError as error:
                assert dtype == torch.float64
                found.append(str(error))
    if dtype == torch.float64:
        assert isinstance(found[0], str) and found[1] == found[0]
    else:
        right = tensors(copy.deepcopy(modules[0]).double()(x.double()))
        for ours, theirs, exact in zip(found[1], found[0], right, strict=True):
            assert ours.dtype == theirs.dtype
            noise, band = (theirs.double() - exact).abs().max(), torch.finfo(torch.bfloat16).eps * exact.abs().max()
            assert (ours.double() - exact).abs().max() <= 2 * (noise + band)


CALLS = [(name, call) for name in LAYERS for call in ("batched", "batch_first", "unbatched", "packed")]
CALLS += [(name, call) for name in CELLS for call in ("batched", "unbatched")]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_results_are_no_views_where_torch_nns_are_none(target, name: str, call: str):
    """A view made without gradients may not be changed in place with them, and FSDP2 warns of any."""
    modules = pair(name, **({"batch_first": True} if call == "batch_first" else {}))
    x = inputs(name).to(target.device)
    if call == "unbatched":
        x = x.select(-2, 0)
    elif call == "packed":
        x = pack_sequence([x[:2, 0], x[:5, 1]], enforce_sorted=False)
    for grad in (True, False):
        with fastrnn.use_backend(target.name), torch.set_grad_enabled(grad):
            theirs, ours = ([t._is_view() for t in tensors(module.to(target.device)(x))] for module in modules)
        assert all(one or not other for one, other in zip(theirs, ours, strict=True)), (grad, theirs, ours)


@everyone
def test_a_state_made_without_gradients_may_be_written_into_with_them(name: str):
    learned = torch.ones(5, requires_grad=True)
    for module in pair(name):
        with torch.no_grad():
            h = list(tensors(module(inputs(name))))[-1]
        h[..., 0, :] = learned
        h.sum().backward()
    assert torch.equal(learned.grad, torch.full((5,), 2.0))


@everyone
def test_results_may_be_changed_in_place_before_backward(target, name: str):
    module, x = getattr(fastrnn, name)(4, 5).to(target.device), inputs(name).to(target.device)
    found = []
    for change in (False, True):
        module.zero_grad()
        with fastrnn.use_backend(target.name):
            results = list(tensors(module(x)))
            loss = sum(result.sum() for result in results)  # which needs no result to be differentiated
            for result in results if change else []:
                result.mul_(2)
            loss.backward()
        found.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)


@layers
@pytest.mark.parametrize("key", ["weight_ih_l0", "weight_hh_l0", "input", "state"])
def test_what_backward_reads_may_not_be_changed_before_it(target, name: str, key: str):
    """An error, as with torch.nn, never gradients of a mixture."""
    found = []
    for module in pair(name):
        module = module.to(target.device)
        x, hx = inputs(name).to(target.device).requires_grad_(), state(name)
        hx = [h.to(target.device) for h in hx] if isinstance(hx, list) else hx.to(target.device)
        with fastrnn.use_backend(target.name):
            y = module(x, hx)[0]
            with torch.no_grad():
                {"input": x, "state": next(tensors(hx))}.get(key, getattr(module, key, x)).mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        found.append(y)
    assert len(found) == 2


@layers
def test_attributes(name: str):
    theirs, ours = pair(name, num_layers=2, bidirectional=True, dropout=0)
    assert type(ours.dropout) is float and ours.proj_size == 0 and ours.mode == theirs.mode
    assert ours._flat_weights_names == theirs._flat_weights_names == [key for key, _ in ours.named_parameters()]
    assert ours._all_weights == theirs._all_weights
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert all(ref() is weight for ref, weight in zip(ours._flat_weight_refs, ours.parameters(), strict=True))
    assert [weight.shape for part in ours.all_weights for weight in part] == [w.shape for w in ours.parameters()]
    ours.weight_hh_l1 = nn.Parameter(torch.zeros(ours.weight_hh_l1.shape))
    assert any(weight is ours.weight_hh_l1 for weight in ours._flat_weights)
    assert "_flat_weight_refs" in vars(ours) and "_flat_weight_refs" not in ours.__getstate__()
    ours.flatten_parameters()
    assert list(ours.state_dict()) == list(theirs.state_dict())


@layers
def test_expanded_weights(name: str):
    """Per-sample gradients by torch's tensor subclass, which torch.nn's forward alone understands."""
    found, x = [], inputs(name, torch.float64)
    for module in pair(name, batch_first=True, dtype=torch.float64):
        expanded = call_for_per_sample_grads(module, loss_reduction="sum", batch_first=True)
        expanded(x)[0].square().sum().backward()
        found.append([parameter.grad_sample for parameter in module.parameters()])
    assert found[1][0].shape[0] == x.shape[0]
    torch.testing.assert_close(found[1], found[0])


@layers
def test_checks_to_override_are_asked_only_where_torchs_forward_runs(name: str):
    """Unlike torch.nn's: ours looks at shapes by itself and leaves to these methods which error there is."""
    asked = []

    class Own(getattr(fastrnn, name)):
        def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
            asked.append(input.shape)
            super().check_forward_args(input, hidden, batch_sizes)

    module, x = Own(4, 5), inputs(name)
    module(x)
    assert not asked
    with pytest.raises(RuntimeError, match="Expected 4, got 3"):
        module(x[..., :3])
    assert len(asked) == 1
