"""Models that leave Python: traced, recorded by torch.fx, exported, and run elsewhere by ONNX Runtime.

The default classes leave as torch.nn's do, as torch's own operators.  Those operators hold T as a number in what
torch.export makes; of the classes that ``fastrnn.convert(model, compilable=True)`` makes, T is a symbol as B is.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn

NAMES = ("RNN", "LSTM", "GRU")
names = pytest.mark.parametrize("name", NAMES)
OPTIONS: dict[str, dict[str, Any]] = {
    "RNN": dict(nonlinearity="relu", num_layers=2),
    "LSTM": dict(num_layers=2, bidirectional=True),
    "GRU": dict(batch_first=True, bidirectional=True, bias=False),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights"),  # of torch.nn's modules as well
]


class Model(nn.Module):
    """A recurrent layer between others."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        y, state = self.rnn(x.tanh(), hx)
        return y.tanh(), state


def pair(name: str, compilable: bool = False, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A model of torch.nn's module, and the same converted."""
    theirs = Model(getattr(nn, name)(4, 5, **(options or OPTIONS[name]))).eval()
    return theirs, fastrnn.convert(copy.deepcopy(theirs), compilable=compilable)


def state_of(name: str, model: Any, rows: int) -> Any:
    slots = model.rnn.num_layers * (2 if model.rnn.bidirectional else 1)
    h, c = torch.randn(2, slots, rows, 5)
    return (h, c) if name == "LSTM" else h


def close(found: Any, expected: Any) -> None:
    """The same operator of torch computes what was exported; our kernel, what it is compared with."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def operators(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@names
def test_a_trace_runs_at_other_lengths_and_batches(name: str):
    theirs, ours = pair(name)
    traced = torch.jit.trace(ours, (torch.randn(6, 3, 4), state_of(name, ours, 6 if name == "GRU" else 3)))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for steps, rows in ((6, 3), (9, 2)):
        x, hx = torch.randn(steps, rows, 4), state_of(name, ours, steps if name == "GRU" else rows)
        close(loaded(x, hx), theirs(x, hx))


@names
def test_a_trace_of_packed_input(name: str):
    theirs, ours = pair(name)

    class Packed(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.rnn = model.rnn

        def forward(self, x, sizes):
            return self.rnn(PackedSequence(x, sizes))[0].data

    def example(*lengths: int) -> tuple[Tensor, Tensor]:
        packed = pack_sequence([torch.randn(n, 4) for n in lengths])
        return packed.data, packed.batch_sizes

    traced = torch.jit.trace(Packed(ours), example(5, 3))
    other = example(5, 2)
    close(traced(*other), Packed(theirs)(*other))


@pytest.mark.parametrize("name", [*NAMES, "RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_fx_records_a_module_as_one_call(name: str, with_state: bool):
    """It has a rule for torch.nn's own files; ours say the same of themselves when they meet its proxies."""
    graphs = []
    for library in (nn, fastrnn):
        model = nn.Sequential(nn.Tanh(), getattr(library, name)(4, 5))

        def call(x: Tensor, hx: Any = None, model: Any = model) -> Any:
            return model[1](model[0](x), hx) if with_state else model[1](model[0](x))

        class Root(nn.Module):
            def __init__(self, model: nn.Module, call: Any) -> None:
                super().__init__()
                self.model, self.call = model, call

            def forward(self, x, hx):
                return self.call(x, hx)

        graph = fx.symbolic_trace(Root(model, call))
        graphs.append([(node.op, node.target, str(node.args)) for node in graph.graph.nodes])
        shape = (3, 5) if name.endswith("Cell") else (1, 3, 5)
        x, h = torch.randn(*((3, 4) if name.endswith("Cell") else (6, 3, 4))), torch.randn(shape)
        hx = (h, h) if name.startswith("LSTM") else h
        found, expected = graph(x, hx), call(x, hx)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert graphs[0] == graphs[1]


@names
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_export_with_any_batch(name: str, strict: bool):
    theirs, ours = pair(name)
    batch = 0 if name == "GRU" else 1
    shapes = ({batch: Dim("batch", min=2)},)
    try:
        program = torch.export.export(ours, (torch.randn(6, 4, 4),), dynamic_shapes=shapes, strict=strict)
    except torch._dynamo.exc.Unsupported as error:
        pytest.skip(f"this torch's Dynamo cannot: {str(error).splitlines()[0]}")
    x = torch.randn((7, 4, 4) if batch == 0 else (6, 7, 4))
    close(program.module()(x), theirs(x))
    assert operators(program) & {"aten.lstm.input", "aten.gru.input", "aten.rnn_relu.input"}


@names
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_export_with_any_length_and_batch(name: str, strict: bool):
    """The exported program runs our kernels, and has derivatives."""
    theirs, ours = pair(name, compilable=True)
    shapes = ({0: Dim("first", min=2), 1: Dim("second", min=2)},)
    program = torch.export.export(ours, (torch.randn(6, 3, 4),), dynamic_shapes=shapes, strict=strict)
    module = program.module()
    for size in ((6, 3), (9, 5), (2, 8)):
        x = torch.randn(*size, 4)
        close(module(x), theirs(x))
    assert "fastrnn.layer.default" in operators(program)
    for model in (module, theirs):
        model(x)[0].sum().backward()
    found, expected = ({key: p.grad for key, p in model.named_parameters()} for model in (module, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@names
def test_export_with_states(name: str):
    theirs, ours = pair(name, compilable=True)
    first, second = Dim("first", min=2), Dim("second", min=2)
    batch = {1: first if name == "GRU" else second}
    shapes = ({0: first, 1: second}, (batch, batch) if name == "LSTM" else batch)
    program = torch.export.export(
        ours, (torch.randn(6, 4, 4), state_of(name, ours, 6 if name == "GRU" else 4)), dynamic_shapes=shapes
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    module = torch.export.load(buffer).module()
    x, hx = torch.randn(9, 5, 4), state_of(name, ours, 9 if name == "GRU" else 5)
    close(module(x, hx), theirs(x, hx))


onnx = pytest.importorskip("onnx", reason="the rest exports to ONNX, which needs the package onnx")
runtime = pytest.importorskip("onnxruntime", reason="the rest runs ONNX models with onnxruntime")


def answers(model: bytes, *inputs: Tensor) -> list[Tensor]:
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = [value.name for value in session.get_inputs()]
    found = session.run(None, {key: value.numpy() for key, value in zip(given, inputs, strict=True)})
    return [torch.from_numpy(array) for array in found]


def nodes(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def exported(model: nn.Module, x: Tensor, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporters, of themselves and for the older one
        if options["dynamo"]:
            torch.onnx.export(model, (x,), verbose=False, **options).save(buffer)
        else:
            torch.onnx.export(model, (x,), buffer, **options)
    return buffer.getvalue()


def flat(result: Any) -> list[Tensor]:
    y, state = result
    return [part.detach() for part in (y, *(state if isinstance(state, tuple) else (state,)))]


@names
@pytest.mark.parametrize("compilable", [False, True], ids=["default", "compilable"])
def test_the_older_onnx_exporter(name: str, compilable: bool):
    theirs, ours = pair(name, compilable)
    axes = {"x": {0: "first", 1: "second"}}
    model = exported(ours, torch.randn(6, 3, 4), dynamo=False, input_names=["x"], dynamic_axes=axes)
    assert nodes(model).count(name) == theirs.rnn.num_layers
    for size in ((6, 3), (9, 5)):
        x = torch.randn(*size, 4)
        close(answers(model, x), flat(theirs(x)))


@names
def test_the_newer_onnx_exporter_gives_what_it_gives_of_torchs(name: str):
    """LSTM and GRU nodes; of an RNN one product a step.  T is a number."""
    pytest.importorskip("onnxscript", reason="this exporter needs the package onnxscript")
    theirs, ours = pair(name)
    x = torch.randn(6, 3, 4)
    model, expected = exported(ours, x, dynamo=True), exported(theirs, x, dynamo=True)
    assert nodes(model) == nodes(expected)
    try:
        answers(expected, x)
    except Exception as error:
        pytest.skip(f"ONNX Runtime refuses what this torch makes of its own module: {error}")
    close(answers(model, x), flat(theirs(x)))


@names
def test_the_newer_onnx_exporter_with_any_length_and_batch(name: str):
    pytest.importorskip("onnxscript", reason="this exporter needs the package onnxscript")
    theirs, ours = pair(name, compilable=True)
    shapes = ({0: Dim("first", min=2), 1: Dim("second", min=2)},)
    table = fastrnn.interop.onnx_translations()
    x = torch.randn(6, 3, 4)
    model = exported(ours, x, dynamo=True, dynamic_shapes=shapes, custom_translation_table=table)
    assert nodes(model).count(name) == theirs.rnn.num_layers
    for size in ((6, 3), (9, 5)):
        x = torch.randn(*size, 4)
        close(answers(model, x), flat(theirs(x)))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_what_onnx_has_no_node_for():
    pytest.importorskip("onnxscript", reason="this exporter needs the package onnxscript")
    ours = pair("LSTM", compilable=True, proj_size=2)[1]
    table = fastrnn.interop.onnx_translations()
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="no node for LSTM with a projection"):
        exported(ours, torch.randn(6, 3, 4), dynamo=True, custom_translation_table=table)
