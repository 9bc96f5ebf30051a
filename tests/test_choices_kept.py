"""Which path is the fastest, as it was measured: kept on disk, by several processes, for one environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrnn import choices
from fastrnn.choices import TORCH, Choice, Kind, Table

CPU = torch.device("cpu")
KIND = Kind("LSTM", "float32", False, 1, 1, False, 8, 8, 4, 16, True)
pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_choice_outlives_the_process_and_damage_does_not(own_folder: Path):
    choice = Choice(KIND, "triton_tile", {TORCH: 2.5, "triton_tile": 1.25}, {"triton_stream": "is off"})
    assert Table(CPU).get(KIND) is None
    assert Table(CPU).get(KIND, lambda: choice) == choice
    assert Table(CPU).get(KIND) == choice
    assert Table(CPU).all() == [choice]
    (path,) = own_folder.rglob("*.json")
    assert json.loads(path.read_text())["environment"]["torch"] == torch.__version__
    for damage in ("", "{", "[]", "null", path.read_text().replace('"LSTM"', '"GRU"'), '{"kind": {}}'):
        path.write_text(damage)
        assert Table(CPU).get(KIND) is None
    assert Table(CPU).get(KIND, lambda: choice) == choice


@pytest.mark.parametrize("name", ["device", "torch", "triton", "fastrnn"])
def test_a_choice_holds_for_one_environment(monkeypatch: pytest.MonkeyPatch, name: str):
    choice = Choice(KIND, "triton_tile", {TORCH: 2.5, "triton_tile": 1.25}, {})
    Table(CPU).get(KIND, lambda: choice)
    changed = tuple(sorted((dict(choices.environment(CPU)) | {name: "another"}).items()))
    monkeypatch.setattr(choices, "environment", lambda device: changed)
    assert Table(CPU).get(KIND) is None


def test_without_a_folder_choices_live_in_memory(monkeypatch: pytest.MonkeyPatch, own_folder: Path):
    own_folder.chmod(0o777)
    table, choice = Table(CPU), Choice(KIND, TORCH, {TORCH: 1.0}, {})
    from fastrnn.fused import machine

    machine._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="keeps nothing on disk"):
        assert table.get(KIND, lambda: choice) == choice
    assert table.get(KIND) == choice and Table(CPU).get(KIND) is None
    own_folder.chmod(0o700)


WRITER = """
import sys, torch
from fastrnn.choices import Choice, Kind, Table
who, base = int(sys.argv[1]), Kind(*{kind!r})
sys.stdin.readline()  # all at once
for turn in range(60):
    shared, own = base._replace(rows=turn), base._replace(rows=turn, steps=1000 + who)
    for kind in (shared, own):
        table = Table(torch.device("cpu"))
        found = table.get(kind, lambda: Choice(kind, f"by {{who}}", {{str(k): 1.0 for k in range(200)}}, {{}}))
        assert found.kind == kind and len(found.milliseconds) == 200, found
"""


def test_processes_that_write_at_once_lose_nothing_and_read_nothing_torn(own_folder: Path):
    command = [sys.executable, "-c", WRITER.format(kind=tuple(KIND))]
    running = [
        subprocess.Popen([*command, str(who)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for who in range(4)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    found = Table(CPU).all()
    assert len(found) == 60 + 4 * 60
    assert all(len(choice.milliseconds) == 200 for choice in found)
    assert not [path for path in own_folder.rglob("*") if path.is_file() and path.suffix != ".json"]


def test_threads_measure_a_kind_once():
    import threading
    import time

    table, measured = Table(CPU), []

    def measure() -> Choice:
        measured.append(1)
        time.sleep(0.05)
        return Choice(KIND, TORCH, {TORCH: 1.0}, {})

    threads = [threading.Thread(target=table.get, args=(KIND, measure)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measured) == 1


def test_the_environment_switches_it_on():
    code = "from fastrnn import choices; print(choices.tuning())"
    for value, expected in (("1", "True"), ("0", "False"), ("", "False")):
        environment = os.environ | {"FASTRNN_TUNE": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
