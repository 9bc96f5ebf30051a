"""Memory that a call reads, and that others free, exchange, move or cut short: an error or what is right, no crash.

The programs are in ``memory_programs.py`` and run in processes of their own, where a crash is a failure: what they say
last names the variant.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_programs import LONG
from torch import nn

import fastrnn
from fastrnn import backends

PROGRAMS = Path(__file__).with_name("memory_programs.py")
PATIENCE = 900  # seconds; Numba may have kernels to compile

if reason := backends.load("cpp").unavailable():
    pytest.skip(f"memory is that of compiled kernels, and {reason}", allow_module_level=True)


def run(*command: str, threads: int = 1) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, str(PROGRAMS), *command], env=environment, text=True, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-5000:]}"


@pytest.mark.parametrize(
    ("backend", "every"),
    [
        pytest.param("quick", 17, id="some"),
        *(pytest.param(name, 1, id=name, marks=pytest.mark.slow) for name in ("quick", "cpp", "numba", "reference")),
    ],
)
@pytest.mark.parametrize("when", ["inference", "training", "backward"])
def test_storage_that_was_freed_or_cut_short(backend: str, every: int, when: str):
    if backend == "numba" and (reason := backends.load(backend).unavailable()):
        pytest.skip(reason)
    run("freed", backend, when, str(every))


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_parameter_on_the_meta_device(every: int):
    run("elsewhere", str(every))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("place", range(4))
def test_with_weights_that_are_not_all_there_no_function_of_torch_is_called(kind: str, place: int, monkeypatch: Any):
    """Another thread may be about to put them back, and torch's functions survive no change of what they read."""

    def called(*_: Any) -> Any:
        raise AssertionError("torch.nn's forward was called")

    base: Any = getattr(nn, kind)
    missing, moved = (getattr(fastrnn, kind)(3, 4) for _ in range(2))
    name = missing._flat_weights_names[place]
    delattr(missing, name)
    missing._init_flat_weights()
    setattr(moved, name, nn.Parameter(getattr(moved, name).to("meta")))
    monkeypatch.setattr(base, "forward", called)
    with pytest.raises((TypeError, AttributeError), match="wants all of its parameters|'NoneType' object"):
        missing(torch.randn(5, 2, 3))
    with pytest.raises(RuntimeError, match="not at the same device: cpu, meta"):
        moved(torch.randn(5, 2, 3))


def test_weights_that_change_while_they_are_read():
    run("stresses", "0.5", "GRU", "a small LSTM", "int8 GRUCell", "RNNCell that trains")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", ["exchange", "damage"])
@pytest.mark.parametrize("kind", LONG)
def test_weights_that_change_while_they_are_read_for_longer(kind: str, way: str, threads: int):
    run("stress", kind, way, "5", threads=threads)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange"])
@pytest.mark.parametrize("kind", ["LSTM", "LSTM that trains", "LSTMCell"])
def test_weights_that_change_while_numba_reads_them(kind: str, way: str):
    if reason := backends.load("numba").unavailable():
        pytest.skip(reason)
    run("stress", kind, way, "5", "numba")
