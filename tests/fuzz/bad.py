"""Calls that are wrong in one way or two: an error of torch.nn's type where torch.nn raises, its results where not.

What torch.nn lacks, the arguments by keyword, raises one of the errors that :mod:`fastrnn.options` names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fuzz.cases import CELLS, PACKED, Case, data_of, given, network
from fuzz.play import embedding
from fuzz.strategies import SEEDS, SMALL, one_of, usually
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn


@dataclass(frozen=True)
class BadCall:
    """A case that is right, and what is made wrong about it: names of FAULTS, or one of OPTIONS, or of BUILDS."""

    case: Case
    faults: tuple[str, ...]


def _each(change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """The change of a tensor, of each of a pair."""

    def apply(hx: Any) -> Any:
        return (
            tuple(change(each) if isinstance(each, Tensor) else each for each in hx)
            if isinstance(hx, tuple)
            else change(hx)
        )

    return apply


def _second(change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    return lambda hx: (hx[0], change(hx[1])) if isinstance(hx, tuple) and len(hx) == 2 else hx


def _longer(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: (
        torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim) if tensor.dim() >= abs(dim + 0.5) else tensor
    )


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "a dimension more": lambda tensor: tensor[None],
    "a dimension less": lambda tensor: tensor[0],
    "a number": lambda tensor: tensor.flatten()[0],
    "float64": lambda tensor: tensor.double(),
    "float16": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "int32": lambda tensor: tensor.int(),
    "bool": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "csr": lambda tensor: tensor.reshape(-1, tensor.shape[-1]).to_sparse_csr() if tensor.dim() else tensor.to_sparse(),
    "mkldnn": lambda tensor: tensor.float().to_mkldnn(),
    "list": lambda tensor: tensor.tolist(),
    "numpy": lambda tensor: tensor.detach().numpy(),
    "None": lambda tensor: None,
    "string": lambda tensor: "x",
    "float": lambda tensor: 3.0,
    "empty": lambda tensor: tensor.new_empty(0),
    "wider": _longer(-1),
    "narrower": lambda tensor: tensor[..., 1:],
    "longer": _longer(0),
    "more rows": _longer(1),
    "nothing": lambda tensor: tensor[:0],
    "no rows": lambda tensor: tensor[:, :0] if tensor.dim() > 1 else tensor,
}
STATES: dict[str, Callable[[Any], Any]] = {
    "the other kind": lambda hx: hx[0] if isinstance(hx, tuple) else (hx, hx),
    "three": lambda hx: (*hx, hx[0]) if isinstance(hx, tuple) else [hx] * 3,
    "one of a pair": lambda hx: hx[:1] if isinstance(hx, tuple) else hx,
    "no state": lambda hx: (),
    "only h": lambda hx: (hx[0], None) if isinstance(hx, tuple) else hx,
    "only c": lambda hx: (None, hx[1]) if isinstance(hx, tuple) else hx,
    "a dict": lambda hx: {"hx": hx},
}
PACKINGS: dict[str, Callable[[PackedSequence], Any]] = {
    "sum too small": lambda p: p._replace(data=torch.cat([p.data, p.data[:1]])),
    "sum too large": lambda p: p._replace(data=p.data[1:]),
    "sizes grow": lambda p: p._replace(batch_sizes=p.batch_sizes.flip(0)),
    "sizes of int32": lambda p: p._replace(batch_sizes=p.batch_sizes.int()),
    "sizes of floats": lambda p: p._replace(batch_sizes=p.batch_sizes.float()),
    "sizes on meta": lambda p: p._replace(batch_sizes=p.batch_sizes.to("meta")),
    "sizes in a list": lambda p: p._replace(batch_sizes=p.batch_sizes.tolist()),
    "no sizes": lambda p: p._replace(batch_sizes=p.batch_sizes[:0]),
    "sizes of rank 2": lambda p: p._replace(batch_sizes=p.batch_sizes[None]),
    "sizes of rank 0": lambda p: p._replace(batch_sizes=p.batch_sizes[0]),
    "too few indices": lambda p: p._replace(sorted_indices=torch.arange(0), unsorted_indices=torch.arange(0)),
    "indices beyond": lambda p: p._replace(
        sorted_indices=torch.full_like(p.batch_sizes[:1], 99).expand(int(p.batch_sizes[0]))
    ),
    "indices in a list": lambda p: p._replace(sorted_indices=list(range(int(p.batch_sizes[0])))),
    "a string of indices": lambda p: p._replace(sorted_indices="x", unsorted_indices="y"),
    "data of rank 3": lambda p: p._replace(data=p.data[None]),
    "data of rank 1": lambda p: p._replace(data=p.data[:, 0]),
    "nothing at all": lambda p: p._replace(data=p.data[:0], batch_sizes=p.batch_sizes[:0]),
}
FAULTS = (
    *(f"x: {name}" for name in TENSORS),
    *(f"hx: {name}" for name in (*TENSORS, *STATES)),
    *(f"c: {name}" for name in TENSORS),
)
# What comes by keyword: each of these raises, whatever the network is.
OPTIONS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "lengths of zero": lambda steps, rows: {"lengths": [0] * rows},
    "negative lengths": lambda steps, rows: {"lengths": [-1] * rows},
    "lengths beyond T": lambda steps, rows: {"lengths": [steps + 1] * rows},
    "too many lengths": lambda steps, rows: {"lengths": [1] * (rows + 1)},
    "lengths of floats": lambda steps, rows: {"lengths": [1.0] * rows},
    "lengths of bools": lambda steps, rows: {"lengths": torch.ones(rows, dtype=torch.bool)},
    "lengths of rank 2": lambda steps, rows: {"lengths": torch.ones(rows, 2, dtype=torch.int64)},
    "a string of lengths": lambda steps, rows: {"lengths": "lengths"},
    "reset of floats": lambda steps, rows: {"reset": torch.zeros(steps, rows)},
    "reset of another shape": lambda steps, rows: {"reset": torch.zeros(steps + 1, rows, dtype=torch.bool)},
    "reset in a list": lambda steps, rows: {"reset": [[False] * rows] * steps},
    "an embedding of floats": lambda steps, rows: {"embedding": 3.0},
    "an embedding without tokens": lambda steps, rows: {"embedding": embedding(torch.zeros(2, 3))},
    "an unknown option": lambda steps, rows: {"mask": None},
}
BUILDS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    **{f"{what} {value!r}": ((*sizes,), {}) for what, value, sizes in [
        *(("input_size", value, (value, 4)) for value in (0, -1, 2.0, "3", None)),
        *(("hidden_size", value, (3, value)) for value in (0, -1, 2.0, "3", None)),
    ]},
    **{f"{name}={value!r}": ((3, 4), {name: value}) for name, value in [
        *(("num_layers", value) for value in (0, -1, 1.5, "2")),
        *(("dropout", value) for value in (-0.1, 1.1, True, "0")),
        *(("proj_size", value) for value in (-1, 0, 4, 5, 2.0)),
        *((name, value) for name in ("bias", "batch_first", "bidirectional") for value in (1, None, "yes")),
        ("nonlinearity", "gelu"), ("dtype", torch.int64), ("dtype", "float"), ("device", "nowhere"), ("unknown", 1),
    ]},
}  # fmt: skip


@st.composite
def bad_calls(draw: Any) -> BadCall:
    kind = draw(one_of("RNN", "LSTM", "GRU", *CELLS))
    cell = kind in CELLS
    own: dict[str, Any] = dict(kind=kind, inputs=draw(SMALL), hidden=draw(SMALL), seed=draw(SEEDS), states="tuple")
    own |= dict(rows=draw(one_of(2, 1, 5, 9)), steps=draw(one_of(3, 1, 8)), bias=draw(usually(True, False, of=4)))
    own["mode"] = draw(one_of("no_grad", "grad"))
    if not cell:
        own |= dict(layers=draw(one_of(1, 2)), both=draw(st.booleans()), batch_first=draw(st.booleans()))
        if kind == "LSTM" and own["hidden"] > 1:
            own["outputs"] = draw(usually(0, 1, of=4))
    what = draw(one_of("call", "call", "call", *(() if cell else ("packing", "options")), "build"))
    if what == "build":
        return BadCall(Case(**own), (draw(one_of(*BUILDS)),))
    if what == "options":
        return BadCall(Case(**own), (draw(one_of(*OPTIONS)),))
    own["form"] = draw(one_of("padded", "single", *(() if cell else PACKED)))
    own["form"] = draw(one_of(*PACKED)) if what == "packing" else own["form"]
    if own["form"] in PACKED:
        lengths = draw(st.lists(st.integers(1, own["steps"]), min_size=own["rows"], max_size=own["rows"]))
        own["lengths"] = tuple(sorted(lengths, reverse=True) if own["form"] == "sorted" else lengths)
    faults = [draw(one_of(*(f"packed: {name}" for name in PACKINGS)))] if what == "packing" else []
    faults += draw(st.lists(one_of(*FAULTS), min_size=1 - len(faults), max_size=2 - len(faults)))
    if draw(usually(False, True, of=3)):
        own["states"] = "none"
    return BadCall(Case(**own), tuple(faults))


def spoilt(fault: str, case: Case, x: Any, hx: Any) -> tuple[Any, Any]:
    where, name = fault.split(": ", 1)
    if where == "packed":
        return PACKINGS[name](x) if isinstance(x, PackedSequence) else x, hx
    if where == "x":
        if isinstance(x, PackedSequence):
            return (x._replace(data=TENSORS[name](x.data)) if isinstance(x.data, Tensor) else x), hx
        return TENSORS[name](x) if isinstance(x, Tensor) else x, hx
    if hx is None:
        return x, hx
    change = STATES.get(name) or (_second if where == "c" else _each)(TENSORS[name])
    return x, change(hx)


Outcome = tuple[type[Exception] | None, Any]


def outcome(function: Callable[..., Any], *arguments: Any, **options: Any) -> Outcome:
    try:
        return None, function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)


def play_bad(bad: BadCall) -> None:
    case, (fault, *_) = bad.case, bad.faults
    with warnings.catch_warnings(), torch.set_grad_enabled(case.mode == "grad"):
        warnings.simplefilter("ignore")
        if fault in BUILDS:
            arguments, options = BUILDS[fault]
            expected, found = (outcome(getattr(library, case.kind), *arguments, **options) for library in (nn, fastrnn))
            assert expected[0] is found[0], f"torch.nn: {expected}, fastrnn: {found}"
            return
        data = data_of(case)
        ours = network(case, fastrnn, data.weights)
        if fault in OPTIONS:
            error, text = outcome(ours, data.x, None, **OPTIONS[fault](case.steps, case.rows))
            assert error in (ValueError, RuntimeError, TypeError, IndexError), f"{error}: {text}"
            assert text
            return
        theirs = network(case, nn, data.weights)
        hx: Any = None
        if case.states != "none":
            hx = data.state if case.name == "LSTM" else data.state[0]
        try:
            x: Any = given(case, data.x)
            for fault in bad.faults:
                x, hx = spoilt(fault, case, x, hx)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return  # two faults that cannot be made together
        if not case.is_cell and are_tokens(x):
            return  # which torch.nn has not
        found = outcome(ours, x, hx)
        if found[0] is not None and (unchecked(case, x, hx) or by_hand(bad, x) and found[0] is not AttributeError):
            return
        expected = outcome(theirs, x, hx)
        if found[0] and issubclass(found[0], RuntimeError) and any("meta" in fault for fault in bad.faults):
            return  # of tensors on several devices torch.nn's cells make numbers from nowhere
        assert expected[0] is found[0], f"torch.nn: {expected}, fastrnn: {found}"
        if expected[0] is None:
            same(expected[1], found[1])


def are_tokens(x: Any) -> bool:
    values = x.data if isinstance(x, PackedSequence) else x
    dims = (1,) if values is not x else (1, 2)
    return isinstance(values, Tensor) and values.dtype is torch.int32 and values.dim() in dims


def by_hand(bad: BadCall, x: Any) -> bool:
    """Parts of a PackedSequence are wrong, which torch.nn meets with errors of any type, or with results."""
    wrong = any(fault.startswith("packed: ") for fault in bad.faults)
    return isinstance(x, PackedSequence) and (wrong or not isinstance(x.data, Tensor))


def unchecked(case: Case, x: Any, hx: Any) -> bool:
    """Where torch.nn reads memory that is not theirs: its LSTM checks no sizes of packed input, its LSTMCell and
    GRUCell take two dimensions of a state for one."""
    if case.kind == "LSTM" and isinstance(x, PackedSequence):
        return True
    states = [state for state in (hx if isinstance(hx, (tuple, list)) else (hx,)) if isinstance(state, Tensor)]
    one = isinstance(x, Tensor) and x.dim() == 1 and case.kind in ("LSTMCell", "GRUCell")
    return one and any(state.dim() == 2 and len(state) == case.hidden for state in states)


def same(expected: Any, found: Any) -> None:
    """Both are of the same structure, and close."""
    if isinstance(expected, Tensor):
        if expected.is_meta:
            assert found.is_meta and found.shape == expected.shape and found.dtype == expected.dtype
        else:
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2, equal_nan=True)
        return
    assert type(expected) is type(found), f"{type(found)}, expected {type(expected)}"
    if isinstance(expected, tuple):
        for one, other in zip(expected, found, strict=True):
            same(one, other)
