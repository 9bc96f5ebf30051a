"""One direction of a layer of any cell: what runs before the time loop, the loop, and what runs behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn.cell.equations import dense, multiply
from fastrnn.cell.evaluate import evaluate
from fastrnn.cell.graph import Node
from fastrnn.cell.kinds import Dense
from fastrnn.compiler.arrays import Group, is_product_of_x
from fastrnn.compiler.program import Compiled


class Steps(NamedTuple):
    """The rows of a direction's steps, and their order.

    Attributes:
        count: T.
        batch: B, the rows of the first step.
        rows: N, the rows of all steps.
        sizes: (T,) int64 on the CPU, never increasing, down to at least 1; None where every step has B rows.
        reverse: whether the last step comes first.
    """

    count: int
    batch: int
    rows: int
    sizes: Tensor | None = None
    reverse: bool = False

    @property
    def lengths(self) -> list[int]:
        """The rows of each step."""
        return [self.batch] * self.count if self.sizes is None else self.sizes.tolist()


class Operands(NamedTuple):
    """What a loop reads: a tensor for each group of inputs, (N, columns), (B, columns), (columns,) or (); the states
    before it, (B, size); the matrices, tensors or of 8 bits, and biases of its products, by name.  Where the loop
    shall make the products of x itself, x, (N, I), and None for their groups."""

    groups: tuple[Tensor | None, ...]
    states: tuple[Tensor, ...]
    matrices: dict[str, Any]
    biases: dict[str, Tensor]
    x: Tensor | None = None


# What runs the loop: what it emits at every step, each (N, size), and the states behind it, (B, size).
Scan = Callable[[Compiled, Steps, Operands], tuple[list[Tensor], list[Tensor]]]


def direction(
    scan: Scan,
    compiled: Compiled,
    parameters: Mapping[str, Any],
    x: Tensor,
    steps: Steps,
    states: Sequence[Tensor],
    extras: Mapping[str, Tensor],
    within: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One direction of a layer.

    Args:
        scan: what runs the loop.
        compiled: the cell.
        parameters: the direction's, by name; those of dense matrices, or of heads, may be of 8 bits.
        x: (N, I), rows in order of their step.
        steps: how many rows each step has.
        states: (B, size) each.
        extras: (N, size) or (N,) of a step, (B, size) or (B,) of a sequence.
        within: whether ``scan`` can make the products of x itself.

    Returns:
        The output, (N, size), the states behind the last step of each row, (B, size), and, of a cell compiled with
        ``every_state``, those behind every step, (N, size); else none.
    """
    own = plan(compiled)
    if own.meets_x and not x.is_floating_point():
        x = F.one_hot(x, states[0].shape[-1]).to(states[0].dtype)  # it meets states unit by unit, and has as many
    call = _Call(own, parameters, x, extras, steps)
    within = (
        within
        and len(own.within) > 0
        and x.dtype is states[0].dtype
        and steps.batch > 0
        # Where a narrower dtype is asked for, products of x and their derivatives are torch's, which is quick at them.
        and not (torch.is_grad_enabled() and (x.dtype.itemsize < 4 or torch.is_autocast_enabled(x.device.type)))
    )
    names = (own.matrices, own.biases) if not within else (own.matrices_within, own.biases_within)
    matrices = {name: call.matrix(name) for name in names[0]}
    biases = {name: parameters[bias] for name, bias in names[1] if bias in parameters}
    own_groups = enumerate(compiled.groups)
    groups = tuple(None if within and number in own.within else call.group(group) for number, group in own_groups)
    given = Operands(groups, tuple(states), matrices, biases, x if within else None)
    emitted, ends = _in_wide(scan, compiled, steps, given)
    every = [emitted[k] for k in own.every]
    if own.output is not None:
        return emitted[own.output], ends, every
    loop = compiled.loop
    output = loop.traced.output
    known = call.by_step | dict(zip(loop.emitted, emitted, strict=True))
    return evaluate([output], known, call.product)[output].expand(steps.rows, -1), ends, every


class _Plan(NamedTuple):
    """What can be said of a cell's layers before a call.

    Attributes:
        compiled: the cell.
        matrices, biases: those of the loop's products, by name; with the names of the parameters.
        output: the place of the output among what the loop emits, None where it is computed behind the loop.
        every: the places of all states there, where they all are.
        meets_x: whether x is read by more than products.
        leaves: the nodes that a call gives values; and
        mixes: whether some come with a sequence.
        within, matrices_within, biases_within: the numbers of the groups that a loop can make of x, and what it then
            multiplies with.
    """

    compiled: Compiled
    matrices: tuple[str, ...]
    biases: tuple[tuple[str, str], ...]
    output: int | None
    every: tuple[int, ...]
    meets_x: bool
    leaves: tuple[Node, ...]
    mixes: bool
    within: frozenset[int]
    matrices_within: tuple[str, ...]
    biases_within: tuple[tuple[str, str], ...]


def plan(compiled: Compiled) -> _Plan:
    """What can be said of a cell's layers before a call."""
    if "plan" not in compiled.memo:
        compiled.memo["plan"] = _make_plan(compiled)
    return compiled.memo["plan"]


def _make_plan(compiled: Compiled) -> _Plan:
    loop = compiled.loop
    nodes, parts = loop.traced.graph.nodes, loop.traced.parts
    output = loop.emitted.index(loop.traced.output) if loop.traced.output in loop.emitted else None
    meets_x = any(arg.op == "x" and node.op != "product" for node in nodes for arg in node.args)
    leaves = tuple(n for n in nodes if n.op in ("x", "step_input", "sequence_input", "parameter"))
    mixes = any(leaf.op == "sequence_input" for leaf in leaves)
    within = frozenset(number for number, group in enumerate(compiled.groups) if is_product_of_x(group))
    inner = (node.about[0] for number in sorted(within) for node in compiled.groups[number].nodes.values())
    matrices_within = tuple(dict.fromkeys((*loop.matrices, *inner)))

    def biases(matrices: Sequence[str]) -> tuple[tuple[str, str], ...]:
        return tuple((name, f"bias_{parts.names[name]}") for name in matrices if parts.matrices[name].bias)

    states = tuple(loop.emitted.index(node) for node in loop.next.values() if node in loop.emitted)
    every = states if len(states) == len(loop.next) else ()
    return _Plan(
        compiled, loop.matrices, biases(loop.matrices), output, every, meets_x, leaves, mixes, within, matrices_within,
        biases(matrices_within),
    )  # fmt: skip


class _Call:
    """The values of one call of a layer outside of its loop, each made when it is first asked for."""

    def __init__(
        self,
        plan: _Plan,
        parameters: Mapping[str, Any],
        x: Tensor,
        extras: Mapping[str, Tensor],
        steps: Steps,
    ) -> None:
        self.plan, self.parameters, self.x, self.extras, self.steps = plan, parameters, x, extras, steps
        self.parts = plan.compiled.loop.traced.parts
        self._known: dict[Node, Any] | None = None
        self._by_step: dict[Node, Any] | None = None
        self._matrices: dict[str, Any] = {}
        self._products: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    @property
    def known(self) -> dict[Node, Any]:
        """The value of every leaf."""
        if self._known is None:  # no cached_property: what Dynamo finds in one is not what it put there
            self._known = self._leaves()
        return self._known

    def _leaves(self) -> dict[Node, Any]:
        found: dict[Node, Any] = {}
        chunks: dict[str, Any] = {}  # of a vector's gates; one derivative for all of them
        for node in self.plan.leaves:
            if node.op == "x":
                found[node] = self.x
            elif node.op == "parameter":
                name, gate = node.about
                found[node] = block_of(self.parts, self.parameters, name, gate, chunks)
            else:
                tensor = self.extras[node.about]
                found[node] = tensor.unsqueeze(-1) if node.size is None else tensor
        return found

    @property
    def by_step(self) -> dict[Node, Any]:
        """The value of every leaf as a row of each step meets it: those of a sequence at all of its steps."""
        if self._by_step is None:
            self._by_step = self._leaves_by_step() if self.plan.mixes else self.known
        return self._by_step

    def _leaves_by_step(self) -> dict[Node, Any]:
        steps = self.steps
        index = torch.arange(steps.batch, device=self.x.device)
        if steps.sizes is None:
            index = index.repeat(steps.count)
        else:
            index = torch.cat([index[:size] for size in steps.sizes.tolist()])
        return {n: v[index] if n.op == "sequence_input" else v for n, v in self.known.items()}

    def matrix(self, name: str) -> Any:
        """The dense matrix of a declaration, a tensor or of 8 bits."""
        if name not in self._matrices:
            kind, declared = self.parts.kinds[name], self.parts.matrices[name]
            if type(kind) is Dense:
                self._matrices[name] = self.parameters[f"weight_{self.parts.names[name]}"]
            else:
                self._matrices[name] = dense(kind, declared.blocks, self.parts.names[name], self.parameters)
        return self._matrices[name]

    def all_gates(self, name: str, v: Tensor) -> Tensor:
        """A product, all of its gates side by side."""
        key = name, id(v)
        if key not in self._products:
            declared = self.parts.matrices[name]
            bias = self.parameters.get(f"bias_{self.parts.names[name]}") if declared.bias else None
            found = multiply(v, self.matrix(name), bias, declared.blocks, self.parts.kinds[name].heads)
            self._products[key] = v, found
        return self._products[key][1]

    def product(self, name: str, gate: str | None, v: Tensor) -> Tensor:
        """One gate of a product."""
        found, declared = self.all_gates(name, v), self.parts.matrices[name]
        return found if gate is None else found.chunk(declared.blocks, -1)[declared.gates.index(gate)]

    def group(self, group: Group) -> Any:
        """The tensor of one group of the loop's inputs."""
        node = next(iter(group.nodes.values()))
        if node.op == "product" and node.args[0].op == "x":
            return self.all_gates(node.about[0], self.x)
        known = self.by_step if self.plan.compiled.loop.inputs[node] == "step" else self.known
        if node.op != "product":
            return evaluate([node], known, self.product)[node]
        operand = node.args[0]
        v = evaluate([operand], known, self.product)[operand]
        return self.all_gates(node.about[0], v)


def block_of(parts: Any, parameters: Mapping[str, Any], name: str, gate: str | None, chunks: dict[str, Any]) -> Any:
    """A learned vector or number, or one gate's part of it: of its ``chunks``, made when the first is asked for."""
    declared = parts.vectors.get(name) or parts.scalars.get(name)
    if declared is None:  # of a diagonal matrix
        endings = {
            f"{kind}_{parts.names[own]}": each for own, each in parts.matrices.items() for kind in ("weight", "bias")
        }
        declared = endings[name]
    if name not in parameters:
        return 0.0  # the bias of a module that has none
    if gate is None:
        return parameters[name]
    if name not in chunks:
        chunks[name] = parameters[name].chunk(declared.blocks)
    return chunks[name][declared.gates.index(gate)]


def _in_wide(scan: Scan, compiled: Compiled, steps: Steps, given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """Runs the loop in one dtype, that of the states, but in float32 where that is narrower.

    Under autocast products have come out narrower than the states; those of the loop are not cast.
    """
    dtype = given.states[0].dtype
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    if not torch.compiler.is_compiling():  # a graph takes no note of what changes nothing, and cannot be asked
        tensors = (*given.groups, given.x, *given.states, *given.matrices.values(), *given.biases.values())
        if all(not isinstance(each, Tensor) or each.dtype is wide for each in tensors):
            return scan(compiled, steps, given)

    def widened(value: Any) -> Any:
        return value if value is None or type(value) in (int, float) else value.to(wide)

    given = Operands(
        tuple(widened(each) for each in given.groups),
        tuple(widened(each) for each in given.states),
        {name: widened(each) for name, each in given.matrices.items()},
        {name: widened(each) for name, each in given.biases.items()},
        widened(given.x),
    )
    if torch.compiler.is_compiling():
        emitted, ends = scan(compiled, steps, given)
    else:
        with torch._C._DisableAutocast():
            emitted, ends = scan(compiled, steps, given)
    return [each.to(dtype) for each in emitted], [each.to(dtype) for each in ends]
