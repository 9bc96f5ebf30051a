"""The modules among the rest of PyTorch: weights that change, transforms, scripting, tracing, compiling, autocast."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from fastrnn import paths

NAMES = ("RNN", "LSTM", "GRU")
names = pytest.mark.parametrize("name", NAMES)


def pair(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours, of the same parameters."""
    theirs, ours = (getattr(package, name)(4, 5, **options, dtype=dtype) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 3, 4, dtype=dtype)


@names
def test_changed_weights_take_effect(target, name: str):
    theirs, ours = pair(name, torch.float32)
    theirs, ours, x = theirs.to(target.device), ours.to(target.device), inputs(torch.float32).to(target.device)

    def agree() -> None:
        with fastrnn.use_backend(target.name), torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)

    agree()
    for change in (
        lambda m: m.weight_hh_l0.data.copy_(torch.eye(m.weight_hh_l0.shape[0], 5)),
        lambda m: m.bias_ih_l0.data.fill_(0.5),
        lambda m: setattr(m.weight_ih_l0, "data", torch.full_like(m.weight_ih_l0, 0.25)),
        lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.full_like(m.weight_hh_l0, -0.25))),
        lambda m: m.load_state_dict({key: value * 0.5 for key, value in m.state_dict().items()}),
        lambda m: m._parameters.__setitem__("bias_hh_l0", nn.Parameter(torch.ones_like(m.bias_hh_l0))),
    ):
        before = [parameter.clone() for parameter in ours.parameters()]
        change(theirs)
        change(ours)
        assert not all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))
        agree()
    for module in (theirs, ours):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)  # a contraction: rounding does not grow
        with fastrnn.use_backend(target.name):
            module(x)[0].sum().backward()
        optimizer.step()
    agree()


def test_an_output_changed_in_place_before_backward(target):
    """Works for an LSTM too, where torch.nn raises: what backward reads is not what the user holds."""
    for name in NAMES:
        theirs, ours = pair(name, torch.float32)
        ours, x = ours.to(target.device), inputs(torch.float32).to(target.device)
        with fastrnn.use_backend(target.name):
            ours(x)[0].sum().backward()
            expected = [parameter.grad.clone() for parameter in ours.parameters()]
            ours.zero_grad()
            y = ours(x)[0]
            total = y.sum()
            y.zero_()
            total.backward()
        assert all(torch.equal(p.grad, e) for p, e in zip(ours.parameters(), expected, strict=True))


@names
def test_functional_call(name: str):
    theirs, ours = pair(name)
    x = inputs()
    state = {key: torch.randn_like(value) for key, value in ours.state_dict().items()}
    before = ours(x)
    torch.testing.assert_close(functional_call(ours, state, (x,)), functional_call(theirs, state, (x,)))
    torch.testing.assert_close(ours(x), before)


@names
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # forward-mode derivatives script functions
def test_transforms(name: str):
    """vmap, per-sample gradients, forward and reverse Jacobians, each against a loop or torch.nn's reverse one."""
    theirs, ours = pair(name)
    x = inputs()
    parameters = {key: value.detach() for key, value in ours.named_parameters()}

    def output(x: Tensor) -> Tensor:
        return ours(x)[0]

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(ours, parameters, (row,))[0].square().sum()

    rows = x.transpose(0, 1)
    torch.testing.assert_close(vmap(output)(rows), torch.stack([theirs(row)[0] for row in rows]))
    found = vmap(grad(loss), (None, 0))(parameters, rows)
    for b, row in enumerate(rows):
        theirs.zero_grad()
        theirs(row)[0].square().sum().backward()
        for key, parameter in theirs.named_parameters():
            torch.testing.assert_close(found[key][b], parameter.grad)
    exact = torch.autograd.functional.jacobian(lambda x: theirs(x)[0], x)
    torch.testing.assert_close(jacfwd(output)(x), exact)
    torch.testing.assert_close(jacrev(output)(x), exact)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(output(dual)).tangent
    torch.testing.assert_close(tangent, exact.flatten(3).sum(-1))


@names
def test_double_backward(target, name: str):
    if reason := target.module.unsupported(target.device, torch.float64):
        pytest.skip(reason)
    theirs, ours = pair(name, num_layers=2, bidirectional=True)
    seconds = []
    x = inputs()
    for module in (theirs, ours):
        module.to(target.device)
        leaf = x.to(target.device).requires_grad_()
        with fastrnn.use_backend(target.name):
            (first,) = torch.autograd.grad(module(leaf)[0].sum(), leaf, create_graph=True)
            first.square().sum().backward()
        seconds.append([leaf.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(seconds[1], seconds[0])


class Caller(nn.Module):
    """TorchScript enters an overloaded forward from a caller alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor):
        return self.module(x)


class PackedCaller(Caller):
    def forward(self, x: PackedSequence):
        return self.module(x)


SCRIPTED = [("RNN", {"nonlinearity": "relu"}), ("RNN", {}), ("LSTM", {"proj_size": 3}), ("GRU", {"batch_first": True})]


@pytest.mark.parametrize(("name", "options"), SCRIPTED)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:LSTM with projections")
def test_script(name: str, options: dict[str, Any]):
    theirs, ours = pair(name, **options)
    scripted = torch.jit.script(Caller(ours))
    for x in (inputs(), inputs()[:, 0]):
        torch.testing.assert_close(scripted(x), theirs(x))
    packed = pack_sequence([inputs()[:n, 0] for n in (2, 6, 3)], enforce_sorted=False)
    found, expected = torch.jit.script(PackedCaller(ours))(packed), theirs(packed)
    torch.testing.assert_close(found[0].data, expected[0].data)
    torch.testing.assert_close(found[1], expected[1])
    with pytest.raises(torch.jit.Error, match="input must have|Expected input to be"):
        scripted(inputs()[0, 0])


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_cells(name: str):
    theirs, ours = pair(name)
    x = inputs()[0]
    torch.testing.assert_close(torch.jit.script(ours)(x), theirs(x))


@names
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_it_is_torchs_own_operator(name: str):
    theirs, ours = pair(name)
    x = inputs()
    traced = torch.jit.trace(ours, (x,))
    torch.testing.assert_close(traced(x), theirs(x))
    assert any(node.kind() in ("aten::lstm", "aten::gru", "aten::rnn_tanh") for node in traced.inlined_graph.nodes())


@names
def test_compile(name: str):
    theirs, ours = pair(name, torch.float32)
    x = inputs(torch.float32)
    compiled = torch.compile(nn.Sequential(nn.Identity(), ours), backend="eager")
    torch.testing.assert_close(compiled(x)[0], theirs(x)[0])
    compiled(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_dynamic_quantization_is_by_exact_type(name: str):
    """It passes ours by, as any class but torch.nn's own; ``fastrnn.revert`` first makes them those."""
    theirs, ours = pair(name, torch.float32)
    quantize = torch.ao.quantization.quantize_dynamic
    model = nn.Sequential(ours)
    assert type(quantize(model)[0]) is type(ours)
    x, quantized = inputs(torch.float32), quantize(fastrnn.revert(model))
    assert torch.equal(quantized(x)[0], quantize(nn.Sequential(theirs))(x)[0])


@names
def test_what_no_backend_serves_runs_on_torch(name: str, monkeypatch):
    theirs, ours = pair(name)
    x = inputs()
    monkeypatch.setattr(paths, "choose", lambda *layer: None)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert "Layer" not in ours(x)[0].grad_fn.name()


@names
def test_a_conjugates_imaginary_part_has_its_sign(target, name: str):
    theirs, ours = pair(name, torch.float32)
    x = torch.complex(inputs(torch.float32), inputs(torch.float32)).conj().imag
    assert x.is_neg()
    with torch.no_grad(), fastrnn.use_backend(target.name):
        torch.testing.assert_close(ours.to(target.device)(x.to(target.device))[0].cpu(), theirs(x)[0])


@names
@pytest.mark.parametrize("layers", [1, 2])
def test_a_gradient_stored_with_the_wrong_sign(target, name: str, layers: int):
    theirs, ours = pair(name, torch.float32, num_layers=layers)
    found, given = [], inputs(torch.float32)
    for module, backend in ((theirs, "reference"), (ours.to(target.device), target.name)):
        x = given.to(next(module.parameters()).device).detach().requires_grad_()
        with fastrnn.use_backend(backend):
            y, states = module(x)
            parts = y, *(states if isinstance(states, tuple) else (states,))
            wrong = [
                torch._neg_view(-part.detach().cos()) for part in parts
            ]  # dense, as that of an imaginary part is not
            found.append([grad.cpu() for grad in torch.autograd.grad(parts, (x, *module.parameters()), wrong)])
    torch.testing.assert_close(found[1], found[0])


@names
@pytest.mark.parametrize("needs_grad", [False, True])
def test_dense_numbers_stored_with_the_wrong_sign(target, name: str, needs_grad: bool):
    """Each argument by itself: unlike a conjugate's part, these are dense, so no copy on the way sets them right."""
    _, ours = pair(name, torch.float32)
    given = [inputs(torch.float32)[:, :1], *(torch.randn(1, 1, 5) for _ in range(2 if name == "LSTM" else 1))]
    given = [tensor.contiguous().to(target.device) for tensor in given]
    ours.to(target.device)
    with torch.set_grad_enabled(needs_grad), fastrnn.use_backend(target.name):

        def call(x: Tensor, *states: Tensor) -> Tensor:
            return ours(x, states if name == "LSTM" else states[0])[0]

        exact = call(*given)
        for at, tensor in enumerate(given):
            wrong = torch._neg_view(-tensor)
            assert wrong.is_contiguous()
            torch.testing.assert_close(call(*given[:at], wrong, *given[at + 1 :]), exact)


@pytest.mark.parametrize("name", [*NAMES, "RNNCell", "LSTMCell", "GRUCell"])
def test_parameters_stored_with_the_wrong_sign(target, name: str):
    theirs, ours = pair(name, torch.float32)
    ours.to(target.device)
    x = (inputs(torch.float32)[0] if "Cell" in name else inputs(torch.float32)[:2, :1]).to(target.device)

    def results(module: nn.Module, x: Tensor) -> list[Tensor]:
        found = module(x)
        y = found if isinstance(found, Tensor) else found[0]
        grads = torch.autograd.grad(y.square().sum(), list(module.parameters())) if y.requires_grad else ()
        return [each.resolve_neg().cpu() for each in (y, *grads)]

    for k, (parameter, own) in enumerate(list(ours.named_parameters())):
        wrong = torch._neg_view(-own.detach())
        assert wrong.is_contiguous()
        if k % 2:
            setattr(ours, parameter, nn.Parameter(wrong))
        else:
            own.data = wrong
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients), fastrnn.use_backend(target.name):
                found = results(ours, x)
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(found, results(theirs, x.cpu()))


def test_threads_have_backends_of_their_own():
    ours = fastrnn.LSTM(4, 5)
    x = inputs(torch.float32)
    seen: list[str | None] = []
    with fastrnn.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(fastrnn.backends.requested()))
        thread.start()
        thread.join()
        expected = ours(x)[0]
    assert seen == [None]
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(ours(x)[0].detach())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], expected.detach())


def test_hooks_and_checkpoint():
    ours = fastrnn.GRU(4, 5)
    seen = []
    ours.register_forward_hook(lambda module, args, out: seen.append(out[0].shape))
    x = inputs(torch.float32).requires_grad_()
    y = torch.utils.checkpoint.checkpoint(lambda x: ours(x)[0], x, use_reentrant=False)
    y.sum().backward()
    expected = [p.grad.clone() for p in ours.parameters()]
    ours.zero_grad()
    ours(x)[0].sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(ours.parameters(), expected, strict=True))
    assert seen == [(6, 3, 5)] * 2  # not once more where checkpointing runs forward again: it stops before the end
