"""What is changed in place between forward and backward: where backward does not read it, it runs as in torch.nn; else
it raises, as there.  What is saved for backward is tensors and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
NETWORKS: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in ("RNN", "LSTM", "GRU", *CELLS)]
NETWORKS += [("LSTM", {"proj_size": 2}), ("GRU", {"num_layers": 2}), ("RNN", {"num_layers": 2, "bidirectional": True})]
# steps; whether x has a gradient; the state: none, given, given and with a gradient; whether input is packed
CALLS = [(1, False, "none", False), (3, False, "none", False), (3, True, "given", False), (1, True, "none", False)]
CALLS += [(1, False, "grad", False), (3, True, "grad", True)]
# Parameters without a gradient.
FROZEN: dict[str, Callable[[str], bool]] = {
    "none": lambda name: False,
    "all": lambda name: True,
    "the first layer's": lambda name: "_l1" not in name,
}


def flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [each for part in results for each in flat(part)]


class Call:
    """One call of a network, whose backward is still to come."""

    def __init__(
        self,
        library: Any,
        kind: str,
        options: dict[str, Any],
        call: tuple[int, bool, str, bool],
        frozen: str = "none",
        **own: Any,
    ):
        steps, of_x, of_state, packed = call
        torch.manual_seed(0)
        self.module = getattr(library, kind)(3, 4, **options, **own).double()
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not FROZEN[frozen](name))
        steps = 0 if kind in CELLS else steps
        x = torch.randn(*((steps,) if steps else ()), 2, 3, dtype=torch.float64, requires_grad=of_x)
        self.tensors: dict[str, Tensor] = {"x": x}
        layers = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
        lead = (layers, 2) if steps else (2,)
        for name, units in (("h0", options.get("proj_size", 4)), ("c0", 4)):
            if of_state != "none" and (name == "h0" or kind.startswith("LSTM")):
                self.tensors[name] = torch.randn(*lead, units, dtype=torch.float64, requires_grad=of_state == "grad")
        hx = tuple(self.tensors[name] for name in ("h0", "c0") if name in self.tensors)
        hx = None if not hx else hx if len(hx) == 2 else hx[0]
        self.outputs = flat(self.module(pack_padded_sequence(x, [steps, 1]) if packed and steps else x, hx))
        self.tensors |= dict(self.module.named_parameters())

    def gradients(self, **how: Any) -> list[Tensor]:
        leaves = [tensor for tensor in self.tensors.values() if tensor.requires_grad]
        total = torch.stack([output.square().sum() for output in self.outputs]).sum()
        found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True, **how)
        return list(found)

    def gradients_with(self, changed: str) -> list[Tensor] | None:
        """Those after a change in place of one tensor; None where they raise."""
        with torch.no_grad():
            self.tensors[changed].add_(1)
        try:
            return self.gradients()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error) or "has been modified inplace" in str(error)
            return None


@contextlib.contextmanager
def on(target: Any) -> Iterator[None]:
    if target.device.type != "cpu":
        pytest.skip("the tensors are on the CPU")
    if target.name == "triton":
        pytest.skip("it has no float64")
    with fastrnn.use_backend(target.name):
        yield


def by_ours(kind: str) -> Any:
    """A cell is trained by torch's own function but where a backend is asked for."""
    return fastrnn.use_backend("reference") if kind in CELLS else contextlib.nullcontext()


@pytest.mark.parametrize(("kind", "options"), NETWORKS, ids=str)
def test_runs_and_is_right_where_torch_is_and_raises_elsewhere(target, kind: str, options: dict[str, Any]):
    for call in CALLS:
        right = Call(nn, kind, options, call).gradients()
        for name in Call(nn, kind, options, call).tensors:
            theirs = Call(nn, kind, options, call).gradients_with(name)
            with on(target):
                ours = Call(fastrnn, kind, options, call).gradients_with(name)
            assert ours is not None or theirs is None, (name, call)
            if ours is None:
                continue
            for own, exact in zip(ours, right, strict=True):
                torch.testing.assert_close(own, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "options"), NETWORKS, ids=str)
@pytest.mark.parametrize("frozen", ["all", "the first layer's"])
def test_an_input_of_frozen_layers(target, kind: str, options: dict[str, Any], frozen: str):
    if options.get("num_layers") != 2 and frozen != "all":
        pytest.skip("it has but one layer")
    for call in [(3, True, "none", False), (1, True, "grad", False), (3, True, "given", True)]:
        right = Call(nn, kind, options, call, frozen).gradients()
        theirs = Call(nn, kind, options, call, frozen).gradients_with("x")
        with on(target):
            ours = Call(fastrnn, kind, options, call, frozen).gradients_with("x")
        assert theirs is not None and ours is not None
        for own, exact in zip(ours, right, strict=True):
            torch.testing.assert_close(own, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_recomputation_takes_biases_as_they_were_and_refuses_other_changes(kind: str, packed: bool, monkeypatch):
    monkeypatch.setattr(fastrnn.recompute, "CHUNK_ROWS", 2)
    call = (5, True, "grad", packed)
    right = Call(nn, kind, {"num_layers": 2}, call).gradients()
    for name in Call(nn, kind, {"num_layers": 2}, call).tensors:
        ours = Call(fastrnn, kind, {"num_layers": 2}, call, recompute=True).gradients_with(name)
        copied = packed and name == "x"  # by the packing
        assert (ours is None) != (copied or name.startswith("bias")), name
        for own, exact in zip(ours or (), right, strict=False):
            torch.testing.assert_close(own, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "options"), [*NETWORKS, ("LSTM", {"num_layers": 2})], ids=str)
def test_a_derivative_of_the_derivative_refuses_changed_biases(kind: str, options: dict[str, Any]):
    """It comes from the equations, which read all: never a wrong one."""
    with by_ours(kind):
        made = Call(fastrnn, kind, options, CALLS[5])
    with torch.no_grad():
        next(tensor for name, tensor in made.tensors.items() if name.startswith("bias")).add_(1)
    with pytest.raises(RuntimeError, match=r"inplace operation.*at version \d; expected version \d"):
        made.gradients(create_graph=True)


def nodes(outputs: list[Tensor]) -> set[Any]:
    found, open_nodes = set(), [output.grad_fn for output in outputs]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            open_nodes += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize(("kind", "options"), [*NETWORKS, ("LSTM", {"num_layers": 2}), ("JordanRNN", {})], ids=str)
@pytest.mark.parametrize("form", ["plain", "lengths", "recompute", "second derivative", "compilable"])
def test_nothing_but_tensors_is_saved(kind: str, options: dict[str, Any], form: str):
    """As torchviz and the like take for granted, which draw every saved tensor with its size."""
    if kind in CELLS and form not in ("plain", "second derivative"):
        pytest.skip("layers alone have that")
    sizes = (3, 4, 4) if kind == "JordanRNN" else (3, 4)
    network = getattr(fastrnn, kind)(*sizes, **options, **({"recompute": True} if form == "recompute" else {}))
    if form == "compilable":
        network = fastrnn.convert(network, compilable=True)
    x = torch.randn(*(() if kind in CELLS else (5,)), 2, 3, requires_grad=True)
    with by_ours(kind):
        outputs = flat(network(x, **({"lengths": torch.tensor([5, 2])} if form == "lengths" else {})))
    if form == "second derivative":
        outputs = [*torch.autograd.grad(outputs[0].square().sum(), [x, *network.parameters()], create_graph=True)]
    count = 0
    for node in nodes(outputs):
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        saved = [each for each in saved if not isinstance(each, (int, float, bool, str, tuple, list, torch.dtype))]
        of_functions = list(getattr(node, "saved_tensors", ()))
        count += len(of_functions)
        assert all(isinstance(each, Tensor) for each in of_functions), node
        if type(node).__name__.startswith(("_Layer", "_Stack", "_Take")):
            assert all(isinstance(each, Tensor) for each in saved), node
    assert count > 0
