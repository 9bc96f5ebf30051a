"""Teams on the core's own pool of threads, which systems without OpenMP have (``FASTRNN_THREADS=std``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fastrnn.backends import numba_start

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or ""
SOURCES = [f"csrc/{name}.cpp" for name in ("barrier", "machine", "runtime", "threads_pool", "threads_std", "waiting")]
PATIENCE = 600

pytestmark = pytest.mark.skipif(not COMPILER, reason="a C++ compiler is missing")


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("waits", ["by the system", "on conditions"])
def test_the_native_test_of_teams(waits: str, tmp_path: Path):
    flags = ["-std=c++17", "-O1", "-pthread", "-Icsrc"] + ["-DFASTRNN_WAITS_ON_CONDITIONS"] * (waits == "on conditions")
    run(*COMPILER.split(), *flags, "tests/native/threads.cpp", *SOURCES, "-o", tmp_path / "threads")
    # More threads than most machines have CPUs.
    assert "threads of std: " in run(tmp_path / "threads", FASTRNN_CPUS="4")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole core on such threads, for any machine of this architecture."""
    if not shutil.which("ninja"):
        pytest.skip("ninja is missing")
    folder = tmp_path_factory.mktemp("std")
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
    options += ["-DFASTRNN_THREADS=std", "-DFASTRNN_INSTRUCTION_SETS=generic", "-DFASTRNN_OPTIMIZATION=1"]
    assert "fastrnn: threads of std" in run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options)
    run("cmake", "--build", folder)
    return folder / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.mark.slow
def test_a_core_without_openmp(core: Path):
    libraries = run("ldd", core)
    assert "libstdc++" in libraries and "omp" not in libraries
    facts = run(sys.executable, "-c", "import other_core, runpy; runpy.run_module('fastrnn', run_name='__main__')",
                FASTRNN_CORE=str(core), PYTHONPATH="tests")  # fmt: skip
    assert " threads of std, instruction set generic" in facts


@pytest.mark.slow
@pytest.mark.skipif(numba_start._openmp() is None, reason="some callers are threads of torch's OpenMP library")
@pytest.mark.parametrize("callers", ["alone", "many", "inside", "denormals"])
def test_a_core_without_openmp_gives_the_same_bits_on_every_team(core: Path, callers: str):
    program = [sys.executable, "tests/team_processes.py", "cpp", "3", callers]
    run(*program, FASTRNN_CORE=str(core), FASTRNN_CPUS="4")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the programs limit their memory and fork")
@pytest.mark.parametrize("program", ["without_memory", "interrupted", "forked_meanwhile", "many_threads"])
def test_a_core_without_openmp_at_the_ends_of_what_a_machine_gives(core: Path, program: str):
    run(sys.executable, "tests/extreme_processes.py", program, FASTRNN_CORE=str(core), FASTRNN_CPUS="4")
