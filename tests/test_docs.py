"""What docs/pytorch.md promises names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
