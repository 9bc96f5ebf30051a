"""The modules against torch.nn's: outputs, last states and every gradient of each form, on every backend.

torch.nn in float64 is exact here, torch.nn in the tested dtype says what rounding does, and the budget follows from the
two as in :func:`support.expect`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from support import assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastrnn

NAMES = ("RNN", "LSTM", "GRU")
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """One way to build and call a module.  ``call`` is one of the ways of :func:`arguments`."""

    name: str = "LSTM"
    call: str = "batched"
    options: dict[str, Any] = field(default_factory=dict)
    state: bool = True
    dtype: torch.dtype = torch.float32
    small: bool = False
    inputs: int = 5
    hidden: int = 17

    def __str__(self) -> str:
        words = [f"{key}={value}" for key, value in self.options.items()]
        return "-".join([self.name, self.call, *words, *["nostate"] * (not self.state), str(self.dtype)[6:]])

    def build(self, package: Any, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        drawn = getattr(package, self.name)(self.inputs, self.hidden, **self.options, dtype=self.dtype)
        return drawn.to(dtype)


FORMS = [
    Form("RNN", small=True),
    Form("RNN", "packed", {"nonlinearity": "relu", "bidirectional": True}),
    Form("LSTM", small=True),
    Form("LSTM", "packed", {"bidirectional": True, "num_layers": 2}, small=True),
    Form("LSTM", "unbatched", {"num_layers": 2, "bias": False}, state=False),
    Form("LSTM", "strided", {"proj_size": 7, "bidirectional": True, "num_layers": 2}),
    Form("LSTM", "unsorted", {"proj_size": 7}),
    Form("LSTM", "batched", {"batch_first": True}, state=False),
    Form("GRU", small=True),
    Form("GRU", "unsorted", {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    Form("GRU", "unbatched", {"batch_first": True, "bidirectional": True}),
    Form("GRU", "strided", {"num_layers": 3, "dropout": 0.5}),
    Form("LSTM", "batched", {"num_layers": 3, "dropout": 0.5, "bidirectional": True}),
    Form("RNN", "unsorted", {"num_layers": 2, "dropout": 0.5}, state=False),
    Form("LSTM", "no rows", {"num_layers": 2}),
    Form("RNNCell", "cell", {"nonlinearity": "relu"}, small=True),
    Form("RNNCell", "one", {}),
    Form("LSTMCell", "cell", small=True),
    Form("LSTMCell", "one", {"bias": False}, state=False),
    Form("GRUCell", "cell", {"bias": False}, small=True),
    Form("GRUCell", "one", {}, state=False),
]
FORMS += [replace(form, dtype=torch.float64, small=False) for form in FORMS[1::3]]
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
forms = pytest.mark.parametrize("case", FORMS, ids=str)


def arguments(form: Form, seed: int) -> tuple[Tensor, list[Tensor]]:
    """The tensors that make the input, and the state, if any, drawn in the form's dtype."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(form.dtype)

    x = {
        "batched": (6, 3, form.inputs),
        "strided": (form.inputs, 6, 3),
        "packed": (3, 6, form.inputs),
        "unsorted": (3, 6, form.inputs),
        "unbatched": (6, form.inputs),
        "no rows": (6, 0, form.inputs),
        "cell": (3, form.inputs),
        "one": (form.inputs,),
    }[form.call]
    if not form.state:
        return normal(*x), []
    count = form.options.get("num_layers", 1) * (1 + form.options.get("bidirectional", False))
    rows = {"no rows": 0, "strided": 6 if form.options.get("batch_first") else 3}.get(form.call, 3)
    if form.call == "batched" and form.options.get("batch_first"):
        rows = 6
    lead = {"unbatched": (count,), "cell": (rows,), "one": ()}.get(form.call, (count, rows))
    sizes = [form.options.get("proj_size", form.hidden)] + [form.hidden] * form.name.startswith("LSTM")
    return normal(*x), [normal(*lead, size) for size in sizes]


def called(form: Form, x: Tensor) -> Tensor | PackedSequence:
    if form.call == "strided":
        return x.permute(1, 2, 0)
    if form.call in ("packed", "unsorted"):
        lengths = [6, 3, 3] if form.call == "packed" else [2, 6, 3]
        return pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=form.call == "packed")
    return x


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of any nest of results, in order."""
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from tensors(part)


def run(form: Form, module: nn.Module, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu") -> Results:
    """Outputs and every gradient, each under its name."""
    module = module.to(device)
    module.zero_grad()
    x, states = arguments(form, seed)
    x, *states = (t.to(device, dtype).requires_grad_() for t in (x, *states))
    torch.manual_seed(seed)  # for dropout
    out = module(called(form, x), *([] if not states else [tuple(states) if len(states) == 2 else states[0]]))
    results = {f"output {k}": t for k, t in enumerate(tensors(out))}
    weight = torch.Generator().manual_seed(seed + 100)
    total = sum((t * torch.randn(t.shape, generator=weight).to(t)).sum() for t in results.values())
    total.backward()
    leaves = {"x": x} | {f"state {k}": t for k, t in enumerate(states)} | dict(module.named_parameters())
    return results | {f"grad {name}": leaf.grad for name, leaf in leaves.items()}


@functools.cache
@torch.enable_grad()  # whoever asks first may not want derivatives
def judged(form_key: str) -> tuple[list[Results], dict[str, float]]:
    """Exact results of a few draws, and the budget of each result."""
    form = next(form for form in FORMS_AND_PROPERTIES if str(form) == form_key)
    narrow = torch.float32
    eps, narrow_eps = torch.finfo(form.dtype).eps, torch.finfo(narrow).eps
    share = 1.0 if form.dtype == narrow else 2 * eps / narrow_eps
    exact = [run(form, form.build(nn, torch.float64), torch.float64, seed) for seed in range(4)]
    rounded = [run(form, form.build(nn, narrow), narrow, seed) for seed in range(4)]
    budgets = {}
    for name in exact[0]:
        noise = max(largest(r[name].double() - e[name]) for r, e in zip(rounded, exact, strict=True))
        budgets[name] = 2 * (share * noise + eps * max(largest(e[name]) for e in exact))
    return exact, budgets


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def drawn_alike(form: Form) -> bool:
    """A GPU has a dropout of its own."""
    return not form.options.get("dropout")


@forms
def test_form(target, case: Form):
    if target.device.type != "cpu" and not drawn_alike(case):
        pytest.skip("dropout draws other numbers on this device")
    exact, budgets = judged(str(case))
    module = case.build(fastrnn, case.dtype)
    with fastrnn.use_backend(target.name):
        results = run(case, module, case.dtype, 0, target.device)
    assert results.keys() == exact[0].keys()
    for name, value in results.items():
        assert_close(value, exact[0][name], budgets[name], case.dtype, name)


@forms
def test_without_gradients(target, case: Form):
    if target.device.type != "cpu" and not drawn_alike(case):
        pytest.skip("dropout draws other numbers on this device")
    exact, budgets = judged(str(case))
    module = case.build(fastrnn, case.dtype).to(target.device)
    x, states = arguments(case, 0)
    x, *states = (t.to(target.device) for t in (x, *states))
    torch.manual_seed(0)
    with torch.no_grad(), fastrnn.use_backend(target.name):
        out = module(called(case, x), *([] if not states else [tuple(states) if len(states) == 2 else states[0]]))
    for k, value in enumerate(tensors(out)):
        assert not value.requires_grad
        assert_close(value, exact[0][f"output {k}"], budgets[f"output {k}"], case.dtype, f"output {k}")


@pytest.mark.parametrize("case", [form for form in FORMS if form.call in ("packed", "unsorted")], ids=str)
def test_a_packed_sequence_comes_back_as_it_was_packed(target, case: Form):
    x, _ = arguments(case, 0)
    given = called(case, x.to(target.device))
    with fastrnn.use_backend(target.name):
        out = case.build(fastrnn, case.dtype).to(target.device)(given)[0]
    assert isinstance(out, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        before, after = getattr(given, name), getattr(out, name)
        assert after is before


PROPERTIES = [Form(name, "batched", {"num_layers": 2}, small=name != "RNN") for name in NAMES]
FORMS_AND_PROPERTIES = FORMS + PROPERTIES
properties = pytest.mark.parametrize("case", PROPERTIES, ids=str)


def same(case: Form, first: Any, second: Any) -> None:
    """Both are outputs of one backend for the same values, so they differ by twice an output's budget at most."""
    budget = 2 * max(value for name, value in judged(str(case))[1].items() if name.startswith("output"))
    for a, b in zip(tensors(first), tensors(second), strict=True):
        assert_close(a, b.double(), budget, case.dtype)


def setup(target, case: Form) -> tuple[Any, Tensor, Any]:
    module = case.build(fastrnn, case.dtype).to(target.device)
    x, states = arguments(case, 0)
    x, *states = (t.to(target.device) for t in (x, *states))
    return module, x, tuple(states) if len(states) == 2 else states[0]


def part(hx: Any, rows: slice) -> Any:
    return tuple(h[:, rows] for h in hx) if isinstance(hx, tuple) else hx[:, rows]


@properties
def test_a_run_cut_in_two_is_the_whole_run(target, case: Form):
    module, x, hx = setup(target, case)
    with fastrnn.use_backend(target.name), torch.no_grad():
        whole = module(x, hx)
        head, state = module(x[:2], hx)
        tail, state = module(x[2:], state)
    same(case, whole, (torch.cat([head, tail]), state))


@properties
def test_packed_is_each_sequence_alone(target, case: Form):
    module, x, hx = setup(target, case)
    lengths = [2, 6, 3]
    with fastrnn.use_backend(target.name), torch.no_grad():
        packed = pack_sequence([x[:n, b] for b, n in enumerate(lengths)], enforce_sorted=False)
        out, state = module(packed, hx)
        padded, _ = pad_packed_sequence(out)
        for b, n in enumerate(lengths):
            own = slice(b, b + 1)
            alone = module(x[:n, own], part(hx, own))
            same(case, (padded[:n, own], part(state, own)), alone)


@properties
def test_one_seed_gives_one_dropout(target, case: Form):
    module, x, hx = setup(target, replace(case, options={"num_layers": 2, "dropout": 0.5}))
    with fastrnn.use_backend(target.name):
        torch.manual_seed(3)
        first = module(x, hx)
        torch.manual_seed(3)
        again = module(x, hx)
        other = module(x, hx)
        evaluated = copy.deepcopy(module).eval()(x, hx), module.eval()(x, hx)
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))
    assert not torch.equal(first[0], other[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors(evaluated[0]), tensors(evaluated[1]), strict=True))
