"""A default device and a default dtype of torch change nothing: what is made inside is made where its like is."""

from __future__ import annotations

import ast
import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import backends, recompute

ROOT = Path(fastrnn.__file__).parent
KERNELS = Path(__file__).parents[1] / "kernels"
FACTORIES = {"arange", "zeros", "ones", "full", "empty", "tensor", "as_tensor", "rand", "randn", "randint", "eye"}
FACTORIES |= {"linspace", "randperm", "scalar_tensor", "asarray", "empty_strided", "logspace", "normal", "Tensor"}
# The dtype of these follows their arguments, or is integral, so that no default is asked.
OF_ARGUMENTS = {"arange", "as_tensor", "tensor", "asarray", "randint", "randperm", "full"}


def factories(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "torch":
            if called.attr in FACTORIES:
                yield node  # type: ignore[misc]


def test_every_tensor_is_made_on_a_named_device():
    places, count = [], 0
    for path in [*ROOT.rglob("*.py"), *KERNELS.rglob("*.py")]:
        for call in factories(path):
            count += 1
            given, name = {keyword.arg for keyword in call.keywords}, call.func.attr  # type: ignore[attr-defined]
            if "device" not in given or name not in OF_ARGUMENTS and "dtype" not in given:
                places.append(f"{path.name}:{call.lineno}: torch.{name}")
    assert count > 10
    assert not places, "these ask for torch's default device or dtype"


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Any] = {
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float64),
}


def flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [each for part in results for each in flat(part)]


def everything() -> dict[str, list[Any]]:
    """What can be run -> the module or function, its arguments and those by keyword; all tensors are made here."""
    torch.manual_seed(0)
    x, one, tokens = torch.randn(7, 3, 4), torch.randn(7, 4), torch.randint(4, (7, 3))
    lengths, reset = torch.tensor([7, 2, 5]), torch.rand(7, 3) < 0.3
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    core = backends.available()["cpp"] is None
    table, wide = nn.Embedding(4, 4), {"num_layers": 2, "bidirectional": True}
    calls: dict[str, list[Any]] = {}
    for kind in ("RNN", "LSTM", "GRU", "JordanRNN"):
        sizes = (4, 5, 5) if kind == "JordanRNN" else (4, 5)
        for name, options in {"": {}, " deep": wide}.items():
            module, last = getattr(fastrnn, kind)(*sizes, **options), not name
            state = torch.randn(1 if last else 4, 3, 5)
            hx = (state, state) if kind == "LSTM" else state
            forms = {
                "": (x, None, {}), " state": (x, hx, {}), " one": (one, None, {}), " packed": (packed, None, {}),
                " lengths": (x, None, {"lengths": lengths}), " list of lengths": (x, hx, {"lengths": [7, 2, 5]}),
                " reset": (x, hx, {"reset": reset}), " both": (x, hx, {"reset": reset, "lengths": lengths}),
                " tokens": (tokens, None, {}), " tokens of 32 bits": (tokens.int(), None, {"lengths": lengths}),
                " embedding": (tokens, None, {"embedding": table}),
                " packed tokens": (pack_padded_sequence(tokens, lengths, enforce_sorted=False), None, {}),
            }  # fmt: skip
            calls |= {f"{kind}{name}{form}": [module, *rest] for form, rest in forms.items()}
            for option in ("recompute", "learn_initial_state"):
                other = getattr(fastrnn, kind)(*sizes, **options, **{option: True})
                for form in ("", " packed", " lengths", " reset", " tokens"):
                    calls[f"{kind}{name} {option}{form}"] = [other, forms[form][0], None, forms[form][2]]
            if kind == "JordanRNN":
                continue
            others = {"compilable": fastrnn.convert(copy.deepcopy(module), compilable=True)}
            if core:
                others["int8"] = fastrnn.quantize_dynamic(module)
            for other, converted in others.items():
                calls |= {f"{kind} {other}{form}": [converted, *forms[form]] for form in ("", " state", " packed")}
        weights = list(getattr(fastrnn, kind)(*sizes)._flat_weights)
        function = {"RNN": fastrnn.rnn, "LSTM": fastrnn.lstm, "GRU": fastrnn.gru, "JordanRNN": fastrnn.jordan_rnn}[kind]
        calls[f"function {kind}"] = [function, x, None, {"weights": weights}]
        calls[f"function {kind} packed"] = [
            function, packed.data, None, {"weights": weights, "batch_sizes": packed.batch_sizes},
        ]  # fmt: skip
    calls["LSTM cell states"] = [fastrnn.LSTM(4, 5), x, None, {"return_cell_states": True, "lengths": lengths}]
    calls["LSTM half a state"] = [
        fastrnn.lstm, x, (torch.ones(1, 3, 5), None), {"weights": fastrnn.LSTM(4, 5)._flat_weights},
    ]  # fmt: skip
    for kind in ("RNNCell", "LSTMCell", "GRUCell"):
        cell = getattr(fastrnn, kind)(4, 5)
        calls |= {kind: [cell, x[0], None, {}], f"{kind} one": [cell, one[0], None, {}]}
        if core:
            calls[f"{kind} int8"] = [fastrnn.quantize_dynamic(cell), x[0], None, {}]
    return calls


def results(calls: dict[str, list[Any]], around: Any) -> dict[str, list[Tensor]]:
    """What each call gives, without gradients and with, and the gradients of its parameters."""
    found: dict[str, list[Tensor]] = {}
    for name, (run, x, hx, own) in calls.items():
        with around:
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    outputs = flat(run(x, hx, **own))
                found[f"{name} {grad}"] = outputs
            leaves = [p for p in run.parameters() if p.requires_grad] if isinstance(run, nn.Module) else []
            if leaves and outputs[0].requires_grad:
                total = torch.stack([output.square().sum() for output in outputs]).sum()
                grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
                found[f"{name} gradients"] = [*grads]
    return found


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, list[Any]], dict[str, list[Tensor]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute, "CHUNK_ROWS", 4)
        calls = everything()
        return calls, results(calls, contextlib.nullcontext())


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_results_are_the_same_to_the_bit(plain, around, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recompute, "CHUNK_ROWS", 4)
    calls, wanted = plain
    found = results(calls, _Again(around))
    assert found.keys() == wanted.keys() and len(found) > 300
    for name, tensors in found.items():
        for ours, right in zip(tensors, wanted[name], strict=True):
            assert ours.device == right.device and ours.dtype == right.dtype, name
            assert torch.equal(ours, right), name


class _Again:
    """A context manager that may be entered many times, of a function that makes one for one time."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __enter__(self) -> None:
        self.one = self.make()
        self.one.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.one.__exit__(*error)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("name", [name for name in backends.NAMES if name != "cpp"])
def test_other_backends_too(name: str, around: Any):
    if reason := backends.available()[name]:
        pytest.skip(reason)
    torch.manual_seed(0)
    network, x, lengths = fastrnn.GRU(3, 4, bidirectional=name != "triton"), torch.randn(2, 2, 3), torch.tensor([2, 1])
    found = []
    for context in (contextlib.nullcontext(), around()):
        with context, fastrnn.use_backend(name):
            y, hn = network(x, lengths=lengths)
            grads = torch.autograd.grad(torch.stack([y.sum(), hn.square().sum()]).sum(), [*network.parameters()])
            found.append([y, hn, *grads])
    assert all(torch.equal(ours, right) and ours.dtype == right.dtype for ours, right in zip(*found, strict=True))


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_what_changes_and_watches_modules(around: Any):
    """Conversion, initial values and diagnostics of modules that are there already."""
    found = []
    for context in (contextlib.nullcontext(), around()):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.LSTM(3, 4)), torch.randn(5, 2, 3)
        with context:
            ours = fastrnn.convert(model)
            for scheme in ("orthogonal_", "xavier_uniform_", "forget_bias_"):
                getattr(fastrnn.init, scheme)(ours)
            fastrnn.init.chrono_(ours, 10)
            with fastrnn.diagnostics.gradient_norms(ours) as norms:
                ours(x)[0].square().sum().backward()
            theirs = fastrnn.revert(ours)
            found.append([*theirs.parameters(), *(p.grad for p in theirs.parameters()), *norms.values()])
    for ours, right in zip(*found, strict=True):
        assert torch.equal(ours, right) and ours.dtype == right.dtype
