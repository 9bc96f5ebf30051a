"""Hypothesis strategies: networks and calls, all that goes together, odd sizes and plain ones."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from fuzz.cases import CELLS, LAYOUTS, PACKED, Case
from fuzz.changes import CHANGES
from hypothesis import strategies as st


@functools.lru_cache(maxsize=None, typed=True)
def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@functools.lru_cache(maxsize=None, typed=True)
def usually(value: Any, *others: Any, of: int = 8) -> st.SearchStrategy[Any]:
    """``value``, one time in ``of`` one of the others."""
    return st.sampled_from([value] * ((of - 1) * len(others)) + [*others])


SMALL = one_of(1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17)
LARGE = one_of(5, 8, 16, 23, 24, 25, 31, 32, 33, 40, 63, 64, 65, 96, 100, 127, 128, 129, 200, 256, 257)
KINDS = one_of("LSTM", "LSTM", "GRU", "GRU", "RNN", "RNN", *CELLS, "JordanRNN")
SEEDS = st.integers(0, 2**31)
ODD = ("inf", "-inf", "nan", "1e4", "-3e38", "1e-40")
OVERLAPPING = ("row", "column", "windows")
CHANGED = (*((change,) for change in CHANGES), ("none", "neg unseen", "double"), ("columns", "none", "data", "half"))


@st.composite
def cases(draw: Any) -> Case:
    kind = draw(KINDS)
    cell, name, wide = kind in CELLS, kind.removesuffix("Cell"), draw(usually(False, True))
    size = LARGE if wide else SMALL
    own: dict[str, Any] = dict(kind=kind, inputs=draw(size), hidden=draw(size), seed=draw(SEEDS))
    own["dtype"] = draw(one_of("f32", "f32", "f32", "f32", "f64", "f64", "bf16", "f16"))
    own["bias"] = draw(usually(True, False, of=4))
    if name in ("RNN", "JordanRNN"):
        own["nonlinearity"] = draw(one_of("tanh", "relu"))
    if kind == "JordanRNN":
        own["output"], own["outputs"] = draw(one_of("identity", "tanh", "relu", "sigmoid")), draw(size)
    own["rows"] = draw(one_of(1, 2, 3, 5, 8, 17) if wide else one_of(1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33))
    own["steps"] = draw(usually(3, 1, 2, 4, 5, 6, of=2) if wide else usually(3, 1, 2, 4, 5, 8, 13, 30, of=2))
    own["form"] = draw(usually("padded", "single", of=4) if cell else usually("padded", "single", *PACKED, of=2))
    if not cell:
        own |= draw(_layers(kind, own["form"], own["hidden"], own["steps"], own["rows"]))
    own["mode"] = draw(one_of("grad", "grad", "grad", "no_grad", "no_grad", "inference"))
    if own["mode"] == "grad":
        own["needs"] = draw(usually("xhw", "", "x", "h", "w", "xw", "hw", of=3))
        own["seeds"] = draw(usually("yhc", "y", "h", "c", "yc", of=3))
        own["grads"] = draw(usually("plain", *LAYOUTS[1:], of=3))
    own["states"] = draw(usually("none", "tuple", "list", *LAYOUTS[1:], of=2))
    own["layout"] = draw(usually("plain", *LAYOUTS[1:], of=2))
    own["weights"] = draw(usually("plain", "turned", "sliced", "wide", "offset", "negative"))
    own["threads"] = draw(usually(1, 2, of=12))
    own["gain"] = draw(usually(1.0, 0.1, 2.0, of=4))
    own["odd"] = draw(usually("", *ODD, of=10))
    own["backend"] = draw(usually("", "cpp", "reference"))
    own["changes"] = draw(usually((), *CHANGED, of=3))
    return Case(**draw(_together(Case(**own))))


@st.composite
def _layers(draw: Any, kind: str, form: str, hidden: int, steps: int, rows: int) -> dict[str, Any]:
    """What a network has beyond a cell."""
    found: dict[str, Any] = dict(layers=draw(usually(1, 2, 3, of=2)), both=draw(st.booleans()))
    found |= dict(batch_first=draw(st.booleans()), training=draw(st.booleans()))
    if kind == "LSTM" and hidden > 1 and draw(usually(False, True, of=4)):
        found["outputs"] = draw(st.integers(1, hidden - 1))
    if form in PACKED or (form == "padded" and draw(usually(False, True, of=5))):
        lengths = draw(st.lists(st.integers(1, steps), min_size=rows, max_size=rows))
        found["lengths"] = tuple(sorted(lengths, reverse=True) if form == "sorted" else lengths)
    if form not in PACKED:
        found["reset"] = draw(usually(False, True, of=6))
    found["tokens"] = draw(usually("", "onehot", "embedding", "weight", of=5))
    if found["tokens"]:
        found["vocabulary"] = draw(st.integers(1, 6))
    found["recompute"] = draw(usually(False, True, of=6))
    found["learned"] = draw(usually(False, True, of=6))
    found["cells"] = kind == "LSTM" and draw(usually(False, True, of=6))
    return found


@st.composite
def _together(draw: Any, case: Case) -> dict[str, Any]:
    """The case with what depends on all the rest, and without what does not go together."""
    own = dict(vars(case))
    plain = case.torch_has_it and not case.recompute
    paths = ["deepcopy", "pickle", "state_dict", "functional_call"]
    if plain:
        paths += ["converted", *(() if case.is_cell else ("compilable", "again"))]
    if plain and case.form not in PACKED and not case.backend:
        paths += ["vmap"] if case.mode != "inference" else []
    flat = case.form in PACKED[:1] or (case.form == "padded" and not case.lengths)
    if not case.is_cell and flat and not (case.reset or case.recompute or case.learned):
        paths += ["functional"] if case.tokens in ("", "onehot") else []
    own["path"] = draw(usually("module", *paths, of=2))
    if case.weights == "negative":  # torch._foreach_add_ takes none
        own["changes"] = tuple(change for change in case.changes if change != "step")
    if own["path"] == "vmap":
        return own
    if plain and case.layers > 1:
        own["dropout"] = draw(usually(0.0, 0.3, 1.0, of=4))
    if plain and not case.backend and case.dtype == "f32":
        own["autocast"] = draw(usually(False, True))
    if case.lengths or case.reset or case.tokens or own.get("autocast"):
        own["odd"] = ""
    small = max(case.inputs, case.hidden, case.outputs, case.rows) < 20 and case.steps < 6
    if small and case.mode == "grad" and case.dtype in ("f32", "f64") and not own["odd"] and not own.get("autocast"):
        own["twice"] = not own["dropout"] and draw(usually(False, True, of=4))
    if own["odd"] == "-3e38" and case.layout in OVERLAPPING:
        own["layout"] = "plain"  # many of these overflow in one order of a sum and not in another
    if case.tokens and case.layout in OVERLAPPING:
        own["layout"] = "plain"
    return own


def calls(number: int) -> st.SearchStrategy[Any]:
    """What the chunk of this number is made of: one in five is bad calls, a few go to backends that take their time to
    compile or to interpret."""
    from fuzz.bad import bad_calls

    if number % 5 == 4:
        return bad_calls()
    if number % 10 == 1:
        return cases().map(lambda case: replace(case, backend="numba", autocast=False))
    if number % 20 == 2:
        return one_of(*range(4)).flatmap(lambda k: cases().map(_tiny) if k == 3 else cases())
    if number % 20 == 3:
        return of_8_bits()
    return cases()


def _tiny(case: Case) -> Case:
    """For the interpreter of Triton, where a step takes milliseconds."""
    small = dict(steps=1, inputs=2, hidden=2, layers=1, outputs=min(case.outputs, 1), vocabulary=2, reset=False)
    small |= dict(form="padded" if case.form in PACKED else case.form, lengths=(), backend="triton", changes=())
    return replace(case, autocast=False, **small)


def of_8_bits() -> st.SearchStrategy[Case]:
    return cases().filter(lambda case: case.kind != "JordanRNN").map(_narrowed)


def _narrowed(case: Case) -> Case:
    """Weights of 8 bits run forward alone, in float32, and take none of the options."""
    own: dict[str, Any] = dict(narrow=True, dtype="f32", needs="", twice=False, autocast=False, changes=(), backend="")
    own |= dict(reset=False, tokens="", cells=False, learned=False, recompute=False, dropout=0.0)
    own |= dict(lengths=case.lengths if case.form in PACKED else (), odd="" if case.odd in ODD[-2:] else case.odd)
    own |= dict(path=case.path if case.path in ("module", "deepcopy", "pickle", "state_dict") else "module")
    return replace(case, **own)
