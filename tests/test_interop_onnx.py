"""onnxruntime against the modules that its nodes are made of, and that they make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.interop import Reversed, from_onnx, to_onnx

onnx = pytest.importorskip("onnx", reason="ONNX nodes need the package onnx")
runtime = pytest.importorskip("onnxruntime", reason="these tests run ONNX models with onnxruntime")
INPUTS, HIDDEN, ROWS, STEPS = 4, 5, 3, 7
KIND = pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])


def answers(graph: Any, *inputs: Tensor) -> list[Tensor]:
    """What onnxruntime computes from a graph."""
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return [torch.from_numpy(array) for array in found]


def flat(result: Any) -> list[Tensor]:
    """y, h_n and, of an LSTM, c_n of a module's result."""
    y, state = result
    return [tensor.detach() for tensor in (y, *(state if isinstance(state, tuple) else (state,)))]


def states(kind: str, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(count, ROWS, HIDDEN) for _ in range(2 if kind == "LSTM" else 1))


def hx_of(given: tuple[Tensor, ...]) -> Any:
    return given if len(given) == 2 else given[0]


@KIND
@pytest.mark.parametrize("library", [nn, fastrnn], ids=["torch", "fastrnn"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time", "batch"])
def test_a_network_runs_elsewhere(kind: str, library: Any, batch_first: bool):
    torch.manual_seed(0)
    module = getattr(library, kind)(INPUTS, HIDDEN, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn((ROWS, STEPS, INPUTS) if batch_first else (STEPS, ROWS, INPUTS))
    given = states(kind, 4)
    torch.testing.assert_close(answers(to_onnx(module), x), flat(module(x)))
    torch.testing.assert_close(answers(to_onnx(module, initial_states=True), x, *given), flat(module(x, hx_of(given))))


@KIND
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_a_node_becomes_a_module_and_comes_back(kind: str, direction: str, bias: bool):
    module = getattr(fastrnn, kind)(INPUTS, HIDDEN, bias=bias, bidirectional=direction == "bidirectional")
    graph = to_onnx(Reversed(module) if direction == "reverse" else module)
    node = next(node for node in graph.node if node.op_type == kind)
    again, hx = from_onnx(node, graph)
    assert isinstance(again, Reversed) == (direction == "reverse") and hx is None
    inner = again.module if isinstance(again, Reversed) else again
    assert type(inner) is type(module) and inner.state_dict().keys() == module.state_dict().keys()
    for name, weight in module.state_dict().items():
        assert torch.equal(inner.state_dict()[name], weight)
    x = torch.randn(STEPS, ROWS, INPUTS)
    torch.testing.assert_close(flat(again(x)), answers(graph, x))


def test_relu_and_another_width():
    module = nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", bidirectional=True)
    x = torch.randn(STEPS, ROWS, INPUTS)
    torch.testing.assert_close(answers(to_onnx(module), x), flat(module(x)))
    graph = to_onnx(module.double())
    again, _ = from_onnx(node_of(graph), graph)
    assert again.mode == "RNN_RELU" and torch.equal(again.weight_hh_l0_reverse, module.weight_hh_l0_reverse)


@KIND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_modules_run_elsewhere(kind: str, dtype: torch.dtype):
    """A graph of float16, which onnxruntime widens by itself, or of float32, which takes the place of bfloat16."""
    module = getattr(fastrnn, kind)(INPUTS, HIDDEN, 2, bidirectional=True, dtype=dtype)
    x, eps = torch.randn(STEPS, ROWS, INPUTS), torch.finfo(dtype).eps
    narrow = x.half() if dtype == torch.float16 else x
    for found, exact in zip(answers(to_onnx(module), narrow), flat(module.float()(x)), strict=True):
        assert found.dtype == narrow.dtype
        torch.testing.assert_close(found.float(), exact, rtol=0, atol=8 * eps if dtype == torch.float16 else 1e-5)
    graph = to_onnx(module.to(dtype))
    again, _ = from_onnx(node_of(graph), graph)
    assert torch.equal(again.weight_hh_l0_reverse.to(dtype), module.weight_hh_l0_reverse)


def node_of(graph: Any, **attributes: Any) -> Any:
    """The graph's first recurrent node, with attributes changed; None takes one away."""
    node = onnx.NodeProto()
    node.CopyFrom(next(node for node in graph.node if node.op_type in ("RNN", "LSTM", "GRU")))
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(onnx.helper.make_attribute(*pair) for pair in attributes.items() if pair[1] is not None)
    return node


@KIND
@pytest.mark.parametrize("layout", [0, 1])
def test_first_states_and_weights_of_constant_nodes(kind: str, layout: int):
    module = getattr(fastrnn, kind)(INPUTS, HIDDEN)
    graph, given = to_onnx(module, initial_states=True), states(kind, 1)
    node = node_of(graph, layout=layout, hidden_size=None)
    assert from_onnx(node, graph).hx is None  # states that come from outside
    stored = [state.transpose(0, 1) if layout else state for state in given]
    for name, state in zip([name for name in node.input if "_0" in name], stored, strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(state.contiguous().numpy(), name))
    weight = next(proto for proto in graph.initializer if proto.name == node.input[1])
    graph.initializer.remove(weight)
    graph.node.append(onnx.helper.make_node("Constant", [], [weight.name], value=weight))
    again, hx = from_onnx(node, graph)
    assert again.batch_first == bool(layout)
    torch.testing.assert_close(hx, hx_of(given), rtol=0, atol=0)
    assert torch.equal(again.weight_ih_l0, module.weight_ih_l0)


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("GRU", {"clip": 0.0}, "expected clip to be a positive number, got 0.0"),
        ("LSTM", {"clip": float("nan")}, "expected clip to be a positive number, got nan"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "expected 3 activations, got ['Sigmoid', 'Tanh']"),
        ("LSTM", {"activations": ["Sigmoid", "Swish", "Tanh"]}, "expected activations among Tanh, "),
        ("RNN", {"activations": ["Affine"]}, "expected activation_alpha for Affine, for which runtimes have different"),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [1.0]}, "expected activation_beta for Affine"),
        (
            "GRU",
            {"activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.2, 1.0]},
            "expected activation_alpha to have 1 values, of HardSigmoid, got [0.2",
        ),
    ],
)
def test_another_network_is_refused(kind: str, attributes: dict[str, Any], message: str):
    graph = to_onnx(getattr(nn, kind)(INPUTS, HIDDEN))
    with pytest.raises(ValueError) as error:
        from_onnx(node_of(graph, **attributes), graph)
    assert message in str(error.value)


def test_what_makes_no_module_or_no_node():
    graph = to_onnx(nn.GRU(INPUTS, HIDDEN))
    with pytest.raises(TypeError, match="got Concat"):
        from_onnx(graph.node[-1], graph)
    with pytest.raises(ValueError, match="W of shape"):
        from_onnx(node_of(graph, direction="bidirectional"), graph)
    with pytest.raises(ValueError, match=r"hidden_size=5, as R of shape \(1, 15, 5\) has it, got 3"):
        from_onnx(node_of(graph, hidden_size=3), graph)
    del graph.initializer[:]
    with pytest.raises(ValueError, match="expected W to be an initializer"):
        from_onnx(node_of(graph), graph)
    with pytest.raises(ValueError, match="proj_size=2"):
        to_onnx(nn.LSTM(INPUTS, HIDDEN, proj_size=2))
    with pytest.raises(TypeError, match="complex64"):
        to_onnx(nn.LSTM(INPUTS, HIDDEN, dtype=torch.complex64))
    with pytest.raises(TypeError, match="JordanRNN"):
        to_onnx(fastrnn.JordanRNN(INPUTS, HIDDEN, 2))


def test_reversed():
    module = fastrnn.LSTM(INPUTS, HIDDEN, batch_first=True)
    x = torch.randn(ROWS, STEPS, INPUTS)
    both = nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True)
    both.load_state_dict(
        module.state_dict() | {f"{name}_reverse": value for name, value in module.state_dict().items()}
    )
    back, single = both(x)[0][..., HIDDEN:], Reversed(module)(x[0])[0]
    torch.testing.assert_close(Reversed(module)(x)[0], back)
    torch.testing.assert_close(single, back[0])
    with pytest.raises(TypeError, match="PackedSequence"):
        Reversed(module)(nn.utils.rnn.pack_sequence([x[0]]))
    with pytest.raises(ValueError, match="bidirectional=True"):
        Reversed(both)
