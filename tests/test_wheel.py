"""What a built wheel may hold: the check of `make wheel` passes what it shall, and sees each thing that is wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "packaging" / "check_wheel.py")
assert spec and spec.loader
check_wheel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_wheel)

INFO = f"fastrnn-{fastrnn.__version__}.dist-info"
METADATA = f"Metadata-Version: 2.4\nName: fastrnn\nVersion: {fastrnn.__version__}\nLicense-Expression: BSD-3-Clause\n"
COMMAND = {"command": "g++ -mavx512f -mavx2 -O3 -c kernels.cpp", "file": "kernels.cpp"}


def files() -> dict[str, str]:
    """A right wheel's."""
    info = {f"{INFO}/{name}": "" for name in ("WHEEL", "RECORD", "licenses/LICENSE")}
    core = {"fastrnn/_core.cpython-311-x86_64-linux-gnu.so": "ELF", "fastrnn/lib/libfastrnn_stream.so": "ELF"}
    return {**dict.fromkeys(check_wheel.sources(), ""), **core, **info, f"{INFO}/METADATA": METADATA}


def problems(tmp_path: Path, names: dict[str, str], command: dict[str, str] = COMMAND) -> list[str]:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name, text in names.items():
            archive.writestr(name, text)
    return check_wheel.check(tmp_path / "a.whl", [command])


def test_a_right_wheel_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert problems(tmp_path, files()) == []
    (tmp_path / "commands.json").write_text(json.dumps([COMMAND]))
    monkeypatch.setattr(sys, "argv", ["check", str(tmp_path / "a.whl"), "--commands", str(tmp_path / "commands.json")])
    with pytest.raises(SystemExit) as ended:
        check_wheel.main()
    assert not ended.value.code and "nothing wrong" in capsys.readouterr().out
    assert {"fastrnn/py.typed", "fastrnn/_core.pyi", "fastrnn/cells/gru.pyi", "fastrnn/kernels/__init__.py"} <= set(
        files()
    )


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("fastrnn.libs/libgomp-a34b3233.so.1", "not of the sources: fastrnn.libs"),
        ("fastrnn/_core.cpython-310-x86_64-linux-gnu.so", "expected one compiled core"),
        ("tests/test_wheel.py", "not of the sources: tests"),
        ("fastrnn/lib/libfastrnn_stream.dylib", "expected one C library"),
    ],
)
def test_what_does_not_belong_there_is_seen(tmp_path: Path, name: str, wrong: str):
    (problem,) = problems(tmp_path, files() | {name: ""})
    assert wrong in problem


@pytest.mark.parametrize("name", ["fastrnn/py.typed", "fastrnn/kernels/numba_scan.py", f"{INFO}/licenses/LICENSE"])
def test_what_is_missing_is_seen(tmp_path: Path, name: str):
    names = files()
    del names[name]
    (problem,) = problems(tmp_path, names)
    assert problem.startswith("missing: ") and name.split("/")[-1] in problem


def test_no_core_a_wrong_version_and_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert problems(
        tmp_path, {name: "" for name in files() if "_core.c" not in name} | {f"{INFO}/METADATA": METADATA}
    ) == ["expected one compiled core, got none"]
    changed = METADATA.replace(fastrnn.__version__, "9.9")
    assert problems(tmp_path, files() | {f"{INFO}/METADATA": changed}) == [
        f"Version: expected {fastrnn.__version__}, got 9.9"
    ]
    monkeypatch.setattr(check_wheel, "MOST_BYTES", 100)
    assert "expected at most" in problems(tmp_path, files())[-1]


@pytest.mark.parametrize("flag", ["-march=native", "-mcpu=native", "-march=armv9-a+dotprod", "-mamx-int8"])
def test_flags_of_a_machine_are_seen(tmp_path: Path, flag: str):
    command = COMMAND | {"command": f"{COMMAND['command']} {flag}"}
    assert problems(tmp_path, files(), command) == [f"kernels.cpp: {flag} is not of CMakeLists.txt"]


@pytest.mark.parametrize("flag", ["-march=armv8.2-a+dotprod", "-mcpu=generic+dotprod+i8mm+bf16", "-mavx512vnni"])
def test_flags_of_an_instruction_set_pass(tmp_path: Path, flag: str):
    assert problems(tmp_path, files(), COMMAND | {"command": f"{COMMAND['command']} {flag}"}) == []


TARGETS = set(re.findall(r"^([a-z0-9-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_target_is_documented():
    pages = "".join((ROOT / page).read_text() for page in ("CONTRIBUTING.md", "README.md", "docs/speed.md"))
    assert len(TARGETS) > 20 and TARGETS - set(re.findall(r"make ([a-z0-9-]+)", pages)) == set()


def test_every_step_of_the_workflows_is_a_make_target():
    """But for those that fetch the tree, set up Python and pass files on."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert len(workflows) >= 4
    for workflow in workflows:
        for step in re.findall(r"run: (.*)", workflow.read_text()):
            program, *words = step.split()
            asked = {word for word in words if "=" not in word}
            assert program == "make" and asked and asked <= TARGETS, f"{workflow.name}: {step}"
