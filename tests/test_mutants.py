"""The list of faults that ``make mutants`` plants: each still applies, to the sources as they are."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
from mutants import Fault, all_faults

ROOT = Path(__file__).parents[1]
FAULTS = all_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_applies_once_and_names_tests_that_are_there(fault: Fault):
    text = (ROOT / fault.file).read_text()
    assert text.count(fault.before) == 1 and fault.after != fault.before
    assert ("PLANTED" in fault.after) == fault.file.startswith("csrc/")
    if fault.file.endswith(".py"):
        before, after = (ast.dump(ast.parse(t)) for t in (text, text.replace(fault.before, fault.after)))
        assert before != after
    files = [part.split("::")[0] for part in shlex.split(fault.tests) if part.startswith("test_")]
    assert files and all((ROOT / "tests" / file).is_file() for file in files)


def test_all_faults_of_a_cpp_file_apply_together():
    for file in {fault.file for fault in FAULTS if fault.file.startswith("csrc/")}:
        text = (ROOT / file).read_text()
        for fault in FAULTS:
            if fault.file == file:
                assert text.count(fault.before) == 1, fault.name
                text = text.replace(fault.before, fault.after)


def test_the_list_is_long_and_of_every_language():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60
    for start, least in {"csrc/": 28, "kernels/numba_": 10, "kernels/triton_": 10, "fastrnn/": 15}.items():
        assert sum(fault.file.startswith(start) for fault in FAULTS) >= least, start
