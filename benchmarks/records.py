"""A table of results as data: ``results/NAME.json`` beside ``results/NAME.md``, which plots are made of.

    python benchmarks/records.py zen3      of a table that is older than these files, what it holds and no more

Each row has its case, work, cell, threads, peer, the median in milliseconds and its ratio over torch.nn; a row of a run
has the number of its samples, their quartiles, the least and the greatest, too, which of an older table nobody knows:
there ``spread`` is null, and ``provenance`` says so.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
FIRST = "torch.nn"
CONVERTED = "read from the table of {}, which kept medians as it prints them and no spread"
CONVERTED_BYTES = "read from the table of {}, in bytes, of MiB with two digits behind the point"


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Of seconds, in milliseconds."""
    low, _, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else (samples[0],) * 3
    values = dict(least=min(samples), lower_quartile=low, upper_quartile=high, greatest=max(samples))
    return dict(samples=len(samples)) | {name: value * 1e3 for name, value in values.items()}


def row(
    case: str, threads: int, peer: str, milliseconds: float, ratio: float | None, spread: Mapping[str, Any] | None
) -> dict[str, Any]:
    mode, _, work = case.partition("-")[0], "", case.rpartition("-")[2]
    found = dict(case=case, cell=mode, work=work, threads=threads, peer=peer, milliseconds=milliseconds)
    return found | dict(over_torch_nn=ratio, spread=spread)


def record(
    machine: str, versions: Mapping[str, str], command: str, provenance: str, rows: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    return dict(machine=machine, versions=dict(versions), command=command, provenance=provenance, rows=list(rows))


def write(name: str, found: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """A row a line, so that a difference of two runs can be read."""
    rows = ",\n".join("  " + json.dumps(each) for each in found["rows"])
    head = json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


def from_table(path: Path) -> dict[str, Any]:
    """What a table written by ``report.py`` or ``memory.py`` holds.

    Raises:
        ValueError: it names no machine, no command, or has no rows.
    """
    text = path.read_text()
    machine, command = re.search(r"^Machine: (.+)\.$", text, re.M), re.search(r"^Command: `([^`]+)`", text, re.M)
    pattern = r"^\| (\S+-(?:train|infer)) \| (\d+) \| ([^|]+) \| ([\d.e+-]+) \| ([\d.]*) ?\|"
    rows = [
        row(case, int(threads), peer.strip(), float(taken), float(ratio) if ratio else None, None)
        for case, threads, peer, taken, ratio in re.findall(pattern, text, re.M)
    ] or bytes_of(text)
    if machine is None or command is None or not rows:
        raise ValueError(f"{path.name}: expected a machine, a command and rows of report.py or memory.py")
    kept = CONVERTED if "peer" in rows[0] else CONVERTED_BYTES
    versions = dict(re.findall(r"\b(torch|Python) (\S+?)(?:,|$)", machine[1]))
    return record(machine[1], versions, command[1], kept.format(path.name), rows)


def bytes_of(text: str) -> list[dict[str, Any]]:
    """The rows of a table of ``memory.py``, whose numbers are MiB with two digits behind the point."""
    found = []
    for case, side, *columns in re.findall(r"^\| (\S+-T\d\S*) \|" + r" ([^|]*) \|" * 4 + "$", text, re.M):
        sizes = [round(float(column.split()[0]) * 2**20) if column.strip() else None for column in columns]
        found.append(dict(case=f"{case}-train", side=side) | dict(zip(("saved", "kept", "peak"), sizes, strict=True)))
    return found


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(name, from_table(RESULTS / f"{name}.md"))
