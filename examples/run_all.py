"""Runs all examples and writes what they reached into the table of the README.

    python examples/run_all.py             # all, one after the other; some twenty minutes on two cores
    python examples/run_all.py classics    # those whose command has this word; the other rows stay
    python examples/run_all.py --times     # only the times again, from a few steps of each: some five minutes

Options behind ``--`` are handed on: ``python examples/run_all.py -- --threads 2``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
README = HERE / "README.md"
BEGIN, FINISH = "<!-- results -->\n", "<!-- end of results -->\n"
HEAD = """\
| command | metric | baseline | torch.nn | fastrnn | parameters | torch.nn, ms/step | fastrnn, ms/step | faster |
|---|---|---|---|---|---|---|---|---|
"""

COMMANDS = (
    "one_to_one.py",
    "name_generation.py",
    "classify.py --task names",
    "classify.py --task sentiment",
    "source_labels.py",
    "translation.py",
    "char_language_model.py",
    "forecasting.py --series co2 --cell lstm",
    "forecasting.py --series co2 --cell gru",
    "forecasting.py --series sunspots --cell lstm",
    "forecasting.py --series sunspots --cell gru",
    "chorale_melodies.py",
    "reinforcement.py",
    "anomalies.py",
    "spoken_digits.py",
    "classics.py --problem adding",
    "classics.py --problem adding --length 1000 --networks lstm gru --hidden 32 --batch 16 --steps 1200",
    "classics.py --problem copy",
    "classics.py --problem copy --length 200 --networks gru --steps 1000",
    "own_cell.py",
)
TIMED_STEPS = 60


def results_in(folder: Path) -> list[Path]:
    """In the order in which they were written."""
    return sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)


def row(command: str, result: dict) -> str:
    left, right = result["milliseconds"]
    cells = [
        f"`{command}`",
        result["metric"],
        f"{result['baseline'][1]:.3g} ({result['baseline'][0]})",
        *(f"{value:.3g}" for value in result["values"]),
        f"{result['parameters']:,}",
        f"{left:.1f}",
        f"{right:.1f}",
        f"{left / right:.2f}x",
    ]
    return "| " + " | ".join(cells) + " |\n"


def write_table() -> None:
    """One row for each result in ``out/`` that one of the commands gave, in the order of the commands; a command that
    has left none there keeps its rows."""
    results = [json.loads(path.read_text()) for path in results_in(OUT)]
    before, _, behind = README.read_text(encoding="utf-8").partition(BEGIN)
    old, _, behind = behind.partition(FINISH)
    rows = []
    for command in COMMANDS:
        options = re.escape(command) + r"( --(threads|seed|out) \S+)*"
        new = [row(command, result) for result in results if re.fullmatch(options, result["command"])]
        rows += new or [line for line in old.splitlines(keepends=True) if line.startswith(f"| `{command}` |")]
    README.write_text(before + BEGIN + HEAD + "".join(rows) + FINISH + behind, encoding="utf-8")


def run(command: str, *options: str) -> None:
    print(f"\n== {command}", flush=True)
    subprocess.run([sys.executable, HERE / command.split()[0], *command.split()[1:], *options], check=True)


def time_again(command: str, *options: str) -> None:
    """Trains for a few steps and puts their times into the results that a whole run has left."""
    with tempfile.TemporaryDirectory() as folder:
        run(command, "--steps", str(TIMED_STEPS), "--out", folder, *options)
        for path in results_in(Path(folder)):
            whole = OUT / path.name
            milliseconds = json.loads(path.read_text())["milliseconds"]
            result = json.loads(whole.read_text()) | {"milliseconds": milliseconds}
            whole.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    words, options = sys.argv[1:], []
    if "--" in words:
        place = words.index("--")
        words, options = words[:place], words[place + 1 :]
    job = time_again if "--times" in words else run
    words = [word for word in words if word != "--times"]
    for command in COMMANDS:
        if all(word in command for word in words):
            job(command, *options)
    write_table()


if __name__ == "__main__":
    main()
