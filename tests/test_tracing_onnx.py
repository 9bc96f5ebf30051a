"""The exporters of torch to ONNX, given modules by themselves: ONNX Runtime computes what the module does."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from traced import HIDDEN, INPUTS, NAMES, tensors

import fastrnn
from fastrnn import compilable

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's, of itself
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights"),  # of torch.nn's modules as well
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]
onnx = pytest.importorskip("onnx", reason="exporters to ONNX need the package onnx")
runtime = pytest.importorskip("onnxruntime", reason="what they make is run by ONNX Runtime")


def exported(module: nn.Module, given: dict[str, Any], dynamo: bool) -> bytes:
    """The ONNX model of a module by itself, called by keyword."""
    buffer, given = io.BytesIO(), dict(given)
    x = given.pop("x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporters, of themselves and for the older one
        if dynamo:
            pytest.importorskip("onnxscript", reason="this exporter needs the package onnxscript")
            torch.onnx.export(module, (x,), kwargs=given, dynamo=True, verbose=False).save(buffer)
        else:
            arguments = (x, *((given.pop("hx"),) if "hx" in given else ()))
            axes = {"x": {0: "first", 1: "second"}}
            torch.onnx.export(
                module, arguments, buffer, kwargs=given, dynamo=False, input_names=["x"], dynamic_axes=axes
            )
    return buffer.getvalue()


def answers(model: bytes, given: list[Tensor]) -> tuple[Tensor, ...]:
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
    return tuple(torch.from_numpy(array) for array in found)


ROOTS = {name: getattr(fastrnn, name) for name in (*NAMES, "RNNCell", "LSTMCell", "GRUCell")}
ROOTS |= {f"compilable {name}": getattr(compilable, name) for name in NAMES}


@pytest.mark.parametrize("state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("name", ROOTS)
def test_the_older_onnx_exporter_of_a_module_by_itself(name: str, state: bool):
    """torch.nn's nodes: it passes by position all that the signature of forward names."""
    theirs, ours = (make(INPUTS, HIDDEN).eval() for make in (getattr(nn, name.split()[-1]), ROOTS[name]))
    ours.load_state_dict(theirs.state_dict())
    lead = (3,) if "Cell" in name else (6, 3)
    given: dict[str, Any] = {"x": torch.randn(*lead, INPUTS)}
    if state:
        h = torch.randn(*(() if "Cell" in name else (1,)), 3, HIDDEN)
        given["hx"] = (h, h) if "LSTM" in name else h
    models = [exported(module, given, dynamo=False) for module in (theirs, ours)]
    kinds = [[node.op_type for node in onnx.load_from_string(model).graph.node] for model in models]
    assert kinds[0] == kinds[1]
    expected = tensors(theirs(*given.values()))
    found = answers(models[1], tree_leaves(given)[: 1 + state + (state and "LSTM" in name)])
    torch.testing.assert_close(found, tuple(part.detach() for part in expected), rtol=1e-5, atol=1e-6)


WITH_OPTIONS = {
    "learned": lambda: fastrnn.LSTM(INPUTS, HIDDEN, learn_initial_state=True),
    "recompute": lambda: fastrnn.GRU(INPUTS, HIDDEN, bidirectional=True, recompute=True),
    "lengths": lambda: fastrnn.LSTM(INPUTS, HIDDEN, num_layers=2, bidirectional=True),
    "lengths, learned": lambda: fastrnn.GRU(INPUTS, HIDDEN, learn_initial_state=True),
    "tokens": lambda: fastrnn.RNN(INPUTS, HIDDEN),
    "reset": lambda: fastrnn.GRU(INPUTS, HIDDEN),
    "return_cell_states": lambda: fastrnn.LSTM(INPUTS, HIDDEN, return_cell_states=True),
    "JordanRNN": lambda: fastrnn.JordanRNN(INPUTS, HIDDEN, 3),
    "QuantizedGRU": lambda: fastrnn.quantize_dynamic(nn.GRU(INPUTS, HIDDEN)),
}


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_the_older_onnx_exporter_with_options(name: str):
    """Right numbers at any T and B, or a refusal."""
    module: Any = WITH_OPTIONS[name]().eval()
    for key, parameter in module.named_parameters():
        if key.startswith("initial"):
            nn.init.normal_(parameter)

    def inputs(steps: int, rows: int) -> dict[str, Tensor]:
        x = torch.randint(INPUTS, (steps, rows)) if name == "tokens" else torch.randn(steps, rows, INPUTS)
        if "lengths" in name:
            return {"x": x, "lengths": torch.randint(1, steps + 1, (rows,))}
        return {"x": x, "reset": torch.rand(steps, rows) < 0.3} if name == "reset" else {"x": x}

    if name in ("reset", "return_cell_states", "JordanRNN", "QuantizedGRU"):
        with pytest.raises(RuntimeError, match=name):
            exported(module, inputs(6, 3), dynamo=False)
        return
    model = exported(module, inputs(6, 3), dynamo=False)
    given = inputs(6, 3)
    x, *rest = given.values()
    expected = tensors(module(x, **{key: value for key, value in given.items() if key != "x"}))
    found = answers(model, [x, *rest])
    torch.testing.assert_close(found, tuple(part.detach() for part in expected), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_the_newer_onnx_exporter_with_options(name: str):
    module: Any = WITH_OPTIONS[name]().eval()
    x = torch.randint(INPUTS, (6, 3)) if name == "tokens" else torch.randn(6, 3, INPUTS)
    given = {"x": x}
    if "lengths" in name:
        given["lengths"] = torch.tensor([6, 2, 3])
    if name == "reset":
        given["reset"] = torch.rand(6, 3) < 0.3
    if "lengths" in name or name in ("reset", "QuantizedGRU"):
        with pytest.raises(torch.onnx.errors.OnnxExporterError) as error:
            exported(module, given, dynamo=True)
        assert name.split(",")[0] in str(error.value)
        return
    found = answers(exported(module, given, dynamo=True), [x])
    torch.testing.assert_close(found, tuple(part.detach() for part in tensors(module(x))), rtol=1e-5, atol=1e-6)
