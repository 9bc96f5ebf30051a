"""The operators: their registration, first and second derivatives in float64, and what a derivative costs nobody."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Case, make
from torch import Tensor

import fastrnn
from fastrnn import ops
from fastrnn.modes import TORCH_MODES

FORMS = [
    Case("the plain layer", mode, steps=3, rows=2, inputs=2, hidden=3, dtype=torch.float64) for mode in TORCH_MODES
]
FORMS += [
    Case("projection, two ways", steps=2, rows=2, inputs=2, hidden=3, proj_size=2, directions=2, dtype=torch.float64),
    Case("packed, no bias", "GRU", lengths=(3, 1), inputs=2, hidden=2, directions=2, bias=False, dtype=torch.float64),
    Case("packed", "LSTM", lengths=(2, 1), inputs=2, hidden=2, dtype=torch.float64),
]  # fmt: skip
cases = pytest.mark.parametrize("case", FORMS, ids=str)


def leaves(target, case: Case) -> tuple[Any, list[Tensor]]:
    """A layer as a function of its tensors, and the tensors."""
    inputs = make(case).map(lambda t: t.to(target.device).requires_grad_())
    count = 3 if inputs.c0 is not None else 2

    def layer(*tensors: Tensor) -> tuple[Tensor, ...]:
        c0 = tensors[2] if count == 3 else None
        out = ops.layer(
            target.name, False, True, case.mode, tensors[0], inputs.batch_sizes, tensors[1], c0, tensors[count:]
        )
        return tuple(out if count == 3 else out[:2])

    return layer, [t for t in (inputs.x, inputs.h0, inputs.c0, *inputs.weights) if t is not None]


@cases
def test_first_derivative(target, case: Case):
    layer, tensors = leaves(target, case)
    assert torch.autograd.gradcheck(layer, tensors)


@cases
def test_second_derivative(target, case: Case):
    layer, tensors = leaves(target, case)
    assert torch.autograd.gradgradcheck(layer, tensors, fast_mode=True)


@pytest.mark.parametrize("case", [FORMS[0], FORMS[2]], ids=str)
def test_third_derivative_counts_each_path_once(target, case: Case):
    """With a state that depends on the input, the path of the second derivative must not leak into the first's."""
    layer, tensors = leaves(target, case)
    x, h0, *rest = (t.detach() for t in tensors)

    def second(x: Tensor) -> Tensor:
        y = layer(x, h0 * x.sum(), *rest)[0]
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(second, x.requires_grad_())


@pytest.mark.parametrize("case", FORMS[-3:-1], ids=str)
def test_opcheck(target, case: Case):
    """What does not depend on the backend, and takes seconds to check, is checked on one."""
    inputs = make(case).map(lambda t: t.to(target.device).requires_grad_())
    arguments = (*inputs[1:5], inputs.weights, case.mode, target.name, True)
    checks = ["test_schema", "test_faketensor"]
    once = ["test_autograd_registration", "test_aot_dispatch_dynamic"] if target.name == "reference" else []
    torch.library.opcheck(torch.ops.fastrnn.layer.default, arguments, test_utils=checks + once)
    if case.lengths:  # the equations, which differentiate the derivative, read batch_sizes, which tracing cannot
        once = once[:1]
    saved = [t.detach() for t in torch.ops.fastrnn.layer.default(*arguments)[3:]]
    for needs in ((True, True, True), (False, False, False)):
        backward = (*arguments[:5], *saved, inputs.grad_y, inputs.grad_hn, None, None, case.mode, target.name, *needs)
        torch.library.opcheck(torch.ops.fastrnn.layer_backward.default, backward, test_utils=checks + once)


def test_the_first_derivative_is_the_backends_own_even_with_a_graph(target, monkeypatch):
    """Only the second derivative takes the equations: a graph of the first must not give up the fused backward."""
    calls = []
    backward = target.module.backward
    monkeypatch.setattr(target.module, "backward", lambda *args: calls.append(1) or backward(*args))
    layer, tensors = leaves(target, Case("", hidden=3))
    (grad,) = torch.autograd.grad(layer(*tensors)[0].sum(), tensors[0], create_graph=True)
    assert len(calls) == 1 and grad.requires_grad


def test_only_what_is_asked_for_is_differentiated(target, monkeypatch):
    needs = []
    backward = target.module.backward
    monkeypatch.setattr(target.module, "backward", lambda *args: needs.append(args[-3:]) or backward(*args))
    layer, tensors = leaves(target, Case("", hidden=3))
    x, *rest = (t.detach() for t in tensors)
    layer(x.requires_grad_(), *rest)[0].sum().backward()
    layer(x.detach(), *rest[:2], *(w.requires_grad_() for w in rest[2:]))[0].sum().backward()
    layer(x.detach(), rest[0].requires_grad_(), *(t.detach() for t in rest[1:]))[0].sum().backward()
    assert needs == [(True, False, False), (False, False, True), (False, True, False)]
    assert x.grad is not None and all(w.grad is not None for w in rest[2:])


@pytest.mark.parametrize("case", FORMS[2:3], ids=str)
@pytest.mark.parametrize("output", range(3))
def test_any_output_alone_has_gradients(target, case: Case, output: int):
    layer, tensors = leaves(target, case)
    assert torch.autograd.gradcheck(lambda *t: layer(*t)[output], tensors)


def test_the_functions_check_their_arguments():
    x, h, w = torch.randn(2, 3, 4), torch.randn(1, 3, 5), [torch.randn(5, 4), torch.randn(5, 5)]
    assert fastrnn.rnn(x, h, w)[0].shape == (2, 3, 5)
    assert fastrnn.rnn(x, None, w, nonlinearity="relu", batch_first=True)[0].shape == (2, 3, 5)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        fastrnn.rnn(x, h, w, nonlinearity="sin")
    with pytest.raises(ValueError, match="3D, got 2D"):
        fastrnn.gru(x[0], h, w)
    with pytest.raises(RuntimeError, match=r"size \(1, 3, 5\), got \[1, 3, 6\]"):
        fastrnn.rnn(x, torch.randn(1, 3, 6), w)
    with pytest.raises(RuntimeError, match="Expected 3, got 4"):
        fastrnn.rnn(x, h, [torch.randn(5, 3), w[1]])
    with pytest.raises(ValueError, match="float64.*float32"):
        fastrnn.rnn(x.double(), h, w)
    with pytest.raises(RuntimeError, match="two hidden states, got 1"):
        fastrnn.lstm(x, [h], w)
    with pytest.raises(RuntimeError, match="flat list"):
        fastrnn.rnn(x, h, w[:1])
    with pytest.raises(RuntimeError, match="sum up to 2, got"):
        fastrnn.rnn(x[:, 0], h, w, batch_sizes=torch.tensor([3, 1]))
    with pytest.raises(RuntimeError, match="larger than 0"):
        fastrnn.rnn(x[:0], h, w)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_the_functions_are_the_modules(target, name: str):
    module = getattr(fastrnn, name.upper())(4, 5, num_layers=2, bidirectional=True, batch_first=True).to(target.device)
    x = torch.randn(3, 6, 4, device=target.device)
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    with fastrnn.use_backend(target.name):
        y, state = getattr(fastrnn, name)(x, None, module._flat_weights, **options)
        expected, last = module(x)
    assert torch.equal(y, expected)
    assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))
