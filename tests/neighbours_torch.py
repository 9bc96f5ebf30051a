"""Columns of `test_neighbours.py`: what Python and torch do to a module."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from neighbours import Row, called, column, copied, flat, of_torch_nn, seed, twin
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations

import fastrnn


@column("deepcopy")
def _(row: Row, module: Any) -> Any:
    return copied(row, module, copy.deepcopy(module))


@column("pickle")
def _(row: Row, module: Any) -> Any:
    return copied(row, module, pickle.loads(pickle.dumps(module)))


@column("torch.save")
def _(row: Row, module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return copied(row, module, torch.load(buffer, weights_only=False))


@column("state_dict to torch.nn")
def _(row: Row, module: Any) -> Any:
    theirs = of_torch_nn(row)
    theirs.load_state_dict(module.state_dict())
    if row.drops:  # which are no weights
        return list(zip(theirs.state_dict().values(), module.state_dict().values(), strict=True))
    return list(zip(flat(theirs(row.x())), called(row, module), strict=False))


@column("state_dict from torch.nn")
def _(row: Row, module: Any) -> Any:
    theirs = of_torch_nn(row)
    module.load_state_dict(theirs.state_dict())
    if row.drops:
        return list(zip(theirs.state_dict().values(), module.state_dict().values(), strict=True))
    return list(zip(flat(theirs(row.x())), called(row, module), strict=False))


@column("meta, to_empty")
def _(row: Row, module: Any) -> Any:
    empty = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    return called(row, empty)


@column("forward hooks")
def _(row: Row, module: Any) -> Any:
    seen: list[Any] = []
    module.register_forward_pre_hook(lambda module, args, kwargs: ((row.x(),), kwargs), with_kwargs=True)
    module.register_forward_hook(lambda module, args, kwargs, result: seen.extend(flat(result)), with_kwargs=True)
    result = row.run(module, torch.zeros_like(row.x()))
    assert all(a is b for a, b in zip(seen, result, strict=True))
    return result


@column("backward hooks")
def _(row: Row, module: Any) -> Any:
    seen: list[Any] = []
    module.register_full_backward_hook(lambda module, left, came: seen.extend(came))
    given = module(row.x(), **row.arguments())
    results = flat(given)
    if row.variant == "int8":
        assert not results[0].requires_grad
        return results
    sum(tensor.square().sum() for tensor in results).backward()
    tensors = given if isinstance(given, tuple) else (given,)
    pairs = [(came, 2 * out) for came, out in zip(seen, tensors, strict=True) if came is not None]  # as of (h, c)
    assert pairs
    return [*pairs, *zip(results, called(row, module), strict=True)]


@column("weight_norm")
def _(row: Row, module: Any) -> Any:
    parametrizations.weight_norm(module, "weight_hh" if row.is_cell else "weight_hh_l0")
    return called(row, module)


@column("spectral_norm")
def _(row: Row, module: Any) -> Any:
    found = []
    hx = row.hx(module)
    for each, state in ((module, None), (twin(row, module), hx)):
        seed(3)
        parametrizations.spectral_norm(each, "weight_hh" if row.is_cell else "weight_hh_l0").eval()
        found.append(flat(each(row.x(), state)))
    return list(zip(*found, strict="return_cell_states" not in row.options))


@column("autocast")
def _(row: Row, module: Any) -> Any:
    module.float()
    exact = called(row, module)
    with torch.autocast("cpu", torch.bfloat16):
        found = called(row, module)
    for ours, right in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.float(), right, rtol=0, atol=0.05)
    return list(zip(called(row, module), exact, strict=True))  # that it is over


def leaves(row: Row, module: Any) -> dict[str, Tensor]:
    """What a call may be differentiated by: its input, and its parameters but biases, which are too like each other."""
    x = {"x": row.x()} if row.x().is_floating_point() else {}
    return x | {name: value.detach() for name, value in module.named_parameters() if not name.startswith("bias")}


def as_function(row: Row, module: Any) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    def function(given: dict[str, Tensor]) -> list[Tensor]:
        x = given.get("x", row.x())
        own = {name: value for name, value in given.items() if name != "x"}
        return flat(functional_call(module, own, (x,), row.arguments()))

    return function


@column("functional_call")
def _(row: Row, module: Any) -> Any:
    state = {key: value.clone() for key, value in module.state_dict().items()}
    for value in module.state_dict().values():
        value.zero_()
    return flat(functional_call(module, state, (row.x(),), row.arguments()))


@column("vmap")
def _(row: Row, module: Any) -> Any:
    several = [row.x(), row.x().flip(0), row.x().flip(1)]
    found = vmap(lambda x: row.run(module, x))(torch.stack(several))
    return [(found[k][v], right) for v, x in enumerate(several) for k, right in enumerate(row.run(module, x))]


@column("grad")
def _(row: Row, module: Any) -> Any:
    given, function = leaves(row, module), as_function(row, module)

    def loss(given: dict[str, Tensor]) -> Tensor:
        return sum(tensor.square().sum() for tensor in function(given))

    found = grad(loss)(given)
    own = {name: value.clone().requires_grad_() for name, value in given.items()}
    loss(own).backward()
    return [(found[name], leaf.grad) for name, leaf in own.items()]


@column("jvp")
def _(row: Row, module: Any) -> Any:
    given, function = leaves(row, module), as_function(row, module)
    found = jvp(function, (given,), (given,))[1]
    one, other = (function({name: value * (1 + step) for name, value in given.items()}) for step in (1e-6, -1e-6))
    return [(f, (a - b) / 2e-6) for f, a, b in zip(found, one, other, strict=True)]


@column("forward-mode AD")
def _(row: Row, module: Any) -> Any:
    given, function = leaves(row, module), as_function(row, module)
    right = jvp(function, (given,), (given,))[1] if row.variant != "int8" else []
    with forward_ad.dual_level():
        duals = function({name: forward_ad.make_dual(value, value) for name, value in given.items()})
        return [(forward_ad.unpack_dual(dual).tangent, r) for dual, r in zip(duals, right, strict=True)]


# Slow ones, or those that record a call.


class Caller(nn.Module):
    """TorchScript enters an overloaded forward from a caller alone."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor):
        return self.module(x)


@column("torch.jit.script")
def _(row: Row, module: Any) -> Any:
    return flat(torch.jit.script(Caller(module))(row.x()))


@column("torch.jit.trace")
def _(row: Row, module: Any) -> Any:
    return flat(torch.jit.trace(module, (row.x() + 1,))(row.x()))


@column("torch.fx")
def _(row: Row, module: Any) -> Any:
    graph = torch.fx.symbolic_trace(Caller(module))
    assert any(node.op == "call_module" for node in graph.graph.nodes)
    return flat(graph(row.x()))


@column("torch.export")
def _(row: Row, module: Any) -> Any:
    return flat(torch.export.export(module, (row.x() + 1,)).module()(row.x()))


def onnx_exported(dynamo: bool) -> Callable[[Row, Any], Any]:
    def exported(row: Row, module: Any) -> Any:
        pytest.importorskip("onnx", reason="exporters to ONNX need the package onnx")
        if dynamo:
            pytest.importorskip("onnxscript", reason="this exporter needs the package onnxscript")
        runtime = pytest.importorskip("onnxruntime", reason="what they make is run by ONNX Runtime")
        module = module.float().eval()
        x, buffer = row.x().float(), io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporters, of themselves and for the older one
            if dynamo:
                table = fastrnn.interop.onnx_translations() if row.variant == "compilable" else None
                program = torch.onnx.export(
                    module, (x + 1,), dynamo=True, verbose=False, custom_translation_table=table
                )
                program.save(buffer)
            else:
                torch.onnx.export(module, (x + 1,), buffer, dynamo=False)
        session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        return list(zip(map(torch.from_numpy, found), flat(module(x)), strict=True))

    return exported


column("torch.onnx.export(dynamo=False)")(onnx_exported(False))
column("torch.onnx.export(dynamo=True)")(onnx_exported(True))


@column("torch.compile")
def _(row: Row, module: Any) -> Any:
    torch._dynamo.reset()
    return row.run(torch.compile(module, backend="eager"), row.x())


@column("torch.compile(fullgraph=True)")
def _(row: Row, module: Any) -> Any:
    torch._dynamo.reset()
    return flat(torch.compile(Caller(module), backend="eager", fullgraph=True)(row.x()))
