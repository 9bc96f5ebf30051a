"""Runs a case by fastrnn, by torch.nn or the equations in the same dtype, and by these in float64, and compares."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from fuzz import equations
from fuzz.cases import DTYPES, PACKED, Case, Data, by_path, data_of, given, network, packing
from fuzz.changes import CHANGES
from fuzz.compare import Results, TooFar, compare
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

import fastrnn

RESULTS = ("y", "hn", "cn", "cells")


class Unserved(Exception):
    """torch.nn or the backend asked for does not run this here: there is nothing to compare."""


def play(case: Case) -> None:
    """Raises AssertionError where fastrnn differs from what is right."""
    data = data_of(case)
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        before = [each._version for each in (data.x, *data.state)]
        ours, module = run(case, data, fastrnn)
        assert before == [each._version for each in (data.x, *data.state)], "an input was written to"
        judge(case, data, ours)
        if case.changes:
            play_changes(case, data, module)
    except Unserved:
        pass
    finally:
        torch.set_num_threads(threads)


def judge(case: Case, data: Data, ours: Results) -> None:
    # torch.nn's LSTM in float32 has no second derivatives where oneDNN runs it.
    oracle: Any = nn if case.torch_has_it and not case.twice else None
    exact, _ = run(case, widened(data, torch.float64), oracle)
    # The oracle has no wider type for float64: float32's noise is scaled down.
    rough, _ = run(case, widened(data, torch.float32 if case.dtype == "f64" else DTYPES[case.dtype]), oracle)
    if case.mode == "grad" and at_a_kink(case, data):
        ours, exact = ({n: t for n, t in each.items() if not n.startswith("grad")} for each in (ours, exact))
    sizes = [weight.double().abs().sum(-1).max().item() for weight in data.weights.values() if weight.numel()]
    reach = max([1.0, *(size for size in sizes if math.isfinite(size))])
    try:
        compare(case, ours, exact, rough, reach)
    except TooFar:  # the noise of one run of one library may be small by luck
        compare(case, ours, exact, rough, reach, [run(case, each, oracle)[0] for each in nudged(case, data)])


def nudged(case: Case, data: Data) -> Iterator[Data]:
    """The same values in float64, each off by a rounding at most: what an algorithm without any noise of its own makes
    of these is as far off as must be."""
    generator = torch.Generator().manual_seed(case.seed)
    eps = torch.finfo(torch.bfloat16 if case.autocast else DTYPES[case.dtype]).eps

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor * (1 + eps * (torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5))

    for _ in range(4):
        wide = widened(data, torch.float64)
        yield wide._replace(
            x=nudge(wide.x),
            state=tuple(map(nudge, wide.state)),
            weights={name: nudge(value) for name, value in wide.weights.items()},
            grads=tuple(map(nudge, wide.grads)),
        )


def at_a_kink(case: Case, data: Data) -> bool:
    """Whether some argument of a relu is so near 0 that a rounding decides whether it has a slope."""
    if "relu" not in (case.nonlinearity, case.output):
        return False
    shares = [1.0]

    def relu(values: Tensor) -> Tensor:
        if values.numel():
            shares.append((values.abs().min() / values.abs().max()).item())
        return torch.relu(values)

    with mock.patch.dict(equations.FUNCTIONS, relu=relu):
        run(replace(case, mode="no_grad", narrow=False, dropout=0.0), widened(data, torch.float64), None)
    return min(shares) < 16 * torch.finfo(torch.bfloat16 if case.autocast else DTYPES[case.dtype]).eps


def play_changes(case: Case, data: Data, module: Any) -> None:
    """Calls without gradients, between them changes of weights: each as a new module gives it, bit for bit."""
    case = Case(**{**vars(case), "mode": "no_grad"})
    for change in case.changes:
        CHANGES[change](module, torch.Generator().manual_seed(case.seed))
        weights = {name: value.detach().clone() for name, value in module.named_parameters()}
        found, _ = run(case, data, fastrnn, module)
        fresh, _ = run(case, data._replace(weights=weights), fastrnn)
        for name, value in fresh.items() if case.weights == "plain" else ():  # else in another order of sums
            assert same_bits(found[name], value), f"after {change}: {name} is not what a new module gives"
    judge(case, data._replace(weights=weights), found)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def widened(data: Data, dtype: torch.dtype) -> Data:
    """The same values in another dtype, as they lie in a new tensor."""

    def new(tensor: Tensor) -> Tensor:
        tensor = tensor.resolve_neg()
        return tensor.to(dtype).clone(memory_format=torch.contiguous_format) if tensor.is_floating_point() else tensor

    return Data(
        new(data.x),
        tuple(map(new, data.state)),
        {name: new(value) for name, value in data.weights.items()},
        data.reset,
        None if data.table is None else new(data.table),
        tuple(map(new, data.grads)),
    )


def run(case: Case, data: Data, library: Any, module: Any = None) -> tuple[Results, Any]:
    """Results and gradients of one call; ``library`` is fastrnn, torch.nn, or None for the equations."""

    def leaf(tensor: Tensor, wanted: str) -> Tensor:
        tensor = tensor.detach()
        needed = case.mode == "grad" and wanted in case.needs and tensor.is_floating_point()
        return tensor.requires_grad_(True) if needed else tensor

    x, table = leaf(data.x, "x"), None if data.table is None else leaf(data.table, "x")
    state = tuple(leaf(each, "h") for each in data.state) if case.states != "none" else None
    leaves = {"x": x, **({} if table is None else {"table": table})}
    leaves |= dict(zip(("h0", "c0"), state or (), strict=False))
    if library is None:
        weights = {name: leaf(value, "w") for name, value in data.weights.items()}
    else:
        if module is None:
            make = by_path(case, data.weights) if library is fastrnn else network(case, nn, data.weights)
            module = make
        for parameter in module.parameters():
            parameter.requires_grad_("w" in case.needs)
        weights = dict(module.named_parameters())
    leaves |= weights

    torch.default_generator.manual_seed(case.seed)
    with contextlib.ExitStack() as stack:
        for context in surroundings(case, library, x.dtype):
            stack.enter_context(context)
        if library is None:
            vectors = F.embedding(x, table) if table is not None else one_hot(x, case, weights) if case.tokens else x
            y, states, cells = equations.results(case, vectors, state, weights, data.reset)
        else:
            y, states, cells = call(case, data, module, x, state, table, library)
    found = {
        name: value
        for name, value in zip(RESULTS, (y, *states, *[None] * (2 - len(states)), cells), strict=False)
        if value is not None
    }
    if case.dropout and case.training:
        found["generator"] = torch.get_rng_state()
    found["derivable"] = torch.tensor([found[name].requires_grad for name in RESULTS if name in found])
    if case.mode == "grad":
        found |= gradients(case, data, found, leaves)
    return {name: value.detach() for name, value in found.items()}, module


def surroundings(case: Case, library: Any, dtype: torch.dtype) -> Iterator[Any]:
    if case.autocast and dtype != torch.float64:
        yield torch.autocast("cpu", torch.bfloat16)
    if case.backend and library is fastrnn:
        yield fastrnn.use_backend(case.backend)
    if case.mode == "no_grad":
        yield torch.no_grad()
    elif case.mode == "inference":
        yield torch.inference_mode()


def one_hot(tokens: Tensor, case: Case, weights: dict[str, Tensor]) -> Tensor:
    return F.one_hot(tokens, case.inputs).to(next(iter(weights.values())).dtype)


def call(
    case: Case, data: Data, module: Any, x: Tensor, state: tuple[Tensor, ...] | None, table: Tensor | None, library: Any
) -> tuple[Tensor | None, tuple[Tensor, ...], Tensor | None]:
    hx: Any = None
    if state is not None:
        hx = (list(state) if case.states == "list" else state) if case.name == "LSTM" else state[0]
    options: dict[str, Any] = {}
    if library is fastrnn:
        if case.lengths and case.form == "padded":
            options["lengths"] = list(case.lengths) if case.seed % 2 else torch.tensor(case.lengths)
        if case.reset:
            options["reset"] = data.reset
        if table is not None:
            options["embedding"] = table if case.tokens == "weight" else embedding(table)
        if case.cells:
            options["return_cell_states"] = True
    try:
        if library is fastrnn and case.path == "functional":
            found = functional(case, module, x, hx)
        elif library is fastrnn and case.path == "vmap":
            found = among_others(case, module, x, hx)
        elif library is fastrnn and case.path == "functional_call":
            found = torch.func.functional_call(module, dict(module.named_parameters()), (given(case, x), hx), options)
        else:
            found = module(given(case, x), hx, **options)
    except fastrnn.BackendError as error:
        if not case.backend:
            raise
        raise Unserved from error
    except RuntimeError as error:
        if case.autocast and library is nn and case.name == "LSTM":
            raise Unserved from error  # oneDNN has its kernel for some processors only
        raise
    if case.is_cell:
        return None, found if case.name == "LSTM" else (found,), None
    y, states, *cells = found
    if isinstance(y, PackedSequence):
        y, cells = y.data, [each.data for each in cells]
    return y, states if case.name == "LSTM" else (states,), cells[0] if cells else None


def among_others(case: Case, module: Any, x: Tensor, hx: Any) -> Any:
    """The call as one of three by vmap, which maps over one dimension or another."""
    place, dim = case.seed % 3, case.seed % (x.dim() + 1)
    inputs = [x if k == place else torch.full_like(x, 0.1 * k) for k in range(3)]
    found = torch.func.vmap(lambda x: module(x, hx), dim)(torch.stack(inputs, dim))
    return tree_map(lambda tensor: tensor[place], found)


def embedding(table: Tensor) -> nn.Embedding:
    found = nn.Embedding(*table.shape, dtype=table.dtype)
    del found._parameters["weight"]
    found.weight = table  # the leaf itself, whose gradient is asked for, or which wants none
    return found


def functional(case: Case, module: Any, x: Tensor, hx: Any) -> Any:
    names = {"RNN": "rnn", "LSTM": "lstm", "GRU": "gru", "JordanRNN": "jordan_rnn"}
    options: dict[str, Any] = dict(
        num_layers=case.layers,
        bidirectional=case.both,
        batch_first=case.batch_first,
        dropout=case.dropout,
        training=case.training,
    )
    if case.form in PACKED:
        options["batch_sizes"] = packing(case).batch_sizes
    if case.name in ("RNN", "JordanRNN"):
        options["nonlinearity"] = case.nonlinearity
    if case.kind == "JordanRNN":
        options["output_nonlinearity"] = case.output
    if case.cells:
        options["return_cell_states"] = True
    return getattr(fastrnn, names[case.name])(x, hx, module._flat_weights, **options)


def gradients(case: Case, data: Data, found: Results, leaves: dict[str, Tensor]) -> Results:
    names = ("hn", "cn") if case.is_cell else ("y", "hn", "cn")
    seeds = {name: grad for name, grad in zip(names, data.grads, strict=False) if name[0] in case.seeds}
    if "cells" in found:
        seeds["cells"] = torch.linspace(-1, 1, found["cells"].numel()).view(found["cells"].shape)
    seeds = {name: grad.to(found[name].dtype) for name, grad in seeds.items() if found[name].requires_grad}
    if case.twice:
        seeds = {name: grad.detach().requires_grad_() for name, grad in seeds.items()}
    wanted = {name: tensor for name, tensor in leaves.items() if tensor.requires_grad}
    if not seeds or not wanted:
        return {}
    outputs = [found[name] for name in seeds]
    given, options = list(seeds.values()), dict(allow_unused=True, create_graph=case.twice)
    grads = torch.autograd.grad(outputs, list(wanted.values()), given, **options)
    results = {f"grad {name}": (tensor, grad) for (name, tensor), grad in zip(wanted.items(), grads, strict=True)}
    if case.twice:
        wanted |= {f"seed {name}": seed for name, seed in seeds.items()}
        parts = [grad for grad in grads if grad is not None and grad.requires_grad]
        outer = [torch.linspace(-1, 1, part.numel()).to(part).view(part.shape) for part in parts]
        again = torch.autograd.grad(parts, list(wanted.values()), outer, allow_unused=True)
        results |= {f"grad twice {n}": (t, grad) for (n, t), grad in zip(wanted.items(), again, strict=True)}
    return {name: torch.zeros_like(tensor) if grad is None else grad for name, (tensor, grad) in results.items()}
