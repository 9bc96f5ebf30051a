"""Autocast and GradScaler on the CPU: torch.nn's dtypes, gradients in the parameters' dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn

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


@names
def test_dtypes_and_gradients_are_torchs(name: str):
    x = inputs(name)
    found = []
    for module in pair(name):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = first(module(leaf))
        y.float().square().sum().backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())
        found.append([y, leaf.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(found[1], found[0])


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
