"""``make mutants``: plants each fault in a copy of the tree, runs its tests, and says which of them saw it.

The working tree is never touched.  The copy, in build/mutants/tree, is what Python imports instead of the installed
package.  C++ is built there once, with all faults in it and a switch for each, for the best instruction set of this
machine alone and with little optimization.

    make mutants ARGS='-k gru'     those whose name holds "gru" (a regular expression)
    make mutants ARGS=--named      never the whole suite: a fault that its own tests do not see survives
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "mutants"
TREE, BUILT = FOLDER / "tree", FOLDER / "built"
PATIENCE = 900  # seconds after which tests that wait for ever are ended
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
    if not (BUILT / "build.ninja").exists():
        pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
        options = {
            "CMAKE_MAKE_PROGRAM": tools / "ninja",
            "CMAKE_BUILD_TYPE": "None",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.stdout.strip(),
            "CMAKE_CXX_FLAGS": f"-include {TREE}/planted.h",
            "FASTRNN_INSTRUCTION_SETS": best(),
            "FASTRNN_OPTIMIZATION": 1,
        }
        command = [tools / "cmake", "-S", TREE, "-B", BUILT, "-G", "Ninja"]
        subprocess.run([*command, *(f"-D{k}={v}" for k, v in options.items())], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([tools / "cmake", "--build", BUILT], check=True, stdout=subprocess.DEVNULL)
    name = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    shutil.copy2(BUILT / name, TREE / "fastrnn" / name)


def best() -> str:
    """The best instruction set of this machine: asked of the installed core, which has all of them."""
    code = "import fastrnn._core as core; print(core.isa())"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_tests(arguments: str, settings: dict[str, str]) -> Found:
    """Runs tests of the copy until one fails.  Python imports the copy's package, in subprocesses of tests, too."""
    chosen = [f"tests/{part}" if part.startswith("test_") else part for part in shlex.split(arguments)]
    command = [sys.executable, "-m", "pytest", "-x", "-v", "-p", "no:cacheprovider", "--tb=short", *chosen]
    environment = os.environ | {"PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1"} | settings
    process = subprocess.Popen(
        command, cwd=TREE, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, hung = process.communicate(timeout=PATIENCE)[0], False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, hung = process.communicate()[0], True
    last = ""
    for line in output.splitlines():
        if match := RESULT.match(line):
            last = match[2]
            if "FAILED" in match.groups() or "ERROR" in match.groups():
                return Found(last, True, output)
    if hung or process.returncode < 0:
        return Found(f"{last} ({'waits for ever' if hung else 'crashes'})" if last else "", bool(last), output)
    return Found("", process.returncode == 0, output)


@contextmanager
def planted(fault: Fault, number: int) -> Iterator[dict[str, str]]:
    """The fault in the copy; what the environment is then to hold."""
    if fault.file.startswith("csrc/"):
        yield {"FASTRNN_PLANTED": str(number)}
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


def plant_all(faults: dict[int, Fault]) -> None:
    """All faults of C++ into the copy, each behind its switch."""
    for file in sorted({fault.file for fault in faults.values()}):
        text = (ROOT / file).read_text()
        for number, fault in faults.items():
            if fault.file == file:
                text = replaced(text, fault, fault.after.replace("PLANTED", f"(fastrnn_planted == {number})"))
        write(TREE / file, text)
    write(TREE / "planted.h", PLANTED)


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def try_one(fault: Fault, number: int, named: bool) -> tuple[str, str]:
    """Which test saw the fault, "" if none did, and what is amiss with the fault itself."""
    with planted(fault, number) as settings:
        found = run_tests(fault.tests, settings)
        if found.test:
            return found.test, ""
        if not found.ran:
            return "", f"its tests do not run:\n{found.output[-4000:]}"
        if not named:
            found = run_tests("tests -n 2", settings)
            if found.test:
                return found.test, "seen by others than its own tests: name them"
    return "", ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=str(__doc__).split("\n")[0])
    parser.add_argument("-k", default="", help="only faults whose name this regular expression is found in")
    parser.add_argument("--named", action="store_true", help="run each fault's own tests alone")
    options = parser.parse_args()
    numbered = dict(enumerate(all_faults(), 1))
    faults = {number: fault for number, fault in numbered.items() if re.search(options.k, fault.name)}

    started = time.monotonic()
    compiled = {number: fault for number, fault in numbered.items() if fault.file.startswith("csrc/")}
    copy_tree({fault.file for fault in compiled.values()})
    plant_all(compiled)
    build()
    print(f"built: {time.monotonic() - started:.0f} s", flush=True)

    survivors, seen_by = [], set()
    for number, fault in faults.items():
        began = time.monotonic()
        test, amiss = try_one(fault, number, options.named)
        print(f"{number:3} {fault.name} ({fault.file}): {fault.wrong}")
        print(f"      {test or 'SURVIVES'}, {time.monotonic() - began:.0f} s {amiss}", flush=True)
        seen_by.add(test.split(" (")[0])
        if not test:
            survivors.append(fault.name)
    found = run_tests(shlex.join(seen_by - {""}), {})
    if found.test or not found.ran:  # a test that fails anyway sees everything
        raise SystemExit(f"{found.test}: fails without a fault\n{found.output[-6000:]}")
    print(f"{len(faults) - len(survivors)} of {len(faults)} seen, {(time.monotonic() - started) / 60:.0f} minutes")
    if survivors:
        print("not seen:", *survivors)
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
