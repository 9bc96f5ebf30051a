"""Every class and option, called in every form: what those that make graphs of modules are tried on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import compilable

INPUTS, HIDDEN = 4, 5
NAMES = ("RNN", "LSTM", "GRU")


class Kind(NamedTuple):
    """A class of ours, and what it can be told."""

    make: Callable[..., nn.Module]
    options: tuple[str, ...] = ()  # of the module
    calls: tuple[str, ...] = ()  # by keyword, beside hx
    refused: str = ""  # of the class, by those that hold T


CALLS = "lengths", "reset", "embedding", "tokens"
OURS = ("learn_initial_state", "recompute"), CALLS
LSTMS = ("learn_initial_state", "recompute", "return_cell_states"), (*CALLS, "return_cell_states")


def layers(library: Any, name: str, **given: Any) -> Callable[..., nn.Module]:
    return lambda **options: getattr(library, name)(INPUTS, HIDDEN, **given, **options, dtype=torch.float64)


def jordan(**options: Any) -> nn.Module:
    return fastrnn.JordanRNN(INPUTS, HIDDEN, 3, num_layers=2, bidirectional=True, **options, dtype=torch.float64)


def int8(name: str) -> Callable[..., nn.Module]:
    return lambda: fastrnn.quantize_dynamic(getattr(nn, name)(INPUTS, HIDDEN))


KINDS = {
    "RNN": Kind(layers(fastrnn, "RNN", nonlinearity="relu", num_layers=2), *OURS),
    "LSTM": Kind(layers(fastrnn, "LSTM", num_layers=2, bidirectional=True), *LSTMS),
    "LSTM proj_size": Kind(layers(fastrnn, "LSTM", proj_size=3, batch_first=True), *LSTMS),
    "GRU": Kind(layers(fastrnn, "GRU", batch_first=True, bidirectional=True, bias=False), *OURS),
    "compilable RNN": Kind(layers(compilable, "RNN", bidirectional=True), (), ("tokens",)),
    "compilable LSTM": Kind(layers(compilable, "LSTM", num_layers=2, batch_first=True), (), ("tokens",)),
    "compilable GRU": Kind(layers(compilable, "GRU", num_layers=2), (), ("tokens",)),
    "JordanRNN": Kind(jordan, *OURS, refused="JordanRNN"),
    "RNNCell": Kind(layers(fastrnn, "RNNCell")),
    "LSTMCell": Kind(layers(fastrnn, "LSTMCell", bias=False)),
    "GRUCell": Kind(layers(fastrnn, "GRUCell")),
    "QuantizedLSTM": Kind(int8("LSTM"), refused="QuantizedLSTM"),
    "QuantizedGRU": Kind(int8("GRU"), refused="QuantizedGRU"),
    "QuantizedRNNCell": Kind(int8("RNNCell"), refused="QuantizedRNNCell"),
}


def tensors(result: Any) -> tuple[Tensor, ...]:
    if isinstance(result, PackedSequence):
        return (result.data,)
    return (result,) if isinstance(result, (Tensor, fx.Proxy)) else sum(map(tensors, result), ())


class Call(nn.Module):
    """One call of a module in one form: all that it is given is a tensor, whatever the module wants."""

    def __init__(self, rnn: nn.Module, *used: str) -> None:
        super().__init__()
        self.rnn = rnn
        self.used = used
        self.table = nn.Embedding(9, INPUTS, dtype=torch.float64)
        self.indices: tuple[Tensor | None, ...] = ()

    def forward(
        self,
        x,
        h0=None,
        c0=None,
        batch_sizes=None,
        sorted_indices=None,
        unsorted_indices=None,
        lengths=None,
        reset=None,
    ):
        options = {}
        if lengths is not None:
            options["lengths"] = lengths
        if reset is not None:
            options["reset"] = reset
        if "embedding" in self.used:
            options["embedding"] = self.table
        if "return_cell_states" in self.used:
            options["return_cell_states"] = True
        indices = self.indices if batch_sizes is None else (batch_sizes, sorted_indices, unsorted_indices)
        x = PackedSequence(x, *indices) if indices else x
        result = self.rnn(x, h0 if c0 is None else (h0, c0), **options)
        return tensors(result)


class Case(NamedTuple):
    """A class, with an option of the module or none, called in one form."""

    kind: str
    option: str
    form: tuple[str, ...]  # of: state, single, packed, unsorted, and the words of `CALLS`

    def module(self) -> Call:
        kind = KINDS[self.kind]
        torch.manual_seed(1)
        rnn = kind.make(**({self.option: True} if self.option else {}))
        if self.option == "learn_initial_state":
            with torch.no_grad():
                for name, parameter in rnn.named_parameters():
                    if name.startswith("initial"):
                        parameter.normal_()
        return Call(rnn, *self.form)

    @property
    def refused(self) -> str:
        """What no graph that is to run at any T may hold, as a regular expression."""
        words = {"return_cell_states", "reset"}.intersection((self.option, *self.form))
        return "|".join(sorted(words) + [KINDS[self.kind].refused] * bool(KINDS[self.kind].refused))

    def arguments(self, call: Call, steps: int, rows: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rnn: Any = call.rnn
        dtype = torch.float32 if "Quantized" in self.kind else torch.float64

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        def rows_of(count: int) -> Tensor:
            if "tokens" in self.form or "embedding" in self.form:
                return torch.randint(INPUTS, (count,), generator=generator)
            return normal(count, INPUTS)

        if "Cell" in self.kind:
            lead = () if "single" in self.form else (rows,)
            given = {"x": normal(*lead, INPUTS)}
            if "state" in self.form:
                given["h0"] = normal(*lead, HIDDEN)
                if "LSTM" in self.kind:
                    given["c0"] = normal(*lead, HIDDEN)
            return given
        if "packed" in self.form or "unsorted" in self.form:
            sizes = sorted(torch.randint(1, steps + 1, (rows,), generator=generator).tolist(), reverse=True)
            sizes = sizes[::-1] if "unsorted" in self.form else sizes
            packed = pack_sequence([rows_of(size) for size in sizes], enforce_sorted="unsorted" not in self.form)
            given = {"x": packed.data, "batch_sizes": packed.batch_sizes}
            if "unsorted" in self.form:
                given |= {"sorted_indices": packed.sorted_indices, "unsorted_indices": packed.unsorted_indices}
            lead = (rows,)
        else:
            shape = (steps,) if "single" in self.form else (rows, steps) if rnn.batch_first else (steps, rows)
            x = rows_of(torch.Size(shape).numel())
            given, lead = {"x": x.view(*shape, *x.shape[1:])}, () if "single" in self.form else (rows,)
            if "lengths" in self.form:
                given["lengths"] = torch.randint(1, steps + 1, lead, generator=generator)
            if "reset" in self.form:
                given["reset"] = torch.rand(shape, generator=generator) < 0.3
        if "state" in self.form:
            slots = rnn.num_layers * (2 if rnn.bidirectional else 1)
            given["h0"] = normal(slots, *lead, rnn.proj_size or HIDDEN)
            if "LSTM" in self.kind:
                given["c0"] = normal(slots, *lead, HIDDEN)
        return given


def cases() -> Iterator[Case]:
    """Every class x option of the module x form of the input x what is said by keyword x state given or not."""
    for name, kind in KINDS.items():
        forms = ("", "single") if "Cell" in name else ("", "single", "packed", "unsorted")
        for option, form, call, state in itertools.product(
            ("", *kind.options), forms, ("", *kind.calls), ("", "state")
        ):
            if form in ("packed", "unsorted") and call in ("lengths", "reset"):
                continue  # an error, traced or not
            if call == "embedding" and option == "recompute":
                continue  # as without
            yield Case(name, option, tuple(word for word in (form, call, state) if word))


def few(every: int, chosen: Callable[[Case], bool] = lambda case: True) -> list[Any]:
    """The chosen cases, of which `make test` has every so manieth, `make test-slow` the others."""
    found = []
    for n, case in enumerate(filter(chosen, cases())):
        name = "-".join(filter(None, (case.kind, case.option, *case.form))).replace(" ", "_")
        found.append(pytest.param(case, id=name, marks=[pytest.mark.slow] if n % every else []))
    return found


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(tree_leaves(found), tree_leaves(expected), rtol=1e-9, atol=1e-10)
