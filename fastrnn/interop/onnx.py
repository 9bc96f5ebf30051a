"""ONNX's LSTM, GRU and RNN nodes: into modules, and modules into a graph of them.

A node keeps ``W`` (D, G*H, I), ``R`` (D, G*H, H) and ``B`` (D, 2*G*H), the two biases in one row, with the gates i, o,
f, c of an LSTM and z, r, h of a GRU where torch has i, f, g, o and r, z, n.  Its output ``Y`` is (T, D, B, H) where
torch's is (T, B, D*H).

Source: the operators LSTM, GRU and RNN of the ONNX specification, opset 1 to 22.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn.interop.layout import as_array, reorder, require_layers, write
from fastrnn.interop.onnx_node import GATES, read
from fastrnn.modes import CELLS
from fastrnn.modules import GRU, LSTM, RNN

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


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
    ``layout``; ``direction="reverse"`` gives a :class:`Reversed`; the module's dtype is that of the weights.  ``hx`` is
    None where the node has no first states, or has zeros that the graph expands to the batch, or has them from an input
    of the graph: then they come from the caller, as X does, and as lengths or a PackedSequence in the place of
    ``sequence_lens``.

    Args:
        node: of any opset from 1 to 22.
        graph: that in which the node stands, with its values (not as external data).

    Raises:
        TypeError: another operator or domain; no node, or no graph.
        ValueError: what torch's equations have no place for: peepholes (P), ``clip``, ``input_forget``, activations
            other than the default (for an RNN also Relu), a GRU with ``linear_before_reset=0``; what a module does not
            hold: ``sequence_lens`` that the graph holds or computes from constants and shapes, first states that it
            computes so (other than zeros), one of two first states; weights that are no constants of the graph; any
            attribute, input, shape or dtype that the specification does not have, and values that cannot be read.
    """
    found = read(node, graph)
    mode, w = found.mode, found.weights["W"]
    both = found.directions == 2
    options: dict[str, Any] = dict(
        bias="B" in found.weights, batch_first=found.batch_first, bidirectional=both, dtype=w.dtype
    )
    kind = {"LSTM": LSTM, "GRU": GRU}.get(mode, RNN)
    if kind is RNN:
        options["nonlinearity"] = mode.removeprefix("RNN_").lower()
    own, wanted = GATES[mode], CELLS[mode].gates
    module = kind(w.shape[2], w.shape[1] // len(own), **options)

    values = {"weight_ih": w, "weight_hh": found.weights["R"]}
    if module.bias:
        values["bias_ih"], values["bias_hh"] = found.weights["B"].chunk(2, 1)
    suffixes = ("", "_reverse")[: found.directions]
    write(
        module,
        {
            f"{name}_l0{suffix}": reorder(value[d], own, wanted)
            for name, value in values.items()
            for d, suffix in enumerate(suffixes)
        },
    )
    return FromOnnx(Reversed(module) if found.direction == "reverse" else module, _first_states(mode, found.states))


def _first_states(mode: str, given: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor] | None:
    if not given:
        return None
    one = next(iter(given.values()))
    h, c = (given.get(name, torch.zeros_like(one)) for name in ("initial_h", "initial_c"))
    return (h, c) if CELLS[mode].has_cell_state else h


def to_onnx(module: nn.RNNBase | Reversed, name: str = "rnn", initial_states: bool = False) -> GraphProto:
    """An ONNX graph that computes what an RNN, LSTM or GRU, torch.nn's or ours, computes in eval mode: one node of its
    kind a layer, and what brings their outputs into torch's shapes.

    The graph's input is ``x`` and, with ``initial_states``, ``h_0`` and for an LSTM ``c_0``; its outputs are ``y``,
    ``h_n`` and for an LSTM ``c_n``, all shaped as the module's.  Names of the values inside begin with ``name``.
    ``onnx.helper.make_model(graph)`` makes it a model; it needs opset 14 or later.  The graph has the module's dtype,
    but for bfloat16, which few runtimes compute in: that becomes float32.

    Raises:
        TypeError: ``module`` is none of these, or its dtype is no float16, bfloat16, float32 or float64.
        ValueError: an LSTM has a projection, which ONNX has not.
    """
    from onnx import TensorProto, helper, numpy_helper

    backwards = isinstance(module, Reversed)
    layers: nn.RNNBase = module.module if backwards else module
    require_layers(layers, "to_onnx")
    types = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
    types[torch.bfloat16] = TensorProto.FLOAT
    dtype = layers.weight_ih_l0.dtype
    if dtype not in types:
        raise TypeError(f"to_onnx expects parameters of float16, bfloat16, float32 or float64, got {dtype}")
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
        constants.append(numpy_helper.from_array(as_array(tensor), f"{name}.{label}"))
        return constants[-1].name

    def add(operator: str, inputs: list[str], outputs: list[str], **own: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, outputs, name=f"{name}.{operator}{len(nodes)}", **own))
        return outputs[0]

    merged = constant("merged", torch.tensor([0, 0, -1], device="cpu"))
    firsts = {state: [""] * layers.num_layers for state in states}
    if initial_states:
        sizes = constant("directions", torch.full((layers.num_layers,), directions, device="cpu"))
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
