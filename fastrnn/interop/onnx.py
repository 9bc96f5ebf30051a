"""ONNX's LSTM, GRU and RNN nodes: into modules, and modules into a graph of them.

A node keeps ``W`` (D, G*H, I), ``R`` (D, G*H, H) and ``B`` (D, 2*G*H), the two biases in one row, with the gates i, o,
f, c of an LSTM and z, r, h of a GRU where torch has i, f, g, o and r, z, n, and an LSTM's ``P`` (D, 3*H), its peepholes
i, o, f.  Its output ``Y`` is (T, D, B, H) where torch's is (T, B, D*H).

What torch's equations do not say is a :class:`fastrnn.Network`: of :class:`fastrnn.cells.PeepholeLSTM`, ``CoupledLSTM``
or ``ResetBeforeGRU`` where these say it, else of one of :mod:`fastrnn.interop.cells`.

Source: the operators LSTM, GRU and RNN of the ONNX specification, opset 1 to 22.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn.cell import Cell
from fastrnn.checks import is_tokens
from fastrnn.interop.equations import Equations, described, make
from fastrnn.interop.layout import as_array, ends, gather, orders, scatter, write
from fastrnn.interop.onnx_activations import written
from fastrnn.interop.onnx_node import ACTIVATIONS, GATES, PEEPHOLES, read
from fastrnn.modules import GRU, LSTM, RNN
from fastrnn.network import Network

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


class Reversed(nn.Module):
    """A module of one direction run from the last step to the first, as ONNX's ``direction="reverse"``; torch has this
    direction only beside the other.  Input, states, ``lengths`` and output are those of the module, the output in the
    order of the input.  A PackedSequence is refused with TypeError."""

    module: Any

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        described(module, "Reversed")
        if getattr(module, "bidirectional", False):
            raise ValueError("Reversed expects a module of one direction, got bidirectional=True")
        self.module = module

    def forward(self, input: Tensor, hx: Any = None, *, lengths: Any = None) -> tuple[Tensor, Any]:
        if isinstance(input, PackedSequence):
            raise TypeError("Reversed expects a Tensor, got a PackedSequence")
        time = 1 if self.module.batch_first and input.dim() + is_tokens(input) == 3 else 0
        if lengths is None:
            y, state = self.module(input.flip(time), hx)
            return y.flip(time), state
        last = torch.as_tensor(lengths, device=input.device).unsqueeze(-1) - 1
        step = torch.arange(input.shape[time], device=input.device)
        source = torch.where(step <= last, last - step, step)  # (B, T), or (T,): padding stays where it is
        source = source if time or source.dim() == 1 else source.t()

        def turned(x: Tensor) -> Tensor:
            return x.gather(time, source if x.dim() == source.dim() else source.unsqueeze(-1).expand_as(x))

        y, state = self.module(turned(input), hx, lengths=lengths)
        return turned(y), state


class FromOnnx(NamedTuple):
    """A module and the first states to call it with: ``h0``, of an LSTM ``(h0, c0)``, each (D, B, H)."""

    module: RNN | LSTM | GRU | Network | Reversed
    hx: Tensor | tuple[Tensor, Tensor] | None


def from_onnx(node: NodeProto, graph: GraphProto) -> FromOnnx:
    """A fastrnn module that computes what an LSTM, GRU or RNN node computes, and its constant first states: one of
    torch's classes, ours, or where torch has no such network a :class:`fastrnn.Network`.

    Weights and biases are looked up among the graph's initializers and Constant nodes.  ``batch_first`` is the node's
    ``layout``; ``direction="reverse"`` gives a :class:`Reversed`; the module's dtype is that of the weights.  ``hx`` is
    None where the node has no first states, or has zeros that the graph expands to the batch, or has them from an input
    of the graph: then they come from the caller, as X does, and as lengths or a PackedSequence in the place of
    ``sequence_lens``.  With ``input_forget`` the rows of the forget gate, which nothing reads, are left out.

    Args:
        node: of any opset from 1 to 22.
        graph: that in which the node stands, with its values (not as external data).

    Raises:
        TypeError: another operator or domain; no node, or no graph.
        ValueError: activations that differ between directions, or none of the specification's; ``activation_alpha`` or
            ``activation_beta`` with another number of values than functions that take one, or without, for Affine,
            ThresholdedRelu and ScaledTanh, for which runtimes have different defaults; a ``clip`` that is not positive;
            what a module does not hold: ``sequence_lens`` that the graph holds or computes from constants and shapes,
            first states that it computes so (other than zeros), one of two first states; weights that are no constants
            of the graph; any attribute, input, shape or dtype that the specification does not have, and values that
            cannot be read.
    """
    found = read(node, graph)
    equations, w = found.equations, found.weights["W"]
    order = orders(GATES[equations.kind], P=PEEPHOLES)
    module = make(
        equations,
        w.shape[2],
        w.shape[1] // len(order["W"]),
        bias="B" in found.weights,
        batch_first=found.batch_first,
        bidirectional=found.directions == 2,
        dtype=w.dtype,
    )
    cell, _ = described(module, "from_onnx")
    arrays = {name: array for name, array in found.weights.items() if name != "B"}
    if module.bias:
        arrays["Wb"], arrays["Rb"] = found.weights["B"].chunk(2, 1)
    values: dict[str, Tensor] = {}
    for d, end in enumerate(ends(module)):
        values |= scatter(cell, end, {name: array[d] for name, array in arrays.items()}, order)
    write(module, values)
    hx = _first_states(_states(cell), found.states)
    return FromOnnx(Reversed(module) if found.direction == "reverse" else module, hx)


def _states(cell: Cell) -> tuple[str, ...]:
    return tuple(cell.parts().states)


def _first_states(names: tuple[str, ...], given: dict[str, Tensor]) -> Any:
    if not given:
        return None
    one = next(iter(given.values()))
    found = [given.get(f"initial_{name}", torch.zeros_like(one)) for name in names]
    return tuple(found) if len(found) > 1 else found[0]


def to_onnx(module: nn.Module, name: str = "rnn", initial_states: bool = False) -> GraphProto:
    """An ONNX graph that computes what an RNN, LSTM or GRU, torch.nn's or ours, a :class:`fastrnn.Network` of a cell
    that ONNX has, or a :class:`Reversed` computes in eval mode: one node of its kind a layer, and what brings their
    outputs into torch's shapes.  Cells that ONNX has are those of :mod:`fastrnn.interop.cells` and ``RNN``, ``LSTM``,
    ``GRU``, ``PeepholeLSTM``, ``CoupledLSTM`` and ``ResetBeforeGRU`` of :mod:`fastrnn.cells`.

    The graph's input is ``x`` and, with ``initial_states``, ``h_0`` and for an LSTM ``c_0``; its outputs are ``y``,
    ``h_n`` and for an LSTM ``c_n``, all shaped as the module's.  Names of the values inside begin with ``name``.
    ``onnx.helper.make_model(graph)`` makes it a model; it needs opset 14 or later.  The graph has the module's dtype,
    but for bfloat16, which few runtimes compute in: that becomes float32.

    Raises:
        TypeError: ``module`` is none of these, or its dtype is no float16, bfloat16, float32 or float64.
        ValueError: what ONNX has not: an LSTM's projection, a Network's zoneout, an activation; the message names it.
    """
    from onnx import TensorProto, helper, numpy_helper

    backwards = isinstance(module, Reversed)
    layers: Any = module.module if backwards else module
    cell, equations = described(layers, "to_onnx")
    types = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
    types[torch.bfloat16] = TensorProto.FLOAT
    dtype = layers.weight_ih_l0.dtype
    if dtype not in types:
        raise TypeError(f"to_onnx expects parameters of float16, bfloat16, float32 or float64, got {dtype}")
    kind, hidden, directions = equations.kind, layers.hidden_size, 2 if layers.bidirectional else 1
    states = _states(cell)
    attributes: dict[str, Any] = {"hidden_size": hidden}
    attributes["direction"] = "reverse" if backwards else ("forward", "bidirectional")[directions - 1]
    functions = written(equations.activations, directions)
    if functions["activations"] != ACTIVATIONS[kind] * directions:
        attributes |= functions
    if kind == "GRU":
        attributes["linear_before_reset"] = int(equations.reset_after)
    if equations.coupled:
        attributes["input_forget"] = 1
    if not math.isinf(equations.clip):
        attributes["clip"] = equations.clip

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
        stacked = _stacked(layers, cell, equations, k)
        weights = {label: constant(f"l{k}.{label}", tensor) for label, tensor in stacked.items()}
        inputs = [value, weights["W"], weights["R"], weights.get("B", ""), "", *(firsts[state][k] for state in states)]
        inputs += [weights["P"]] if "P" in weights else []
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


def _stacked(layers: Any, cell: Cell, equations: Equations, layer: int) -> dict[str, Tensor]:
    """W, R and, with biases, B and, with peepholes, P of one layer."""
    own = [end for end in ends(layers) if end.removesuffix("_reverse") == f"l{layer}"]
    each = [gather(layers, cell, end, orders(GATES[equations.kind], P=PEEPHOLES)) for end in own]
    found = {name: torch.stack([arrays[name] for arrays in each]) for name in each[0]}
    biases = [found.pop(name) for name in ("Wb", "Rb") if name in found]
    return found | ({"B": torch.cat(biases, 1)} if biases else {})
