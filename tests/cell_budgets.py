"""Random inputs of any cell, what the equations in float64 say of them, and by how much an engine may be off; with a
definition that has everything the language knows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.cell import (
    Cell,
    Heads,
    Input,
    Recurrent,
    Scalar,
    SequenceInput,
    State,
    StepInput,
    Vector,
    abs,
    equations,
    exp,
    log,
    maximum,
    mean,
    minimum,
    relu,
    sigmoid,
    softplus,
    sqrt,
    tanh,
    where,
)  # fmt: skip
from fastrnn.cell.trace import trace


class Everything(Cell):
    """Every pointwise function, every kind of input, states of two sizes, one that nothing reads, and heads."""

    W, U, V = Input("a b"), Recurrent("a b", kind=Heads(2)), Recurrent(size="low_size", bias=False)
    d = State("low_size")
    p, q, s = Vector("a b"), Vector(size="low_size"), Scalar(0.3)
    k, m, n = StepInput("low_size"), SequenceInput("hidden_size"), SequenceInput()
    output = "y"

    def step(self, x, h, c, d, last, *, k, m, n, t):
        a, b = self.W(x), self.U(relu(h * m))
        g = sigmoid(a.a + b.a + self.p.a * c) * exp(-softplus(t * b.b))
        c = where(g > 0.5, c * g, c - self.s * g) + mean(abs(c), 2) / (1 + mean(c * c)) * 0.1
        h = maximum(minimum(tanh(a.b + self.p.b * n + c), 0.9), -0.7 * g)
        d = self.V(h) * self.q / sqrt(1.5 + d * d) + log(2 + relu(k) + n * n)
        return dict(h=h, c=c, d=d, last=h + 0.1 * c, y=d + 0.1)


class Form(NamedTuple):
    """One direction of a layer; ``lengths``, never increasing, makes it packed; ``block`` units at a time, or 0 for all
    at once."""

    isolates: str
    steps: int = 3
    rows: int = 3
    hidden: int = 20
    lengths: tuple[int, ...] = ()
    reverse: bool = False
    block: int = 0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return self.isolates.replace(" ", "-")


class Inputs(NamedTuple):
    parameters: dict[str, Tensor]
    x: Tensor
    states: list[Tensor]
    extras: dict[str, Tensor]
    batch_sizes: list[int]
    seeds: list[Tensor]

    def leaves(self) -> dict[str, Tensor]:
        states = {f"state {k}": state for k, state in enumerate(self.states)}
        return {"x": self.x, **states, **self.parameters, **self.extras}

    def to(self, dtype: torch.dtype, device: torch.device) -> Inputs:
        def own(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype).requires_grad_()

        parameters, extras = ({n: own(t) for n, t in each.items()} for each in (self.parameters, self.extras))
        states, seeds = ([own(tensor) for tensor in each] for each in (self.states, self.seeds))
        return Inputs(parameters, own(self.x), states, extras, self.batch_sizes, seeds)


def make(cell: Cell, form: Form, seed: int) -> Inputs:
    """Random inputs, rounded to the form's dtype."""
    generator, traced = torch.Generator().manual_seed(seed), trace(cell)
    sizes = dict(input_size=5, hidden_size=form.hidden, proj_size=7, out_size=3, low_size=form.hidden // 2 + 1)
    lengths = form.lengths or (form.steps,) * form.rows
    batch_sizes = [sum(length > t for length in lengths) for t in range(lengths[0])]
    rows, batch = sum(batch_sizes), batch_sizes[0]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(form.dtype)

    shapes = equations.parameter_shapes(traced.parts, traced.columns, sizes)
    parameters = {name: normal(*shape) / form.hidden**0.5 for name, shape in shapes.items()}
    states = [normal(batch, sizes[size]) for size in traced.parts.states.values()]
    extras = {
        name: normal(
            rows if isinstance(each, StepInput) else batch, *(() if each.size is None else (sizes[each.size],))
        )
        for name, each in traced.parts.extras.items()
    }
    seeds = [normal(rows, sizes[str(traced.output.size)]), *(normal(*state.shape) for state in states)]
    return Inputs(parameters, normal(rows, sizes["input_size"]), states, extras, batch_sizes, seeds)


def results(inputs: Inputs, y: Tensor, states: list[Tensor]) -> dict[str, Tensor]:
    leaves = inputs.leaves()
    grads = torch.autograd.grad([y, *states], list(leaves.values()), inputs.seeds, allow_unused=True)
    found = {"y": y, **{f"last state {k}": state for k, state in enumerate(states)}}
    found |= {
        f"grad {name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }
    return {name: tensor.detach() for name, tensor in found.items()}


def by_equations(cell: Cell, form: Form, inputs: Inputs) -> dict[str, Tensor]:
    arguments = inputs.parameters, inputs.x, inputs.batch_sizes, inputs.states, inputs.extras, form.reverse
    return results(inputs, *equations.direction(cell, trace(cell).parts, *arguments))


@functools.cache
def expected(cell: Cell, form: Form, device: torch.device) -> tuple[Inputs, dict[str, Tensor], dict[str, float]]:
    """Inputs, what is right of them, in float64, and by how much each result may be off.

    As in :func:`support.expect`: twice the largest error of the equations in the dtype over some draws, and one
    rounding more, or, of what is summed up over the rows of x, that of a chain of so many.  In float64, where nothing
    wider is at hand, errors are those of float32 by the ratio of both roundings, and once more for the exact one.
    """
    dtype = form.dtype
    narrow, eps = torch.float32 if dtype == torch.float64 else dtype, torch.finfo(dtype).eps
    share = 2 * eps / torch.finfo(narrow).eps if dtype == torch.float64 else 1.0
    draws = [make(cell, form, seed) for seed in range(4)]
    cpu = torch.device("cpu")
    exacts = [by_equations(cell, form, draw.to(torch.float64, cpu)) for draw in draws]
    noise: dict[str, float] = {}
    for draw, exact in zip(draws, exacts, strict=True):
        for name, value in by_equations(cell, form, draw.to(narrow, cpu)).items():
            noise[name] = max(noise.get(name, 0.0), (value.double() - exact[name]).abs().max().item())
    chain, inputs = max(1.0, (len(draws[0].x) / 12) ** 0.5), draws[0].to(dtype, device)
    budgets = {
        name: 2
        * (share * noise[name] + eps * (chain if name[5:] in inputs.parameters else 1) * value.abs().max().item())
        for name, value in exacts[0].items()
    }
    return inputs, exacts[0], budgets
