"""Autocast and GradScaler on the CPU: torch.nn's dtypes, gradients in the parameters' dtype."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import needs_torch_under_autocast
from torch import Tensor, nn

import fastrnn
from fastrnn import paths

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
names = pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", *CELLS])


def pair(name: str) -> tuple[Any, Any]:
    theirs, ours = getattr(nn, name)(4, 5), getattr(fastrnn, name)(4, 5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(name: str) -> Tensor:
    return torch.randn(3, 4) if name in CELLS else torch.randn(6, 3, 4)


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def results(module: Any, x: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """What comes out under autocast to ``dtype``, or without, and the gradients of the input and the parameters."""
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = first(module(leaf))
    y.float().square().sum().backward()
    return [y, leaf.grad, *(parameter.grad for parameter in module.parameters())]


@names
def test_dtypes_and_errors_are_torchs(name: str):
    """Ours are within twice torch.nn's own distance from the exact values, a rounding to bfloat16 granted to both."""
    needs_torch_under_autocast(name)
    x, (theirs, ours) = inputs(name), pair(name)
    exact = results(copy.deepcopy(theirs).double(), x.double(), None)
    for own, other, right in zip(*(results(m, x, torch.bfloat16) for m in (ours, theirs)), exact, strict=True):
        assert own.dtype == other.dtype
        noise = (other.double() - right).abs().max().item()
        band = torch.finfo(torch.bfloat16).eps * right.abs().max().item()
        assert (own.double() - right).abs().max().item() <= 2 * (noise + band)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("lengths", [(5, 5, 5), (1,), (4, 4, 3)], ids=str)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_packed_input_is_cast_where_torch_casts_it(name: str, options: dict[str, Any], lengths: tuple[int, ...]):
    """Which for an LSTM depends on whether all sequences are of one length."""
    if "proj_size" in options and name != "LSTM":
        pytest.skip(f"{name} has no projection")
    theirs, ours = getattr(nn, name)(4, 5, **options), getattr(fastrnn, name)(4, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    packed = nn.utils.rnn.pack_sequence([torch.randn(length, 4) for length in lengths])
    function = getattr(fastrnn, name.lower())
    layers = dict(num_layers=ours.num_layers, bidirectional=ours.bidirectional)

    def flat(found: Any) -> list[Tensor]:
        y, state = found
        return [y if isinstance(y, Tensor) else y.data, *(state if isinstance(state, tuple) else (state,))]

    with torch.autocast("cpu", torch.bfloat16):
        expected = flat(theirs(packed))
        by_function = function(packed.data, None, ours._flat_weights, batch_sizes=packed.batch_sizes, **layers)
        for found in (flat(ours(packed)), flat(by_function)):
            for own, other in zip(found, expected, strict=True):
                assert own.dtype is other.dtype
                torch.testing.assert_close(own, other, atol=2**-6, rtol=2**-6)  # two roundings to 8 bits


CAST_BY_PRODUCTS = [
    ("GRU", {}, 1, False),
    ("GRU", {"num_layers": 2, "bidirectional": True}, 6, False),
    ("GRU", {"bidirectional": True}, 6, True),
    ("LSTM", {"proj_size": 3, "num_layers": 2}, 6, False),
    ("LSTM", {"bidirectional": True}, 6, True),
    ("LSTM", {"proj_size": 3}, 6, "evenly"),
    ("GRUCell", {}, 1, False),
    ("LSTMCell", {}, 1, False),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CAST_BY_PRODUCTS, ids=str)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_where_torch_casts_each_product_so_do_kernels(case, dtype: torch.dtype):
    """Results have torch.nn's dtypes; they and the gradients are, on average, off by no more than torch.nn's."""
    name, options, steps, packed = case
    torch.manual_seed(0)
    theirs, ours = getattr(nn, name)(9, 17, **options), getattr(fastrnn, name)(9, 17, **options)
    ours.load_state_dict(theirs.state_dict())
    x = (torch.randn(4, 9) if name in CELLS else torch.randn(steps, 4, 9)).to(dtype)

    def every(module: Any, x: Tensor, enabled: bool) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            lengths = [6, 6, 6, 6] if packed == "evenly" else [6, 5, 5, 1]
            out = module(nn.utils.rnn.pack_padded_sequence(leaf, torch.tensor(lengths)) if packed else leaf)
        flat = [out] if isinstance(out, Tensor) else [out[0].data if packed else out[0]]
        flat += [] if isinstance(out, Tensor) else [out[1]] if isinstance(out[1], Tensor) else [*out[1]]
        total = torch.stack([each.double().square().sum() for each in flat]).sum()
        return [*flat, *torch.autograd.grad(total, [leaf, *module.parameters()])]

    exact = every(copy.deepcopy(theirs).double(), x.double(), False)
    with fastrnn.use_backend("cpp"):  # which raises where it does not serve
        found = every(ours, x, True)
    shares = []
    for own, other, right in zip(found, every(theirs, x, True), exact, strict=True):
        assert own.dtype == other.dtype
        noise = (other.double() - right).abs().max().item()
        band = torch.finfo(torch.bfloat16).eps * right.abs().max().item()
        assert (own.double() - right).abs().max().item() <= 2 * (noise + band)
        if noise:  # a single step from zeros has no gradient of weight_hh
            shares.append(((own.double() - right).norm() / (other.double() - right).norm()).item())
    # One result alone may be off by more than torch.nn's, by luck of its roundings.
    assert sum(shares) / len(shares) <= 1


@names
@pytest.mark.parametrize("gradients", [False, True])
def test_numbers_stored_with_the_wrong_sign(name: str, gradients: bool):
    """Each argument and each parameter by itself: a copy to another dtype sets them right, where there is one."""
    _, ours = pair(name)
    x, state = inputs(name), torch.randn(*(() if name in CELLS else (1,)), 3, 5)

    def call(x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
            return first(ours(x, (h, c) if "LSTM" in name else h)).detach().resolve_neg()

    given = [x, state, state.cos()]
    exact = call(*given)
    for at, tensor in enumerate(given):
        assert torch.equal(call(*given[:at], torch._neg_view(-tensor), *given[at + 1 :]), exact)
    for parameter in ours.parameters():
        parameter.data = torch._neg_view(-parameter.data)
        assert torch.equal(call(*given), exact)


def test_layers_run_on_the_backend_asked_for(target, monkeypatch):
    if target.device.type != "cpu":
        pytest.skip("the modules are on the CPU")
    dtypes = []
    forward = target.module.forward
    monkeypatch.setattr(target.module, "forward", lambda *args: dtypes.append(args[1].dtype) or forward(*args))
    served = ["RNN", "RNNCell"] + ["LSTM"] * paths._ONEDNN  # else torch.nn does not cast an LSTM as a whole
    for name in served:
        _, ours = pair(name)
        with torch.autocast("cpu", torch.bfloat16), fastrnn.use_backend(target.name), torch.no_grad():
            assert first(ours(inputs(name))).dtype == torch.bfloat16
    assert dtypes == [torch.bfloat16] * len(served)
    with torch.autocast("cpu", torch.bfloat16), fastrnn.use_backend(target.name):
        if target.name == "cpp":
            assert first(pair("GRU")[1](inputs("GRU"))).dtype == torch.float32
        else:
            with pytest.raises(fastrnn.BackendError, match="autocast is on"):
                pair("GRU")[1](inputs("GRU"))


@names
def test_autocast_around_backward_alone_changes_nothing(target, name: str):
    """What ran outside is differentiated as it ran, first and second derivative, to the bit."""
    if target.device.type != "cpu":
        pytest.skip("the modules are on the CPU")
    _, ours = pair(name)
    x = inputs(name)
    found = []
    for enabled in (False, True):
        ours.zero_grad()
        leaf = x.clone().requires_grad_()
        with fastrnn.use_backend(target.name):
            total = first(ours(leaf)).sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                (grad,) = torch.autograd.grad(total, leaf, create_graph=True)
            penalty = grad.square().sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                penalty.backward()
        found.append([grad.detach(), leaf.grad, *(p.grad for p in ours.parameters() if p.grad is not None)])
    assert len(found[0]) > 2 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@names
def test_grad_scaler(name: str):
    """Scaled training is torch.nn's, and a step whose gradients overflow is left out."""
    x = inputs(name)
    found = []
    for module in pair(name):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for factor in (1.0, 1e38, 1.0):
            before = [parameter.detach().clone() for parameter in module.parameters()]
            optimizer.zero_grad()
            scaler.scale(first(module(x)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            changed = any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
            assert changed == (factor == 1.0)
        assert scaler.get_scale() == 2.0**9
        found.append(list(module.parameters()))
    torch.testing.assert_close(found[1], found[0])
