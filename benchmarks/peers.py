"""The libraries side by side.  A peer turns a problem into a side to be timed and tells what its call returns.

torch.nn comes first: it is what ratios are over.  fastrnn is one peer for each backend that is live here and serves
the case, asked for by name; and one that chooses itself, where that may be torch's own function.  ONNX Runtime,
OpenVINO and JAX (:mod:`foreign`) take part where they are installed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import foreign
import torch
from cases import Case
from measures import STREAM
from problem import Problem, Results, evaluate, module_side
from timing import Side
from torch import nn

import fastrnn
from fastrnn import backends

# The backends made for a CPU: Triton's kernels run there under an interpreter only, the reference is not for speed.
COMPILED = ("cpp", "numba")


@dataclass(frozen=True)
class Peer:
    """``refusal(case, threads)`` is None, or one sentence that says why the peer does not run the case;
    ``build(problem, threads)`` gives the side to be timed and a function that names the results of its call."""

    name: str
    refusal: Callable[[Case, int], str | None]
    build: Callable[[Problem, int], tuple[Side, Callable[[], Results]]]

    def __str__(self) -> str:
        return self.name


def _module_side(
    problem: Problem, module: nn.Module, threads: int, context: Callable = contextlib.nullcontext
) -> tuple[Side, Callable[[], Results]]:
    train = problem.case.work == "train"

    def results() -> Results:
        with context():
            return problem.name(evaluate(module, problem.data, train))

    return module_side(module, problem.data, train, threads, context), results


def _torch_nn(problem: Problem, threads: int) -> tuple[Side, Callable[[], Results]]:
    return _module_side(problem, problem.module, threads)


def _converted(
    problem: Problem, threads: int, context: Callable = contextlib.nullcontext
) -> tuple[Side, Callable[[], Results]]:
    module = fastrnn.convert(nn.ModuleList([copy.deepcopy(problem.module)]))[0]
    return _module_side(problem, module, threads, context)


def _fastrnn(backend: str) -> Peer:
    build = functools.partial(_converted, context=functools.partial(fastrnn.use_backend, backend))

    def refusal(case: Case, threads: int) -> str | None:
        return backends.load(backend).unsupported(torch.device("cpu"), getattr(torch, case.shape.dtype))

    return Peer(f"fastrnn[{backend}]", refusal, build)


def _chosen_refusal(case: Case, threads: int) -> str | None:
    few = case.work == "train" and case.shape.steps <= 10 and not case.shape.packed
    return None if few else "what it chooses is fastrnn[cpp]"


def _cell_refusal(case: Case, threads: int) -> str | None:
    shape = case.shape
    if shape.steps > 1 or case.work == "train" or shape.layers > 1 or shape.bidirectional or shape.proj_size:
        return "a cell module is one step of one layer"
    return None


def _torch_nn_cell(problem: Problem, threads: int) -> tuple[Side, Callable[[], Results]]:
    own = problem.module
    cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell}[own.mode](own.input_size, own.hidden_size)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in own.state_dict().items()})
    x, hx = problem.data.x[0], problem.data.hx
    state = tuple(h[0] for h in hx) if isinstance(hx, tuple) else hx[0]

    def call() -> torch.Tensor | tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return cell(x, state)

    def results() -> Results:
        last = call()
        last = last if isinstance(last, tuple) else (last,)
        return problem.name([last[0][None], *(value[None] for value in last)])

    return Side(call), results


def _stream_refusal(case: Case, threads: int) -> str | None:
    shape = case.shape
    if shape.steps > 1 or case.work == "train" or shape.bidirectional or threads > 1:
        return "a stream takes one step of inference, one direction, by one thread"
    if shape.dtype not in ("float32", "bfloat16"):
        return f"streams are of float32 or bfloat16, not {shape.dtype}"
    return backends.load("cpp").unavailable()


def _stream(problem: Problem, threads: int) -> tuple[Side, Callable[[], Results]]:
    handle = fastrnn.stream(problem.module, problem.case.shape.rows)
    x = problem.data.x[0]

    def results() -> Results:
        handle.state = problem.data.hx
        y, state = handle.step(x).clone(), handle.state
        return problem.name([y[None], *(state if isinstance(state, tuple) else (state,))])

    return Side(lambda: handle.step(x)), results


def peers() -> list[Peer]:
    """Every peer that can run in this process, torch.nn first."""
    live = [name for name, reason in backends.available().items() if reason is None and name in COMPILED]
    return [
        Peer("torch.nn", lambda case, threads: None, _torch_nn),
        Peer("torch.nn cell", _cell_refusal, _torch_nn_cell),
        *(_fastrnn(name) for name in live),
        Peer("fastrnn", _chosen_refusal, _converted),
        *(Peer(STREAM, _stream_refusal, _stream) for name in live if name == "cpp"),
        *(Peer(name, refusal, build) for name, refusal, build in foreign.installed()),
    ]
