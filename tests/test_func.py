"""Second derivatives and torch.func on every backend, beside torch.nn's own derivatives or plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn

names = pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
scripts = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # forward mode scripts functions


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    theirs, ours = (getattr(package, name)(4, 5, **options, dtype=torch.float64) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape or (4, 3, 4), dtype=torch.float64)


def skip_unless_served(target) -> None:
    if target.device.type != "cpu":
        pytest.skip("the modules are on the CPU")
    if reason := target.module.unsupported(target.device, torch.float64):
        pytest.skip(reason)


@names
def test_a_batch_of_gradients_through_one_graph(target, name: str):
    """``is_grads_batched``, a vectorized Jacobian and vmap of autograd.grad: no kernel sees through their tensors."""
    skip_unless_served(target)
    results = []
    x, eye = inputs(), torch.eye(5, dtype=torch.float64)
    for module in pair(name):
        leaf = x.clone().requires_grad_()
        with fastrnn.use_backend(target.name):
            y = module(leaf)[0].sum((0, 1))
            leaves = (leaf, *module.parameters())
            batched = torch.autograd.grad(y, leaves, eye, is_grads_batched=True, retain_graph=True)
            assert not batched[0].requires_grad
            mapped = vmap(lambda row, y=y, leaf=leaf: torch.autograd.grad(y, leaf, row, retain_graph=True)[0])(eye)
            graph = torch.autograd.grad(y, leaf, eye, is_grads_batched=True, create_graph=True)[0]
            graph.square().sum().backward()
            jacobian = torch.autograd.functional.jacobian(lambda x, m=module: m(x)[0], x, vectorize=True)
        results.append([*batched, mapped, jacobian, leaf.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(results[1], results[0])


@names
def test_a_gradient_penalty(target, name: str):
    """Double backward as a critic's loss takes it, with a state and a packed batch."""
    skip_unless_served(target)
    theirs, ours = pair(name, bidirectional=True)
    results = []
    rows = [inputs(n, 4) for n in (2, 4, 3)]
    for module in (theirs, ours):
        leaves = [row.clone().requires_grad_() for row in rows]
        with fastrnn.use_backend(target.name):
            y = module(pack_sequence(leaves, enforce_sorted=False))[0].data
            grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            (sum((grad.norm() - 1) ** 2 for grad in grads) + y.sum()).backward()
        results.append([leaf.grad for leaf in leaves] + [p.grad for p in module.parameters()])
    torch.testing.assert_close(results[1], results[0])


@names
@scripts
def test_hessian(name: str):
    theirs, ours = pair(name)
    x, parameters = inputs(), {key: value.detach() for key, value in ours.named_parameters()}

    def loss(weight: Tensor, module: nn.Module = ours) -> Tensor:
        return functional_call(module, {**parameters, "weight_hh_l0": weight}, (x,))[0].square().sum()

    weight = parameters["weight_hh_l0"]
    exact = torch.autograd.functional.hessian(lambda weight: loss(weight, theirs), weight)
    torch.testing.assert_close(hessian(loss)(weight), exact)
    torch.testing.assert_close(jacrev(jacfwd(loss))(weight), exact)


@names
def test_an_ensemble_of_models(name: str):
    models = [pair(name)[1] for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    base, x = getattr(fastrnn, name)(4, 5, device="meta"), inputs()
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,))[0])(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([model(x)[0] for model in models]))


@names
def test_vmap_of_packed_rows(name: str):
    module = pair(name)[1]
    sizes = torch.tensor([3, 2, 1])
    data = inputs(2, 6, 4)
    found = vmap(lambda rows: module(PackedSequence(rows, sizes))[0].data)(data)
    torch.testing.assert_close(found, torch.stack([module(PackedSequence(rows, sizes))[0].data for rows in data]))


def test_vmap_of_dropout_asks_for_its_randomness():
    module = pair("LSTM", num_layers=2, dropout=0.5)[1]
    rows = inputs(3, 4, 4)[:1].expand(3, -1, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda row: module(row)[0])(rows)
    same = vmap(lambda row: module(row)[0], randomness="same")(rows)
    different = vmap(lambda row: module(row)[0], randomness="different")(rows)
    torch.testing.assert_close(same[0], same[1])
    assert not torch.allclose(different[0], different[1])
