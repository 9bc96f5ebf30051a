"""A plain call of a network: one layer, one direction, a batch as it is; and a plain step of a cell.

A short sequence of few rows is over sooner than the looks at all other forms take, so this one is looked for first,
with all that can be known before a call made once.  Whatever is out of the ordinary goes the general way, which also
raises the errors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastrnn import fused
from fastrnn.backends import asked
from fastrnn.cell.kinds import Dense
from fastrnn.compiler.arrays import is_learned, is_product_of_x
from fastrnn.dynamo import UNDISTURBED
from fastrnn.fused import cpp
from fastrnn.fused.functions import REAL
from fastrnn.fused.layer import Operands, Steps, block_of, plan


class Plain:
    """What such calls of one network have in common.

    Attributes:
        engine: the program.
        sizes: the numbers of units, in the engine's order.
        weights: the place of each array that is a parameter, or a buffer of a network of 8 bits, and its name.
        int8: the place of each matrix of 8 bits, and the names of its integers and scales.
        outputs: the place and the units of what the loop emits; the first is the output.
        states: the place and the units of each state.
        x: the place of x.
        matrices, biases: the names of those that a step with gradients reads, with those of their parameters.
        learned: of each vector, or gate of one, and number that the loop reads, its place, the number of its group, its
            name and gate, and the parameter.
    """

    dtype: torch.dtype
    inputs: int

    def __init__(self, net: Any, dtype: torch.dtype, ending: str) -> None:
        compiled, parts = net._compiled, net.parts
        self.dtype, self.inputs = dtype, net.input_size
        endings = {
            name: f"{parts.names[name.removeprefix('matrix:')]}{ending}"
            for name in compiled.ahead.arrays
            if name.startswith("matrix:")
        }
        int8 = tuple(n for n, e in endings.items() if net.int8 and getattr(net, f"weight_{e}").dtype is torch.int8)
        self.engine: cpp.Engine = cpp.engine(compiled, "ahead", dtype, int8)
        self.sizes: list[int] = [net.sizes[name] for name in self.engine.sizes]
        self.weights: list[tuple[int, str]] = []
        self.int8: list[tuple[int, str, str]] = []
        self.type: type[Tensor] = Tensor if net.int8 else Parameter
        self.states: list[tuple[int, int]] = []
        outputs: dict[str, tuple[int, int]] = {}
        self.x: int = self.engine.arrays.index("x")
        loop = compiled.loop
        for place, array in enumerate(self.engine.arrays):
            kind, _, name = array.partition(":")
            if array in int8:
                self.int8.append((place, f"weight_{endings[array]}", f"scale_{endings[array]}"))
            elif kind in ("matrix", "bias"):
                what = "weight" if kind == "matrix" else "bias"
                self.weights.append((place, f"{what}_{parts.names[name]}{ending}"))
            elif kind == "out":
                outputs[array] = place, net.sizes[loop.emitted[int(name)].size]
        self.outputs: list[tuple[int, int]] = [outputs[f"out:{k}"] for k in range(len(loop.emitted))]
        self.output: int = loop.emitted.index(loop.traced.output)
        for name, size in zip(net.state_names, net.state_sizes, strict=True):
            self.states.append((self.engine.arrays.index(f"state:{name}"), size))
        self.parts: Any = parts
        self.learned: list[tuple[int, int, str, str | None, str]] = []
        for number, group in enumerate(compiled.groups):
            if is_learned(group):
                name, gate = group.nodes[0].about
                place = self.engine.arrays.index(group.array)
                self.learned.append((place, number, name, gate, f"{name}{ending}"))
        own = plan(compiled)
        self.matrices: list[tuple[str, str]] = [(n, f"weight_{parts.names[n]}{ending}") for n in own.matrices_within]
        self.biases: list[tuple[str, str]] = [(name, f"{bias}{ending}") for name, bias in own.biases_within]

    def read(self, own: dict[str, Any]) -> list[Any] | None:
        """What is learned beside matrices, in the order of ``learned``; None where it is not as a plain call wants."""
        if not self.learned:
            return []
        parameters = {name: own.get(parameter) for _, _, name, _, parameter in self.learned}
        for each in parameters.values():
            if each is None or type(each) is not self.type or each.dtype is not self.dtype or not each.is_contiguous():
                return None
        chunks: dict[str, Any] = {}
        return [block_of(self.parts, parameters, name, gate, chunks) for _, _, name, gate, _ in self.learned]

    def train(self, net: Any, input: Tensor, hx: Any) -> Any:
        """The results, differentiable, or None where this is no plain call after all."""
        steps, batch, _ = input.shape
        rows, own = steps * batch, net._parameters
        if not rows:
            return None
        matrices: dict[str, Any] = {name: own.get(parameter) for name, parameter in self.matrices}
        biases: dict[str, Any] = {name: own.get(parameter) for name, parameter in self.biases}
        for weight in (*matrices.values(), *biases.values()):
            if type(weight) is not Parameter or weight.dtype is not self.dtype:
                return None
        if (learned := self.read(own)) is None:
            return None
        if hx is None:
            states = [input.new_zeros(batch, size) for _, size in self.states]
        else:
            given = (hx,) if type(hx) is Tensor else hx
            if type(given) is not tuple or len(given) != len(self.states):
                return None
            for (_, size), state in zip(self.states, given, strict=True):
                if type(state) is not Tensor or state.dtype is not self.dtype or state.shape != (1, batch, size):
                    return None
                if not state.is_cpu:
                    return None
            states = [state[0] for state in given]
        compiled, x = net._compiled, input.reshape(rows, self.inputs)
        groups: list[Tensor | None] = [None] * len(compiled.groups)
        for (_, number, *_), value in zip(self.learned, learned, strict=True):
            groups[number] = value
        operands = Operands(tuple(groups), tuple(states), matrices, biases, x)
        emitted, ends = cpp.scan(compiled, Steps(steps, batch, rows), operands)
        ends = [end.unsqueeze(0) for end in ends]
        return emitted[self.output].view(steps, batch, -1), ends[0] if len(ends) == 1 else tuple(ends)

    def __call__(self, net: Any, input: Tensor, hx: Any) -> Any:
        """The results, or None where this is no plain call after all."""
        steps, batch, _ = input.shape
        found = self._run(net, input, steps, batch, hx, (1, batch))
        if found is None:
            return None
        y, ends = found
        ends = [end.unsqueeze(0) for end in ends]
        return y.view(steps, batch, -1), ends[0] if len(ends) == 1 else tuple(ends)

    def step(self, net: Any, input: Tensor, hx: Any) -> Any:
        """The results of one step, or None where it is no plain one after all."""
        batch = input.shape[0]
        found = self._run(net, input, 1, batch, hx, (batch,))
        if found is None:
            return None
        y, ends = found
        states = ends[0] if len(ends) == 1 else tuple(ends)
        return states if net.output_is_state else (y, states)

    def _run(
        self, net: Any, input: Tensor, steps: int, batch: int, hx: Any, lead: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]] | None:
        """The output of all rows and the last states, (B, size) each; those given have the shape ``(*lead, size)``."""
        rows = steps * batch
        if not rows or not input.is_contiguous() or input.is_neg():
            return None
        arrays: list[Any] = [None] * len(self.engine.arrays)
        own = net._buffers if net.int8 else net._parameters
        for place, name in self.weights:
            weight = own.get(name)
            if type(weight) is not self.type or weight.dtype is not self.dtype or not weight.is_contiguous():
                return None
            arrays[place] = weight
        for place, values, scales in self.int8:
            arrays[place] = {"values": own[values], "scales": own[scales]}
            if own[values].dtype is not torch.int8:
                return None
        if (learned := self.read(own)) is None:
            return None
        for (place, *_), value in zip(self.learned, learned, strict=True):
            arrays[place] = value
        given = (None,) * len(self.states)
        if hx is not None:
            given = (hx,) if type(hx) is Tensor else hx
            if type(given) is not tuple or len(given) != len(self.states):
                return None
        ends = []
        for (place, size), state in zip(self.states, given, strict=True):
            if state is not None:
                if type(state) is not Tensor or state.dtype is not self.dtype or state.shape != (*lead, size):
                    return None
                if not state.is_contiguous() or state.is_neg() or not state.is_cpu:
                    return None
                state = state.view(batch, size)
            end = input.new_empty(batch, size)
            arrays[place] = {"initial": state, "final": end}
            ends.append(end)
        emitted = []
        for place, size in self.outputs:
            arrays[place] = out = input.new_empty(rows, size)
            emitted.append(out)
        arrays[self.x] = input.view(rows, self.inputs)
        self.engine.program.run(
            steps=steps, batch=batch, rows=rows, batch_sizes=None, reverse=False, threads=torch.get_num_threads(),
            sizes=self.sizes, arrays=arrays, keep=True,
        )  # fmt: skip
        return emitted[self.output], ends


def plain_call(net: Any, input: Any, hx: Any) -> Any:
    """What the network gives for a plain call; None for any other."""
    if not _undisturbed(input, 3) or input.shape[2] != net.input_size or net.batch_first:
        return None
    own = net.__dict__.get("_plain")
    if own is None or own.dtype is not input.dtype:
        if net.num_layers > 1 or net.bidirectional or net.learn_initial_state or not _is_plain(net, input):
            return None
        own = net.__dict__["_plain"] = Plain(net, input.dtype, "_l0")
    if net.zoneout or net.drops and (net.recurrent_dropout or net.weight_dropout):
        return None
    if torch.is_grad_enabled() and not net.int8:
        return None if net.recompute else own.train(net, input, hx)
    return own(net, input, hx)


def plain_step(cell: Any, input: Any, hx: Any) -> Any:
    """What a cell gives for a plain step without gradients; None for any other."""
    if torch.is_grad_enabled() and not cell.int8 or not _undisturbed(input, 2) or input.shape[1] != cell.input_size:
        return None
    own = cell.__dict__.get("_plain")
    if own is None or own.dtype is not input.dtype:
        if not _is_plain(cell, input):
            return None
        own = cell.__dict__["_plain"] = Plain(cell, input.dtype, "")
    return own.step(cell, input, hx)


def _undisturbed(input: Any, rank: int) -> bool:
    """Whether this is a tensor of so many dimensions that the engine takes, and nobody looks on or asks for another."""
    if type(input) is not Tensor or input.dim() != rank or not input.is_cpu:
        return False
    for ask, expected in UNDISTURBED:
        if ask() != expected:
            return False
    if torch._C._is_any_autocast_enabled() or asked() not in (None, "cpp") or fused.watching.get() is not None:
        return False
    return input.dtype in REAL


def _is_plain(net: Any, input: Tensor) -> bool:
    """Whether one direction of a network, or a cell, can be called so."""
    loop = net._compiled.loop
    kinds = net.parts.kinds
    matrices = {node.about[0] for node in loop.traced.graph.nodes if node.op == "product"}
    return (
        not net.extras
        and net.bias
        and loop.traced.output in loop.emitted
        and all(is_product_of_x(group) or is_learned(group) for group in net._compiled.groups)
        and any(is_product_of_x(group) for group in net._compiled.groups)
        and all(type(kinds[name]) is Dense for name in matrices)
        and fused.unsupported(net.cell, "cpp", input.device, input.dtype, net.int8) is None
    )
