"""Layers one upon the other in one call of the C++ kernels: the bits of the layers one by one, whatever the number of
threads, and all that autograd asks of one Function for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn.backends import cpp_tensors

core = pytest.importorskip("fastrnn._core", reason="the compiled core is missing")

CELLS = {"RNN": {"nonlinearity": "relu"}, "GRU": {}, "LSTM": {}, "projected": {"proj_size": 24}}
SHAPES = {
    "wave": (61, 3),
    "one row": (37, 1),
    "several stretches": (40, 60),
    "short": (4, 2),
}  # of three steps torch trains an RNN


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stacked(kind: str, layers: int, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Any]]:
    """A network, and one of a single layer for each of its own, with the same numbers."""
    torch.manual_seed(1)
    build, options = getattr(fastrnn, "LSTM" if kind == "projected" else kind), CELLS[kind]
    network = build(40, 72, num_layers=layers, dtype=dtype, **options)
    singles = []
    for layer in range(layers):
        singles.append(build(40 if layer == 0 else options.get("proj_size", 72), 72, dtype=dtype, **options))
        own = {name: getattr(network, name.replace("l0", f"l{layer}")) for name in singles[-1].state_dict()}
        singles[-1].load_state_dict(own)
    return network, singles


def states(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def one_by_one(singles: list[Any], x: Any, hx: list[Tensor] | None) -> list[Tensor]:
    """y, hn and perhaps cn of all."""
    ends = []
    for i, single in enumerate(singles):
        own = None if hx is None else [state[i : i + 1] for state in hx]
        x, end = single(x, own and (tuple(own) if len(own) == 2 else own[0]))
        ends.append(states(end))
    y = x.data if isinstance(x, PackedSequence) else x
    return [y, *(torch.cat(end) for end in zip(*ends, strict=True))]


def at_once(network: Any, x: Any, hx: list[Tensor] | None) -> list[Tensor]:
    y, end = network(x, hx and (tuple(hx) if len(hx) == 2 else hx[0]))
    y = y.data if isinstance(y, PackedSequence) else y
    if torch.is_grad_enabled():
        assert type(y.grad_fn).__name__ == "_StackBackward"
    return [y, *states(end)]


def first_states(network: Any, layers: int, rows: int) -> list[Tensor]:
    dtype = network.weight_ih_l0.dtype
    widths = [network.proj_size or 72, 72] if network.mode == "LSTM" else [72]
    return [torch.randn(layers, rows, width, dtype=dtype, requires_grad=True) for width in widths]


def backward(out: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(2)
    return list(torch.autograd.grad(out, leaves, [torch.randn_like(tensor) for tensor in out]))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("steps, rows", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_gradients_have_the_bits_of_the_layers_one_by_one(kind: str, layers: int, steps: int, rows: int, form: str):
    network, singles = stacked(kind, layers)
    x = torch.randn(steps, rows, 40, requires_grad=True)
    hx = first_states(network, layers, rows)
    lengths = torch.linspace(steps, max(1, steps // 4), rows).long()
    given: Any = x
    if form == "packed":
        packed = pack_padded_sequence(x, lengths)
        x = packed.data.detach().requires_grad_()
        given = packed._replace(data=x)
    torch.set_num_threads(1)
    out = one_by_one(singles, given, hx)
    exact = [*out, *backward(out, [x, *hx, *(p for single in singles for p in single.parameters())])]
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out = at_once(network, given, hx)
        found = [*out, *backward(out, [x, *hx, *network.parameters()])]
        assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))
        with torch.no_grad():
            assert all(torch.equal(f, e) for f, e in zip(at_once(network, given, hx), exact[: len(out)], strict=True))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(kind: str, dtype: torch.dtype):
    network, singles = stacked(kind, 3, dtype)
    x = torch.randn(50, 2, 40, dtype=dtype, requires_grad=True)
    torch.set_num_threads(2)
    exact = one_by_one(singles, x, None)
    found = at_once(network, x, None)
    parameters = [p for single in singles for p in single.parameters()]
    exact += backward(exact, [x, *parameters])
    found += backward(found, [x, *network.parameters()])
    assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("which", ["y", "hn", "cells"])
def test_any_result_alone_gives_gradients(kind: str, which: str):
    """Also twice on one graph, and where y was changed in place."""
    if which == "cells" and "LSTM" not in stacked(kind, 2)[0].mode:
        pytest.skip(f"{kind} has no cell state")
    network, singles = stacked(kind, 3)
    x = torch.randn(20, 2, 40, requires_grad=True)
    own = {"return_cell_states": True} if which == "cells" else {}
    y, end, *cells = network(x, **own)
    wanted = {"y": y, "hn": states(end)[0], "cells": cells and cells[0]}[which]
    if which != "y":
        y.detach().zero_()
    leaves = [x, *network.parameters()]
    found = torch.autograd.grad([wanted], leaves, [torch.ones_like(wanted)], retain_graph=True, allow_unused=True)
    again = torch.autograd.grad([wanted], leaves, [torch.ones_like(wanted)], allow_unused=True)
    z = x
    ends = []
    for i, single in enumerate(singles):
        z, end, *cells = single(z, **(own if i == 2 else {}))
        ends.append(states(end)[0])
    wanted = {"y": z, "hn": torch.cat(ends), "cells": cells and cells[0]}[which]
    parameters = [p for single in singles for p in single.parameters()]
    exact = torch.autograd.grad([wanted], [x, *parameters], [torch.ones_like(wanted)], allow_unused=True)
    for f, a, e in zip(found, again, exact, strict=True):
        if e is None:  # of a projection that a last cell state does not go through
            assert f is None or not f.any()
        else:
            assert torch.equal(f, e) and torch.equal(a, e)


@pytest.mark.parametrize("frozen", ["l0", "l1", "l2", "x"])
def test_what_needs_no_gradient_gets_none(frozen: str):
    network, singles = stacked("LSTM", 3)
    x = torch.randn(20, 2, 40, requires_grad=frozen != "x")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.endswith(frozen))
    network(x)[0].sum().backward()
    one_by_one(singles, x.detach(), None)[0].sum().backward()
    for name, parameter in network.named_parameters():
        layer = int(name[-1])
        exact = getattr(singles[layer], name.replace(f"l{layer}", "l0")).grad
        if name.endswith(frozen):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and torch.equal(parameter.grad, exact)


def test_layers_below_which_nothing_needs_a_gradient_are_left_out():
    network, _ = stacked("GRU", 3)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith("l2"))
    y, _ = network(torch.randn(5, 2, 40))
    assert type(y.grad_fn).__name__ != "_StackBackward"


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_higher_derivatives(kind: str):
    torch.manual_seed(4)
    network = getattr(fastrnn, kind)(2, 3, num_layers=3, dtype=torch.float64)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert type(network(x)[0].grad_fn).__name__ == "_StackBackward"

    def call(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        y, end = torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (x,))
        return y, *states(end)

    names = [name for name, _ in network.named_parameters()]
    leaves = x, *network.parameters()
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves, nondet_tol=0)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_many_gradients_at_once(kind: str):
    network, _ = stacked(kind, 2)
    x, hx = torch.randn(4, 2, 40, requires_grad=True), first_states(network, 2, 2)
    y, _ = network(x, tuple(hx) if len(hx) == 2 else hx[0])
    seeds = torch.randn(3, *y.shape)
    leaves = [x, *hx, *network.parameters()]
    found = torch.autograd.grad(y, leaves, seeds, retain_graph=True, is_grads_batched=True)
    for i, seed in enumerate(seeds):
        for many, one in zip(found, torch.autograd.grad(y, leaves, seed, retain_graph=True), strict=True):
            torch.testing.assert_close(many[i], one, rtol=1e-4, atol=1e-5)


def test_dropout_in_training_runs_between_layers():
    torch.manual_seed(5)
    ours = fastrnn.LSTM(8, 16, num_layers=3, dropout=0.5)
    theirs = nn.LSTM(8, 16, num_layers=3, dropout=0.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 2, 8)
    found = []
    for network in (ours, theirs):
        torch.manual_seed(6)
        found.append(network(x)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert type(ours(x)[0].grad_fn).__name__ != "_StackBackward"
    assert type(ours.eval()(x)[0].grad_fn).__name__ == "_StackBackward"


def test_the_core_refuses_layers_that_are_not_one_upon_the_other():
    def call(x: Tensor, hidden: int) -> dict[str, Any]:
        weights = [torch.randn(3 * hidden, x.shape[2]), torch.randn(3 * hidden, hidden)]
        h0 = torch.zeros(1, x.shape[1], hidden)
        sizes = cpp_tensors.layer_sizes("GRU", x, None, h0, weights[0])
        given = dict(layer=sizes, x=x, tokens=False, h0=h0, c0=None, weights=weights)
        results = dict(y=torch.empty(*x.shape[:2], hidden), hn=h0.clone(), cn=None)
        return given | results | dict(gates=None, cells=None, hidden=None)

    first = call(torch.randn(3, 2, 5), 4)
    core.forward_float([first, call(first["y"], 7)])
    with pytest.raises(ValueError, match="one upon the other"):
        core.forward_float([first, call(torch.randn(3, 2, 4), 7)])
    with pytest.raises(ValueError, match="one upon the other"):
        core.forward_float([call(torch.randn(4, 2, 5), 4), first])
    with pytest.raises(ValueError, match="at least one"):
        core.forward_float([])
    with pytest.raises(ValueError, match="expected 12 fields, got 11"):
        core.forward_float([{name: each for name, each in first.items() if name != "cn"}])
    with pytest.raises(ValueError, match="expected a field hn"):
        core.forward_float([{name.replace("hn", "nh"): each for name, each in first.items()}])
    with pytest.raises(ValueError, match="expected a dict"):
        core.forward_float([tuple(first.values())])
