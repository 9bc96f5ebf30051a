"""Generated ONNX nodes: each is refused by name or gives onnxruntime's numbers; damaged graphs are refused in words.

onnxruntime takes some values for others, or for nothing: there refusing is right whatever it computes.
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from interop_budget import exact_and_budget

from fastrnn.interop import from_onnx

onnx = pytest.importorskip("onnx", reason="ONNX nodes need the package onnx")
runtime = pytest.importorskip("onnxruntime", reason="these tests run ONNX models with onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
KIND = pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
STEPS, ROWS, INPUTS, HIDDEN = 5, 3, 4, 5
SPELLED = {name.lower(): name for name in ("Tanh", "Relu", "Sigmoid", "HardSigmoid", "Affine")}
# What an attribute may be given: what is honoured, and what is none at all.
VALUES: dict[str, list[Any]] = {
    "activation_alpha": [[0.5], [0.1, 0.2, 0.3], 0.5],
    "activation_beta": [[0.5], [2.0, 0.2, 0.3]],
    "clip": [0.3, 1e3, 0.0, -1.0],
    "direction": ["forward", "reverse", "bidirectional", "backward", "FORWARD", 1],
    "hidden_size": [HIDDEN, HIDDEN + 1, 0, 5.0],
    "layout": [0, 1, 2],
    "input_forget": [0, 1, 2, 3],
    "linear_before_reset": [0, 1, 2, 3],
    "output_sequence": [0, 1],
    "peephole": [1],
}


def array(draw: random.Random, *shape: int, dtype: Any = numpy.float32) -> numpy.ndarray:
    return numpy.random.default_rng(draw.randrange(2**32)).uniform(-1, 1, shape).astype(dtype)


def model_of(kind: str, draw: random.Random, attributes: dict[str, Any], extra: dict[str, Any]) -> Any:
    """A model of one node.  ``extra`` are inputs behind R by their names, arrays for initializers, a name for an
    input of the graph."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[kind] * HIDDEN
    values: dict[str, Any] = {
        "W": array(draw, directions, rows, INPUTS),
        "R": array(draw, directions, rows, HIDDEN),
        **extra,
    }
    names = ["W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P", "more"]
    inputs = ["X", *(name if name in values else "" for name in names)]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(kind, inputs, ["Y"], name="node", **attributes)
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    types = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("X", "Y")]
    graph = helper.make_graph([node], "graph", types[:1], types[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def drawn(kind: str, draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes and inputs, most of them right, some with another value."""
    attributes: dict[str, Any] = {"hidden_size": HIDDEN}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    attributes["direction"] = draw.choice(["forward", "reverse", "bidirectional"])
    for name in draw.sample(list(VALUES), draw.choice([0, 0, 1, 1, 2])):
        attributes[name] = draw.choice(VALUES[name])
    directions = 2 if attributes["direction"] == "bidirectional" else 1
    if draw.random() < 0.3:
        kinds = [*SPELLED.values(), "tanh", "relu"]
        usual = DEFAULTS[kind] * draw.choice([1, 2, directions])
        attributes["activations"] = draw.choice([usual, usual, [draw.choice(kinds) for _ in usual]])
    extra: dict[str, Any] = {}
    if draw.random() < 0.7:
        extra["B"] = array(draw, directions, 2 * GATES[kind] * HIDDEN)
    for name in ("initial_h", "initial_c"):
        if draw.random() < 0.4 and (name == "initial_h" or kind == "LSTM"):
            extra[name] = array(draw, directions, ROWS, HIDDEN)
    if draw.random() < 0.1:
        extra["sequence_lens"] = numpy.array([5, 3, 1], numpy.int32)
    if draw.random() < 0.1:
        extra[draw.choice(["P", "more", "initial_c"])] = array(draw, directions, 3 * HIDDEN)
    if draw.random() < 0.1:
        extra[draw.choice(["W", "R", "B", "initial_h"])] = array(draw, directions, draw.randrange(1, 9), HIDDEN)
    return attributes, extra


def answer(model: Any, x: numpy.ndarray) -> numpy.ndarray:
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"X": x})[0]


def called(model: Any, x: numpy.ndarray) -> tuple[Any, torch.Tensor, Any]:
    """What ``from_onnx`` makes, and what it is called with."""
    module, hx = from_onnx(model.graph.node[0], model.graph)
    given = torch.from_numpy(x)
    return module, given.transpose(0, 1) if getattr(module, "module", module).batch_first else given, hx


def ours(model: Any, x: numpy.ndarray) -> numpy.ndarray:
    """Y of it, as ONNX has it, (T, D, B, H)."""
    module, given, hx = called(model, x)
    with torch.no_grad():
        y = module(given, hx)[0]
    y = y.transpose(0, 1) if getattr(module, "module", module).batch_first else y
    return y.unflatten(2, (-1, HIDDEN)).transpose(1, 2).numpy()


def same_or_refused(kind: str, seed: int) -> bool:
    draw = random.Random(seed)
    attributes, extra = drawn(kind, draw)
    model = model_of(kind, draw, attributes, extra)
    x = array(draw, STEPS, ROWS, INPUTS)
    try:
        found, budgets = ours(model, x), exact_and_budget(*called(model, x))[1]
    except ValueError as error:
        assert str(error).startswith(f"ONNX {kind} 'node': "), error
        return False
    except RuntimeError as error:  # a module's own: only a call knows B and I
        assert "expected" in str(error).lower() and extra.keys() & {"W", "initial_h"}
        return False
    if attributes.pop("layout", 0):  # which onnxruntime lacks: only the states stand otherwise
        node = model.graph.node[0]
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
        for proto in model.graph.initializer:
            if proto.name.startswith("initial"):
                turned = numpy_helper.to_array(proto).swapaxes(0, 1)
                proto.CopyFrom(numpy_helper.from_array(numpy.ascontiguousarray(turned), proto.name))
    if "output_sequence" in attributes:  # of opsets that it has no kernels for
        kept = [attribute for attribute in model.graph.node[0].attribute if attribute.name != "output_sequence"]
        del model.graph.node[0].attribute[:]
        model.graph.node[0].attribute.extend(kept)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "activations" and kind == "RNN":  # lower case is Tanh there for LSTM and GRU alone
            attribute.strings[:] = [SPELLED[name.decode().lower()].encode() for name in attribute.strings]
    numpy.testing.assert_allclose(found, answer(model, x), rtol=0, atol=2 * budgets[0])
    return True


@KIND
def test_a_node_gives_the_numbers_of_onnxruntime_or_is_refused(kind: str):
    ran = [same_or_refused(kind, seed) for seed in range(150)]
    assert 0.2 < sum(ran) / len(ran) < 0.8


@pytest.mark.slow
@KIND
def test_many_nodes_give_the_numbers_of_onnxruntime_or_are_refused(kind: str):
    for seed in range(1000, 3000):
        same_or_refused(kind, seed)


def lstm(**extra: Any) -> Any:
    draw = random.Random(0)
    given = {"B": array(draw, 1, 40), "initial_h": array(draw, 1, ROWS, HIDDEN)} | extra
    return model_of("LSTM", draw, {"hidden_size": HIDDEN}, given)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"sequence_lens": numpy.array([5, 3, 1], numpy.int32)}, "sequence_lens"),
        ({"P": numpy.zeros((1, 16), numpy.float32)}, "expected P of shape (1, 15)"),
        ({"P": numpy.zeros((1, 15))}, "of one floating point dtype"),
        ({"more": numpy.zeros(3, numpy.float32)}, "expected at most 8 inputs"),
        ({"B": numpy.zeros((1, 39), numpy.float32)}, "expected B of shape (1, 40)"),
        ({"W": numpy.zeros((1, 20, 0), numpy.float32)}, "expected W of shape"),
        ({"W": numpy.zeros((20, 4), numpy.float32)}, "expected W of shape"),
        ({"R": numpy.zeros((20, 5), numpy.float32)}, "expected R of shape"),
        ({"B": numpy.zeros((1, 40))}, "of one floating point dtype"),
        ({"W": numpy.zeros((1, 20, 4), numpy.int32)}, "of one floating point dtype"),
        ({"initial_h": numpy.zeros((1, 3, 4), numpy.float32)}, "expected initial_h of shape (1, B, 5)"),
        ({"initial_h": numpy.zeros((3, 5), numpy.float32)}, "expected initial_h of shape"),
        ({"initial_c": numpy.zeros((1, 2, 5), numpy.float32)}, "expected initial_c of shape"),
        ({"initial_c": numpy.zeros((1, 3, 5))}, "float64"),
    ],
)
def test_an_input_that_is_not_honoured_is_named(extra: dict[str, Any], message: str):
    model = lstm(**extra)
    with pytest.raises(ValueError) as error:
        from_onnx(model.graph.node[0], model.graph)
    assert message in str(error.value)


def test_values_that_the_graph_computes():
    """A value that depends on an input is the caller's; one of constants alone is refused, but for zeros."""
    model = lstm(initial_h=numpy.zeros((1, ROWS, HIDDEN), numpy.float32))
    graph, node = model.graph, model.graph.node[0]

    def computed(operator: str, inputs: list[str], **attributes: Any) -> Any:
        changed = onnx.GraphProto()
        changed.CopyFrom(graph)
        changed.node.insert(0, helper.make_node(operator, inputs, ["value"], **attributes))
        own = changed.node[1]
        own.input[5] = "value"
        return own, changed

    zero = numpy_helper.from_array(numpy.zeros(1, numpy.float32))
    one = numpy_helper.from_array(numpy.ones(1, numpy.float32))
    assert from_onnx(node, graph).hx is not None
    for given in (
        computed("Identity", ["initial_h"]),
        computed("Concat", ["initial_h", "initial_h"], axis=2),
        computed("ConstantOfShape", ["shape"], value=zero),
        computed("Exp", ["X"]),
    ):
        given[1].node.insert(0, helper.make_node("Shape", ["X"], ["shape"]))
        assert from_onnx(*given).hx is None
    for given in (
        computed("Exp", ["initial_h"]),
        computed("Concat", ["initial_h", "B"], axis=1),
        computed("ConstantOfShape", ["shape"], value=one),
        computed("Exp", ["shape"]),
    ):
        given[1].node.insert(0, helper.make_node("Shape", ["X"], ["shape"]))
        with pytest.raises(ValueError, match="initial_h is computed by the graph from constants alone"):
            from_onnx(*given)
    own, changed = computed("Exp", ["elsewhere"])
    with pytest.raises(ValueError, match="'elsewhere' is no value of the graph"):
        from_onnx(own, changed)
    own, changed = computed("Exp", ["X"])
    own.input.append("B")
    with pytest.raises(ValueError, match="expected initial_c of shape"):
        from_onnx(own, changed)
    own.input[6] = "initial_h"
    with pytest.raises(ValueError, match="initial_h comes from outside and initial_c is a constant"):
        from_onnx(own, changed)
    own, changed = computed("Shape", ["X"])
    own.input[4], own.input[5] = "value", ""
    with pytest.raises(ValueError, match="sequence_lens is held or computed"):
        from_onnx(own, changed)
    changed.input.append(helper.make_tensor_value_info("value", onnx.TensorProto.INT32, ["B"]))
    del changed.node[0]
    assert from_onnx(changed.node[0], changed).hx is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_every_dtype(dtype: torch.dtype):
    model = lstm()
    for proto in model.graph.initializer:
        values = torch.tensor(numpy_helper.to_array(proto)).to(dtype)
        if dtype == torch.bfloat16:
            raw = values.view(torch.int16).numpy().tobytes()
            made = helper.make_tensor(proto.name, onnx.TensorProto.BFLOAT16, list(values.shape), raw, raw=True)
        else:
            made = numpy_helper.from_array(values.numpy(), proto.name)
        proto.CopyFrom(made)
    module, hx = from_onnx(model.graph.node[0], model.graph)
    assert isinstance(hx, tuple) and {value.dtype for value in (*module.parameters(), *hx)} == {dtype}
    exact, given = ours(lstm(), array(random.Random(1), STEPS, ROWS, INPUTS)), array(random.Random(1), 5, 3, 4)
    y = module(torch.from_numpy(given).to(dtype), hx)[0]
    atol = 40 * torch.finfo(dtype).eps + 2e-6
    torch.testing.assert_close(y.float(), torch.from_numpy(exact)[:, 0], rtol=0, atol=atol)


def test_external_data_sparse_values_and_values_of_another_graph():
    model = lstm()
    weight = next(proto for proto in model.graph.initializer if proto.name == "W")
    onnx.external_data_helper.set_external_data(weight, "weights.bin")
    with pytest.raises(ValueError, match="the values of W in the graph, got external data"):
        from_onnx(model.graph.node[0], model.graph)
    model.graph.initializer.remove(weight)
    with pytest.raises(ValueError, match="expected W to be an initializer or a Constant tensor of the graph, got 'W'"):
        from_onnx(model.graph.node[0], model.graph)
    for attributes in ({}, {"value_float": 1.0}, {"value_ints": [1, 2]}, {"value": weight, "value_int": 1}):
        graph = onnx.GraphProto()
        graph.CopyFrom(model.graph)
        graph.node.append(helper.make_node("Constant", [], ["W"], **attributes))
        with pytest.raises(ValueError, match="expected W to be|the Constant 'W' has|external data"):
            from_onnx(graph.node[0], graph)
    again = lstm()
    again.graph.initializer.append(numpy_helper.from_array(numpy.ones(3), "W"))
    with pytest.raises(ValueError, match="two values of the name 'W'"):
        from_onnx(again.graph.node[0], again.graph)


def test_what_is_no_node_and_no_graph():
    model = lstm()
    graph, node = model.graph, model.graph.node[0]
    for wrong in (None, b"", "model.onnx", node.SerializeToString(), model, graph, 3):
        with pytest.raises(TypeError, match="from_onnx expects node to be an onnx.NodeProto, got "):
            from_onnx(wrong, graph)
    for wrong in (None, b"", "model.onnx", graph.SerializeToString(), model, node, 3):
        with pytest.raises(TypeError, match="from_onnx expects graph to be an onnx.GraphProto, got "):
            from_onnx(node, wrong)
    node.domain = "com.microsoft"
    with pytest.raises(TypeError, match="got LSTM of the domain 'com.microsoft'"):
        from_onnx(node, graph)


def damaged(seed: int) -> bool:
    """Some bytes of a model changed, or its end cut off: a module, or an error in words.  Whether it was still read."""
    draw = random.Random(seed)
    data = bytearray(lstm().SerializeToString())
    for _ in range(draw.randrange(1, 4)):
        # mostly near the node and the heads of tensors: the rest is numbers
        place = draw.choice([draw.randrange(len(data)), draw.randrange(min(200, len(data)))])
        data[place] = draw.choice([0, 255, draw.randrange(256), data[place] ^ (1 << draw.randrange(8))])
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(data))
    except Exception:  # not ours: what protobuf cannot read at all
        return False
    for node in model.graph.node:
        try:
            from_onnx(node, model.graph)
        except (ValueError, TypeError) as error:
            assert str(error).startswith(("ONNX LSTM", "from_onnx expects")), f"seed {seed}: {error!r}"
    return bool(model.graph.node)


def test_damaged_models_are_refused_in_words():
    assert sum(damaged(seed) for seed in range(400)) > 50


@pytest.mark.slow
def test_many_damaged_models_are_refused_in_words():
    for seed in range(1000, 10000):
        damaged(seed)


def test_every_field_of_a_node_and_of_its_values_taken_away():
    """Fields of the node, its attributes and its tensors, cleared one at a time."""
    whole = lstm()

    def parts(graph: Any) -> list[Any]:
        return [graph, graph.node[0], *graph.node[0].attribute, *graph.initializer]

    tried = 0
    for k, part in enumerate(parts(whole.graph)):
        for field in [descriptor.name for descriptor, _ in part.ListFields()]:
            graph = onnx.GraphProto()
            graph.CopyFrom(whole.graph)
            node = graph.node[0]
            parts(graph)[k].ClearField(field)
            tried += 1
            try:
                from_onnx(node, graph)
            except (ValueError, TypeError) as error:
                assert str(error).startswith(("ONNX LSTM", "from_onnx expects")), f"{field}: {error!r}"
    assert tried > 20
