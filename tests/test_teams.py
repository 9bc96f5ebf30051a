"""Right results on whatever team of threads the OpenMP runtime gives, and in the caller's floating-point mode.

The programs are in ``team_processes.py``, each in a process of its own, since the environment is read once; one that
waits for ever is ended.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn import backends
from fastrnn.backends import numba_start

PROGRAMS = Path(__file__).with_name("team_processes.py")
PATIENCE = 400  # seconds; Numba may have kernels to compile
BOTH = "cpp,numba"
CALLERS = ("alone", "many", "inside", "by_load", "no_regions")
ENVIRONMENTS = {
    "OMP_MAX_ACTIVE_LEVELS": ("", "0", "1"),
    "OMP_THREAD_LIMIT": ("", "1", "2", "3"),
    "OMP_DYNAMIC": ("", "true"),
    "OMP_NUM_THREADS": ("1", "4"),
}

pytestmark = [
    pytest.mark.skipif(
        any(backends.load(name).unavailable() for name in ("cpp", "numba")), reason="the programs run both CPU backends"
    ),
    pytest.mark.skipif(numba_start._openmp() is None, reason="the programs ask the OpenMP library for its settings"),
]


def run(*arguments: str, **environment: str) -> None:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "TRITON"))}
    own |= {"FASTRNN_CPUS": "4"} | {key: value for key, value in environment.items() if value}
    command = [sys.executable, str(PROGRAMS), *arguments]
    done = subprocess.run(command, env=own, text=True, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def test_where_regions_are_of_one_thread():
    run(BOTH, "0", *CALLERS[:2], OMP_MAX_ACTIVE_LEVELS="0")


def test_where_fewer_threads_come_than_are_asked_for():
    run("cpp", "1", "alone", OMP_THREAD_LIMIT="3")


def test_groups_of_several_that_are_formed_anew_where_half_leaves():
    run("cpp", "4", "alone", FASTRNN_CPUS="8")


def test_many_callers_callers_inside_of_regions_settings_that_change_and_denormals():
    run(BOTH, "2", *CALLERS[1:], "denormals")


@pytest.mark.slow
@pytest.mark.parametrize("values", list(itertools.product(*ENVIRONMENTS.values())), ids=" ".join)
def test_every_environment(values: tuple[str, ...]):
    environment = dict(zip(ENVIRONMENTS, values, strict=True))
    seed = list(itertools.product(*ENVIRONMENTS.values())).index(values)
    run(BOTH, str(seed), *CALLERS, FASTRNN_ISA="generic" if seed % 3 == 0 else "", **environment)
