"""The tensors of one case, the same for every peer, and the gate that a peer's results pass before it is timed."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from cases import GATES, Case
from timing import LINGERS, Side
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Results = dict[str, Tensor]
MODULES = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


class WrongResult(AssertionError):
    """A peer's results lie outside the error budget; its time would mean nothing."""


class Data(NamedTuple):
    """``x`` (T, B, I) or a PackedSequence, ``hx`` as the module takes it, ``grad_y``: gradient by the output's rows."""

    x: Tensor | PackedSequence
    hx: tuple[Tensor, ...] | Tensor
    grad_y: Tensor

    def double(self) -> Data:
        hx = tuple(h.double() for h in self.hx) if isinstance(self.hx, tuple) else self.hx.double()
        x = self.x._replace(data=leaf(rows(self.x))) if isinstance(self.x, PackedSequence) else leaf(self.x)
        return Data(x, hx, self.grad_y.double())


def leaf(x: Tensor) -> Tensor:
    return x.detach().double().requires_grad_(x.requires_grad)


def rows(sequence: Tensor | PackedSequence) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def evaluate(module: nn.Module, data: Data, train: bool) -> list[Tensor]:
    """What is timed, for a module: the output's rows and the last states, and in training the gradients of the input
    and of every parameter.  The loss reaches the output only, as in most training."""
    if not train:
        with torch.no_grad():
            y, last = module(data.x, data.hx)
        return [rows(y), *(last if isinstance(last, tuple) else (last,))]
    y, last = module(data.x, data.hx)
    grads = torch.autograd.grad(rows(y), (rows(data.x), *module.parameters()), data.grad_y)
    return [rows(y), *(last if isinstance(last, tuple) else (last,)), *grads]


def module_side(
    module: nn.Module,
    data: Data,
    train: bool,
    threads: int,
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Side:
    """:func:`evaluate` as a side to be timed; in training every parameter is written to before each call."""
    call, lingers = functools.partial(evaluate, module, data, train), LINGERS * (threads > 1)
    if not train:
        return Side(call, context=context, lingers=lingers)
    parameters = [parameter.detach() for parameter in module.parameters()]  # shares storage and version counter

    def step() -> None:
        torch._foreach_mul_(parameters, 1.0)

    return Side(call, before=step, context=context, lingers=lingers)


def error(found: Tensor, exact: Tensor) -> float:
    """Largest absolute error; NaN where either side has one, so that no comparison with it holds."""
    return (found.double() - exact).abs().max().item()


def rms_error(found: Tensor, exact: Tensor) -> float:
    """Root of the mean squared error, which two roundings of the same sum share more nearly than their largest."""
    return (found.double() - exact).square().mean().sqrt().item()


def draw(case: Case) -> tuple[nn.RNNBase, Data]:
    """The torch.nn module of a case and its tensors, from a fixed seed."""
    shape, dtype = case.shape, getattr(torch, case.shape.dtype)
    torch.manual_seed(0)
    options: dict[str, object] = {"nonlinearity": "relu"} if case.mode == "RNN_RELU" else {}
    if shape.proj_size:
        options["proj_size"] = shape.proj_size
    module = MODULES[case.mode](
        case.inputs, shape.hidden, shape.layers, bidirectional=shape.bidirectional, dtype=dtype, **options
    )
    chains, outputs = shape.layers * case.directions, shape.proj_size or shape.hidden
    x: Tensor | PackedSequence = torch.randn(shape.steps, shape.rows, case.inputs, dtype=dtype)
    if shape.packed:
        x = pack_padded_sequence(x, torch.tensor(case.lengths))
    h0 = torch.randn(chains, shape.rows, outputs, dtype=dtype) / 2
    c0 = torch.randn(chains, shape.rows, shape.hidden, dtype=dtype) / 2
    grad_y = torch.randn(*rows(x).shape[:-1], outputs * case.directions, dtype=dtype)
    rows(x).requires_grad_(case.work == "train")
    return module, Data(x, (h0, c0) if case.mode == "LSTM" else h0, grad_y)


class Problem:
    """One case as tensors, from a fixed seed.

    Attributes:
        case: the case.
        module: the torch.nn module whose parameters every peer uses.
        data: its input, its first state, a gradient of its output.
        names: the names of the results, in the order of :func:`evaluate`: y, h, c, then d_x and d_ each parameter.
        reference: the same case in float64 by torch.nn, which shares no code with fastrnn: what is right.
        own_error: largest error of torch.nn in the case's own dtype, for each result.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.module, self.data = draw(case)
        self.names = ["y", "h", "c"] if case.mode == "LSTM" else ["y", "h"]
        if case.work == "train":
            self.names += ["d_x", *(f"d_{name}" for name, _ in self.module.named_parameters())]
        train = case.work == "train"
        self.reference = self.name(evaluate(copy.deepcopy(self.module).double(), self.data.double(), train))
        own = self.name(evaluate(self.module, self.data, train))
        self.own_error = {name: error(own[name], exact) for name, exact in self.reference.items()}
        self._own_rms = {name: rms_error(own[name], exact) for name, exact in self.reference.items()}

    def name(self, results: list[Tensor]) -> Results:
        return {name: result.detach() for name, result in zip(self.names, results, strict=True)}

    def check(self, results: Results) -> float:
        """The gate.  Returns the largest error of any result as a share of its budget.

        The budget of a result is twice torch.nn's own error plus one rounding band: ``eps * sqrt(n)`` times the
        largest true value, n being the number of rounded terms in the sum behind the result, which is how a sum's
        error grows when its roundings are independent.

        Raises:
            WrongResult: a result is missing, of another shape, not a number, or outside its budget.
        """
        worst = 0.0
        for name, exact in self.reference.items():
            got = tuple(results[name].shape) if name in results else "nothing"
            if got != exact.shape:
                raise WrongResult(f"{self.case}: {name}: expected shape {tuple(exact.shape)}, got {got}")
            found, own, band = error(results[name], exact), self.own_error[name], self._rounding_band(name)
            if not found <= 2 * (own + band):
                raise WrongResult(
                    f"{self.case}: {name}: error {found:.2e}, allowed {2 * (own + band):.2e} = 2 x (torch.nn's own "
                    f"error {own:.2e} + one rounding band {band:.2e})"
                )
            worst = max(worst, found / (2 * (own + band)))
        return worst

    def error_over_own(self, results: Results) -> tuple[float, str] | None:
        """Root mean square error over torch.nn's own, where it is largest, and the result's name; none in float64,
        where torch.nn is what errors are taken from."""
        if self.case.shape.dtype == "float64":
            return None
        tiny = torch.finfo(torch.float64).tiny
        return max(
            (rms_error(results[name], exact) / max(self._own_rms[name], tiny), name)
            for name, exact in self.reference.items()
        )

    def _rounding_band(self, name: str) -> float:
        if name in ("y", "h", "c"):
            terms = self.case.inputs + self.case.shape.hidden
        elif name == "d_x":
            terms = GATES[self.case.mode] * self.case.shape.hidden
        else:
            terms = sum(self.case.lengths)
        eps = torch.finfo(rows(self.data.x).dtype).eps
        return eps * math.sqrt(terms) * self.reference[name].abs().max().item()
