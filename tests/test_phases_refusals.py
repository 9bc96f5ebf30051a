"""What the engine of programs refuses: specs whose parts do not fit together, and tensors that do not fit a spec."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("llvmlite")
core = pytest.importorskip("fastrnn._core")

from program_functions import Compiled  # noqa: E402

KEPT: list[Compiled] = []  # functions, for as long as programs may call them
MISSING = object()


def gated() -> dict[str, Any]:
    """h = (W h + b) * x with two parts, a mean and a total: something of everything, to be spoiled field by field."""
    function = Compiled("float32", [True, True, True, True], {2: ("mul", ("load", 0), ("load", 1)), 3: ("load", 0)})
    KEPT.append(function)
    second = Compiled("float32", [True, True], {1: ("load", 0)})
    KEPT.append(second)
    term = {"array": 0, "matrix": 3, "row_block": 1, "blocks": 1}
    return {
        "dtype": "float32",
        "sizes": 2,
        "arrays": [
            {"kind": "state", "size": 0, "name": "h"},
            {"kind": "step", "size": 0, "name": "x"},
            {"kind": "unit", "size": 0, "name": "b", "blocks": 2},
            {"kind": "matrix", "size": 0, "blocks": 2, "columns_size": 0, "name": "W"},
            {"kind": "row", "size": 0, "name": "v"},
            {"kind": "neighbour", "size": 0, "offset": -1, "name": "before"},
            {"kind": "total", "size": 0, "name": "sum"},
            {"kind": "number", "name": "scale"},
            {"kind": "sequence", "size": 0, "name": "mask"},
            {"kind": "step", "size": 1, "name": "other"},
            {"kind": "matrix", "size": 0, "blocks": 2, "columns_size": 0, "name": "of W"},
            {"kind": "unit", "size": 0, "blocks": 2, "name": "of b"},
            {"kind": "step", "size": 0, "name": "of x"},
        ],
        "sums": [{"grad": {"array": 1}, "values": {"array": 5}, "to": 10, "row_block": 1, "bias": 11}],
        "products": [{"grad": {"array": 1}, "matrix": 3, "row_block": 1, "to": 12}],
        "phases": [
            {
                "parts": [
                    {
                        "size": 0,
                        "results": [{"terms": [term], "bias": {"array": 2, "block": 1}}],
                        "operands": [
                            {"result": 0},
                            {"array": 1},
                            {"array": 4, "write": True},
                            {"array": 6, "write": True},
                        ],
                        "function": function.address,
                    }
                ]
            },
            {
                "parts": [
                    {
                        "size": 0,
                        "results": [{"mean": {"array": 4, "heads": 3}}],
                        "operands": [{"result": 0}, {"array": 0, "write": True}],
                        "function": second.address,
                    }
                ]
            },
        ],
    }


FIRST, SECOND = ("phases", 0, "parts", 0), ("phases", 1, "parts", 0)
TERM = (*FIRST, "results", 0, "terms", 0)
SUM, PRODUCT = ("sums", 0), ("products", 0)
REFUSED = [
    (("something",), 1, "no such field"),
    (("dtype",), "float16", "expected float32 or float64"),
    (("dtype",), 3, "expected a string"),
    (("sizes",), 0, "from 1 to"),
    (("sizes",), 1.5, "a number from 1 to"),
    (("arrays",), [], "expected 1 to"),
    (("arrays",), 5, "a list of dicts"),
    (("arrays", 0), 5, "expected a dict"),
    (("arrays", 0, "kind"), "cell", "expected step, neighbour"),
    (("arrays", 0, "kind"), MISSING, "expected this field"),
    (("arrays", 0, "size"), 2, "from 0 to 1"),
    (("arrays", 0, "size"), -1, "from 0 to 1"),
    (("arrays", 0, "size"), MISSING, "expected this field"),
    (("arrays", 0, "blocks"), 0, "from 1 to"),
    (("arrays", 0, "blocks"), 2**80, "from 1 to"),
    (("arrays", 0, "blocks"), 2, "every block of a state"),
    (("arrays", 0, "single"), True, "no such field"),
    (("arrays", 1, "single"), 1, "expected a bool"),
    (("arrays", 8), {"kind": "sequence", "size": 0, "blocks": 2, "single": True}, "expected 1 where single"),
    (("arrays", 5, "offset"), 0, "expected -1 or 1"),
    (("arrays", 5, "offset"), 2, "from -1 to 1"),
    (("arrays", 3, "columns_size"), MISSING, "expected this field"),
    (("arrays", 3, "columns_size"), 1, "expected an array of size 0, W has size 1"),
    (("arrays", 3, "columns_parts"), 0, "from 1 to"),
    (("arrays", 3, "columns_parts"), 3, "expected the columns_parts of W"),
    (("arrays", 3, "blocks"), 1, "expected blocks within the 1 of W"),
    (("arrays", 3, "kind"), "unit", "no such field"),
    (("arrays", 3, "int8"), 1, "expected a bool"),
    (("arrays", 2, "int8"), True, "no such field"),
    (("phases",), [], "expected 1 to"),
    (("phases",), 5, "a list of dicts"),
    (("phases", 0, "parts"), [], "expected 1 to"),
    (("phases", 0, "meets"), False, "has to meet"),
    (("phases", 1, "meets"), False, "has to meet"),
    ((*FIRST, "size"), 1, "expected an array of size 1"),
    ((*FIRST, "function"), 0, "got 0"),
    ((*FIRST, "function"), "f", "expected the address"),
    ((*FIRST, "operands"), [], "expected 1 to"),
    ((*FIRST, "operands", 0), {}, "expected either array or result"),
    ((*FIRST, "operands", 0), {"result": 1}, "from 0 to 0"),
    ((*FIRST, "operands", 0), {"result": 0, "array": 1}, "expected either array or result"),
    ((*FIRST, "operands", 1), {"array": 13}, "from 0 to 12"),
    ((*FIRST, "operands", 1), {"array": 1, "block": 1}, "from 0 to 0"),
    ((*FIRST, "operands", 1), {"array": 3}, "functions do not read"),
    ((*FIRST, "operands", 1), {"array": 9}, "expected an array of size 0, other has size 1"),
    ((*FIRST, "operands", 1), {"array": 4}, "not written before"),
    ((*FIRST, "operands", 1), {"array": 6}, "which is written"),
    ((*FIRST, "operands", 1), {"array": 2, "write": True}, "which is not written"),
    ((*FIRST, "operands", 1), {"array": 5, "write": True}, "which is not written"),
    ((*FIRST, "operands", 1), {"array": 7, "write": True}, "which is not written"),
    ((*FIRST, "operands", 1), {"array": 4, "write": True}, "written twice"),
    ((*SECOND, "operands", 1), {"array": 4, "write": True}, "written twice"),
    ((*SECOND, "operands", 1), {"array": 1, "write": True}, "every block of a state"),
    ((*FIRST, "results", 0), {}, "either terms or mean"),
    ((*FIRST, "results", 0), {"terms": []}, "expected 1 to"),
    ((*FIRST, "results", 0), {"mean": {"array": 4}}, "not written before"),
    ((*FIRST, "results", 0), {"mean": {"array": 2}}, "expected rows of units"),
    ((*FIRST, "results", 0), {"mean": {"array": 9}}, "has size 1"),
    ((*FIRST, "results", 0), {"mean": {"array": 1, "heads": 0}}, "from 1 to"),
    ((*FIRST, "results", 0, "bias"), {"array": 1}, "expected a unit array"),
    ((*FIRST, "results", 0, "bias"), {"array": 2, "block": 2}, "from 0 to 1"),
    ((*TERM, "array"), 3, "expected rows of units"),
    ((*TERM, "array"), 9, "expected an array of size 1"),
    ((*TERM, "matrix"), 2, "expected a matrix"),
    ((*TERM, "blocks"), 2, "from 1 to 1"),
    ((*TERM, "row_block"), 2, "expected blocks within the 2"),
    ((*TERM, "heads"), 2, "expected the columns_parts"),
    ((*TERM, "transpose"), True, "no such field"),
    (("sums",), 5, "a list of dicts"),
    ((*SUM, "rows"), 1, "no such field"),
    ((*SUM, "grad"), 1, "expected a dict"),
    ((*SUM, "grad", "array"), 13, "from 0 to 12"),
    ((*SUM, "grad", "array"), 5, "is of the kind neighbour"),
    ((*SUM, "grad", "array"), 9, "expected an array of size 1, of W has size 0"),
    ((*SUM, "grad", "blocks"), 2, "from 1 to 1"),
    ((*SUM, "values"), MISSING, "expected this field"),
    ((*SUM, "values", "array"), 0, "is of the kind state"),
    ((*SUM, "values", "array"), 8, "is of the kind sequence"),
    ((*SUM, "values", "block"), 1, "from 0 to 0"),
    ((*SUM, "values", "blocks"), 1, "no such field"),
    ((*SUM, "to"), 2, "expected a matrix of floats"),
    ((*SUM, "row_block"), 2, "expected blocks within the 2 of of W"),
    ((*SUM, "heads"), 2, "expected the columns_parts of of W"),
    ((*SUM, "bias"), 1, "expected a unit array"),
    (("arrays", 11, "blocks"), 1, "expected blocks within the 1 of of b"),
    (("arrays", 10, "columns_size"), 1, "expected an array of size 0, of W has size 1"),
    ((*PRODUCT, "values"), {"array": 5}, "no such field"),
    ((*PRODUCT, "to"), 5, "expected rows of one block"),
    ((*PRODUCT, "to"), 9, "expected an array of size 1, W has size 0"),
    ((*PRODUCT, "matrix"), 1, "expected a matrix of floats"),
    ((*PRODUCT, "row_block"), 2, "expected blocks within the 2 of W"),
    ((*PRODUCT, "add"), 1, "expected a bool"),
]


def spoil(spec: Any, path: tuple, value: Any) -> Any:
    *way, last = path
    for key in way:
        spec = spec[key]
    if value is MISSING:
        del spec[last]
    else:
        spec[last] = value


@pytest.mark.parametrize(("path", "value", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_spec_that_does_not_fit_is_refused(path: tuple, value: Any, message: str) -> None:
    core.Program(gated())
    spec = gated()
    spoil(spec, path, value)
    with pytest.raises(ValueError, match=message):
        core.Program(spec)


def test_matrices_of_int8_that_do_not_fit_are_refused() -> None:
    spec, given = gated(), arguments()
    spoil(spec, ("arrays", 3, "int8"), True)
    with pytest.raises(ValueError, match="a matrix of floats, got a matrix of int8"):
        core.Program(spec)
    spoil(spec, ("products",), [])
    program = core.Program(spec)
    values, scales = torch.ones(12, 6, dtype=torch.int8), torch.ones(12)
    for matrix, message in [
        (dict(values=values, scales=scales), None),
        (torch.randn(12, 6), "W: expected a dict of values and scales"),
        (dict(values=values), "W: expected a dict of values and scales, got"),
        (dict(values=values[:6], scales=scales), "W: expected 72 bytes, got 36"),
        (dict(values=values.t(), scales=scales), "W: expected a contiguous tensor"),
        (dict(values=torch.randn(12, 6), scales=scales), "W: expected 72 bytes"),
        (dict(values=values, scales=scales[:6]), "W.scales: expected a CPU tensor of float32"),
        (dict(values=values, scales=scales.double()), "W.scales: expected"),
    ]:
        given["arrays"][3] = matrix
        if message is None:
            program.run(**given)
            continue
        with pytest.raises(ValueError, match=message):
            program.run(**given)
    for path, value, message in [
        ((*TERM, "transposed"), True, "of a matrix of int8"),
        (("dtype",), "float64", "float32"),
    ]:
        spec = gated()
        spoil(spec, ("products",), [])
        spoil(spec, ("arrays", 3, "int8"), True)
        spoil(spec, path, value)
        with pytest.raises(ValueError, match=message):
            core.Program(spec)


def arguments() -> dict[str, Any]:
    steps, batch, size = 3, 4, 6

    def state() -> dict[str, Any]:
        return {"initial": torch.randn(batch, size), "final": torch.empty(batch, size)}

    arrays = [
        state(),
        torch.randn(steps * batch, size),
        torch.randn(2 * size),
        torch.randn(2 * size, size),
        None,
        {"history": torch.randn(steps * batch, size), "initial": torch.randn(batch, size)},
        torch.empty(size),
        torch.ones(1),
        torch.randn(batch, size),
        torch.randn(steps * batch, 5),
        torch.empty(2 * size, size),
        torch.empty(2 * size),
        torch.empty(steps * batch, size),
    ]
    return {
        "steps": steps,
        "batch": batch,
        "rows": steps * batch,
        "batch_sizes": None,
        "reverse": False,
        "threads": 1,
        "sizes": [size, 5],
        "arrays": arrays,
    }


def freed() -> torch.Tensor:
    tensor = torch.randn(12, 6)
    tensor.untyped_storage().resize_(0)
    return tensor


REFUSED_RUNS = [
    (("steps",), 0, "out of range"),
    (("steps",), 4, "expected steps \\* batch"),
    (("batch",), 5, "expected steps \\* batch"),
    (("rows",), 2**50, "out of range"),
    (("threads",), 0, "threads: expected at least 1"),
    (("batch_sizes",), torch.tensor([4, 4, 3]), "add up"),
    (("batch_sizes",), torch.tensor([4, 3, 5]), "never increasing"),
    (("batch_sizes",), torch.tensor([4, 4]), "batch_sizes: expected 24 bytes"),
    (("sizes",), [6], "sizes: expected 2, got 1"),
    (("sizes",), [0, 5], "out of range"),
    (("sizes",), [7, 5], "multiple of 3 heads"),
    (("sizes",), [9, 5], "expected a CPU tensor"),
    (("arrays",), [], "arrays: expected 13, got 0"),
    (("arrays", 0), None, "h: expected a dict"),
    (("arrays", 0, "initial"), torch.randn(3, 6), "h.initial: expected a CPU tensor of float32 \\(4, 6\\)"),
    (("arrays", 0, "final"), torch.randn(4, 8)[:, :6], "h.final: expected"),
    (("arrays", 0, "middle"), None, "h: expected a dict of initial and final, got"),
    (("arrays", 1), None, "x: expected a tensor, got None"),
    (("arrays", 1), [1.0], "x: expected a tensor, got list"),
    (("arrays", 1), torch.randn(12, 6).double(), "float32 .*got float64"),
    (("arrays", 1), torch.ones(12, 6, dtype=torch.int32), "got int32"),
    (("arrays", 1), torch.randn(11, 6), "x: expected"),
    (("arrays", 1), torch.randn(6, 12).t(), "dense rows"),
    (("arrays", 1), torch.randn(1, 6).expand(12, 6), "dense rows"),
    (("arrays", 1), torch.randn(12, 6, device="meta"), "x: expected a dense CPU tensor"),
    (("arrays", 2), torch.randn(6), "b: expected"),
    (("arrays", 3), torch.randn(12, 7)[:, :6], "W: expected"),
    (("arrays", 3), torch.randn(6, 6), "W: expected"),
    (("arrays", 4), torch.randn(4, 6), "v: expected None"),
    (("arrays", 5), torch.randn(12, 6), "before: expected a dict"),
    (("arrays", 5, "initial"), None, "before.initial: expected a tensor"),
    (("arrays", 5, "history"), MISSING, "before: expected a dict of history and initial, got"),
    (("arrays", 6), torch.randn(5), "sum: expected"),
    (("arrays", 7), torch.randn(2), "scale: expected"),
    (("arrays", 8), torch.randn(12, 6), "mask: expected"),
    (("arrays", 10), torch.randn(6, 6), "of W: expected"),
    (("arrays", 10), None, "of W: expected a tensor, got None"),
    (("arrays", 11), torch.randn(6), "of b: expected"),
    (("arrays", 12), torch.randn(11, 6), "of x: expected"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED_RUNS, ids=range(len(REFUSED_RUNS)))
def test_a_run_that_does_not_fit_is_refused(path: tuple, value: Any, message: str) -> None:
    program = core.Program(gated())
    program.run(**arguments())
    given = arguments()
    spoil(given, path, value)
    with pytest.raises(ValueError, match=message):
        program.run(**given)


def test_memory_that_is_gone_is_refused() -> None:
    given = arguments()
    given["arrays"][1] = freed()
    with pytest.raises(RuntimeError, match="x: the memory of the tensor was freed"):
        core.Program(gated()).run(**given)
