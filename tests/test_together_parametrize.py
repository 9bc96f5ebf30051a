"""Weights that are computed, masked, dropped, shared or swapped: what torch's tools make of torch.nn's modules they
make of ours, with the same values, gradients and names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn

LAYERS = ("RNN", "LSTM", "GRU")
# In float64, on the CPU: where a module finds its weights does not depend on the device.
targets = pytest.mark.parametrize(
    "target", [(name, "cpu") for name in ("cpp", "numba", "reference")], indirect=True, ids=lambda value: value[0]
)


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours, of the same parameters."""
    theirs, ours = (getattr(package, name)(4, 5, **options, dtype=torch.float64) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def recurrent(module: nn.Module) -> str:
    return "weight_hh" if isinstance(module, nn.RNNCellBase) else "weight_hh_l0"


def inputs(module: nn.Module) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    if any(isinstance(part, nn.RNNCellBase) for part in module.modules()):
        shapes = [(3, 4), (3, 5)]  # with a state, which the weights above all multiply
    else:
        shapes = [(6, 3, 4)]
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)


def total(out: Any) -> Tensor:
    return out.square().sum() if isinstance(out, Tensor) else sum((total(part) for part in out), torch.zeros(()))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Way(NamedTuple):
    """How others change a module's recurrent weight for good, and how they take it back."""

    apply: Callable[[nn.Module], Any]
    undo: Callable[[nn.Module], Any] | None = None


def removed(module: nn.Module) -> None:
    parametrize.remove_parametrizations(module, recurrent(module))


WAYS = {
    "weight_norm": Way(lambda m: parametrizations.weight_norm(m, recurrent(m)), removed),
    "weight_norm of old": Way(
        lambda m: nn.utils.weight_norm(m, recurrent(m)), lambda m: nn.utils.remove_weight_norm(m, recurrent(m))
    ),
    "spectral_norm": Way(lambda m: parametrizations.spectral_norm(m, recurrent(m)), removed),
    "spectral_norm of old": Way(
        lambda m: nn.utils.spectral_norm(m, recurrent(m)), lambda m: nn.utils.remove_spectral_norm(m, recurrent(m))
    ),
    "orthogonal": Way(lambda m: parametrizations.orthogonal(m, recurrent(m)), removed),
    "two parametrizations": Way(
        lambda m: [parametrize.register_parametrization(m, recurrent(m), Halved()) for _ in range(2)], removed
    ),
    "prune": Way(
        lambda m: prune.random_unstructured(m, recurrent(m), amount=0.4), lambda m: prune.remove(m, recurrent(m))
    ),
    "prune twice": Way(
        lambda m: [prune.l1_unstructured(m, recurrent(m), 0.2), prune.ln_structured(m, recurrent(m), 0.2, 2, 0)],
        lambda m: prune.remove(m, recurrent(m)),
    ),
    "parameters of one vector": Way(
        lambda m: nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(m.parameters()) / 2, m.parameters())
    ),
}


def trained_alike(target: Any, *modules: nn.Module) -> None:
    """Two steps of training: outputs, gradients by name, and parameters after them."""
    found = []
    for module in modules:
        leaves = {name: parameter for name, parameter in module.named_parameters() if parameter.is_leaf}
        optimizer = torch.optim.SGD(leaves.values(), lr=0.05)
        torch.manual_seed(2)
        with fastrnn.use_backend(target.name):
            for _ in range(2):
                optimizer.zero_grad()
                loss = total(module(*inputs(module)))
                loss.backward()
                optimizer.step()
        grads = {name: parameter.grad for name, parameter in leaves.items()}
        found.append([loss.detach(), grads, module.state_dict()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert any(grad is not None and grad.abs().max() > 0 for grad in found[0][1].values())


@targets
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNNCell"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_changed_for_good(target, name: str, way: str):
    """And :func:`fastrnn.convert` takes such a weight along."""
    theirs, ours = pair(name)
    converted = copy.deepcopy(theirs)

    def value() -> Tensor:
        with fastrnn.use_backend(target.name), torch.no_grad():
            return total(ours.eval()(*inputs(ours)))

    before = value()
    for module in (theirs, ours.train(), converted):
        torch.manual_seed(3)
        WAYS[way].apply(module)
    assert isinstance(fastrnn.convert(converted), getattr(fastrnn, name))
    assert list(ours.state_dict()) == list(converted.state_dict()) == list(theirs.state_dict())
    assert way.startswith("weight_norm") == torch.isclose(value(), before)
    trained_alike(target, theirs, ours.train(), converted)
    if undo := WAYS[way].undo:
        for module in (theirs, ours, converted):
            undo(module)
        assert sorted(ours.state_dict()) == sorted(getattr(nn, name)(4, 5).state_dict())
        trained_alike(target, theirs, ours, converted)


class Dropped(nn.Module):
    """Weight drop as fastai and AWD-LSTM write it: a parameter of the wrapper's, and in its place, before each call,
    what dropout makes of it."""

    def __init__(self, module: nn.Module, way: str) -> None:
        super().__init__()
        self.module, self.way, self.name = module, way, recurrent(module)
        weight = getattr(module, self.name)
        if way == "delattr":
            delattr(module, self.name)
        else:
            del module._parameters[self.name]
        self.raw = nn.Parameter(weight.data)
        self.put(weight.detach().clone())

    def put(self, weight: Tensor) -> None:
        if self.way == "_parameters":
            self.module._parameters[self.name] = weight
        else:
            setattr(self.module, self.name, weight)

    def forward(self, *arguments: Tensor) -> Any:
        self.put(F.dropout(self.raw, 0.5, self.training))
        return self.module(*arguments)


@targets
@pytest.mark.parametrize("way", ["delattr", "del _parameters", "_parameters"])
@pytest.mark.parametrize("name", [*LAYERS, "GRUCell"])
def test_weight_drop(target, name: str, way: str):
    theirs, ours = pair(name)
    modules = [Dropped(module, way) for module in (theirs, ours, copy.deepcopy(theirs))]
    assert isinstance(fastrnn.convert(modules[2]).module, getattr(fastrnn, name))
    trained_alike(target, *modules)
    trained_alike(target, *(module.eval() for module in modules))


@targets
def test_tied_weights(target):
    """One parameter in two modules and in both directions of one: its gradients add up."""

    def tied(lstm: nn.Module) -> nn.Module:
        first, second = lstm, type(lstm)(4, 5, bidirectional=True, dtype=torch.float64)
        for name, parameter in first.named_parameters():
            setattr(second, name, parameter)
            setattr(second, name + "_reverse", parameter)
        return nn.ModuleList([first, second])

    found = []
    for lists in map(tied, pair("LSTM")):
        with fastrnn.use_backend(target.name):
            for module in lists:
                total(module(*inputs(lists[0]))).backward()
        assert len(list(lists.parameters())) == 4
        found.append([parameter.grad for parameter in lists.parameters()])
    torch.testing.assert_close(found[1], found[0])


@targets
@pytest.mark.parametrize("name", [*LAYERS, "GRUCell"])
def test_swapped_weights(target, name: str):
    """Parameters that conversions replace or swap, or that loading assigns."""
    theirs, ours = pair(name)
    trained_alike(target, theirs, ours)
    flags = torch.__future__
    for switch in (flags.set_overwrite_module_params_on_conversion, flags.set_swap_module_params_on_conversion):
        switch(True)
        try:
            for module in (theirs, ours):
                module.float().double()
        finally:
            switch(False)
        trained_alike(target, theirs, ours)
    state = {key: value / 2 for key, value in ours.state_dict().items()}
    for module in (theirs, ours):
        module.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    trained_alike(target, theirs, ours)
