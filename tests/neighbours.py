"""Modules of ours as rows of `test_neighbours.py`, and what its columns, all that takes a module, are made with.

A column takes a row and its module, has its function do to them what users do, and returns what is to be compared with
the module's own results: results of its own, or pairs of what was found and what is right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.kinds import record

KINDS = (fastrnn.Network, record())[1]  # with the networks of any cell, which this imports
INPUTS, HIDDEN, OUTPUTS, STEPS, ROWS, VOCABULARY = 4, 5, 3, 6, 2, 3


# Options of a network of any cell that drop something: all in training, zoneout in evaluation, too.
DROPS: dict[str, Any] = {"zoneout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.4}
seed = torch.default_generator.manual_seed  # torch.manual_seed, for a GPU to come, writes down who called: 5 ms


@dataclass(frozen=True)
class Row:
    """A module of ours: a class, the arguments of its construction, the options that are on, those of its calls."""

    kind: str
    variant: str = "ours"
    form: dict[str, Any] = field(default_factory=dict, hash=False)
    options: tuple[str, ...] = ()
    call: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join(
            [self.kind, *map(str, self.form.values()), self.variant, *self.options, *(f"{name}=" for name in self.call)]
        )

    @property
    def traits(self) -> set[str]:
        found = {self.kind, self.variant, *self.form, *map(str, self.form.values()), *self.options, *self.call}
        if self.is_cell:
            return found | {"cell"}
        return found | {"default"} if self.variant == "ours" and KINDS[self.kind].theirs else found

    @property
    def is_of_any_cell(self) -> bool:
        return self.kind.startswith("Network")

    @property
    def drops(self) -> dict[str, Any]:
        """The options on that drop something."""
        return {name: DROPS[name] for name in self.options if name in DROPS}

    @property
    def is_cell(self) -> bool:
        return self.kind.endswith("Cell")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.variant == "int8" else torch.float64

    def theirs(self) -> Any:
        """torch.nn's module; of a network that torch.nn has not, ours without options but those that drop."""
        cls = KINDS[self.kind].theirs
        if self.is_of_any_cell:
            made: Any = KINDS[self.kind].ours
            return made(fastrnn.cells.LSTM, INPUTS, HIDDEN, **self.drops, dtype=self.dtype).eval()
        if cls is None:
            return fastrnn.JordanRNN(INPUTS, HIDDEN, OUTPUTS, **self.form, dtype=self.dtype)
        return cls(INPUTS, HIDDEN, **self.form, dtype=self.dtype)

    def build(self) -> Any:
        """The module; a learned initial state is none of zeros."""
        seed(0)
        theirs = self.theirs()
        if self.variant != "ours":
            return BUILT[self.variant](theirs)
        sizes: Any = (INPUTS, HIDDEN, OUTPUTS)[: 3 if self.kind == "JordanRNN" else 2]
        sizes = (fastrnn.cells.LSTM, *sizes) if self.is_of_any_cell else sizes
        ours: Any = KINDS[self.kind].ours
        options = dict.fromkeys(self.options, True) | self.drops
        made = ours(*sizes, **self.form, **options, dtype=self.dtype)
        made.train(not self.is_of_any_cell)  # without what is random
        made.load_state_dict(theirs.state_dict(), strict=False)
        for name in ("initial_h", "initial_c"):
            if hasattr(made, name):
                nn.init.normal_(getattr(made, name))
        return made

    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if "embedding" in self.call:
            return torch.randint(VOCABULARY, (STEPS, ROWS), generator=generator)
        shape = (ROWS, INPUTS) if self.is_cell else (STEPS, ROWS, INPUTS)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(self.dtype)

    def arguments(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Those of a call that are on."""
        values = {
            "lengths": [STEPS, 2],
            "reset": torch.arange(STEPS * ROWS).view(STEPS, ROWS) % 5 == 3,
            "embedding": table(dtype or self.dtype),
            "return_cell_states": True,
            "return_states": True,
        }
        return {name: values[name] for name in self.call}

    def run(self, module: Any, x: Tensor, hx: Any = None) -> list[Tensor]:
        """All results of a call with these arguments; x is of the module's dtype, or of none where it is tokens."""
        biases = module.bias_hh if self.is_cell else module.bias_hh_l0
        x = x.to(biases.dtype) if x.is_floating_point() else x
        return flat(module(x, *(() if hx is None else (hx,)), **self.arguments(biases.dtype)))

    def hx(self, module: Any) -> Any:
        """The state with which torch.nn's module does what this one does without."""
        if not getattr(module, "learn_initial_state", False):
            return None
        states = [s.detach().unsqueeze(1).expand(-1, ROWS, -1).contiguous() for s in learned(module)]
        return tuple(states) if len(states) == 2 else states[0]


@functools.cache
def table(dtype: torch.dtype) -> nn.Embedding:
    seed(4)
    return nn.Embedding(VOCABULARY, INPUTS, dtype=dtype)


BUILT: dict[str, Callable[[Any], Any]] = {
    "compilable": lambda module: fastrnn.convert(module, compilable=True),
    "int8": fastrnn.quantize_dynamic,
}


def learned(module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in ("initial_h", "initial_c") if hasattr(module, name)]


def flat(result: Any) -> list[Tensor]:
    """All tensors of a call's results: output, states, and cell states where there are."""
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]


def called(row: Row, module: Any) -> list[Tensor]:
    return row.run(module, row.x())


def copied(row: Row, module: Any, other: Any) -> list[Tensor]:
    """The results of a copy, which has the options of its module."""
    assert all(getattr(other, name) == getattr(module, name) for name in row.options)
    return called(row, other)


def of_torch_nn(row: Row) -> Any:
    """torch.nn's module that a row's weights are for, or are not."""
    if row.is_of_any_cell:
        return (nn.LSTMCell if row.is_cell else nn.LSTM)(INPUTS, HIDDEN, dtype=row.dtype)
    return nn.RNN(INPUTS, HIDDEN).double() if row.kind == "JordanRNN" else row.theirs()


def twin(row: Row, module: Any) -> Any:
    """torch.nn's module of the same weights and dtype; of a module of 8 bits, which all who ask refuse, any."""
    theirs, state = row.theirs(), dict(module.state_dict())
    if row.variant == "int8":
        return theirs
    theirs.load_state_dict({key: value for key, value in state.items() if not key.startswith("initial_")})
    return theirs.to(next(iter(state.values())).dtype)


COLUMNS: dict[str, Callable[[Row, Any], Any]] = {}


def column(name: str) -> Callable[[Any], Any]:
    def added(function: Callable[[Row, Any], Any]) -> Callable[[Row, Any], Any]:
        COLUMNS[name] = function
        return function

    return added
