"""What docs/pytorch.md promises names tests that exist, and what docs/cells.md shows runs and says all there is."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

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


def lines_of(language: str) -> list[tuple[str, str]]:
    """Each command of each page, without its comment."""
    pattern = rf"^```{language}\n(.*?)^```"
    found = [
        (page, shlex.join(shlex.split(line, comments=True)))
        for page, text in PAGES.items()
        for block in re.findall(pattern, text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if not line.startswith("#")
    ]
    return sorted({line: page for page, line in found}.items())


@pytest.mark.parametrize(("line", "page"), lines_of("sh"), ids=[line for line, _ in lines_of("sh")])
def test_the_commands_of_each_page_run(line: str, page: str, tmp_path: Path):
    """Those of pip as far as what they would install, those of make as far as their recipes: both are run in full by
    targets of the Makefile."""
    command, where = shlex.split(line), ROOT
    if command[0] == "make":
        command.insert(1, "--dry-run")
    elif command[:2] == ["pip", "install"]:
        if not all(next(distributions(name=name), None) for name in ("scikit-build-core", "pip")):
            pytest.skip("needs scikit-build-core and pip")
        alone = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
        command = [sys.executable, "-m", *command, *alone]
    else:
        assert command[0] == "python", line
        command[0], where = sys.executable, tmp_path
        (tmp_path / "my_cells.py").write_text("import torch, fastrnn\n" + "\n".join(BLOCKS[page]))
    done = subprocess.run(command, cwd=where, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING: fastrnn" not in done.stderr, done.stdout + done.stderr


COMPILER = shutil.which(os.environ.get("CC", "cc"))


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```c\n" in text])
def test_the_c_of_each_page_compiles(page: str):
    """`tests/test_stream_c.py` runs a whole program of the same calls."""
    blocks = re.findall(r"^```c\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    head = "#include <fastrnn_stream.h>\n#include <stdio.h>\nint main(void) {\nfloat x[64] = {0}, y[64];\n"
    command = [str(COMPILER), "-xc", "-std=c99", "-Wall", "-Werror", f"-I{ROOT / 'include'}", "-fsyntax-only", "-"]
    done = subprocess.run(command, input=head + "".join(blocks) + "}\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def docstring_code() -> list[tuple[str, str]]:
    """What docstrings show as code to be run, which the site shows, too: their literal blocks but equations."""
    found = []
    for path in sorted(ROOT.glob("fastrnn/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for block in re.findall(r"::\n\n((?:(?:    .*)?\n)+)", (ast.get_docstring(node) or "") + "\n"):
                if "fastrnn." in block or "(Cell)" in block:
                    name = path.relative_to(ROOT / "fastrnn").as_posix()
                    found.append((f"{name}:{getattr(node, 'name', '')}", textwrap.dedent(block)))
    return found


class Model(torch.nn.Module):
    """What the code of docstrings takes for the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.GRU(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


NEEDS = {"interop/keras.py:keras_options": "keras", "interop/onnx_export.py:onnx_translations": "onnxscript"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "where, code",
    [pytest.param(*one, id=one[0], marks=[pytest.mark.slow] * (one[0] in NEEDS)) for one in docstring_code()],
)
def test_the_code_of_each_docstring_runs(where: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    namespace: dict[str, object] = {"__name__": "a_users_module", "torch": torch, "fastrnn": fastrnn}
    namespace |= {name: getattr(cell, name) for name in cell.__all__}
    namespace |= {"module": fastrnn.GRU(3, 4), "model": Model(), "f": "model.onnx", "x": torch.randn(5, 2, 3)}
    namespace |= {"criterion": torch.nn.functional.mse_loss, "target": torch.zeros(5, 2, 4)}
    if where in NEEDS:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
        namespace[NEEDS[where]] = pytest.importorskip(NEEDS[where])
    monkeypatch.chdir(tmp_path)
    exec(compile(code, where, "exec"), namespace)


def test_no_code_is_passed_by():
    assert {where for where, _ in docstring_code()} >= {"init.py:", "cell/__init__.py:", *NEEDS}
    assert {"README.md", "docs/index.md", "docs/options.md", "docs/cells.md"} <= {p for p, b in BLOCKS.items() if b}
    assert len(BLOCKS["docs/cells.md"]) >= 5
    for page, text in PAGES.items():
        fences = re.findall(r"```(.*)", text)  # an indented one would not be run
        assert set(fences[::2]) <= {"python", "sh", "c", "text"} and set(fences[1::2]) <= {""}, page
        assert len(BLOCKS[page]) == fences.count("python"), page


def test_the_site_names_every_page_and_every_public_name():
    site = (ROOT / "mkdocs.yml").read_text()
    assert set(re.findall(r": (\w+\.md)$", site, re.MULTILINE)) == {path.name for path in ROOT.glob("docs/*.md")}
    shown = set(re.findall(r"^::: fastrnn\.(\w+)", PAGES["docs/api.md"] + PAGES["docs/streaming.md"], re.MULTILINE))
    names = {name for name in fastrnn.__all__ if not name.startswith("Quantized")}  # made by quantize_dynamic alone
    assert names - shown <= {"cells"}  # which docs/cells.md lists


def test_the_page_on_cells_names_the_whole_language():
    for name in set(cell.__all__) - {"Cell"}:
        assert re.search(rf"`[^`]*\b{name}\b", CELLS), name
