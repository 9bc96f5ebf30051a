"""Columns of `test_neighbours.py`: every function of ours that takes a module."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from neighbours import HIDDEN, INPUTS, KINDS, ROWS, Row, called, column, flat, learned, of_torch_nn, seed, twin
from torch import nn

import fastrnn


@column("the equations")
def _(row: Row, module: Any) -> Any:
    if row.variant == "int8":
        seed(0)
        return flat(type(module).from_float(row.theirs())(row.x()))
    theirs = twin(row, module)
    if row.is_of_any_cell and not row.drops:
        theirs = of_torch_nn(row)
        theirs.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("initial_")})
    with fastrnn.use_backend("reference"):
        expected = flat(theirs(row.x(), row.hx(module)))
    found = called(row, module)
    return list(zip(found, expected, strict="return_cell_states" not in row.options))


@column("fastrnn.convert")
def _(row: Row, module: Any) -> Any:
    assert fastrnn.convert(module) is module
    return called(row, module)


@column("fastrnn.convert(compilable=True)")
def _(row: Row, module: Any) -> Any:
    assert fastrnn.convert(module, compilable=True) is module
    if row.variant == "ours":
        assert type(module) is (KINDS[row.kind].compilable or KINDS[row.kind].ours)
    return called(row, module)


@column("fastrnn.revert")
def _(row: Row, module: Any) -> Any:
    own = type(module)
    assert fastrnn.revert(module) is module
    assert type(module) is (own if row.variant == "int8" else KINDS[row.kind].theirs or own)
    return called(row, module)


@column("fastrnn.quantize_dynamic")
def _(row: Row, module: Any) -> Any:
    narrow = fastrnn.quantize_dynamic(module.float())
    wanted = KINDS[row.kind].int8
    if wanted is None:
        assert type(narrow) is type(module)
        return list(zip(called(row, narrow), called(row, module), strict=True))
    assert type(narrow) is wanted
    expected = narrow if row.variant == "int8" else wanted.from_float(twin(row, module))
    hx = None if row.variant == "int8" else row.hx(narrow)
    return list(zip(called(row, narrow), row.run(expected, row.x(), hx), strict=True))


@column("fastrnn.stream")
def _(row: Row, module: Any) -> Any:
    module.float().eval()
    x = row.x().float()
    handle, expected = fastrnn.stream(module, ROWS), row.run(module, x)
    steps = [handle.step(step).clone() for step in (x.unsqueeze(0) if row.is_cell else x)]
    last = flat(handle.state)
    return list(zip([*([] if row.is_cell else [torch.stack(steps)]), *last], expected, strict=True))


@column("from_float")
def _(row: Row, module: Any) -> Any:
    cls = KINDS[row.kind].int8 or fastrnn.QuantizedRNN
    narrow = cls.from_float(module.float())
    right = cls.from_float(twin(row, module))
    return list(zip(called(row, narrow), row.run(right, row.x(), row.hx(narrow)), strict=True))


@column("fastrnn.interop.keras_weights")
def _(row: Row, module: Any) -> Any:
    weights = fastrnn.interop.keras_weights(module)
    return called(row, fastrnn.interop.load_keras_weights(row.theirs(), weights))


@column("fastrnn.interop.keras_options")
def _(row: Row, module: Any) -> Any:
    name, options = fastrnn.interop.keras_options(module)
    assert name == {"RNN": "SimpleRNN", "Network": "LSTM"}.get(row.kind, row.kind) and options["units"] == HIDDEN
    return called(row, module)


@column("fastrnn.interop.load_keras_weights")
def _(row: Row, module: Any) -> Any:
    other = nn.GRU(INPUTS, HIDDEN).double() if row.kind == "JordanRNN" or row.is_cell else row.theirs()
    weights = fastrnn.interop.keras_weights(other) if not getattr(other, "proj_size", 0) else []
    fastrnn.interop.load_keras_weights(module, weights)
    return list(zip(called(row, module), flat(other(row.x())), strict=True))


@column("fastrnn.interop.to_onnx")
def _(row: Row, module: Any) -> Any:
    onnx = pytest.importorskip("onnx", reason="to_onnx needs the package onnx")
    runtime = pytest.importorskip("onnxruntime", reason="what it makes is run by ONNX Runtime")
    graph = fastrnn.interop.to_onnx(module.float())
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": row.x().float().numpy()})
    return list(zip(map(torch.from_numpy, found), called(row, module), strict=True))


@column("fastrnn.interop.Reversed")
def _(row: Row, module: Any) -> Any:
    y, state = fastrnn.interop.Reversed(module)(row.x().flip(0))
    return [y.flip(0), *flat(state)]


def initialised(name: str, *arguments: Any) -> None:
    @column(f"fastrnn.init.{name}")
    def _(row: Row, module: Any) -> Any:
        function = getattr(fastrnn.init, name)
        theirs, kept = twin(row, module), [each.clone() for each in learned(module)]
        seed(2)
        assert function(module, *arguments) is module
        seed(2)
        function(theirs, *arguments)
        before, after, right = row.build().state_dict(), module.state_dict(), theirs.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in right), "it does nothing"
        return [*((after[key], right[key]) for key in right), *zip(learned(module), kept, strict=True)]


for _name, *_arguments in (
    ("orthogonal_",), ("xavier_uniform_",), ("forget_bias_", 2.0), ("chrono_", 9.0), ("identity_", 0.5),
):  # fmt: skip
    initialised(_name, *_arguments)


@column("fastrnn.diagnostics.gradient_norms")
def _(row: Row, module: Any) -> Any:
    curves = []
    for each, hx in ((module, None), (twin(row, module), row.hx(module))):
        with fastrnn.diagnostics.gradient_norms(each) as norms:
            sum(tensor.square().sum() for tensor in flat(each(row.x(), hx))[:2]).backward()
        curves.append(norms)
    assert curves[0].keys() == curves[1].keys()
    return [(curves[0][key], curves[1][key]) for key in curves[0]]


def public(*namespaces: Any) -> set[str]:
    """What of ours takes a model or a module, by the name of its first argument."""
    found = set()
    for namespace in namespaces:
        for name, value in vars(namespace).items():
            ours = getattr(value, "__module__", "").startswith(namespace.__name__)
            if not ours or name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, type)):
                continue
            own = value.__init__ if isinstance(value, type) else value
            if {"model", "module"} & set(list(inspect.signature(own).parameters)[:2]):
                found.add(f"{namespace.__name__}.{name}")
    return found
