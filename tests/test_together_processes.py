"""Several processes: DDP and FSDP2 over gloo, fork, a DataLoader's workers, shared memory.

The programs are in ``together_processes.py``; one that waits for ever is ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrnn import backends

PROGRAMS = Path(__file__).with_name("together_processes.py")
PATIENCE = 400  # seconds; Numba may have kernels to compile

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the programs end themselves by an alarm and share by fork"),
    pytest.mark.skipif(
        any(backends.load(name).unavailable() for name in ("cpp", "numba")), reason="the programs run both CPU backends"
    ),
]


def together(*commands: tuple[str, ...]) -> None:
    """Runs programs at the same time; all of them must succeed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON")}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen(
            [sys.executable, str(PROGRAMS), *command],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert all(process.returncode == 0 for process in running), "\n".join(said)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_train_as_one_by_ddp_and_by_fsdp2(tmp_path: Path):
    ways = ["replicated"]
    if hasattr(torch.cpu.Stream, "record_event"):  # with torch 2.6, FSDP2 is for GPUs alone
        ways.append("sharded")
    together(*(("parallel", str(rank), str(tmp_path), *ways) for rank in range(2)))


def test_fork_and_dataloader_workers_after_use(tmp_path: Path):
    together(("forked", str(tmp_path)))


def test_a_spawned_process_trains_shared_parameters():
    together(("shared",))
