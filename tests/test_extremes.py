"""At the ends of what a machine gives: sizes beyond 2^31, no memory, signals, forks, more threads than cores.

The programs are in ``extreme_processes.py``, each in a process of its own; one that waits for ever is ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn import backends

PROGRAMS = Path(__file__).with_name("extreme_processes.py")
PATIENCE = 400  # seconds

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the programs limit their memory, fork and send signals"),
    pytest.mark.skipif(backends.load("cpp").unavailable() is not None, reason="the programs run the C++ core"),
]


def run(*arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    command = [sys.executable, str(PROGRAMS), *arguments]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def test_memory_signals_forks_and_threads():
    """Memory that cannot be had, Ctrl-C in a long call, a fork in the midst of one, 64 threads on few cores."""
    run("without_memory", "interrupted", "forked_meanwhile", "many_threads")


@pytest.mark.slow
@pytest.mark.skipif(backends.load("numba").unavailable() is not None, reason="no Numba")
def test_the_same_on_the_numba_backend():
    run("--backend=numba", "without_memory", "interrupted", "forked_meanwhile", "many_threads")


# Gigabytes and minutes each.
FORMS = ["many_rows", "many_steps", "wide_input", "tokens", "eight_bits", "gradients"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_more_than_2_to_the_31_numbers(form: str, backend: str):
    if backend == "numba" and (form == "eight_bits" or backends.load("numba").unavailable()):
        pytest.skip("not on this backend")
    if (backend, form) == ("numba", "gradients") and os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    ) < 40 << 30:
        pytest.skip("takes 30 GiB of memory, and the machine has no 40")  # in float32, where C++ does with bfloat16
    run(f"--backend={backend}", form)
