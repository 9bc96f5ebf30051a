"""Floors: each part imports only from below.  And a fresh interpreter: what import costs, and what may be missing."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; a part may import what stands on a lower floor, and never its neighbours.
FLOORS = [
    {"kernels", "_core", "dynamo", "scripting", "cell"},
    {"cells"},
    {"compiler"},
    {"modes", "profiling", "saving", "storage"},
    {"checks", "flops"},
    {"backends", "sequences"},
    {"schemas"},
    {"ops", "fused", "teams"},
    {"choices", "stacks", "network"},
    {"by_torch", "trials"},
    {"walk"},
    {"fastest"},
    {"paths"},
    {"embedding", "functional", "one_step", "recompute"},
    {"options"},
    {"running"},
    {"modules"},
    {"cell_modules", "compilable", "jordan"},
    {"narrow"},
    {"quantized"},
    {"quantized_network"},
    {"kinds"},
    {"chains", "derived", "init", "interop"},
    {"stream_file"},
    {"streaming"},
    {"convert"},
    {"building", "diagnostics", "tuning"},
    {"__init__"},
    {"__main__"},
]
ROOMS = (
    "kernels",
    "cell",
    "cells",
    "compiler",
    "backends",
    "fused",
    "network",
    "interop",
)  # whose files may import each other
HEIGHT = {part: height for height, parts in enumerate(FLOORS) for part in parts}
FILES = {
    **{f"kernels.{path.stem}": path for path in (ROOT / "kernels").glob("*.py")},
    **{".".join(path.relative_to(ROOT).with_suffix("").parts[1:]): path for path in ROOT.glob("fastrnn/**/*.py")},
}


def imports(name: str) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = f"fastrnn.{name}".rpartition(".")[0]
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `from fastrnn import modes` imports a module, `from fastrnn.modes import CELLS` a name out of one
            is_package = source in ("fastrnn", "fastrnn.kernels") or f"{source[8:]}.__init__" in FILES
            yield from (f"{source}.{alias.name}" if is_package else source for alias in node.names)


@pytest.mark.parametrize("name", FILES)
def test_each_part_imports_only_from_below(name: str):
    part = name.split(".")[0]
    assert part in HEIGHT, f"{name} has no floor yet: which parts may it import?"
    for imported in imports(name):
        root, *inner = imported.split(".")
        if root != "fastrnn":
            continue
        owner = inner[0] if inner and inner[0] in HEIGHT else "__init__"  # a public name
        assert HEIGHT[owner] < HEIGHT[part] or same_room(name, ".".join(inner)), f"{name} may not import {imported}"


def same_room(name: str, imported: str) -> bool:
    """Kernels may import kernels, and parts of interop each other.  A backend may import the interface, which the
    package holds, and its own files, which bear its name before an underscore; never another backend."""
    part, other = name.split("."), imported.split(".")
    if part[0] != other[0] or part[0] not in ROOMS:
        return False
    own = part[1].split("_")[0]
    return part[0] != "backends" or ".".join(other[:2]) not in FILES or other[1].split("_")[0] == own


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("kernels.")])
def test_kernels_stand_on_their_own_language_and_nothing_else(name: str):
    allowed = {"fastrnn", "numba", "llvmlite", "triton", "numpy", *sys.stdlib_module_names}
    assert {imported.split(".")[0] for imported in imports(name)} <= allowed


def test_the_core_knows_no_torch():
    sources = [path for pattern in ("*.cpp", "*.h") for path in (ROOT / "csrc").glob(pattern)]
    assert sources
    for path in sources:
        assert not any(word in path.read_text() for word in ("<torch/", "<ATen/", "<c10/")), path.name


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints for this code; fails where it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=inherited | environment, cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_import_loads_neither_numba_nor_triton():
    code = "import torch, sys; before = set(sys.modules); import fastrnn; print(*(set(sys.modules) - before))"
    assert not {name.split(".")[0] for name in python(code).split()} & {"numba", "triton", "numpy", "llvmlite"}


def test_import_takes_less_than_50_ms_beyond_torch():
    """Of the processor's time, from compiled files, and the least of a few tries: a busy machine can only add to it."""
    code = "import torch, time; start = time.process_time(); import fastrnn; print(time.process_time() - start)"
    best = float("inf")
    for _ in range(5):
        best = min(best, float(python(code, PYTHONDONTWRITEBYTECODE="")))
        if best < 0.05:
            return
    raise AssertionError(f"import fastrnn took {best * 1e3:.0f} ms")


WITHOUT = """
import sys

class Hiding:  # finds all that the finder finds, but for what is missing
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = any(name == gone or name.startswith(gone + ".") for gone in {missing!r})
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import torch
import fastrnn
from fastrnn import backends

torch.manual_seed(0)
theirs = torch.nn.LSTM(3, 4)
ours = fastrnn.LSTM(3, 4)
ours.load_state_dict(theirs.state_dict())
x = torch.randn(5, 2, 3)
torch.testing.assert_close(ours(x)[0], theirs(x)[0])
ours(x)[0].sum().backward()
for name in {names!r}:
    assert backends.available()[name], name
    try:
        with fastrnn.use_backend(name):
            raise SystemExit(f"{{name}} was served")
    except backends.BackendError as error:
        assert name in str(error), error
"""


@pytest.mark.parametrize("missing", ["triton", "numba", "fastrnn._core", "triton numba fastrnn._core"])
def test_an_lstm_runs_on_what_is_left(missing: str):
    names = [{"fastrnn._core": "cpp"}.get(name, name) for name in missing.split()]
    python(WITHOUT.format(missing=missing.split(), names=names))
