"""The C++ kernels touch nothing beyond the memory of what they are given, of what they give and of their own.

Numbers do not tell: a read behind an array meets another number that counts for nothing, a write what nobody reads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are guarded as on Linux")


def checking_allocator() -> dict[str, str]:
    """The settings by which glibc looks behind each block that is freed, and aborts where somebody has written there;
    none where this system has no such library."""
    wanted = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    done = subprocess.run(["true"], env=os.environ | wanted, capture_output=True, text=True)
    return {} if done.returncode or done.stderr else wanted


@pytest.mark.parametrize("count", [90, pytest.param(5000, marks=pytest.mark.slow)])
def test_nothing_beyond_an_array_is_touched(count: int):
    """The program's last act is to touch what is beyond one, of which it must die."""
    program = Path(__file__).with_name("guarded_runs.py")
    environment = os.environ | checking_allocator() | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(program), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert "nothing beyond" in done.stdout, f"{done.returncode} after {done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == -signal.SIGSEGV, done.stderr[-4000:]
