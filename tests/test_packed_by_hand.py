"""A PackedSequence that somebody made by hand, in every way wrong: an error that says so, on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn

DATA, SIZES = torch.linspace(-1, 1, 18).view(6, 3), torch.tensor([3, 2, 1])
SORTED, UNSORTED = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])


def packed(data: Any = DATA, sizes: Any = SIZES, first: Any = None, back: Any = None) -> PackedSequence:
    """As its parts are, which PackedSequence's own constructor would change or refuse."""
    return tuple.__new__(PackedSequence, (data, sizes, first, back))


# What is wrong -> the packed input, and what the message names.
WRONG: dict[str, tuple[PackedSequence, str]] = {
    f"sizes {name}": (packed(sizes=sizes), "batch_sizes")
    for name, sizes in {
        "empty": SIZES[:0], "of no dimension": SIZES[0], "2-D": SIZES[None], "a list": [3, 2, 1], "a tuple": (3, 2, 1),
        "None": None, "a number": 6, "a string": "321", "int32": SIZES.int(), "float": SIZES.float(),
        "bool": SIZES.bool(), "meta": SIZES.to("meta"),
    }.items()
}  # fmt: skip
WRONG |= {
    f"sizes {name}": (packed(sizes=torch.tensor(sizes)), "")  # in torch.nn's own words, where those run
    for name, sizes in {
        "zero first": [0, 3, 3], "negative": [4, 3, -1], "increasing": [1, 2, 3], "too many": [3, 2, 2],
        "beyond all numbers": [2**62] * 4 + [6], "below zero": [6 + 2**40, -(2**40)],
    }.items()
}  # fmt: skip
WRONG |= {
    f"{name} {which}": (packed(first=index if which == "sorted_indices" else SORTED,
                               back=index if which == "unsorted_indices" else UNSORTED), which)
    for which in ("sorted_indices", "unsorted_indices")
    for name, index in {
        "string": "ab", "list": [2, 0, 1], "short": SORTED[:2], "long": torch.tensor([2, 0, 1, 0]), "empty": SORTED[:0],
        "0-D": SORTED[0], "2-D": SORTED[None], "float": SORTED.float(), "bool": SORTED.bool(),
    }.items()
}  # fmt: skip
WRONG |= {
    f"data {name}": (packed(data), "data|input")
    for name, data in {"list": [[1.0] * 3] * 6, "None": None, "string": "x"}.items()
}
WRONG |= {
    f"data {name}": (packed(data), "")
    for name, data in {
        "1-D": DATA[:, 0], "3-D": DATA[None], "0-D": DATA[0, 0], "wide": torch.zeros(6, 5), "float64": DATA.double(),
        "int16": DATA.short(), "bool": DATA.bool(), "complex": DATA + 0j, "meta": DATA.to("meta"), "empty": DATA[:0],
    }.items()
}  # fmt: skip
OUT_OF_RANGE = {"beyond": torch.tensor([2, 0, 7]), "negative": torch.tensor([2, 0, -1])}


def network(form: str) -> Any:
    if form == "Jordan":
        return fastrnn.JordanRNN(3, 4, 4)
    kind, _, option = form.partition(" ")
    made = getattr(fastrnn, kind)(3, 4, **({option: True} if "_" in option or option == "recompute" else {}))
    if option == "int8":
        return fastrnn.quantize_dynamic(made)
    return fastrnn.convert(made, compilable=True) if option == "compilable" else made


FORMS = ["RNN", "LSTM", "GRU", "Jordan", "LSTM int8", "GRU int8", "LSTM compilable", "LSTM return_cell_states"]
FORMS += ["GRU learn_initial_state", "LSTM learn_initial_state", "LSTM recompute"]


def state(form: str, rows: int = 3) -> Any:
    h = torch.zeros(1, rows, 4)
    return (h, h) if form.startswith("LSTM") else h


@pytest.mark.parametrize("form", FORMS)
def test_every_wrong_part_is_named(form: str):
    module = network(form)
    for name, (input, match) in WRONG.items():
        for hx in (None, state(form)):
            for grad in (False, True):
                with torch.set_grad_enabled(grad), pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
                    module(input, hx)
                assert match == "" or any(word in str(caught.value) for word in match.split("|")), (name, caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_indices_out_of_range_raise_as_in_torch(form: str):
    module = network(form)
    for index in OUT_OF_RANGE.values():
        with pytest.raises((IndexError, RuntimeError), match="(?i)ind(ex|ices)"):
            module(packed(first=index, back=UNSORTED), state(form))
        with pytest.raises((IndexError, RuntimeError), match="(?i)ind(ex|ices)"):
            module(packed(first=SORTED, back=index))


def test_backends_and_functions_refuse_the_same(target):
    if target.device.type != "cpu":
        pytest.skip("the tensors are on the CPU")
    module = nn.GRU(3, 4)
    ours = fastrnn.convert(module)
    with fastrnn.use_backend(target.name):
        for name, (input, match) in WRONG.items():
            if name == "data empty":
                continue
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                ours(input)
            if match == "batch_sizes" and input.batch_sizes is not None:
                with pytest.raises((TypeError, RuntimeError), match=match):
                    fastrnn.gru(DATA, None, module._flat_weights, batch_sizes=input.batch_sizes)


def test_right_ones_run():
    for given in (packed(), packed(first=SORTED, back=UNSORTED), packed(first=SORTED.int(), back=UNSORTED.int())):
        for form in FORMS:
            results = network(form)(given, state(form))
            assert isinstance(results[0], PackedSequence) and isinstance(results[0].data, Tensor)
