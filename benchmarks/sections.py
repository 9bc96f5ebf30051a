"""Where results are kept beside ``RESULTS.md``: one file a section in ``results/``.

A section is what one command wrote, with the machine it ran on; another run of the command replaces it alone.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def machine() -> str:
    """The processor, its cores, and the libraries: what a table means nothing without."""
    model, info = platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = (named or [model])[0]
    instructions, cores = torch.backends.cpu.get_cpu_capability(), len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {instructions}, torch {torch.__version__}, Python {platform.python_version()}"


def command() -> str:
    return f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"


def write(
    name: str, title: str, head: Sequence[str], summary: Sequence[str], table: str, folder: Path = RESULTS
) -> None:
    """Replaces the section ``name``: paragraphs, lines of a list, and a table in Markdown."""
    paragraphs = [f"Machine: {machine()}.", f"Command: `{command()}`.", *head]
    text = "\n\n".join([f"# {title}", *paragraphs, "\n".join(f"- {line}" for line in summary)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(f"{text}\n\n## Table\n\n{table}")
