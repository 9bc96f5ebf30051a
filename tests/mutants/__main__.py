"""``make mutants``: plants each fault in a copy of the tree, runs its tests, and says which of them saw it.

The working tree is never touched.  The copy, in build/mutants/tree, is what Python imports instead of the installed
package.  C++ is built there once, with all faults in it and a switch for each, with little optimization, for the best
instruction set of this machine and for the baseline, which has code in the place of instructions that it lacks.

    make mutants ARGS='-k gru'     those whose name holds "gru" (a regular expression)
    make mutants ARGS=--named      never the whole suite: a fault that its own tests do not see survives
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "mutants"
TREE, BUILT = FOLDER / "tree", FOLDER / "built"
PATIENCE = 900  # seconds after which tests that wait for ever are ended
# A test of C++ as it is written, which the switches of all faults have changed.
OF_TEXT = "tests/test_built_in_cells.py::test_what_is_checked_in_is_what_is_printed"
# A line of `pytest -v`, and of xdist's; a test that ended with the process has a name and no result.
RESULT = re.compile(
    r"^(?:\[gw\d+\] +\[ *\d+%\] )?(?:(PASSED|FAILED|ERROR) )?(tests/\S+::.*?)"
    r"(?: (PASSED|FAILED|ERROR|SKIPPED|Fatal Python error).*)?$"
)

# Python imports this at its start, before anything else; an editable install would else lead back to the working tree.
SITECUSTOMIZE = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in type(finder).__name__
                    and "ScikitBuildRedirecting" not in type(finder).__name__]
"""

# Included in front of every C++ source: the number of the fault to be tried.
PLANTED = """#pragma once
#include <cstdlib>
namespace {
const char* const fastrnn_asked = std::getenv("FASTRNN_PLANTED");
[[maybe_unused]] const int fastrnn_planted = fastrnn_asked ? std::atoi(fastrnn_asked) : 0;
}
"""

sys.path[0] = str(ROOT / "tests")
from mutants import Fault, all_faults  # noqa: E402


class Found(NamedTuple):
    """What pytest made of it: the test that saw the fault, "" if none did, and whether tests ran at all."""

    test: str
    ran: bool
    output: str


def copy_tree(but: set[str]) -> None:
    """The sources as they are now, tracked or not, but for some; what has not changed keeps its time, and so what was
    built of it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    names = {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}
    for path in TREE.rglob("*") if TREE.exists() else ():
        if path.is_file() and path.suffix in (".py", ".h", ".cpp") and str(path.relative_to(TREE)) not in names:
            path.unlink()
    for name in sorted(names - but):
        source, target = ROOT / name, TREE / name
        if not target.exists() or source.read_bytes() != target.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    kernels = TREE / "fastrnn" / "kernels"
    if not kernels.is_symlink():
        kernels.symlink_to("../kernels")
    write(TREE / "sitecustomize.py", SITECUSTOMIZE)


def build() -> None:
    """Builds the C++ core of the copy."""
    tools = Path(sys.executable).parent
    pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
    options = {
        "CMAKE_MAKE_PROGRAM": tools / "ninja",
        "CMAKE_BUILD_TYPE": "None",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.stdout.strip(),
        "CMAKE_CXX_FLAGS": f"-include {TREE}/planted.h",
        "FASTRNN_INSTRUCTION_SETS": f"{best()};generic",
        "FASTRNN_OPTIMIZATION": 1,
    }
    command = [tools / "cmake", "-S", TREE, "-B", BUILT, "-G", "Ninja"]
    subprocess.run([*command, *(f"-D{k}={v}" for k, v in options.items())], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([tools / "cmake", "--build", BUILT], check=True, stdout=subprocess.DEVNULL)
    name = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    shutil.copy2(BUILT / name, TREE / "fastrnn" / name)
    for source in (BUILT / "libfastrnn_stream.so", TREE / "include" / "fastrnn_stream.h"):
        folder = TREE / "fastrnn" / ("lib" if source.suffix == ".so" else "include")
        folder.mkdir(exist_ok=True)
        shutil.copy2(source, folder / source.name)


def best() -> str:
    """The best instruction set of this machine: asked of the installed core, which has all of them."""
    code = "import fastrnn._core as core; print(core.isa())"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Runner:
    """Runs tests of the copy, each time in a fork of a process that has imported what takes long: torch takes longer
    than most of the tests.  That process imports nothing of the copy, and has a team of one thread."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], cwd=TREE, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, tests: str, settings: dict[str, str]) -> Found:
        """Runs tests until one fails, with these additions to the environment."""
        chosen = [f"tests/{part}" if part.startswith("test_") else part for part in shlex.split(tests)]
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([chosen, settings]) + "\n")
        self.process.stdin.flush()
        code, output = json.loads(self.process.stdout.readline())
        last = ""
        for line in output.splitlines():
            if match := RESULT.match(line):
                last = match[2]
                if "FAILED" in match.groups() or "ERROR" in match.groups():
                    return Found(last, True, output)
        if code is None or code < 0:
            how = "waits for ever" if code is None else "crashes"
            return Found(f"{last} ({how})" if last else "", bool(last), output)
        return Found("", code == 0, output)


def serve() -> None:
    """The other end: a line of arguments of pytest and of settings comes, one of the exit status and the output goes.
    The status is minus a signal, or None of tests that were still running when patience ended."""
    import pytest
    import torch  # noqa: F401

    with suppress(ImportError):
        import numba  # noqa: F401

    for line in sys.stdin:
        chosen, settings = json.loads(line)
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                os.setsid()
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                os.environ.update(settings)
                code = pytest.main(["-x", "-v", "-p", "no:cacheprovider", "--tb=short", *chosen])
                sys.stdout.flush()
                os._exit(code)
            code, ends = None, time.monotonic() + PATIENCE
            while code is None and time.monotonic() < ends:
                time.sleep(0.05)
                pid, status = os.waitpid(child, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if pid else None
            if code is None:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            output.seek(0)
            print(json.dumps([code, output.read()]), flush=True)


@contextmanager
def planted(fault: Fault) -> Iterator[dict[str, str]]:
    """The fault in the copy; what the environment is then to hold."""
    if fault.file.startswith("csrc/"):
        yield {"FASTRNN_PLANTED": str(number(fault))}
        return
    path = TREE / fault.file
    text = path.read_text()
    path.write_text(replaced(text, fault, fault.after))
    try:
        yield {}
    finally:
        path.write_text(text)


def replaced(text: str, fault: Fault, after: str) -> str:
    if text.count(fault.before) != 1:
        raise SystemExit(f"{fault.name}: its text stands {text.count(fault.before)} times in {fault.file}")
    return text.replace(fault.before, after)


def number(fault: Fault) -> int:
    """By its name, so that other faults do not change what is compiled for it."""
    return zlib.crc32(fault.name.encode()) >> 1


def plant_all(faults: list[Fault]) -> None:
    """All faults of C++ into the copy, each behind its switch."""
    for file in sorted({fault.file for fault in faults}):
        text = (ROOT / file).read_text()
        for fault in faults:
            if fault.file == file:
                text = replaced(text, fault, fault.after.replace("PLANTED", f"(fastrnn_planted == {number(fault)})"))
        write(TREE / file, text)
    write(TREE / "planted.h", PLANTED)


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def try_one(runner: Runner, fault: Fault, named: bool) -> tuple[str, str]:
    """Which test saw the fault, "" if none did, and what is amiss with the fault itself."""
    with planted(fault) as settings:
        found = runner.run(fault.tests, settings)
        if found.test:
            return found.test, ""
        if not found.ran:
            return "", f"its tests do not run:\n{found.output[-4000:]}"
        if not named:
            found = runner.run(f"tests -n 2 --deselect {OF_TEXT}", settings)
            if found.test:
                return found.test, "seen by others than its own tests: name them"
    return "", ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=str(__doc__).split("\n")[0])
    parser.add_argument("-k", default="", help="only faults whose name this regular expression is found in")
    parser.add_argument("--named", action="store_true", help="run each fault's own tests alone")
    options = parser.parse_args()
    faults = [fault for fault in all_faults() if re.search(options.k, fault.name)]

    started = time.monotonic()
    compiled = [fault for fault in all_faults() if fault.file.startswith("csrc/")]
    copy_tree({fault.file for fault in compiled})
    plant_all(compiled)
    build()
    print(f"built: {time.monotonic() - started:.0f} s", flush=True)

    runner, survivors, seen_by = Runner(), [], set()
    for place, fault in enumerate(faults, 1):
        began = time.monotonic()
        test, amiss = try_one(runner, fault, options.named)
        print(f"{place:3} {fault.name} ({fault.file}): {fault.wrong}")
        print(f"      {test or 'SURVIVES'}, {time.monotonic() - began:.0f} s {amiss}", flush=True)
        seen_by.add(test.split(" (")[0])
        if not test:
            survivors.append(fault.name)
    seen_by -= {""}
    found = runner.run(shlex.join(seen_by), {}) if seen_by else Found("", True, "")
    if found.test or not found.ran:  # a test that fails anyway sees everything
        raise SystemExit(f"{found.test}: fails without a fault\n{found.output[-6000:]}")
    print(f"{len(faults) - len(survivors)} of {len(faults)} seen, {(time.monotonic() - started) / 60:.0f} minutes")
    if survivors:
        print("not seen:", *survivors)
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == ["--serve"] else main())
