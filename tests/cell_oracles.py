"""Every cell of the library beside an oracle that shares no line with it: rows of a table, cases, and the judge.

``judge(run, row, case)`` runs a backend, ``run(cell, parameters, x, states, extras, batch_sizes, reverse) -> (y,
states)``, and compares outputs, last states and every gradient with the oracle's, which walks each sequence alone, step
by step, and knows neither packing nor directions.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastrnn.cell import Cell
from fastrnn.cell.equations import parameter_shapes
from fastrnn.cell.trace import trace

Run = Callable[..., tuple[Tensor, Sequence[Tensor]]]


@dataclass(frozen=True, eq=False)
class Row:
    """A cell and its oracle.

    Attributes:
        cell: what is judged.
        source: who says what is right, for the name of the test.
        step: the oracle: of parameters by fastrnn's names, x (B, I), states and this step's extras, the output and the
            states behind.
        sizes: what the names of other sizes stand for.
        multiple: hidden_size is a multiple of it.
        start: what the states begin within; 0 is always among the cases.
        needs: the package without which the row is left out.
    """

    cell: Cell
    source: str
    step: Callable[..., tuple[Tensor, Sequence[Tensor]]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    multiple: int = 1
    start: tuple[float, float] = (-1.0, 1.0)
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.cell}-{self.source}".replace(" ", "")


@dataclass(frozen=True)
class Case:
    """One direction of one layer.  ``lengths``, never increasing, makes it packed and stands in for steps and rows."""

    isolates: str
    steps: int = 5
    rows: int = 3
    inputs: int = 4
    hidden: int = 7
    lengths: tuple[int, ...] = ()
    reverse: bool = False
    bias: bool = True
    zeros: bool = False

    def __str__(self) -> str:
        form = "packed" + ".".join(map(str, self.lengths)) if self.lengths else f"T{self.steps}-B{self.rows}"
        words = ["reverse"] * self.reverse + ["nobias"] * (not self.bias) + ["zeros"] * self.zeros
        return "-".join([form, f"I{self.inputs}-H{self.hidden}", *words])


CASES = [
    Case("the plain layer"),
    Case("states of zeros", zeros=True, bias=False),
    Case("packed, backwards: rows enter late", lengths=(5, 3, 3, 1), reverse=True),
    Case("packed: rows end early; sizes of whole vectors", lengths=(4, 2, 1), inputs=16, hidden=16),
    Case("one step, one row, one input, one unit", steps=1, rows=1, inputs=1, hidden=1),
]


@dataclass(frozen=True)
class Inputs:
    """What a backend gets, all of it leaves, and ``weights``, those of the output and the last states in the loss."""

    parameters: dict[str, Tensor]
    x: Tensor
    states: list[Tensor]
    extras: dict[str, Tensor]
    batch_sizes: list[int] | None
    weights: list[Tensor]

    def leaves(self) -> dict[str, Tensor]:
        """All that has a gradient, by name."""
        states = {f"state {k}": state for k, state in enumerate(self.states)}
        return {**self.parameters, "x": self.x, **states, **self.extras}


def draw(row: Row, case: Case, dtype: torch.dtype = torch.float64) -> Inputs:
    """Inputs of a case, the same at every call; drawn in float64, so that another dtype's are its roundings."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{row} {case}".encode()))

    def within(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return drawn.to(dtype).requires_grad_()

    traced = trace(row.cell)
    hidden = -(-case.hidden // row.multiple) * row.multiple
    sizes = {"hidden_size": hidden, "input_size": hidden if row.cell.square else case.inputs, **row.sizes}
    lengths = case.lengths or (case.steps,) * case.rows
    batch_sizes = [sum(length > t for length in lengths) for t in range(lengths[0])]
    lead = (sum(batch_sizes),) if case.lengths else (case.steps, case.rows)
    shapes = parameter_shapes(traced.parts, traced.columns, sizes, case.bias)
    parameters = {name: within(-0.8, 0.8, *shape) for name, shape in shapes.items()}
    extras = {}
    for name, each in traced.parts.extras.items():
        size = () if each.size is None else (sizes[each.size],)
        extras[name] = within(0.1, 1.5, *(lead if type(each).__name__ == "StepInput" else (len(lengths),)), *size)
    start = (0.0, 0.0) if case.zeros else row.start
    states = [within(*start, len(lengths), sizes[size]) for size in traced.parts.states.values()]
    output = sizes[traced.output.size or ""]
    weights = [within(-1, 1, *lead, output), *(within(-1, 1, *state.shape) for state in states)]
    x = within(-1, 1, *lead, sizes["input_size"])
    return Inputs(parameters, x, states, extras, batch_sizes if case.lengths else None, weights)


@functools.cache  # several backends are judged by each
def expected(row: Row, case: Case) -> dict[str, Tensor]:
    """What the oracle says of a case: outputs, last states and gradients, by name, in float64."""
    inputs = draw(row, case)
    parts, every = trace(row.cell).parts, draw(row, replace(case, bias=True)).parameters
    parameters = {name: inputs.parameters.get(name, torch.zeros_like(tensor)) for name, tensor in every.items()}
    lengths = case.lengths or (case.steps,) * case.rows
    batch_sizes = [sum(length > t for length in lengths) for t in range(lengths[0])]

    def at(tensor: Tensor, t: int, row_: int) -> Tensor:
        """Of a tensor that comes with every step, the part of one step and sequence, with a row of its own."""
        return (tensor[sum(batch_sizes[:t]) + row_] if case.lengths else tensor[t, row_])[None]

    outputs: dict[tuple[int, int], Tensor] = {}
    last: list[list[Tensor]] = []
    for b, length in enumerate(lengths):
        states = [state[b : b + 1] for state in inputs.states]
        for t in reversed(range(length)) if case.reverse else range(length):
            extras = {
                name: at(tensor, t, b) if type(parts.extras[name]).__name__ == "StepInput" else tensor[b : b + 1]
                for name, tensor in inputs.extras.items()
            }
            outputs[t, b], states = row.step(parameters, at(inputs.x, t, b), states, extras)
        last.append(list(states))
    y = torch.cat([outputs[t, b] for t, count in enumerate(batch_sizes) for b in range(count)])
    y = y if case.lengths else y.unflatten(0, (case.steps, case.rows))
    return _named(inputs, y, [torch.cat(each) for each in zip(*last, strict=True)])


def measured(run: Run, row: Row, case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What a backend says of a case, as :func:`expected`."""
    inputs = draw(row, case, dtype)
    y, states = run(
        row.cell, inputs.parameters, inputs.x, inputs.states, inputs.extras, inputs.batch_sizes, case.reverse
    )
    return _named(inputs, y, states)


def _named(inputs: Inputs, y: Tensor, states: Sequence[Tensor]) -> dict[str, Tensor]:
    results = {"output": y, **{f"last state {k}": state for k, state in enumerate(states)}}
    loss = torch.stack([(w.detach() * v).sum() for w, v in zip(inputs.weights, results.values(), strict=True)]).sum()
    leaves = inputs.leaves()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    gradients = {f"gradient of {name}": gradient for name, gradient in zip(leaves, found, strict=True)}
    return {name: tensor.detach().double() for name, tensor in (results | gradients).items()}


# Each result is a chain of some 10^3 roundings at most (5 steps, sums of up to 30 products, a dozen functions, forward
# and backward), each 1.1e-16 of numbers up to the largest; derivatives within 1 let them grow by few powers of ten. A
# wrong equation shows from 1e-3 on.
TOLERANCE = 1e-10


def verify(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Fails with the name of the first result further from the oracle's than ``tolerance`` times its largest number."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, f"{name}: expected {tuple(tensor.shape)}, got {found[name].shape}"
        assert tensor.isfinite().all(), f"{name}: the oracle has no number there"
        scale = max(1.0, tensor.abs().max().item()) if tensor.numel() else 1.0
        difference = (found[name] - tensor).abs().max().item() if tensor.numel() else 0.0
        assert difference <= tolerance * scale, f"{name}: {difference:.3g} from the oracle's, of {scale:.3g}"


def judge(run: Run, row: Row, case: Case) -> None:
    """Holds a backend against the oracle of a row, in float64."""
    verify(measured(run, row, case), expected(row, case))


def by_module(
    make: Callable[[int, int], Any], names: Mapping[str, Any], call: Callable[..., Any], state: int = 0
) -> Callable[..., Any]:
    """An oracle's step by a module of another package.

    Args:
        make: of input_size and hidden_size, the module; its own numbers are not used.
        names: for each of its parameters that fastrnn calls otherwise, the names whose tensors stand there one behind
            the other, or a function of all of fastrnn's.
        call: of the module (bound to fastrnn's parameters), x and the states, the output and the states.
        state: the number of a state of hidden_size units.
    """
    built = functools.lru_cache(maxsize=None)(make)

    def step(p: Mapping[str, Tensor], x: Tensor, states: Sequence[Tensor], extras: Mapping[str, Tensor]) -> Any:
        module = built(x.shape[1], states[state].shape[1])
        theirs = {}
        for name, parameter in module.named_parameters():
            ours = names.get(name, (name,))
            tensor = ours(p) if callable(ours) else torch.cat([p[each].flatten() for each in ours])
            theirs[name] = tensor.reshape(parameter.shape)

        def forward(*args: Any) -> Any:
            return torch.func.functional_call(module, theirs, args)

        return call(forward, x, list(states))

    return step
