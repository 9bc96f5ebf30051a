"""ONNX's LSTM, GRU and RNN nodes: into modules, and modules into a graph of them.

A node keeps ``W`` (D, G*H, I), ``R`` (D, G*H, H) and ``B`` (D, 2*G*H), the two biases in one row, with the gates i, o,
f, c of an LSTM and z, r, h of a GRU where torch has i, f, g, o and r, z, n.  Its output ``Y`` is (T, D, B, H) where
torch's is (T, B, D*H).

Source: the operators LSTM, GRU and RNN of the ONNX specification, opset 7 to 22.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn.cells import CELLS
from fastrnn.interop.layout import reorder, require_layers, write
from fastrnn.modules import GRU, LSTM, RNN

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

GATES = {"RNN_TANH": ("h",), "RNN_RELU": ("h",), "LSTM": ("i", "o", "f", "g"), "GRU": ("z", "r", "n")}
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_ACTIVATIONS = {"LSTM": [["sigmoid", "tanh", "tanh"]], "GRU": [["sigmoid", "tanh"]], "RNN": [["tanh"], ["relu"]]}


class Reversed(nn.Module):
    """A module of one direction run from the last step to the first, as ONNX's ``direction="reverse"``; torch has this
    direction only beside the other.  Input, states and output are those of the module, the output in the order of the
    input.  A PackedSequence is refused with TypeError."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        require_layers(module, "Reversed")
        if module.bidirectional:
            raise ValueError("Reversed expects a module of one direction, got bidirectional=True")
        self.module = module

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        if isinstance(input, PackedSequence):
            raise TypeError("Reversed expects a Tensor, got a PackedSequence")
        time = 1 if self.module.batch_first and input.dim() == 3 else 0
        y, state = self.module(input.flip(time), hx)
        return y.flip(time), state


class FromOnnx(NamedTuple):
    """A module and the first states to call it with: ``h0``, of an LSTM ``(h0, c0)``, each (D, B, H)."""

    module: RNN | LSTM | GRU | Reversed
    hx: Tensor | tuple[Tensor, Tensor] | None


def from_onnx(node: NodeProto, graph: GraphProto) -> FromOnnx:
    """A fastrnn module that computes what an LSTM, GRU or RNN node computes, and its constant first states.

    Weights and biases are looked up among the graph's initializers and Constant nodes.  ``batch_first`` is the node's
    ``layout``; ``direction="reverse"`` gives a :class:`Reversed`.  ``hx`` is None where the node has no first states
    (which are zeros) or does not hold them itself: then they come from the caller, as X does, and as a PackedSequence
    in the place of ``sequence_lens``.

    Raises:
        TypeError: another operator.
        ValueError: what torch's equations have no place for: peepholes (P), ``clip``, ``input_forget``, activations
            other than the default (for an RNN also Relu), a GRU with ``linear_before_reset=0``; or weights that are no
            constants of the graph or of another shape than the specification's.
    """
    from onnx import helper

    kind, where = node.op_type, f"ONNX {node.op_type} {node.name!r}"
    if kind not in _ACTIVATIONS:
        raise TypeError(f"from_onnx expects an LSTM, GRU or RNN node, got {kind}")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = {name: value for name, value in zip(_INPUTS, node.input, strict=False) if value}
    direction = attributes.get("direction", b"forward").decode()
    directions = 2 if direction == "bidirectional" else 1
    mode = _mode(kind, attributes, inputs, directions, where)

    constants = _constants(graph, set(inputs.values()))
    for name in ("W", "R", "B"):
        if name in inputs and inputs[name] not in constants:
            raise ValueError(f"{where}: expected {name} to be an initializer or a Constant, got {inputs[name]!r}")
    w, r = constants[inputs["W"]], constants[inputs["R"]]
    hidden, batch_first = int(attributes.get("hidden_size", r.shape[-1])), bool(attributes.get("layout", 0))
    if w.dim() != 3 or w.shape[0] != directions:
        raise ValueError(f"{where}: expected W of shape ({directions}, G*H, I), got {tuple(w.shape)}")
    options: dict[str, Any] = dict(
        bias="B" in inputs, batch_first=batch_first, bidirectional=directions == 2, dtype=w.dtype
    )
    if kind == "RNN":
        options["nonlinearity"] = mode.removeprefix("RNN_").lower()
    module = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[kind](w.shape[2], hidden, **options)

    rows, values = len(GATES[mode]) * hidden, {"weight_ih": w, "weight_hh": r}
    if "B" in inputs:
        b = constants[inputs["B"]]
        if b.shape != (directions, 2 * rows):
            raise ValueError(f"{where}: expected B of shape {(directions, 2 * rows)}, got {tuple(b.shape)}")
        values |= {"bias_ih": b[:, :rows], "bias_hh": b[:, rows:]}
    own, wanted = GATES[mode], CELLS[mode].gates
    if r.shape != (directions, rows, hidden):
        raise ValueError(f"{where}: expected R of shape {(directions, rows, hidden)}, got {tuple(r.shape)}")
    suffixes = ("", "_reverse")[:directions]
    write(
        module,
        {
            f"{name}_l0{suffix}": reorder(value[d], own, wanted)
            for name, value in values.items()
            for d, suffix in enumerate(suffixes)
        },
    )
    hx = _first_states(mode, inputs, constants, batch_first)
    return FromOnnx(Reversed(module) if direction == "reverse" else module, hx)


def _mode(kind: str, attributes: dict[str, Any], inputs: dict[str, str], directions: int, where: str) -> str:
    """The mode of fastrnn that a node's attributes ask for; raises where torch has no such network."""
    if "P" in inputs:
        raise ValueError(f"{where}: peepholes (input P) have no place in torch's LSTM")
    if "clip" in attributes:
        raise ValueError(f"{where}: expected no clip, got {attributes['clip']}")
    if attributes.get("input_forget", 0):
        raise ValueError(f"{where}: expected input_forget=0, got 1 (input and forget gate coupled)")
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        raise ValueError(
            f"{where}: expected linear_before_reset=1, got 0: the reset gate multiplies h before the recurrent "
            "product; torch's cannot"
        )
    known = _ACTIVATIONS[kind]
    given = [name.decode().lower() for name in attributes.get("activations", ())] or known[0] * directions
    for activations in known:
        if given == activations * directions:
            return f"RNN_{activations[0].upper()}" if kind == "RNN" else kind
    expected = " or ".join(str(activations * directions) for activations in known)
    raise ValueError(f"{where}: expected activations {expected}, got {given}")


def _constants(graph: GraphProto, names: set[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the graph holds itself."""
    from onnx import numpy_helper

    found = {proto.name: proto for proto in graph.initializer if proto.name in names}
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in names and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return {name: torch.tensor(numpy_helper.to_array(proto)) for name, proto in found.items()}


def _first_states(
    mode: str, inputs: dict[str, str], constants: dict[str, Tensor], batch_first: bool
) -> Tensor | tuple[Tensor, Tensor] | None:
    names = ("initial_h", "initial_c") if CELLS[mode].has_cell_state else ("initial_h",)
    given = [inputs[name] for name in names if name in inputs]
    if not given or any(name not in constants for name in given):
        return None
    one = constants[given[0]]
    states = [constants[inputs[name]] if name in inputs else torch.zeros_like(one) for name in names]
    states = [state.transpose(0, 1) if batch_first else state for state in states]
    return (states[0], states[1]) if len(states) == 2 else states[0]


def to_onnx(module: nn.RNNBase | Reversed, name: str = "rnn", initial_states: bool = False) -> GraphProto:
    """An ONNX graph that computes what an RNN, LSTM or GRU, torch.nn's or ours, computes in eval mode: one node of its
    kind a layer, and what brings their outputs into torch's shapes.

    The graph's input is ``x`` and, with ``initial_states``, ``h_0`` and for an LSTM ``c_0``; its outputs are ``y``,
    ``h_n`` and for an LSTM ``c_n``, all shaped as the module's.  Names of the values inside begin with ``name``.
    ``onnx.helper.make_model(graph)`` makes it a model; it needs opset 14 or later.

    Raises:
        TypeError: ``module`` is none of these, or its dtype is not float16, float32 or float64.
        ValueError: an LSTM has a projection, which ONNX has not.
    """
    from onnx import TensorProto, helper, numpy_helper

    backwards = isinstance(module, Reversed)
    layers: nn.RNNBase = module.module if backwards else module
    require_layers(layers, "to_onnx")
    types = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
    dtype = layers.weight_ih_l0.dtype
    if dtype not in types:
        raise TypeError(f"to_onnx expects parameters of float16, float32 or float64, got {dtype}")
    kind, hidden, directions = layers.mode.split("_")[0], layers.hidden_size, 2 if layers.bidirectional else 1
    states = ("h", "c") if CELLS[layers.mode].has_cell_state else ("h",)
    attributes: dict[str, Any] = {"hidden_size": hidden}
    attributes["direction"] = "reverse" if backwards else ("forward", "bidirectional")[directions - 1]
    if layers.mode == "GRU":
        attributes["linear_before_reset"] = 1
    if layers.mode == "RNN_RELU":
        attributes["activations"] = ["Relu"] * directions

    nodes, constants = [], []

    def constant(label: str, tensor: Tensor) -> str:
        constants.append(numpy_helper.from_array(tensor.detach().cpu().contiguous().numpy(), f"{name}.{label}"))
        return constants[-1].name

    def add(operator: str, inputs: list[str], outputs: list[str], **own: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, outputs, name=f"{name}.{operator}{len(nodes)}", **own))
        return outputs[0]

    merged = constant("merged", torch.tensor([0, 0, -1]))
    firsts = {state: [""] * layers.num_layers for state in states}
    if initial_states:
        sizes = constant("directions", torch.full((layers.num_layers,), directions))
        for state in states:
            firsts[state] = [f"{name}.l{k}.{state}_0" for k in range(layers.num_layers)]
            add("Split", [f"{state}_0", sizes], firsts[state], axis=0)
    value = add("Transpose", ["x"], [f"{name}.x"], perm=[1, 0, 2]) if layers.batch_first else "x"
    for k in range(layers.num_layers):
        own = f"{name}.l{k}"
        weights = [constant(f"l{k}.{label}", tensor) for label, tensor in _stacked(layers, k).items()]
        inputs = [value, *weights, *[""] * (3 - len(weights)), "", *(firsts[state][k] for state in states)]
        outputs = [f"{own}.y", *(f"{own}.{state}_n" for state in states)]
        turned = add("Transpose", [add(kind, inputs, outputs, **attributes)], [f"{own}.turned"], perm=[0, 2, 1, 3])
        last = k == layers.num_layers - 1 and not layers.batch_first
        value = add("Reshape", [turned, merged], ["y" if last else f"{own}.merged"])
    if layers.batch_first:
        add("Transpose", [value], ["y"], perm=[1, 0, 2])
    for state in states:
        add("Concat", [f"{name}.l{k}.{state}_n" for k in range(layers.num_layers)], [f"{state}_n"], axis=0)

    def info(label: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(label, types[dtype], shape)

    lead = ("B", "T") if layers.batch_first else ("T", "B")
    count = layers.num_layers * directions
    given = [info(f"{state}_0", count, "B", hidden) for state in states] if initial_states else []
    found = [info("y", *lead, directions * hidden), *(info(f"{state}_n", count, "B", hidden) for state in states)]
    return helper.make_graph(nodes, name, [info("x", *lead, layers.input_size), *given], found, constants)


def _stacked(layers: nn.RNNBase, layer: int) -> dict[str, Tensor]:
    """W, R and, with biases, B of one layer."""
    have, want = CELLS[layers.mode].gates, GATES[layers.mode]

    def stack(kind: str) -> Tensor:
        suffixes = ("", "_reverse") if layers.bidirectional else ("",)
        return torch.stack([reorder(getattr(layers, f"{kind}_l{layer}{end}").detach(), have, want) for end in suffixes])

    found = {"W": stack("weight_ih"), "R": stack("weight_hh")}
    return found | {"B": torch.cat([stack("bias_ih"), stack("bias_hh")], 1)} if layers.bias else found
