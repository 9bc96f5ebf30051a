"""Every header of csrc parses by itself, as an editor and a reader meet it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or ""
PLAIN = [path.name for path in sorted(CSRC.glob("*.h")) if "pybind11" not in path.read_text()]


@pytest.mark.skipif(not COMPILER, reason="a C++ compiler is missing")
@pytest.mark.parametrize("name", PLAIN)
def test_a_header_parses_alone(name: str):
    """Those with pybind11's headers in them take seconds each, and are the first include of a source of their own."""
    command = [*COMPILER.split(), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    include = f'#include "{name}"\n'
    done = subprocess.run(
        [*command, f"-I{CSRC}", f"-I{sysconfig.get_path('include')}"], input=include, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
