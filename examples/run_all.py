"""Runs all examples and writes what they reached into the table of the README.

    python examples/run_all.py             # all, one after the other; some twenty minutes on two cores
    python examples/run_all.py classics    # those whose command has this word; the other rows stay

Options behind ``--`` are handed on: ``python examples/run_all.py -- --threads 2``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
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
    "classics.py --problem adding",
    "classics.py --problem copy",
)


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
    """One row for each result in ``out/`` that one of the commands gave, in the order of the commands."""
    files = sorted(OUT.glob("*.json"), key=lambda path: path.stat().st_mtime)
    results = [json.loads(path.read_text()) for path in files]
    rows = [
        row(command, result)
        for command in COMMANDS
        for result in results
        if re.fullmatch(re.escape(command) + r"( --(threads|seed|out) \S+)*", result["command"])
    ]
    before, _, behind = README.read_text(encoding="utf-8").partition(BEGIN)
    behind = behind.partition(FINISH)[2]
    README.write_text(before + BEGIN + HEAD + "".join(rows) + FINISH + behind, encoding="utf-8")


def main() -> None:
    words, options = sys.argv[1:], []
    if "--" in words:
        place = words.index("--")
        words, options = words[:place], words[place + 1 :]
    for command in COMMANDS:
        if all(word in command for word in words):
            print(f"\n== {command}", flush=True)
            subprocess.run([sys.executable, HERE / command.split()[0], *command.split()[1:], *options], check=True)
    write_table()


if __name__ == "__main__":
    main()
