"""Types as others see them: complete in the installed package, and the cells' stubs as their files say."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def generator():
    spec = importlib.util.spec_from_file_location("cell_stubs", ROOT / "typings" / "cell_stubs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stubs = generator()


@pytest.mark.parametrize("path", stubs.WRITTEN, ids=lambda path: path.stem)
def test_stubs_say_what_the_cells_declare(path: Path):
    assert path.with_suffix(".pyi").read_text() == stubs.stub(path), "run: make stubs"


def test_a_changed_cell_has_another_stub(monkeypatch: pytest.MonkeyPatch):
    from fastrnn.cell import Vector
    from fastrnn.cells import tiny

    path = next(path for path in stubs.WRITTEN if path.stem == "tiny")
    monkeypatch.setattr(tiny.FastRNN, "gain", Vector(), raising=False)
    assert "    gain: Vector\n" in stubs.stub(path) != path.with_suffix(".pyi").read_text()


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is missing: it is of the extra `dev`")
def test_every_public_name_has_a_complete_type(tmp_path: Path):
    """``pyright --verifytypes``, of the package as it is installed."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = ["--no-build-isolation", "-C", "wheel.cmake=false", "-C", f"build-dir={tmp_path / 'build'}"]
    subprocess.run([*pip, *options, "--target", str(site), str(ROOT)], check=True)
    paths = os.pathsep.join([str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(
        [*command, "--verifytypes", "fastrnn", "--ignoreexternal"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["typeCompleteness"]
    symbols = [each for each in found["symbols"] if each["isExported"]]
    bad = [
        (each["name"], [line["message"] for line in each["diagnostics"]])
        for each in symbols
        if each["isTypeAmbiguous"] or not each["isTypeKnown"]
    ]
    assert not bad
    assert len(symbols) > 1000 and found["completenessScore"] == 1
