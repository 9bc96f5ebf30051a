"""What docs/pytorch.md promises names tests that exist, and what docs/cells.md shows runs and says all there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastrnn import cell

TESTS = Path(__file__).parent
ROWS = [row for row in (TESTS.parent / "docs" / "pytorch.md").read_text().splitlines() if row.startswith("| ")]
PROMISES = [row for row in ROWS if "held by" not in row]


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_names_its_tests(promise: str):
    held_by = promise.rstrip("| ").rpartition("|")[2]
    names = re.findall(r"`([^`]+)`", held_by)
    assert names
    file = ""
    for name in names:
        first, _, function = name.partition("::")
        file = first or file
        assert (TESTS / file).exists() if file.endswith(".py") else (TESTS.parent / file).is_dir(), name
        assert not function or f"def {function}(" in (TESTS / file).read_text(), name


def test_there_are_promises():
    assert len(PROMISES) > 20


CELLS = (TESTS.parent / "docs" / "cells.md").read_text()


def test_the_code_of_the_page_on_cells_runs():
    blocks = re.findall(r"```python\n(.*?)```", CELLS, re.DOTALL)
    assert len(blocks) >= 5
    namespace: dict[str, object] = {"__name__": "a_users_module"}
    for block in blocks:
        exec(compile(block, "docs/cells.md", "exec"), namespace)


def test_the_page_on_cells_names_the_whole_language():
    for name in set(cell.__all__) - {"Cell"}:
        assert re.search(rf"`[^`]*\b{name}\b", CELLS), name
