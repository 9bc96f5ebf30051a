"""Every option and every class of ours beside everything that takes a module: the same numbers, or refused by name.

Rows come from the record (`fastrnn.kinds`, `fastrnn.options`), columns from `neighbours_ours.py` and
`neighbours_torch.py`.  A class, an option or a function of ours that has none fails here.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from typing import Any

import neighbours_torch  # noqa: F401  (adds columns)
import pytest
import torch
from neighbours import BUILT, COLUMNS, DROPS, KINDS, Row, called, seed
from neighbours_ours import public
from torch import nn

import fastrnn
from fastrnn import options
from fastrnn.backends import cpp
from fastrnn.kinds import Kind
from fastrnn.narrow import Narrow
from fastrnn.network.calls import OneStep, Sequences
from fastrnn.network.definition import Definition

if reason := cpp.unavailable():
    pytest.skip(f"modules of 8 bits are among the rows, and {reason}", allow_module_level=True)

# What is refused: of each column, traits of rows and a word of the error; None is the option's name or the class's.
# All else gives the same numbers.
LSTMS = {"LSTM", "LSTMCell", "Network", "NetworkCell"}  # networks of any cell are of an LSTM here
OPTIONS: dict[str, str | None] = {"learn_initial_state": None, "return_cell_states": None}
OTHERS_WEIGHTS = {**OPTIONS, "zoneout": None, "int8": None, "cell": None, "JordanRNN": None, "proj_size": "projection"}
# Arguments of a call, which come after: the TypeError of an unexpected argument has its name.
ARGUMENTS: dict[str, str | None] = {"lengths": None, "reset": None, "embedding": None, "return_cell_states": None}
ARGUMENTS["return_states"] = None
SCAN: dict[str, str | None] = {"Network": "fastrnn.scan", "NetworkCell": "fastrnn.scan"}
OF_NO_SCRIPT = ("JordanRNN", "Network", "NetworkCell")
NO_KERNELS: dict[str, str | None] = {"int8": None}
INITIAL = {"int8": "scale_ih", "learn_initial_state": "initial_h", "JordanRNN": "weight_hr"}
REFUSED: dict[str, dict[str, str | None]] = {
    "fastrnn.convert(compilable=True)": {**OPTIONS, "recompute": None, **ARGUMENTS},
    "fastrnn.revert": {**OPTIONS, **ARGUMENTS},
    "fastrnn.quantize_dynamic": {**OPTIONS, **ARGUMENTS},
    "fastrnn.stream": dict.fromkeys(("return_cell_states", "JordanRNN", "Network", "NetworkCell")),
    "from_float": {**OPTIONS, "int8": None, "JordanRNN": None},
    "fastrnn.interop.keras_weights": OTHERS_WEIGHTS,
    "fastrnn.interop.keras_options": OTHERS_WEIGHTS,
    "fastrnn.interop.load_keras_weights": OTHERS_WEIGHTS,
    "fastrnn.interop.to_onnx": OTHERS_WEIGHTS,
    "fastrnn.interop.Reversed": OTHERS_WEIGHTS,
    "fastrnn.init.orthogonal_": NO_KERNELS,
    "fastrnn.init.xavier_uniform_": NO_KERNELS,
    "fastrnn.init.forget_bias_": {"int8": None, **dict.fromkeys(set(KINDS) - LSTMS)},
    "fastrnn.init.chrono_": {"int8": None, "RNN": None, "RNNCell": None, "JordanRNN": None},
    "fastrnn.init.identity_": {"int8": None, "tanh": None, **dict.fromkeys(set(KINDS) - {"RNN", "RNNCell"})},
    "fastrnn.diagnostics.gradient_norms": NO_KERNELS,
    "state_dict to torch.nn": INITIAL,
    "state_dict from torch.nn": {**INITIAL, "int8": None},
    "weight_norm": {"int8": "floating point"},  # torch's error
    "spectral_norm": {"int8": "not implemented for 'Char'"},
    "vmap": NO_KERNELS,
    "grad": NO_KERNELS,
    "jvp": NO_KERNELS,
    "forward-mode AD": NO_KERNELS,
    "torch.jit.script": {**OPTIONS, "int8": None, "compilable": None, **dict.fromkeys(OF_NO_SCRIPT)},
    "torch.jit.trace": {"int8": None, "return_cell_states": None, **dict.fromkeys(OF_NO_SCRIPT)},
    "torch.export": NO_KERNELS,
    "torch.onnx.export(dynamo=False)": {
        **{"int8": None, "return_cell_states": None, **dict.fromkeys(OF_NO_SCRIPT)},
        "proj_size": "LSTMs with projections",
    },
    # torch makes a node of an LSTM with a projection that ONNX Runtime refuses; ours makes none.
    # It has no translation of the operator of any cell; fastrnn.interop.to_onnx writes those that ONNX has.
    "torch.onnx.export(dynamo=True)": {
        **{"int8": None, "LSTM-3-ours": "initial_c", "LSTM-3-compilable": "projection"},
        **SCAN,
    },
    "torch.compile(fullgraph=True)": {"int8": None, "default": None},
}
# Networks that torch.nn has not are left as they are, whatever is on; or keep what is on with weights of 8 bits.
LEAVE = {"fastrnn.convert(compilable=True)", "fastrnn.revert", "fastrnn.quantize_dynamic"}
KEEP = {"JordanRNN": LEAVE, **dict.fromkeys(("Network", "NetworkCell"), {*LEAVE, "from_float"})}
# Columns that take seconds a cell: the rows that are tried every day, while all of them are among the slow tests.
SLOW = {
    "torch.export": {"LSTM-ours", "LSTM-ours-learn_initial_state-return_cell_states", "LSTMCell-int8"},
    "torch.onnx.export(dynamo=True)": {"GRU-compilable"},
    "torch.compile": {"LSTM-ours", "LSTM-ours-learn_initial_state-return_cell_states", "LSTMCell-int8"},
    "torch.compile(fullgraph=True)": {
        *("LSTM-ours", "GRU-compilable", "LSTM-int8", "LSTMCell-int8", "Network-ours-zoneout", "NetworkCell-int8"),
    },
}

# Columns that call a module, where the options of a call have their rows.
CALLS = [
    *("fastrnn.convert", "fastrnn.convert(compilable=True)", "fastrnn.revert", "fastrnn.quantize_dynamic"),
    *("deepcopy", "forward hooks", "backward hooks", "weight_norm", "autocast", "functional_call", "torch.compile"),
    *("vmap", "grad", "jvp", "forward-mode AD"),
]

FORMS: dict[str, list[dict[str, Any]]] = {
    "RNN": [{"nonlinearity": "tanh"}, {"nonlinearity": "relu"}],
    "LSTM": [{}, {"proj_size": 3}],
    "RNNCell": [{"nonlinearity": "tanh"}, {"nonlinearity": "relu"}],
}


def taken(cls: Any) -> list[str]:
    """The options that a class takes."""
    known = [name for name in (*options.NAMES, *DROPS) if name in inspect.signature(cls.__init__).parameters]
    return [name for name in known if name != "return_cell_states" or cls is fastrnn.LSTM]


def subsets(cls: Any) -> list[tuple[str, ...]]:
    names = taken(cls)
    if cls is fastrnn.Network:  # each alone, and all
        return [*((name,) for name in names), tuple(names)]
    return [chosen for n in range(1, len(names) + 1) for chosen in itertools.combinations(names, n)]


def calls(kind: str) -> list[tuple[str, ...]]:
    """The arguments of a call beyond torch.nn's, each alone and all together."""
    names = list(inspect.signature(KINDS[kind].ours.forward).parameters)[3:]
    names = [name for name in names if name != "extras" and (name != "return_cell_states" or kind == "LSTM")]
    return [*((name,) for name in names), tuple(names)]


ROWS = [
    *(
        Row(kind, variant, form)
        for kind, classes in KINDS.items()
        for variant in Kind._fields[1:]
        if getattr(classes, variant)
        for form in FORMS.get(kind, [{}])
    ),
    *(
        Row(kind, "ours", FORMS.get(kind, [{}])[0], chosen)
        for kind, classes in KINDS.items()
        for chosen in subsets(classes.ours)
    ),
    Row("LSTM", "ours", {"proj_size": 3}, options.NAMES),
    *(Row(kind, "ours", {}, (), chosen) for kind in ("LSTM", "GRU", "JordanRNN", "Network") for chosen in calls(kind)),
    *(Row("LSTM", "ours", {}, options.NAMES, chosen) for chosen in calls("LSTM")),
]


def cells() -> list[Any]:
    return [
        pytest.param(
            name, row, id=f"{name}-{row}", marks=[pytest.mark.slow] * (str(row) not in SLOW.get(name, {str(row)}))
        )
        for name in COLUMNS
        for row in ROWS
        if not row.call or name in CALLS
    ]


@pytest.mark.parametrize(("name", "row"), cells())
@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The tensor attributes .*_flat_weights")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # no gradient leaves tokens
def test_same_numbers_or_refused_by_name(name: str, row: Row):
    module = row.build()
    own = type(module).__name__
    expected = [tensor.detach().clone() for tensor in called(row, module)]
    traits = {*row.traits, str(row)} & REFUSED.get(name, {}).keys()
    if name in KEEP.get(row.kind, ()):
        traits -= {"JordanRNN", *options.NAMES, *DROPS, *ARGUMENTS}
    if traits:
        named = {*options.NAMES, *DROPS, *ARGUMENTS}
        words = [REFUSED[name][trait] or (trait if trait in named else own) for trait in traits]
        with pytest.raises(Exception) as caught:
            COLUMNS[name](row, module)
        assert not isinstance(caught.value, AssertionError) and any(word in str(caught.value) for word in words)
        return
    seed(1)
    found = COLUMNS[name](row, module)
    pairs = found if isinstance(found[0], tuple) else list(zip(found, expected, strict=True))
    for ours, right in pairs:
        torch.testing.assert_close(ours.detach(), right.detach(), rtol=1e-5, atol=1e-6)


def test_every_class_of_ours_is_in_the_record():
    """A module's class that is neither there nor private, as a base is, has no rows."""
    # Bases, and a module around one of the others, which is a column.
    others = {fastrnn.compilable.Compilable, fastrnn.interop.Reversed, Definition, Sequences, OneStep, Narrow}
    members = [
        m for name, file in list(sys.modules.items()) if name.startswith("fastrnn.") for m in vars(file).values()
    ]
    classes = {cls for cls in members if isinstance(cls, type) and issubclass(cls, nn.Module)}
    found = {cls for cls in classes if cls.__module__.startswith("fastrnn.") and not cls.__name__.startswith("_")}
    known = {cls for kind in KINDS.values() for cls in kind[1:] if cls}
    assert found - known == others
    assert set(BUILT) == set(Kind._fields) - {"theirs", "ours"}
    assert {type(row.build()) for row in ROWS} == known


def test_every_option_is_in_the_record():
    for cls in (fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU, fastrnn.JordanRNN):
        parameters = inspect.signature(cls.__init__).parameters.values()
        assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} <= set(options.NAMES)
    assert set(taken(fastrnn.LSTM)) == set(options.NAMES)
    assert {*options.NAMES, *DROPS} == {name for row in ROWS for name in row.options}
    own = inspect.signature(fastrnn.Network.__init__).parameters.values()
    of_any_cell = {p.name for p in own if p.kind is p.KEYWORD_ONLY} - {"recurrent_dropout_per"}  # of recurrent_dropout
    assert of_any_cell == set(taken(fastrnn.Network)) == {*options.NAMES, *DROPS} - {"return_cell_states"}
    assert {name for name, value in vars(options.Options).items() if isinstance(value, bool)} == set(options.NAMES)


def test_every_function_of_ours_that_takes_modules_is_a_column():
    found = public(fastrnn, fastrnn.init, fastrnn.interop, fastrnn.diagnostics)
    assert len(found) >= 12 and found <= COLUMNS.keys()
    assert {*REFUSED, *CALLS} <= COLUMNS.keys() and SLOW.keys() <= COLUMNS.keys()


@pytest.mark.parametrize(
    "act",
    [
        fastrnn.revert,
        functools.partial(fastrnn.convert, compilable=True),
        functools.partial(fastrnn.quantize_dynamic, inplace=True),
    ],
    ids=["revert", "compilable", "int8"],
)
@pytest.mark.parametrize("option", [name for name, changes in options.CHANGES.items() if changes])
def test_a_refused_model_is_unchanged(act: Any, option: str):
    parts = {"first": fastrnn.GRU(3, 4), "second": fastrnn.LSTM(3, 4, **{option: True}), "third": nn.GRU(3, 4)}
    model = nn.ModuleDict(parts)
    before = [type(part) for part in model.modules()]
    with pytest.raises(ValueError, match=f"{option} on"):
        act(model)
    assert [type(part) for part in model.modules()] == before
    assert all(model[name] is part for name, part in parts.items())
