"""What docs/pytorch.md promises names tests that exist, and what docs/cells.md shows runs and says all there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fastrnn
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


ROOT = TESTS.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
BLOCKS = {name: re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for name, text in PAGES.items()}


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_code_of_each_page_runs(page: str):
    """One block after the other, as a reader would run them."""
    namespace: dict[str, object] = {"__name__": "a_users_module"}
    for block in BLOCKS[page]:
        exec(compile(block, page, "exec"), namespace)


def test_no_code_is_passed_by():
    assert {"README.md", "docs/index.md", "docs/options.md", "docs/cells.md"} <= {p for p, b in BLOCKS.items() if b}
    assert len(BLOCKS["docs/cells.md"]) >= 5
    for page, text in PAGES.items():
        assert len(BLOCKS[page]) == len(re.findall(r"```(?:python|py)", text)), page  # an indented one would not be run


def test_the_site_names_every_page_and_every_public_name():
    site = (ROOT / "mkdocs.yml").read_text()
    assert set(re.findall(r": (\w+\.md)$", site, re.MULTILINE)) == {path.name for path in ROOT.glob("docs/*.md")}
    shown = set(re.findall(r"^::: fastrnn\.(\w+)", PAGES["docs/api.md"] + PAGES["docs/streaming.md"], re.MULTILINE))
    names = {name for name in fastrnn.__all__ if not name.startswith("Quantized")}  # made by quantize_dynamic alone
    assert names - shown <= {"cells"}  # which docs/cells.md lists


def test_the_page_on_cells_names_the_whole_language():
    for name in set(cell.__all__) - {"Cell"}:
        assert re.search(rf"`[^`]*\b{name}\b", CELLS), name
