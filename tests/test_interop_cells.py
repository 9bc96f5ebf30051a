"""What torch's equations do not say: nodes of ONNX with a choice of functions, gates and bounds, by onnxruntime and by
the Networks that they make; and Networks as the nodes they stand for."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from interop_budget import exact_and_budget, flat, hold
from torch import Tensor, nn
from torch.autograd import gradcheck

import fastrnn
from fastrnn import cells
from fastrnn.cell import Heads
from fastrnn.interop import Reversed, from_onnx, to_onnx
from fastrnn.interop import cells as chosen

onnx = pytest.importorskip("onnx", reason="ONNX nodes need the package onnx")
runtime = pytest.importorskip("onnxruntime", reason="these tests run ONNX models with onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
KIND = pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
# How many numbers each function has: an alpha, and a beta.
NUMBERS = {
    **dict.fromkeys(("Tanh", "Sigmoid", "Relu", "Softsign", "Softplus"), 0),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), 1),
    **dict.fromkeys(("HardSigmoid", "Affine", "ScaledTanh"), 2),
}
CELLS = {
    "RNN": [chosen.ChosenRNN],
    "GRU": [chosen.ChosenGRU, chosen.ChosenResetBeforeGRU],
    "LSTM": [
        *(chosen.ChosenLSTM, chosen.ChosenPeepholeLSTM, chosen.ChosenCoupledLSTM),
        chosen.ChosenCoupledPeepholeLSTM,
    ],
}
STEPS, ROWS, INPUTS, HIDDEN = 5, 3, 4, 5


class Drawn(NamedTuple):
    """A model of one node, and what is given to it: ``lengths`` where it has sequence_lens, as an input."""

    model: Any
    attributes: dict[str, Any]
    x: Tensor
    lengths: Tensor | None


def drawn(kind: str, seed: int) -> Drawn:
    draw, noise = random.Random(seed), numpy.random.default_rng(seed)
    direction = draw.choice(["forward", "reverse", "bidirectional"])
    directions, rows = 1 + (direction == "bidirectional"), GATES[kind] * HIDDEN
    names = [draw.choice(list(NUMBERS)) for _ in range(ACTIVATIONS[kind])]
    alphas = [round(draw.uniform(0.1, 0.9), 3) for name in names if NUMBERS[name] >= 1]
    betas = [round(draw.uniform(-0.5, 0.9), 3) for name in names if NUMBERS[name] == 2]
    attributes: dict[str, Any] = dict(hidden_size=HIDDEN, direction=direction, activations=names * directions)
    attributes |= {"activation_alpha": alphas * directions} if alphas else {}
    attributes |= {"activation_beta": betas * directions} if betas else {}
    if draw.random() < 0.5:
        attributes["clip"] = draw.choice([0.25, 1.0, 2.5])
    if kind == "GRU":
        attributes["linear_before_reset"] = draw.randrange(2)
    if kind == "LSTM":
        attributes["input_forget"] = draw.randrange(2)

    def array(*shape: int) -> numpy.ndarray:
        return noise.uniform(-0.6, 0.6, shape).astype("float32")

    values = {"W": array(directions, rows, INPUTS), "R": array(directions, rows, HIDDEN)}
    more = {"B": (directions, 2 * rows), "initial_h": (directions, ROWS, HIDDEN)}
    if kind == "LSTM":
        more |= {"initial_c": (directions, ROWS, HIDDEN), "P": (directions, 3 * HIDDEN)}
    values |= {name: array(*shape) for name, shape in more.items() if draw.random() < 0.6}
    lengths = torch.tensor([STEPS, 1, 3], dtype=torch.int32) if draw.random() < 0.4 else None
    model = model_of(kind, attributes, values, lengths is not None)
    return Drawn(model, attributes, torch.from_numpy(array(STEPS, ROWS, INPUTS)), lengths)


def model_of(kind: str, attributes: dict[str, Any], values: dict[str, numpy.ndarray], lengths: bool = False) -> Any:
    wanted = [*values, *(["sequence_lens"] if lengths else [])]
    names = ("W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    inputs = ["X", *(name if name in wanted else "" for name in names)]
    while not inputs[-1]:
        inputs.pop()
    outputs = ["Y", "Y_h", *(["Y_c"] if kind == "LSTM" else [])]
    node = helper.make_node(kind, inputs, outputs, name="node", **attributes)
    given = [helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, None)]
    given += [helper.make_tensor_value_info("sequence_lens", onnx.TensorProto.INT32, None)] if lengths else []
    found = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph([node], "graph", given, found, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def answers(model: Any, *inputs: Tensor | None) -> list[Tensor]:
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    values = [value.numpy() for value in inputs if value is not None]
    return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, values, strict=True)))]


def of_onnxruntime(case: Drawn) -> list[Tensor]:
    """Its results, shaped as torch's: y (T, B, D*H)."""
    y, *states = answers(case.model, case.x, case.lengths)
    return [y.transpose(1, 2).flatten(2), *states]


def changed(node: Any, **attributes: Any) -> Any:
    """The node with other attributes; None takes one away."""
    other = onnx.NodeProto()
    other.CopyFrom(node)
    del other.attribute[:]
    other.attribute.extend(each for each in node.attribute if each.name not in attributes)
    other.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items() if pair[1] is not None)
    return other


@KIND
def test_nodes_of_every_choice_are_what_onnxruntime_computes(kind: str):
    """Every function in every place, clip, coupled gates, peepholes, both GRUs, directions, states and lengths; and
    back into a graph, whose node says and computes the same."""
    met = set()
    for seed in range(60):
        case = drawn(kind, seed)
        module, hx = from_onnx(case.model.graph.node[0], case.model.graph)
        call = {} if case.lengths is None else {"lengths": case.lengths.long()}
        exact, budgets = exact_and_budget(module, case.x, hx, seed, **call)
        message = f"seed {seed}, {case.attributes}"
        hold(of_onnxruntime(case), exact, budgets, f"onnxruntime, {message}")
        hold([each.detach() for each in flat(module(case.x, hx, **call))], exact, budgets, f"ours, {message}")
        inner = module.module if isinstance(module, Reversed) else module
        met |= {type(getattr(inner, "cell", inner))} | set(case.attributes["activations"])
        if case.lengths is None:
            graph = to_onnx(module, initial_states=hx is not None)
            states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
            onnx.checker.check_model(model, full_check=True)
            hold(answers(model, case.x, *states), exact, budgets, f"written back, {message}")
            again, _ = from_onnx(next(node for node in graph.node if node.op_type == kind), graph)
            again = again.module if isinstance(again, Reversed) else again
            assert getattr(again, "cell", None) == getattr(inner, "cell", None), message
            for name, parameter in inner.state_dict().items():
                assert torch.equal(again.state_dict()[name], parameter), message
    assert met >= {*NUMBERS, *CELLS[kind]}


@KIND
def test_the_comparison_fails_for_another_network(kind: str):
    """A parameter that is off by 10^-3, another clip or another number of a function is seen."""
    attributes = dict(hidden_size=HIDDEN, activations=["HardSigmoid", "Elu", "ScaledTanh"][: ACTIVATIONS[kind]])
    alphas, betas = [0.3, 0.7, 0.8], [0.4, 0.9]
    attributes |= dict(
        activation_alpha=alphas[: ACTIVATIONS[kind]], activation_beta=betas[: max(1, ACTIVATIONS[kind] - 1)]
    )
    values = {
        "W": numpy.random.default_rng(1).uniform(-1, 1, (1, GATES[kind] * HIDDEN, INPUTS)).astype("float32"),
        "R": numpy.random.default_rng(2).uniform(-1, 1, (1, GATES[kind] * HIDDEN, HIDDEN)).astype("float32"),
    }
    case = Drawn(model_of(kind, attributes, values), attributes, torch.randn(STEPS, ROWS, INPUTS), None)
    found = of_onnxruntime(case)

    def judge(node: Any) -> None:
        module, _ = from_onnx(node, case.model.graph)
        hold(found, *exact_and_budget(module, case.x))

    node = case.model.graph.node[0]
    judge(node)
    for other in (
        changed(node, clip=0.2),
        changed(node, activation_alpha=[0.301, *alphas[1 : ACTIVATIONS[kind]]]),
        changed(node, activations=["ScaledTanh", "Elu", "HardSigmoid"][: ACTIVATIONS[kind]]),
    ):
        with pytest.raises(AssertionError, match="its budget"):
            judge(other)
    module, _ = from_onnx(node, case.model.graph)
    with torch.no_grad():
        module.weight_hh_l0[0, 0] += 1e-3
    with pytest.raises(AssertionError, match="its budget"):
        hold(found, *exact_and_budget(module, case.x))


def standing(cell: Any, directions: int = 1, **options: Any) -> tuple[fastrnn.Network, Any]:
    """A Network and the node that it is written as."""
    torch.manual_seed(0)
    network = fastrnn.Network(cell, INPUTS, HIDDEN, bidirectional=directions == 2, **options)
    graph = to_onnx(network)
    return network, next(node for node in graph.node if node.op_type in GATES)


LIBRARY = [
    cells.PeepholeLSTM(),
    cells.CoupledLSTM(),
    cells.ResetBeforeGRU(),
    cells.PeepholeLSTM(nonlinearity="relu", gate_nonlinearity="hard_sigmoid"),
    cells.ResetBeforeGRU(nonlinearity="leaky_relu", gate_nonlinearity="softsign"),
    *(cells.RNN(nonlinearity=name) for name in ("tanh", "relu", "softplus", "identity")),
    cells.LSTM(),
    cells.GRU(),
]


@pytest.mark.parametrize("cell", LIBRARY, ids=repr)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_cells_of_the_library_are_the_nodes_they_stand_for(cell: Any, bias: bool):
    """Two layers, both directions, batch first.  Loaded again, a cell with no choice in it is the library's own, or
    torch's module."""
    torch.manual_seed(0)
    options = dict(num_layers=2, bidirectional=True, batch_first=True, bias=bias)
    network, x = fastrnn.Network(cell, INPUTS, HIDDEN, **options), torch.randn(ROWS, STEPS, INPUTS)
    states = [torch.randn(4, ROWS, HIDDEN) for _ in network.state_names]
    hx = tuple(states) if len(states) > 1 else states[0]
    graph = to_onnx(network, initial_states=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    hold(answers(model, x, *states), *exact_and_budget(network, x, hx), repr(cell))

    again, _ = from_onnx(next(node for node in graph.node if node.op_type in GATES), graph)
    if vars(cell) and type(again) is fastrnn.Network:
        assert type(again.cell).__name__ == f"Chosen{type(cell).__name__}"
    elif type(again) is fastrnn.Network:
        assert again.cell == cell
    first = {name: each for name, each in network.state_dict().items() if "_l0" in name}
    assert first.keys() == again.state_dict().keys()
    for name, parameter in again.state_dict().items():
        assert torch.equal(parameter, first[name])


def test_rows_of_a_forget_gate_that_nothing_reads_are_left_out_and_come_back_as_zeros():
    network, node = standing(cells.CoupledLSTM())
    graph = to_onnx(network)
    weight = next(numpy_helper.to_array(proto) for proto in graph.initializer if proto.name == node.input[1])
    i, o, f, g = torch.tensor(weight)[0].chunk(4)
    assert not f.any() and torch.equal(torch.cat([i, g, o]), network.weight_ih_l0)
    assert network.weight_ih_l0.shape == (3 * HIDDEN, INPUTS)


def test_directions_that_differ_are_refused_by_name():
    network, node = standing(chosen.ChosenGRU(activations=(("tanh",), ("elu", 0.5))), 2)
    graph = to_onnx(network)
    for other in (
        changed(node, activations=["Tanh", "Elu", "Tanh", "Relu"], activation_alpha=None),
        changed(node, activation_alpha=[0.5, 0.25]),
    ):
        with pytest.raises(ValueError, match="expected the same activations in both directions, got"):
            from_onnx(other, graph)


class Louder(cells.GRU):
    """A GRU by its class alone."""

    def step(self, x: Any, h: Any) -> dict[str, Any]:
        return dict(h=2 * super().step(x, h)["h"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fastrnn.Network(cells.SLSTM(), 4, 4), "SLSTM"),
        (lambda: fastrnn.Network(Louder(), 4, 5), "Louder"),
        (lambda: fastrnn.Network(cells.LSTM(kinds={"U": Heads(2)}), 4, 4), "Heads"),
        (lambda: fastrnn.Network(cells.GRU(), 4, 5, zoneout=0.1), "zoneout"),
        (lambda: fastrnn.Network(cells.GRU(), 4, 5, learn_initial_state=True), "learn_initial_state"),
        (lambda: fastrnn.Network(cells.RNN(nonlinearity="silu"), 4, 5), "ONNX has no activation silu"),
        (lambda: fastrnn.Network(chosen.ChosenRNN(activations=(("selu",),)), 4, 5), "ONNX has no activation selu"),
        (lambda: fastrnn.NetworkCell(cells.GRU(), 4, 5), "NetworkCell"),
    ],
)
def test_what_onnx_has_not_is_refused_by_name(build: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        to_onnx(build())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_peepholes_of_every_dtype(dtype: torch.dtype):
    network, node = standing(cells.PeepholeLSTM(), dtype=dtype)
    graph = to_onnx(network)
    again, _ = from_onnx(node, graph)
    assert again.p_l0.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.equal(again.p_l0.to(dtype), network.p_l0)


def numbers_of(name: str) -> tuple[float, ...]:
    """Some for a function that has any."""
    taken = {"elu": 1, "leaky_relu": 1, "thresholded_relu": 1, "hard_sigmoid": 2, "affine": 2, "scaled_tanh": 2}
    return (0.3, 0.4)[: taken.get(name, 0)]


@pytest.mark.parametrize("name", chosen.FUNCTIONS)
def test_every_function_has_its_derivative(name: str):
    """By differences in float64, of values far from 0 as well, where e^v would be no number."""
    torch.manual_seed(0)
    cell = chosen.ChosenRNN(activations=((name, *numbers_of(name)),), clip=900.0)
    network = fastrnn.Network(cell, INPUTS, HIDDEN, dtype=torch.float64)
    x = torch.randn(2, ROWS, INPUTS, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: network(x)[0], (x,))
    if name not in ("exp", "identity", "affine", "silu", "softplus", "selu", "elu", "leaky_relu", "relu"):
        return
    large = torch.tensor([-800.0, 800.0], dtype=torch.float64, requires_grad=True)
    found = chosen.FUNCTIONS[name](large if name != "exp" else -large.abs(), *numbers_of(name))
    found.sum().backward()
    assert found.isfinite().all() and large.grad.isfinite().all()


@pytest.mark.parametrize("batch_first", [False, True], ids=["time", "batch"])
def test_a_direction_alone_takes_lengths(batch_first: bool):
    """As the backward half of both does, of vectors and of tokens, of one sequence and of several."""
    torch.manual_seed(0)
    both = fastrnn.GRU(INPUTS, HIDDEN, batch_first=batch_first, bidirectional=True)
    back = fastrnn.GRU(INPUTS, HIDDEN, batch_first=batch_first)
    back.load_state_dict(
        {name.removesuffix("_reverse"): each for name, each in both.state_dict().items() if name.endswith("_reverse")}
    )
    lengths, shape = torch.tensor([STEPS, 1, 3]), (ROWS, STEPS) if batch_first else (STEPS, ROWS)
    for given in (torch.randn(*shape, INPUTS), torch.randint(INPUTS, shape)):
        for call in ({}, {"lengths": lengths}):
            y, h = both(given, **call)
            found, last = Reversed(back)(given, **call)
            torch.testing.assert_close(found, y[..., HIDDEN:])
            torch.testing.assert_close(last, h[1:])
    one = torch.randn(STEPS, INPUTS)
    torch.testing.assert_close(Reversed(back)(one, lengths=3)[0], both(one, lengths=3)[0][:, HIDDEN:])
    with pytest.raises(RuntimeError):
        Reversed(back)(torch.randn(*shape, INPUTS), lengths=torch.tensor([STEPS, 1, STEPS + 1]))


def test_the_module_under_a_direction_alone_is_one_that_onnx_has():
    with pytest.raises(TypeError, match="SLSTM"):
        Reversed(fastrnn.Network(cells.SLSTM(), 4, 4))
    with pytest.raises(TypeError, match="got Linear"):
        Reversed(nn.Linear(2, 2))
