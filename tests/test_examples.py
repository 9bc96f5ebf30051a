"""Each example runs, quickly and without a warning, and its two sides agree; the benchmarks run once, as tests."""

import importlib.util
import json
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


def agree(printed: str) -> None:
    """The two sides' losses lie as near as rounding allows: each step may add one of the loss, 8 eps of float32.

    Not so with relu: a sum near its kink takes either slope by a rounding, and from then on the two train on gradients
    that differ by a unit's share.  There the losses agree to two digits; that each gradient is right, other tests show.
    """
    gaps = re.findall(r"is ([\d.e+-]+), at step \d+ of (\d+), loss ([\d.]+)\.\n *(\w*)", printed)
    assert gaps, printed
    for gap, steps, loss, network in gaps:
        share = 0.01 if network == "relu" else int(steps) * 8 * 2**-23
        assert float(gap) <= share * float(loss), printed


def conclusions(out: Path) -> dict[str, dict]:
    """What the example wrote down, by name; and it left a picture."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    pictures = list(out.glob("*.png"))
    assert results and pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    return results


# Each takes some ten seconds; in the quick suite one runs of each kind of task.
slow = pytest.mark.slow


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=slow), pytest.param("rnn", marks=slow)])
def test_character_language_model(cell: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    printed = run("examples/char_language_model.py", "--quick", "--cell", cell, "--out", str(tmp_path))
    agree(printed)
    assert conclusions(tmp_path)[f"char_language_model_{cell}"]["beaten"], printed
    assert "Both write the same text:" in printed


# A module with the data of each, which the example reads without importing it; whether it runs in the quick suite.
EXAMPLES = [
    ("one_to_one.py", "names", False),
    ("name_generation.py", "names", False),
    ("classify.py --task names", "names", True),
    ("classify.py --task sentiment", "vaderSentiment", False),
    ("source_labels.py", "matplotlib", False),
    ("translation.py", "django", True),
    ("forecasting.py --series co2 --cell lstm", "statsmodels", False),
    ("forecasting.py --series sunspots --cell gru", "statsmodels", True),
    ("chorale_melodies.py", "music21", False),
    ("classics.py --problem adding", "matplotlib", True),
    ("anomalies.py", "matplotlib", True),
    ("spoken_digits.py", "matplotlib", False),
]


@pytest.mark.parametrize(
    ("command", "data"),
    [pytest.param(*one, id=one[0], marks=() if quick else slow) for *one, quick in EXAMPLES],
)
def test_example(command: str, data: str, tmp_path: Path) -> None:
    for package in ("matplotlib", data):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    script, *options = command.split()
    printed = run(f"examples/{script}", "--quick", *options, "--out", str(tmp_path))
    agree(printed)
    for name, result in conclusions(tmp_path).items():
        assert result["beaten"], f"{name} learned no more than its baseline\n{printed}"


@slow
def test_copy_problem(tmp_path: Path) -> None:
    """RMSprop divides even gradients that are mere rounding by their own size, so here the two sides part early."""
    pytest.importorskip("matplotlib")
    options = ["--quick", "--problem", "copy", "--networks", "gru", "jordan", "--out", str(tmp_path)]
    run("examples/classics.py", *options)
    for result in conclusions(tmp_path).values():
        assert result["values"][1] == pytest.approx(result["values"][0], rel=0.05)


@pytest.mark.parametrize("learns", [pytest.param(True, marks=slow), False])
def test_reinforcement(learns: bool, tmp_path: Path) -> None:
    """A rounding may tip one draw of an action, and the two sides part; but both learn what takes a memory."""
    pytest.importorskip("matplotlib")
    few = [] if learns else ["--steps", "5", "--carts", "8"]
    printed = run("examples/reinforcement.py", "--quick", *few, "--out", str(tmp_path))
    for result in conclusions(tmp_path).values():
        assert not learns or min(result["values"]) > 1.5 * result["baseline"][1], printed
    assert "collecting a stretch, ms" in printed


def test_resets_of_the_reinforcement_example() -> None:
    """What it does for torch.nn, a call for each piece, is what ``reset=`` does in one."""
    program = (
        "import sys; sys.path.insert(0, 'examples'); import copy, fastrnn, torch; from reinforcement import *;"
        "torch.manual_seed(0); one = Policy(8); other = fastrnn.convert(copy.deepcopy(one));"
        "began = torch.rand(20, 5) < 0.1; given = torch.randn(20, 5, 2), torch.randn(1, 5, 8), began;"
        "assert began[1:].any() and type(other.memory) is fastrnn.GRU;"
        "torch.testing.assert_close(one(*given), other(*given))"
    )
    pytest.importorskip("matplotlib")
    run("-c", program)


def test_own_cell(tmp_path: Path) -> None:
    """RMSprop again, so the two sides part; but both have learned where the LSTM has not."""
    pytest.importorskip("matplotlib")
    printed = run("examples/own_cell.py", "--quick", "--out", str(tmp_path))
    for result in conclusions(tmp_path).values():
        assert result["beaten"] and max(result["values"]) < 0.5 * result["baseline"][1], printed
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.count(" ") > 4}
    assert {"loop", "fastrnn", "LSTM"} <= rows.keys() and float(rows["LSTM"][2]) > float(rows["fastrnn"][2]), printed
    assert float(rows["loop"][2]) == pytest.approx(float(rows["fastrnn"][2]), rel=0.2), printed


def test_a_few_steps_renew_the_times_in_the_table(tmp_path: Path) -> None:
    for package in ("matplotlib", "names"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    result = {"command": "one_to_one.py", "metric": "accuracy", "baseline": ["majority class", 0.79], "beaten": True}
    result |= {"values": [0.825, 0.826], "parameters": 9346, "milliseconds": [1e6, 1e6]}
    (tmp_path / "one_to_one.json").write_text(json.dumps(result))
    kept = "| `own_cell.py` | as it was |\n"
    old = f"old\n{kept}| `one_to_one.py` | old |\n"
    (tmp_path / "README.md").write_text(f"before\n<!-- results -->\n{old}<!-- end of results -->\nbehind\n")
    program = (
        "import sys; sys.path.insert(0, 'examples'); import run_all; from pathlib import Path;"
        f"run_all.OUT = Path({str(tmp_path)!r}); run_all.README = run_all.OUT / 'README.md';"
        "run_all.time_again('one_to_one.py'); run_all.write_table()"
    )
    run("-c", program)
    written = (tmp_path / "README.md").read_text()
    assert written.startswith("before\n") and written.endswith("behind\n") and "old" not in written and kept in written
    row = next(line for line in written.splitlines() if "one_to_one.py" in line)
    assert "| 0.79 (majority class) | 0.825 | 0.826 | 9,346 |" in row and "1000000.0" not in row


def test_chorale_as_midi(tmp_path: Path) -> None:
    """Every note of the file that the example writes begins and ends."""
    for package in ("matplotlib", "music21"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    program = (
        "import sys; sys.path.insert(0, 'examples'); from chorale_melodies import write_midi; from pathlib import Path;"
        f"write_midi([(60, 1.0), (0, 0.5), (100, 300.0)], Path({str(tmp_path / 'melody.mid')!r}))"
    )
    run("-c", program)
    track = b"\x00\xff\x51\x03\x0b\x71\xb0" + b"\x00\x90\x3c\x50\x83\x60\x80\x3c\x00"
    track += b"\x81\x70\x90\x64\x50" + b"\x88\xe5\x00\x80\x64\x00" + b"\x00\xff\x2f\x00"
    header = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0MTrk\x00\x00\x00" + bytes([len(track)])
    assert (tmp_path / "melody.mid").read_bytes() == header + track


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
