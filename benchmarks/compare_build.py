"""Two builds of fastrnn beside each other: a commit's, and the working tree's.

Each is installed into a folder of its own below ``build/compare``, without its dependencies; a worker sees that folder,
the measuring code of this tree, and the packages of the running interpreter, but no other fastrnn that is installed
there (:func:`environment`).  A commit is built once for each choice of instruction sets, the tree on every run, where
unchanged objects are kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "compare"


@dataclass(frozen=True)
class Build:
    """``name`` is what a report calls it, ``site`` the folder that holds the package."""

    name: str
    site: Path


def environment(site: Path) -> dict[str, str]:
    """For ``python -S``: without the module ``site`` no .pth file is read, so an editable fastrnn stays out."""
    packages = (site, Path(__file__).parent, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(map(str, packages)))}


def install(source: Path, home: Path, instruction_sets: str) -> Path:
    """Builds what stands in ``source`` and gives the folder it was installed to."""
    site = home / "site"
    options = [f"build-dir={home / 'objects'}", f"cmake.define.FASTRNN_INSTRUCTION_SETS={instruction_sets}"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--upgrade", "--target", str(site)]
    for option in options:
        command += ["--config-settings", option]
    subprocess.run([*command, str(source)], check=True)
    return site


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit(name: str, instruction_sets: str) -> Build:
    """The commit ``name``, from a copy of its files."""
    full = git("rev-parse", "--verify", f"{name}^{{commit}}")
    home = FOLDER / f"{full[:12]}-{instruction_sets.replace(';', '-') or 'all'}"
    built = Build(git("describe", "--always", full), home / "site")
    done, source = home / "done", home / "source"
    if not done.exists():
        source.mkdir(parents=True, exist_ok=True)
        git("archive", "--output", str(home / "source.tar"), full)
        with tarfile.open(home / "source.tar") as files:
            files.extractall(source)
        install(source, home, instruction_sets)
        done.touch()
    return built


def tree(instruction_sets: str) -> Build:
    """The working tree as it stands, changes that are not committed included."""
    changed = "with changes" if git("status", "--porcelain", "--untracked-files=no") else "clean"
    home = FOLDER / f"tree-{instruction_sets.replace(';', '-') or 'all'}"
    return Build(f"{git('describe', '--always')} ({changed})", install(ROOT, home, instruction_sets))
