"""Each example runs, quickly and without a warning, and its two sides agree; the benchmarks run once, as tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str) -> str:
    """Standard output of ``python command``; a warning is an error there."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_character_language_model(cell: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    printed = run("examples/char_language_model.py", "--quick", "--cell", cell, "--out", str(tmp_path))
    gap = re.search(r"is ([\d.e+-]+), at step \d+ of (\d+), loss ([\d.]+)\.", printed)
    assert gap is not None, printed
    # Each step may add one rounding of the loss to the distance: 8 eps of float32.
    assert float(gap[1]) <= int(gap[2]) * 8 * 2**-23 * float(gap[3]), printed
    validation = re.search(r"Validation: ([\d.]+) and ([\d.]+) bits .* unigrams alone (\d\.\d+)", printed)
    assert validation is not None, printed
    assert float(validation[2]) < float(validation[3]), "the model learned less than the frequencies of characters"
    assert "Both write the same text:" in printed
    plot = tmp_path / f"char_language_model_{cell}.png"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_own_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = tmp_path / "text"
    text.write_text("the cat sat on the mat\n" * 2000)
    arguments = ["--quick", "--text", str(text), "--steps", "3", "--sample", "25", "--out", str(tmp_path)]
    assert "46,000 characters" in run("examples/char_language_model.py", *arguments)


def test_benchmarks_run_once() -> None:
    pytest.importorskip("pytest_benchmark")
    # Not numba's peer: compiling it takes longer than all the rest, and the tests of the layers do so anyway.
    chosen = ["--group", "tiny", "--threads", "1", "-k", "not numba", "--benchmark-disable", "-p", "no:cacheprovider"]
    printed = run("-m", "pytest", "benchmarks", *chosen)
    assert re.search(r"\d+ passed", printed), printed
