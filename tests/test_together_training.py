"""The modules in training programs of others: hooks, checkpointing, saved-tensor hooks, threads, whole-module files."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn

LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")
everyone = pytest.mark.parametrize("name", [*LAYERS, *CELLS])


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours, of the same parameters."""
    theirs, ours = (getattr(package, name)(4, 5, **options) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(name: str) -> Tensor:
    return torch.randn(3, 4) if name in CELLS else torch.randn(6, 3, 4)


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def shapes(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else [shapes(part) for part in value or ()]


@everyone
def test_every_hook_is_called_as_torch_nn_calls_it(name: str):
    """Hooks around forward, backward, a parameter's gradient, saving and loading; some change what they are given."""
    x, found = inputs(name), []
    for module in pair(name):
        calls: list[Any] = []

        def note(what: str, *values: Any, calls: list[Any] = calls) -> None:
            calls.append((what, *map(shapes, values)))

        def double(module: nn.Module, arguments: tuple, keywords: dict, note: Any = note) -> Any:
            note("before forward", arguments, keywords.values())
            return (arguments[0] * 2, *arguments[1:]), keywords

        def negative(module: nn.Module, arguments: tuple, out: Any, note: Any = note) -> Any:
            note("after forward", arguments, out)
            return (-out[0], *out[1:]) if isinstance(out, tuple) else -out

        def halve(module: nn.Module, grads: tuple, outer: tuple, note: Any = note) -> Any:
            note("after backward", grads, outer)
            return tuple(grad if grad is None else grad / 2 for grad in grads)

        module.register_forward_pre_hook(double, with_kwargs=True)
        module.register_forward_hook(negative)
        module.register_full_backward_pre_hook(lambda module, grads, note=note: note("before backward", grads))
        module.register_full_backward_hook(halve)
        weight = next(module.parameters())
        weight.register_hook(lambda grad, note=note: note("gradient", grad))
        weight.register_post_accumulate_grad_hook(lambda weight, note=note: note("accumulated", weight.grad))
        module.register_state_dict_pre_hook(lambda module, prefix, keep, note=note: note("before saving"))
        module.register_state_dict_post_hook(lambda module, state, *rest, note=note: note("saved", state.values()))
        module.register_load_state_dict_pre_hook(lambda module, state, *rest, note=note: note("before loading"))
        module.register_load_state_dict_post_hook(lambda module, keys, note=note: note("loaded"))

        leaf = x.clone().requires_grad_()
        out = first(module(leaf))
        out.square().sum().backward()
        module.load_state_dict(module.state_dict())
        found.append((calls, out.detach(), leaf.grad, [parameter.grad for parameter in module.parameters()]))
    assert found[1][0] == found[0][0] and len(found[0][0]) == 10
    torch.testing.assert_close(found[1][1:], found[0][1:])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNNCell"])
def test_activation_checkpointing_changes_no_bit(target, name: str, reentrant: bool):
    options = {} if name in CELLS else {"num_layers": 2, "dropout": 0.5}
    module, x = getattr(fastrnn, name)(4, 5, **options).to(target.device), inputs(name).to(target.device)
    found, runs = [], []
    module.register_forward_pre_hook(lambda *_: runs.append(1))
    for checkpointed in (False, True):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(0)  # dropout draws once more where forward runs again, and must draw the same
        with fastrnn.use_backend(target.name):
            out = checkpoint(module, leaf, use_reentrant=reentrant) if checkpointed else module(leaf)
            first(out).square().sum().backward()
        found.append([first(out).detach(), leaf.grad, *(parameter.grad for parameter in module.parameters())])
    assert len(runs) == 3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)


@everyone
def test_what_backward_needs_may_be_packed_away(target, name: str):
    """Saved-tensor hooks, as of offloading and compression: first and second derivative read what they unpack."""
    module, x, found = getattr(fastrnn, name)(4, 5).to(target.device), inputs(name).to(target.device), []
    kept: list[bytes] = []

    def pack(tensor: Tensor) -> Any:
        kept.append(pickle.dumps(tensor.detach().cpu().clone()))
        return kept[-1], tensor.device

    def unpack(packed: Any) -> Tensor:
        return pickle.loads(packed[0]).to(packed[1])

    for hooks in (contextlib.nullcontext(), torch.autograd.graph.saved_tensors_hooks(pack, unpack)):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        with fastrnn.use_backend(target.name), hooks:
            (grad,) = torch.autograd.grad(first(module(leaf)).square().sum(), leaf, create_graph=True)
            grad.square().sum().backward()
        found.append([grad.detach(), leaf.grad, *(parameter.grad for parameter in module.parameters())])
    assert len(kept) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)


def test_inference_mode(target):
    theirs, ours = pair("LSTM")
    ours, x = ours.to(target.device), inputs("LSTM").to(target.device)
    with fastrnn.use_backend(target.name):
        with torch.inference_mode():
            y, (h, c) = ours(x)
        torch.testing.assert_close(y.cpu(), theirs(x.cpu())[0])
        assert y.is_inference() and h.is_inference() and c.is_inference()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            ours(x, (h, c))


def on_cpu(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", [(name, "cpu") for name in names], indirect=True, ids=names)


@pytest.fixture
def threads() -> Iterator[None]:
    """Leaves the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@on_cpu("cpp", "numba")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("number", [1, 2])
def test_threads_that_share_a_module(target, name: str, number: int, threads: None):
    """Forward and backward of several sizes at once, each as it is alone."""
    module = getattr(fastrnn, name)(6, 90, bidirectional=True)
    given = [torch.randn(5 + k % 3, 1 + 4 * (k % 4), 6) for k in range(12)]

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        torch.set_num_threads(number)
        with fastrnn.use_backend(target.name):
            y = module(x)[0]
            return y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))

    alone = [gradients(x) for x in given]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(gradients, given))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@on_cpu("cpp", "numba")
@pytest.mark.parametrize("name", LAYERS)
def test_the_number_of_threads_may_change_at_any_time(target, name: str, threads: None):
    """Between forward and backward and from step to step: the same bits as on one thread."""
    module = getattr(fastrnn, name)(70, 130, num_layers=2)
    x, seed, found = torch.randn(20, 9, 70), torch.randn(20, 9, 130), []
    for numbers in ((1, 1), (2, 3), (3, 1), (1, 2)):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        with fastrnn.use_backend(target.name):
            torch.set_num_threads(numbers[0])
            y = module(leaf)[0]
            torch.set_num_threads(numbers[1])
            y.backward(seed)
        found.append([y.detach(), leaf.grad, *(parameter.grad for parameter in module.parameters())])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def saved(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


@everyone
def test_a_whole_module_in_a_file_becomes_torch_nns_and_back(name: str):
    theirs, _ = pair(name)
    x = inputs(name)
    expected = first(theirs(x))
    ours = fastrnn.convert(torch.load(io.BytesIO(saved(theirs)), weights_only=False))
    assert type(ours) is getattr(fastrnn, name)
    torch.testing.assert_close(first(ours(x)), expected)
    again = torch.load(io.BytesIO(saved(ours)), weights_only=False)
    assert type(again) is type(ours)
    file = saved(fastrnn.revert(again))
    assert b"fastrnn" not in file, "who has torch alone cannot read it"
    back = torch.load(io.BytesIO(file), weights_only=False)
    assert type(back) is getattr(nn, name)
    torch.testing.assert_close(first(back(x)), expected)
    with torch.serialization.safe_globals([getattr(fastrnn, name), set]):
        checked = torch.load(io.BytesIO(saved(ours)), weights_only=True)
    assert torch.equal(first(checked(x)), first(ours(x)))


def test_state_from_before_there_was_proj_size():
    """What torch 1.7 pickled of an LSTM."""
    ours = fastrnn.LSTM(4, 5)
    state = ours.__getstate__()
    assert "_flat_weight_refs" not in state
    del state["proj_size"]
    old = fastrnn.LSTM.__new__(fastrnn.LSTM)
    old.__setstate__(state)
    x = inputs("LSTM")
    assert torch.equal(old(x)[0], ours(x)[0]) and old.proj_size == 0


def test_a_packed_sequence_through_checkpointing():
    module = fastrnn.GRU(4, 5)
    rows = [torch.randn(n, 4).requires_grad_() for n in (2, 5, 3)]
    found = []
    for checkpointed in (False, True):
        packed = pack_sequence(rows, enforce_sorted=False)
        out = checkpoint(module, packed, use_reentrant=False) if checkpointed else module(packed)
        found.append(torch.autograd.grad(out[0].data.square().sum(), [*rows, *module.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
