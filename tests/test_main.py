"""`python -m fastrnn`: what it says about this machine, and what it advises where the core is missing."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import fastrnn
from fastrnn import __main__ as main
from fastrnn import backends


def test_it_names_versions_backends_and_machine():
    out = subprocess.run([sys.executable, "-m", "fastrnn"], capture_output=True, text=True, check=True).stdout
    assert f"fastrnn {fastrnn.__version__}" in out and f"torch {torch.__version__}" in out
    for name in backends.NAMES:
        assert f"\n  {name}" in out
    assert "threads" in out and "GPU" in out and "cpu float32 runs on: " in out


def test_it_names_the_threads_and_the_instruction_set_of_a_live_core():
    core = backends.load("cpp")
    if reason := core.unavailable():
        pytest.skip(reason)
    assert core.thread_source() in ("openmp", "std")
    assert f" threads of {core.thread_source()}, instruction set {core.isa()}" in main.report()
    assert "in place of the missing" not in main.report()


def test_it_says_what_to_do_where_numba_stands_in_for_the_core(monkeypatch):
    monkeypatch.setattr(backends.load("cpp"), "unavailable", lambda: "the core was not built; install a compiler")
    monkeypatch.setattr(backends.load("numba"), "unavailable", lambda: None)
    backends._automatic.cache_clear()
    try:
        text = main.report()
    finally:
        backends._automatic.cache_clear()
    assert "instruction set" not in text
    assert "cpu float32 runs on: numba" in text
    assert "in place of the missing C++ core" in text and "install a compiler" in text.splitlines()[-1]


def test_a_backend_asked_for_in_vain_is_reported():
    token = backends._asked.set("fortran")
    try:
        assert "cpu float32 runs on: nothing: unknown fastrnn backend 'fortran'" in main.report()
    finally:
        backends._asked.reset(token)


def test_it_explains_a_cell():
    text = main.account(["fastrnn.cells:ResetBeforeGRU", "--hidden", "64", "--input", "32"])
    assert "depth 2" in text and "hidden_size 64" in text and "input_size 32" in text
    assert "product of nh, gate 0" in text and "product of U^T, gate 0 to 1" in text
    # r and z of h, then n: 2 * 64 * 64 * 3 of products in a row and step, and the pointwise rest
    forward = int(text.partition("forward: ")[2].partition(" flops")[0].rpartition(" ")[2].replace(",", ""))
    assert 2 * 64 * 64 * 3 < forward < 2 * 64 * 64 * 3 * 1.5
    for name in backends.NAMES:
        assert f"\n{name}" in text


def test_formulas_of_what_is_saved_name_what_they_share():
    """No line repeats what another has, however often it is read, and each name stands before those that read it."""
    text = main.account(["fastrnn.cells:LayerNormLSTM"])
    lines = text.partition("saved of each step: ")[2].partition("\nforward")[0].splitlines()
    names = [line.strip().partition(" = ")[0] for line in lines[1:]]
    kept = lines[0].removesuffix(", with").split(", ")
    assert kept[:2] == ["h", "c"] and set(kept[2:]) <= set(names) and len(set(names)) == len(names)
    for k, line in enumerate(lines[1:]):
        right = line.partition(" = ")[2]
        assert len(right) < 250 and right not in text.replace(line, "")
        words = set(re.findall(r"v\d+|\w'", right))
        assert words <= set(names[:k])


@pytest.mark.parametrize("name", ["fastrnn.cells:Nothing", "fastrnn.cells", "fastrnn:LSTM"])
def test_what_is_no_cell_is_said(name: str, capsys):
    with pytest.raises(SystemExit):
        main.account([name])
    assert "expected module:Cell" in capsys.readouterr().err
