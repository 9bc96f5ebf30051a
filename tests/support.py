"""Cases as data, a float64 oracle, and a comparison whose tolerance is derived: the judge of every backend.

The oracle is :func:`fastrnn.backends.reference.layer` run in float64 with autograd; it shares no code with a kernel and
is itself held to torch.nn by ``test_support.py``.  ``expect(case)`` gives inputs, exact results and error budgets;
``verify(run(module, inputs), expected)`` judges a backend by them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastrnn.backends import Saved, reference
from fastrnn.modes import CELLS, TORCH_MODES


def search_path() -> str:
    """PYTHONPATH of a process that imports from here, and fastrnn from where this one does: of planted faults, too."""
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


@dataclass(frozen=True)
class Case:
    """One layer to run.  ``lengths`` (non-increasing) makes it packed and stands in for ``steps`` and ``rows``.

    ``isolates`` says what only this case can catch.  ``small`` cases are also run where a step costs milliseconds
    (the Triton interpreter), but if ``seldom`` in the slow suite alone.  ``magnitude`` multiplies x.
    """

    isolates: str
    mode: str = "LSTM"
    steps: int = 4
    rows: int = 3
    inputs: int = 5
    hidden: int = 17
    lengths: tuple[int, ...] = ()
    proj_size: int = 0
    directions: int = 1
    bias: bool = True
    dtype: torch.dtype = torch.float32
    magnitude: float = 1.0
    small: bool = False
    seldom: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        form = "packed" + ".".join(map(str, self.lengths)) if self.lengths else f"T{self.steps}-B{self.rows}"
        words = [self.mode, form, f"I{self.inputs}", f"H{self.hidden}"]
        words += [f"P{self.proj_size}"] * bool(self.proj_size) + ["D2"] * (self.directions == 2)
        words += ["nobias"] * (not self.bias) + [f"x{self.magnitude:g}"] * (self.magnitude != 1)
        return "-".join([*words, str(self.dtype).removeprefix("torch.")])


RAGGED = (6, 4, 4, 1)
_FORMS = [
    Case("the plain layer; H no multiple of any vector"),
    Case("both directions", directions=2, small=True),
    Case("packed: ties, a tail of one row, a sequence of length 1", lengths=RAGGED),
    Case("packed, both directions: rows enter late in reverse", lengths=RAGGED, directions=2, hidden=3, small=True),
    Case("no bias", bias=False, small=True),
    Case("one step, one row, one input, one unit", steps=1, rows=1, inputs=1, hidden=1, small=True),
    Case("one step", steps=1, rows=4, inputs=7, hidden=33),
    Case("one row", steps=6, rows=1, inputs=9, hidden=33),
    Case("no rows at all", rows=0, directions=2, small=True),
    Case("packed: a single sequence", lengths=(5,), directions=2, inputs=1),
    Case("packed: all of length 1", lengths=(1, 1, 1), directions=2, hidden=3),
    Case("whole vectors, no tail", steps=3, rows=8, inputs=16, hidden=64),
    Case("more inputs than units, several tiles and a tail", steps=7, rows=5, inputs=130, hidden=100, directions=2),
    Case("many rows: row tiles and a tail", steps=3, rows=37, inputs=6, hidden=33),
    Case("x up to 1e4: saturated gates stay finite and right", steps=3, magnitude=3e3, small=True),
]
_PROJECTED = [
    Case("projection", proj_size=5, small=True),
    Case("projection: one unit, packed, no bias", lengths=RAGGED, proj_size=1, directions=2, bias=False),
    Case("projection, whole vectors", steps=5, rows=6, hidden=64, proj_size=32),
]
_LARGE = [
    Case("enough work for several threads and blocks", steps=20, rows=9, inputs=70, hidden=130, directions=2),
    Case("packed, enough work for several threads", lengths=(20, 20, 17, 9, 9, 8, 2, 1, 1), inputs=70, hidden=130),
    Case("H of a model in use", steps=5, rows=17, inputs=40, hidden=256),
    Case("a long sequence: rounding piles up over steps", steps=300, rows=2, inputs=3, hidden=17),
]
_DTYPES = [replace(case, isolates=f"dtype: {case.isolates}") for case in (_FORMS[1], _FORMS[3])] + [
    Case("dtype: several tiles and a tail", steps=7, rows=5, inputs=30, hidden=100)
]

CASES = [
    *(replace(case, mode=mode) for mode in TORCH_MODES for case in _FORMS),
    *_PROJECTED,
    *(replace(case, mode=mode) for mode in ("LSTM", "GRU", "RNN_TANH") for case in _LARGE),
    *(
        replace(case, mode=mode, dtype=dtype)
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
        for mode in TORCH_MODES
        for case in _DTYPES
    ),
    replace(_PROJECTED[0], dtype=torch.float64),
    replace(_PROJECTED[0], dtype=torch.bfloat16),
]


class Inputs(NamedTuple):
    """The arguments of a backend's forward and backward, as :mod:`fastrnn.backends` describes them."""

    mode: str
    x: Tensor
    batch_sizes: Tensor | None
    h0: Tensor
    c0: Tensor | None
    weights: list[Tensor]
    grad_y: Tensor | None
    grad_hn: Tensor | None
    grad_cn: Tensor | None
    grad_cells: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Every floating point tensor replaced by ``function`` of it."""

        def apply(value: Tensor | None) -> Tensor | None:
            return None if value is None else function(value)

        return Inputs(
            self.mode,
            function(self.x),
            self.batch_sizes,
            function(self.h0),
            apply(self.c0),
            [function(weight) for weight in self.weights],
            apply(self.grad_y),
            apply(self.grad_hn),
            apply(self.grad_cn),
            apply(self.grad_cells),
        )

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found


def make(case: Case, seed: int = 0) -> Inputs:
    """Random inputs, weights as torch.nn draws them.

    Drawn in float32 and rounded to the case's dtype where that is narrower, so the very same values can be run in
    a wider dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    cell, hidden, directions = CELLS[case.mode], case.hidden, case.directions
    outputs, rows = case.proj_size or hidden, len(case.lengths) or case.rows

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    def weight(*shape: int) -> Tensor:
        return ((torch.rand(shape, generator=generator) * 2 - 1) / hidden**0.5).to(case.dtype)

    batch_sizes, lead = None, (case.steps, rows)
    if case.lengths:
        batch_sizes = torch.tensor([sum(n > t for n in case.lengths) for t in range(case.lengths[0])])
        lead = (sum(case.lengths),)
    shapes = [(len(cell.gates) * hidden, case.inputs), (len(cell.gates) * hidden, outputs)]
    shapes += [(len(cell.gates) * hidden,)] * 2 * case.bias + [(outputs, hidden)] * bool(case.proj_size)
    has_c = cell.has_cell_state
    return Inputs(
        mode=case.mode,
        x=(normal(*lead, case.inputs) * case.magnitude).to(case.dtype),
        batch_sizes=batch_sizes,
        h0=normal(directions, rows, outputs),
        c0=normal(directions, rows, hidden) if has_c else None,
        weights=[weight(*shape) for _ in range(directions) for shape in shapes],
        grad_y=normal(*lead, directions * outputs),
        grad_hn=normal(directions, rows, outputs),
        grad_cn=normal(directions, rows, hidden) if has_c else None,
    )


Results = dict[str, Tensor]


def run(module: ModuleType, inputs: Inputs, *needs: bool) -> Results:
    """Forward and backward of a backend, each result under its name; what is None is left out."""
    arguments = inputs[:6]
    y, hn, cn, saved = module.forward(*arguments, save=True)
    cells = {"cells": saved.cells} if inputs.c0 is not None else {}
    return {"y": y, "hn": hn, "cn": cn} | cells | gradients(module, inputs, saved, *needs)


def gradients(module: ModuleType, inputs: Inputs, saved: Saved, *needs: bool) -> Results:
    """A backend's backward from what its forward saved; ``needs`` are need_x, need_state and need_weights, else all."""
    found = module.backward(*inputs[:6], saved, *inputs[6:], *(needs or (True, True, True)))
    results = {"grad x": found.x, "grad h0": found.h0, "grad c0": found.c0}
    results |= {f"grad weights[{k}]": grad for k, grad in enumerate(found.weights or ())}
    return {name: tensor for name, tensor in results.items() if tensor is not None}


def differentiate(inputs: Inputs) -> Results:
    """The same results from the equations and autograd, in the inputs' own dtype: in float64, the oracle."""
    x, h0, *weights = (tensor.detach().clone().requires_grad_() for tensor in (inputs.x, inputs.h0, *inputs.weights))
    c0 = None if inputs.c0 is None else inputs.c0.detach().clone().requires_grad_()
    outputs = reference.layer(inputs.mode, x, inputs.batch_sizes, h0, c0, weights)
    seeds = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs, inputs[6:], strict=True)]
    count = 2 if c0 is None else 4
    torch.autograd.backward(outputs[:count], seeds[:count])
    leaves = {"grad x": x, "grad h0": h0} | ({} if c0 is None else {"grad c0": c0})
    leaves |= {f"grad weights[{k}]": weight for k, weight in enumerate(weights)}
    grads = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in leaves.items()}
    return {
        name: tensor.detach()
        for name, tensor in zip(("y", "hn", "cn", "cells")[: 3 + (c0 is not None)], outputs, strict=False)
    } | grads


class Expected(NamedTuple):
    """What a backend is given, what it should return (float64), and by how much it may be off."""

    inputs: Inputs
    exact: Results
    budgets: dict[str, float]


def unchanged(inputs: Inputs) -> Inputs:
    return inputs


@functools.cache
def expect(case: Case, change: Callable[[Inputs], Inputs] = unchanged) -> Expected:
    """Inputs, exact results and, for each result, the error budget::

        budget = 2 * (noise + band * max |exact|)

    ``noise`` is what rounding does to an honest program: the largest error of the equations run in the tested dtype,
    against float64, over all elements of the result and over some draws of the inputs (more of them for a small case,
    where a few dozen elements may all be right by luck).  ``band`` is one rounding, eps of the tested dtype: at the
    result's scale a right result may need it even where the reference had no error.  The factor 2 grants another order
    of summation and elementary functions that are good to a few ulp instead of one.  The norm is the maximum over a
    result: errors of a recurrence are as large as its largest terms, whatever the element they land in, so a relative
    norm per element would ask for more than the arithmetic can give.

    One result needs a wider band.  A weight's gradient sums N products, one a row of x; the reference sums them in
    blocks, step by step, where a program may use a single product of matrices, that is one chain of N roundings.  Each
    is uniform over at most one eps at the result's scale, so together they have a standard deviation of sqrt(N / 12)
    eps: that is the band where it is more than one eps.

    Measured over all cases, torch.nn, plain loops (``test_support.py``) and the backends stay below 0.8 of a budget;
    a recurrent product whose sum started from the input's share instead of zero missed by up to 1.2.

    The oracle has no wider type for a test in float64.  There the noise is that of float32 on the same values,
    scaled by the ratio of the two eps (rounding error is linear in eps), and counted once more for the oracle's own
    rounding.

    ``change`` is applied to the inputs of every draw, e.g. to leave out a gradient.
    """
    wide, narrow = torch.float64, torch.float32 if case.dtype == torch.float64 else case.dtype
    eps = torch.finfo(case.dtype).eps
    share = 2 * eps / torch.finfo(narrow).eps if case.dtype == torch.float64 else 1.0
    noise: dict[str, float] = {}
    count = 16 if make(case).x.numel() < 1000 else 4
    draws = [change(make(case, seed)) for seed in range(count)]
    exacts = [differentiate(draw.map(lambda tensor: tensor.to(wide))) for draw in draws]
    for draw, exact in zip(draws, exacts, strict=True):
        rounded = differentiate(draw.map(lambda tensor: tensor.to(narrow)))
        for name, value in rounded.items():
            noise[name] = max(noise.get(name, 0.0), _largest(value.to(wide) - exact[name]))
    chain = max(1.0, (draws[0].x.shape[:-1].numel() / 12) ** 0.5)
    budgets = {
        name: 2 * (share * noise[name] + eps * (chain if "weights" in name else 1.0) * _largest(value))
        for name, value in exacts[0].items()
    }
    return Expected(draws[0], exacts[0], budgets)


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def assert_close(actual: Tensor, exact: Tensor, budget: float, dtype: torch.dtype, name: str = "result") -> None:
    """``actual`` has this dtype and the shape of ``exact``, is inf or NaN just where ``exact`` is, and elsewhere
    within ``budget`` of it, absolutely.  ``budget`` is derived by :func:`expect`, never chosen to fit."""
    assert actual.dtype == dtype, f"{name}: dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    values, exact, finite = actual.detach().cpu().double(), exact.cpu().double(), exact.cpu().isfinite()
    wrong = finite & ~values.isfinite() | ~finite & ~values.isclose(exact, rtol=0, atol=0, equal_nan=True)
    assert not wrong.any(), (
        f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are or should be inf or NaN, "
        f"the first at {wrong.nonzero()[0].tolist()}: {values[wrong][0]} where {exact[wrong][0]} is right"
    )
    error = torch.where(finite, values - exact, 0.0).abs()
    worst = _largest(error)
    if worst > budget:
        where = tuple(torch.unravel_index(error.argmax(), error.shape))
        raise AssertionError(
            f"{name}: {int((error > budget).sum())} of {error.numel()} elements off by more than {budget:.3g}, "
            f"the worst by {worst:.3g} at {[int(i) for i in where]}: {values[where]} where {exact[where]} is right"
        )


def verify(results: Results, expected: Expected, only: str = "") -> None:
    """Every expected result whose name begins with ``only`` is there and within its budget."""
    dtype = expected.inputs.h0.dtype
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    for name, exact in expected.exact.items():
        if name.startswith(only):
            own = wide if name == "cells" else dtype
            assert_close(results[name], exact, expected.budgets[name], own, name)


def needs_torch_under_autocast(kind: str) -> None:
    """Skips where torch.nn.LSTM, to be compared with, raises under autocast: it calls a kernel that oneDNN has only for
    processors with AVX-512."""
    if kind == "LSTM":
        try:
            with torch.autocast("cpu", torch.bfloat16):
                torch.nn.LSTM(2, 2)(torch.zeros(1, 1, 2))
        except RuntimeError as error:
            pytest.skip(f"torch.nn.LSTM does not run under autocast here: {str(error)[:80]}")
