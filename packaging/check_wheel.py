"""What a built wheel may hold: ``python packaging/check_wheel.py WHEEL --commands compile_commands.json``.

Its files are those of the working tree, one compiled core, the C library of streams, and the licence; nothing else, so
no library that torch brings (:file:`Makefile` says why libgomp stays out).  Its compilers were told of instruction sets
by CMakeLists.txt alone: a flag that comes from the machine it was built on would make a core that others cannot run.
"""

from __future__ import annotations

import argparse
import email
import json
import re
import shlex
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 8 << 20
CORE = re.compile(r"fastrnn/_core[.\w-]*\.(so|pyd)")
LIBRARY = re.compile(r"fastrnn/lib/(lib)?fastrnn_stream\.(so|dylib|dll)")
INFO = {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}


def sources() -> set[str]:
    """What of the working tree is installed, under the names that it has there."""
    found = [
        path for pattern in ("fastrnn/**/*.py", "fastrnn/**/*.pyi", "fastrnn/py.typed") for path in ROOT.glob(pattern)
    ]
    own = {path.relative_to(ROOT).as_posix() for path in found}
    own.add("fastrnn/include/fastrnn_stream.h")
    return own | {f"fastrnn/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}


def contents(names: Iterable[str]) -> list[str]:
    """What is wrong with the names of a wheel's files."""
    names = set(names)
    info = {name for name in names if ".dist-info/" in name}
    cores = {name for name in names if CORE.fullmatch(name)}
    libraries = {name for name in names if LIBRARY.fullmatch(name)}
    packages = names - info - cores - libraries
    problems = [f"missing: {name}" for name in sorted(sources() - packages)]
    problems += [f"not of the sources: {name}" for name in sorted(packages - sources())]
    if len(cores) != 1:
        problems.append(f"expected one compiled core, got {sorted(cores) or 'none'}")
    if len(libraries) != 1:
        problems.append(f"expected one C library, got {sorted(libraries) or 'none'}")
    ends = {name.split(".dist-info/")[1] for name in info}
    problems += [f"missing: {name} of .dist-info" for name in sorted(INFO - ends)]
    return problems


def metadata(text: str) -> list[str]:
    """What is wrong with METADATA."""
    found = email.message_from_string(text)
    version = re.search(r'__version__ = "(.*)"', (ROOT / "fastrnn" / "__init__.py").read_text())
    expected = {"Name": "fastrnn", "License-Expression": "BSD-3-Clause", "Version": version[1] if version else "?"}
    return [f"{name}: expected {value}, got {found[name]}" for name, value in expected.items() if found[name] != value]


def flags(commands: Sequence[dict[str, str]]) -> list[str]:
    """What the compilers were told of a machine beyond CMakeLists.txt, of the entries of compile_commands.json."""
    lines = [line.partition("#")[0] for line in (ROOT / "CMakeLists.txt").read_text().splitlines()]
    known = set(re.findall(r"\s(-m[\w=.-]+)", "\n".join(lines)))
    extensions = set(re.findall(r"\$\{arm\}([\w+]+)", "\n".join(lines)))
    known |= {f"{flag}{extension}" for flag in known for extension in extensions}
    problems = []
    for command in commands:
        given = {word for word in shlex.split(command["command"]) if re.match(r"-m|/arch", word)}
        problems += [f"{Path(command['file']).name}: {word} is not of CMakeLists.txt" for word in sorted(given - known)]
    return problems if commands else ["no compile commands"]


def check(wheel: Path, commands: Sequence[dict[str, str]]) -> list[str]:
    """All that is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        problems = contents(names) + flags(commands)
        for name in names:
            if name.endswith(".dist-info/METADATA"):
                problems += metadata(archive.read(name).decode())
    if (size := wheel.stat().st_size) > MOST_BYTES:
        problems.append(f"{size / 2**20:.1f} MiB, expected at most {MOST_BYTES >> 20}")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--commands", type=Path, required=True, help="compile_commands.json of its build")
    options = parser.parse_args()
    problems = check(options.wheel, json.loads(options.commands.read_text()))
    print(*problems, sep="\n")
    size = options.wheel.stat().st_size / 2**20
    print(f"{options.wheel.name}: {size:.1f} MiB, {f'{len(problems)} problems' if problems else 'nothing wrong'}")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
