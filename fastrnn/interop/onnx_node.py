"""What an LSTM, GRU or RNN node of ONNX says, read as the specification has it, opset 1 to 22.

Nothing that a node holds is passed over: an attribute, an input or a shape that no cell of ours has a place for, or
that is none of the specification's, raises an error that names it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fastrnn.interop.equations import Equations
from fastrnn.interop.layout import as_tensor
from fastrnn.interop.onnx_activations import read_activations

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

GATES: dict[str, tuple[str, ...]] = {"RNN": ("h",), "LSTM": ("i", "o", "f", "g"), "GRU": ("z", "r", "n")}
PEEPHOLES = ("i", "o", "f")
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h")
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
# output_sequence is of opset 1 to 6: whether Y may be left out.
_ATTRIBUTES = {
    "activation_alpha": "FLOATS",
    "activation_beta": "FLOATS",
    "activations": "STRINGS",
    "clip": "FLOAT",
    "direction": "STRING",
    "hidden_size": "INT",
    "layout": "INT",
    "output_sequence": "INT",
}
_OWN = {"LSTM": "input_forget", "GRU": "linear_before_reset"}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHAPING = ("Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose")
_SHAPING += ("Unsqueeze",)


class Node(NamedTuple):
    """``weights`` are W, R and maybe B and P as the node has them; ``states`` the constant first states, each
    (D, B, H), by the names of the node's inputs."""

    equations: Equations
    direction: str
    directions: int
    batch_first: bool
    weights: dict[str, Tensor]
    states: dict[str, Tensor]


def read(node: NodeProto, graph: GraphProto) -> Node:
    """The errors are those of :func:`fastrnn.interop.from_onnx`."""
    from onnx import GraphProto, NodeProto

    for name, value, wanted in (("node", node, NodeProto), ("graph", graph, GraphProto)):
        if not isinstance(value, wanted):
            raise TypeError(f"from_onnx expects {name} to be an onnx.{wanted.__name__}, got {type(value).__name__}")
    kind = node.op_type
    if kind not in ACTIVATIONS or node.domain not in ("", "ai.onnx"):
        domain = f" of the domain {node.domain!r}" if node.domain else ""
        raise TypeError(f"from_onnx expects an LSTM, GRU or RNN node, got {kind}{domain}")
    return _Reader(node, graph).read()


class _Reader:
    def __init__(self, node: NodeProto, graph: GraphProto) -> None:
        self.node, self.graph, self.kind = node, graph, node.op_type
        self.held: dict[str, TensorProto | AttributeProto] = {}
        for proto in graph.initializer:
            self._hold(proto.name, proto)
        self.producers = {name: producer for producer in graph.node for name in producer.output if name}
        for name, producer in self.producers.items():
            if producer.op_type == "Constant":
                if len(producer.attribute) != 1:
                    self.refuse(f"the Constant {name!r} has {len(producer.attribute)} attributes, expected 1")
                self._hold(name, producer.attribute[0])
        self.from_outside = {value.name for value in graph.input} - self.held.keys()

    def refuse(self, problem: str) -> NoReturn:
        raise ValueError(f"ONNX {self.kind} {self.node.name!r}: {problem}")

    def read(self) -> Node:
        attributes = self._attributes()
        inputs = self._inputs()
        direction = attributes.get("direction", "forward")
        directions = 2 if direction == "bidirectional" else 1
        equations, batch_first = self._equations(attributes, directions, "P" in inputs), attributes.get("layout") == 1
        weights = {name: self._tensor(name, inputs[name]) for name in ("W", "R", "B", "P") if name in inputs}
        self._check_weights(weights, len(GATES[self.kind]), directions, attributes.get("hidden_size"))
        if "sequence_lens" in inputs and not self._is_from_outside(inputs["sequence_lens"]):
            self.refuse(
                "sequence_lens is held or computed by the graph itself, and a module holds no lengths; take it out of "
                "node.input and give the lengths to each call"
            )
        states = self._states(inputs, weights["R"], batch_first)
        return Node(equations, direction, directions, batch_first, weights, states)

    def _attributes(self) -> dict[str, Any]:
        from onnx import AttributeProto, helper

        own = {_OWN[self.kind]: "INT"} if self.kind in _OWN else {}
        types, found = _ATTRIBUTES | own, {}
        for attribute in self.node.attribute:
            name, given = attribute.name, AttributeProto.AttributeType.Name(attribute.type)
            if name not in types:
                self.refuse(f"unknown attribute {name!r}")
            if name in found:
                self.refuse(f"expected one {name}, got several")
            if attribute.ref_attr_name:
                self.refuse(f"expected a value for {name}, got a reference to {attribute.ref_attr_name!r}")
            if given != types[name]:
                self.refuse(f"expected {name} of type {types[name]}, got {given}")
            value = helper.get_attribute_value(attribute)
            if given.startswith("STRING"):
                value = _text(value) if given == "STRING" else [_text(each) for each in value]
            found[name] = value
        for name, expected in (
            ("direction", ("forward", "reverse", "bidirectional")),
            *((name, (0, 1)) for name in ("layout", "output_sequence", *own)),
        ):
            if name in found and found[name] not in expected:
                self.refuse(f"expected {name} to be {' or '.join(map(repr, expected))}, got {found[name]!r}")
        return found

    def _inputs(self) -> dict[str, str]:
        names = (*_INPUTS, "initial_c", "P") if self.kind == "LSTM" else _INPUTS
        if any(self.node.input[len(names) :]):
            self.refuse(f"expected at most {len(names)} inputs, {', '.join(names)}, got {len(self.node.input)}")
        found = {name: value for name, value in zip(names, self.node.input, strict=False) if value}
        for name in ("X", "W", "R"):
            if name not in found:
                self.refuse(f"expected an input {name}, got none")
        return found

    def _equations(self, attributes: dict[str, Any], directions: int, peepholes: bool) -> Equations:
        """What network the attributes ask for; raises where it is none of ours."""
        clip = attributes.get("clip", math.inf)
        if not clip > 0:
            self.refuse(f"expected clip to be a positive number, got {clip}")
        usual = ACTIVATIONS[self.kind]
        given = attributes.get("activations") or usual * directions
        if self.kind == "RNN" and len(given) == 2:
            given = given[:directions]  # the specification's default has two, whatever the direction
        if len(given) != len(usual) * directions:
            self.refuse(f"expected {len(usual) * directions} activations, got {given}")
        alphas, betas = (attributes.get(f"activation_{each}") for each in ("alpha", "beta"))
        activations = read_activations(given, alphas, betas, self.refuse)
        first, last = activations[: len(usual)], activations[-len(usual) :]
        if first != last:
            self.refuse(f"expected the same activations in both directions, got {list(first)} and {list(last)}")
        found = Equations(self.kind, first, peepholes=peepholes, clip=clip)
        if self.kind == "GRU":
            return found._replace(reset_after=attributes.get("linear_before_reset", 0) == 1)
        return found._replace(coupled=attributes.get("input_forget", 0) == 1)

    def _check_weights(self, weights: dict[str, Tensor], gates: int, directions: int, hidden: int | None) -> None:
        w, r = weights["W"], weights["R"]
        dtypes = {name: tensor.dtype for name, tensor in weights.items()}
        if len(set(dtypes.values())) > 1 or w.dtype not in _DTYPES:
            self.refuse(f"expected {', '.join(dtypes)} of one floating point dtype, got {dtypes}")
        if r.dim() != 3:
            self.refuse(f"expected R of shape ({directions}, {gates}*H, H), got {tuple(r.shape)}")
        if hidden is not None and hidden != r.shape[2]:
            self.refuse(f"expected hidden_size={r.shape[2]}, as R of shape {tuple(r.shape)} has it, got {hidden}")
        hidden = r.shape[2]
        inputs, rows = w.shape[2] if w.dim() == 3 else "I", gates * hidden
        shapes = {"W": (directions, rows, inputs), "R": (directions, rows, hidden), "B": (directions, 2 * rows)}
        shapes["P"] = directions, len(PEEPHOLES) * hidden
        for name, tensor in weights.items():
            if tensor.shape != shapes[name] or not tensor.numel():
                expected = "({})".format(", ".join(map(str, shapes[name])))
                self.refuse(f"expected {name} of shape {expected}, none of them 0, got {tuple(tensor.shape)}")

    def _states(self, inputs: dict[str, str], r: Tensor, batch_first: bool) -> dict[str, Tensor]:
        found, outside, rows = {}, [], None
        for name in ("initial_h", "initial_c"):
            if name not in inputs:
                continue
            value = inputs[name]
            if value not in self.held:
                if self._is_from_outside(value):
                    outside.append(name)
                elif not self._is_zero(value):
                    self.refuse(f"{name} is computed by the graph from constants alone; fold it into an initializer")
                continue
            state = self._tensor(name, value)
            if batch_first and state.dim() == 3:
                state = state.transpose(0, 1)
            rows = rows if rows is not None or state.dim() != 3 else state.shape[1]
            if state.shape != (r.shape[0], rows, r.shape[2]) or state.dtype != r.dtype:
                dims = ("B", r.shape[0]) if batch_first else (r.shape[0], "B")
                expected = f"({dims[0]}, {dims[1]}, {r.shape[2]}) and {r.dtype}, with one B"
                self.refuse(f"expected {name} of shape {expected}, got {tuple(state.shape)} and {state.dtype}")
            found[name] = state
        if found and outside:
            self.refuse(f"{outside[0]} comes from outside and {next(iter(found))} is a constant; expected both alike")
        return found

    def _hold(self, name: str, proto: TensorProto | AttributeProto) -> None:
        if name in self.held and self.held[name] != proto:
            self.refuse(f"the graph has two values of the name {name!r}")
        self.held[name] = proto

    def _tensor(self, label: str, name: str) -> Tensor:
        """The value of a constant; ``label`` is the node's own name for it."""
        from onnx import AttributeProto, TensorProto, numpy_helper

        proto = self.held.get(name)
        if isinstance(proto, AttributeProto) and proto.name == "value":
            proto = proto.t
        if not isinstance(proto, TensorProto):
            self.refuse(f"expected {label} to be an initializer or a Constant tensor of the graph, got {name!r}")
        if proto.data_location == TensorProto.EXTERNAL:
            self.refuse(f"expected the values of {label} in the graph, got external data: load them with onnx.load")
        try:
            array = numpy_helper.to_array(proto)
        except Exception as error:  # whatever the package onnx finds wrong with it
            raise ValueError(f"ONNX {self.kind} {self.node.name!r}: {label} is malformed: {error}") from error
        if array.shape != tuple(proto.dims):
            self.refuse(f"{label} is malformed: dims {list(proto.dims)} with {array.size} values")
        found = as_tensor(array, f"ONNX {self.kind} {self.node.name!r}: {label}")
        return found.bfloat16() if proto.data_type == TensorProto.BFLOAT16 else found  # early versions give float32

    def _is_from_outside(self, name: str) -> bool:
        """Whether a value depends on an input of the graph, by more than its shape.  Raises where nothing gives it."""
        seen, waiting, unknown = set(), [name], []
        while waiting:
            value = waiting.pop()
            if value in seen or value in self.held:
                continue
            seen.add(value)
            if value in self.from_outside:
                return True
            if value not in self.producers:
                unknown.append(value)
            elif self.producers[value].op_type not in ("Shape", "Size"):
                waiting += [given for given in self.producers[value].input if given]
        if unknown:
            self.refuse(f"{unknown[0]!r} is no value of the graph; expected the graph in which the node stands")
        return False

    def _is_zero(self, name: str) -> bool:
        """Whether a value that no input reaches is sure to be zeros: those that an exporter expands to the batch."""
        seen, waiting = set(), [name]
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            producer = self.producers.get(value)
            if value in self.held:
                if self._tensor("a part of a first state", value).any():
                    return False
            elif producer is not None and producer.op_type == "ConstantOfShape":
                if any(as_tensor(_array(given.t), "value").any() for given in producer.attribute):
                    return False
            elif producer is not None and producer.op_type in _SHAPING and producer.input:
                waiting += producer.input if producer.op_type == "Concat" else producer.input[:1]
            else:
                return False
        return True


def _array(proto: TensorProto) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(proto)


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
