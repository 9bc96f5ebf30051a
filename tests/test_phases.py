"""The engine of programs (csrc/phases.h) against a naive interpreter of the same program, in float64."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("llvmlite")
core = pytest.importorskip("fastrnn._core")

from program_cases import Case  # noqa: E402
from program_functions import Compiled  # noqa: E402
from program_oracle import Oracle  # noqa: E402

GAP = 3  # numbers between the rows of a spaced array
SENTINEL = 12345.0


def engine_spec(case: Case, dtype: str) -> tuple[dict, list[Compiled]]:
    """The spec as the engine takes it, and the functions, which have to live as long as it."""
    functions = []
    spec: dict[str, Any] = {"dtype": dtype, "sizes": case.spec["sizes"]}
    spec["arrays"] = [
        {key: value for key, value in form.items() if key not in ("output", "updated")} for form in case.forms
    ]
    spec |= {"phases": [], "sums": case.spec["sums"], "products": case.spec["products"]}
    for phase in case.spec["phases"]:
        parts = []
        for part in phase["parts"]:
            dense = []
            for operand in part["operands"]:
                form = case.forms[operand["array"]] if "array" in operand else {"kind": "result"}
                dense.append(not form.get("single") and form["kind"] != "number")
            functions.append(Compiled(dtype, dense, part["writes"]))
            parts.append(
                {
                    "size": part["size"],
                    "results": part["results"],
                    "operands": part["operands"],
                    "function": functions[-1].address,
                }
            )
        spec["phases"].append({"meets": phase["meets"], "parts": parts})
    return spec, functions


def tensor_of(given: Any, dtype: torch.dtype, spaced: bool) -> Any:
    """An array as the engine takes it; rows of a spaced one are GAP numbers apart, which no one is to touch."""
    if given is None:
        return None
    if isinstance(given, dict):
        return {key: tensor_of(value, dtype, False) for key, value in given.items()}
    tensor = torch.from_numpy(given).clone()
    tensor = tensor if tensor.dtype is torch.int8 else tensor.to(dtype)
    if not spaced:
        return tensor
    memory = torch.full((tensor.shape[0], tensor.shape[1] + GAP), SENTINEL, dtype=dtype)
    memory[:, : tensor.shape[1]] = tensor
    return memory[:, : tensor.shape[1]]


def run_engine(case: Case, program: Any, dtype: torch.dtype, threads: int) -> list:
    arrays = [tensor_of(given, dtype, i in case.spaced) for i, given in enumerate(case.arrays)]
    program.run(
        steps=len(case.batch_sizes),
        batch=case.batch,
        rows=case.rows,
        batch_sizes=torch.tensor(case.batch_sizes) if case.packed else None,
        reverse=case.reverse,
        threads=threads,
        sizes=case.sizes,
        arrays=arrays,
    )
    return arrays


def rounded(given: Any, dtype: torch.dtype) -> Any:
    """What the engine is given, as numbers of the oracle."""
    if given is None:
        return None
    if isinstance(given, dict):
        return {key: rounded(value, dtype) for key, value in given.items()}
    return torch.from_numpy(given).to(dtype).double().numpy().copy()


def check(case: Case, dtype: torch.dtype, threads: tuple[int, ...] = (1, 2, 3), rounds: bool = False) -> None:
    """Where matrices of int8 round what they multiply, a number in the middle of two integers may go to either: all but
    few results are held to the dtype's budget, and those to a step of one in 127 of a term."""
    spec, functions = engine_spec(case, str(dtype).removeprefix("torch."))
    program = core.Program(spec)
    oracle_arrays = [rounded(given, dtype) for given in case.arrays]
    Oracle(copy.deepcopy(case.spec), case.sizes, oracle_arrays, case.batch_sizes, case.reverse).run()
    eps = torch.finfo(dtype).eps
    for count in threads:
        found = run_engine(case, program, dtype, count)
        for i, (got, expected) in enumerate(zip(found, oracle_arrays, strict=True)):
            named = got.items() if isinstance(got, dict) else [("", got)]
            for key, tensor in named:
                if tensor is None:
                    continue
                wanted = expected[key] if key else expected
                scale = max(1.0, float(np.abs(wanted).max()))
                where = f"array {i} {case.forms[i]} {key}, {count} threads"
                numbers, budget = tensor.double().numpy(), 500 * eps * scale
                if rounds:
                    assert np.mean(np.abs(numbers - wanted) > budget) < 0.02, where
                    budget = 0.02 * scale
                np.testing.assert_allclose(numbers, wanted, rtol=0, atol=budget, err_msg=where)
            if i in case.spaced:
                gap = torch.as_strided(
                    got, (got.shape[0], GAP), (got.stride(0), 1), got.storage_offset() + got.shape[1]
                )
                assert (gap == SENTINEL).all(), f"array {i}: something was written between its rows"
    del functions


@pytest.mark.parametrize("seed", range(60))
def test_programs(seed: int) -> None:
    check(Case(seed), (torch.float32, torch.float64)[seed % 2])


@pytest.mark.parametrize("seed", range(6))
def test_what_is_summed_up_over_many_rows(seed: int) -> None:
    """More of them than are packed at once, of rows that begin and end at any step."""
    case = Case(2000 + seed, rows=(14, 70))
    while not (case.spec["sums"] or case.spec["products"]):
        case._behind()
    check(case, (torch.float32, torch.float64)[seed % 2], (1, 2))


@pytest.mark.parametrize("isa", core.supported_isas()[1:])
def test_every_instruction_set(isa: str) -> None:
    """FASTRNN_ISA is read once, when the core is loaded: each instruction set takes a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", "test_programs"]
    done = subprocess.run(command, env=os.environ | {"FASTRNN_ISA": isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def test_teams_that_share_rows_and_units() -> None:
    """Whatever takes long is shared, and meetings cost nothing; the number of CPUs is read once, with the core."""
    rates = "t.core.assume_rates(start=1e-6, meeting=1e-6, multiply_adds=1.0, read=1e9)"
    checks = "[t.check(t.Case(seed), t.torch.float64, (4, 6, 8)) for seed in (41, 52, 53)]"
    command = [sys.executable, "-c", f"import test_phases as t; {rates}; {checks}"]
    folder, environment = Path(__file__).parent, os.environ | {"FASTRNN_CPUS": "8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_forked_child_runs_alone() -> None:
    """No team of threads survives a fork."""
    case = Case(4)
    check(case, torch.float32)
    child = os.fork()
    if not child:
        try:
            check(case, torch.float32)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("seed", range(40))
def test_programs_with_matrices_of_int8(seed: int) -> None:
    """Each product but transposed ones with a matrix of int8, against rows rounded by the oracle."""
    case = Case(1000 + seed)
    case.round_matrices()
    check(case, torch.float32, rounds=True)
