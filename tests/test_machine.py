"""Machine code kept on disk: whole, the user's own, by all that it depends on; and each function to its last digits."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fastrnn.cell.graph import Graph
from fastrnn.compiler.print_llvm import operands, print_llvm
from fastrnn.compiler.schedule import Address, Part
from fastrnn.fused import machine

pytestmark = pytest.mark.skipif(bool(machine.unavailable()), reason=str(machine.unavailable()))
ANSWER = "define i64 @f() {\n  ret i64 42\n}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    machine._warn.cache_clear()
    return tmp_path / "cache"


def answer(assembly: str = ANSWER) -> int:
    return ctypes.CFUNCTYPE(ctypes.c_int64)(machine.addresses(assembly, ["f"])[0])()


def test_code_is_kept_and_taken_from_there(cache: Path, monkeypatch):
    assert answer() == 42
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o077 == 0 and cache.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(machine, "write", lambda *_: pytest.fail("compiled again"))
    assert answer() == 42


@pytest.mark.parametrize("damage", [b"", b"fastrnn object 1\n", b"x" * 500, None])
def test_a_damaged_file_is_compiled_again(cache: Path, damage):
    assert answer() == 42
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    assert answer() == 42
    assert kept.read_bytes() == whole


def test_other_assembly_is_another_file(cache: Path):
    assert answer() == 42 and answer(ANSWER.replace("42", "43")) == 43
    assert len(list(cache.iterdir())) == 2


def test_a_folder_that_others_may_write_to_is_not_used(cache: Path):
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others may write to it"):
        assert answer() == 42
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    machine._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot be made"):
        assert answer() == 42
    assert answer() == 42


def test_processes_that_write_at_once_leave_one_whole_file(cache: Path):
    program = textwrap.dedent(f"""
        import ctypes
        from fastrnn.fused import machine
        address = machine.addresses({ANSWER!r}, ["f"])[0]
        assert ctypes.CFUNCTYPE(ctypes.c_int64)(address)() == 42
    """)
    running = [subprocess.Popen([sys.executable, "-c", program], env=dict(os.environ)) for _ in range(2)]
    assert [each.wait(120) for each in running] == [0, 0]
    assert len(list(cache.iterdir())) == 1


# Errors in units of the last digit: of a polynomial, its argument's reduction and a division or two.
FUNCTIONS = {
    "exp": (torch.exp, 2.0),
    "log": (torch.log, 3.0),
    "tanh": (torch.tanh, 3.0),
    "sigmoid": (torch.sigmoid, 3.0),
    "softplus": (lambda v: torch.where(v.isinf(), v.clamp(min=0), torch.logaddexp(v, torch.zeros_like(v))), 3.0),
    "sqrt": (torch.sqrt, 1.0),
    "abs": (torch.abs, 0.0),
    "relu": (torch.relu, 0.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("lanes", [16, 4, 1])
def test_a_function_is_right_to_its_last_digits(name: str, lanes: int):
    """In float32, where float64 says what is right; all magnitudes, zeros, infinities and NaN, and a tail."""
    graph = Graph()
    x = graph.node("state", about="x", size="units")
    y = graph.node(name, [x], size="units")
    part = Part("units", loads={x: Address("x")}, body=[y], stores=[(y, Address("y"))])
    text, declared = print_llvm("f", part, operands(part, []), "float", lanes)
    address = machine.addresses("\n".join([*sorted(declared), text]), ["f"])[0]
    torch.manual_seed(0)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 88.7, 89.0, -87.3, -103.9, -104.1, 1e-40, 3e38, 0.7, -0.7]
    magnitudes = torch.randn(2000) * torch.exp(torch.empty(2000).uniform_(-80, 80))
    given = torch.cat([torch.tensor(special), torch.randn(2001), 30 * torch.randn(500), magnitudes])
    found = torch.full_like(given, 7.0)
    pointers = (ctypes.c_void_p * 2)(given.data_ptr(), found.data_ptr())
    strides = (ctypes.c_int64 * 2)(0, 0)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    kind(address)(1, len(given), ctypes.addressof(pointers), ctypes.addressof(strides))
    function, digits = FUNCTIONS[name]
    exact = function(given.double())
    wanted = exact.float()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf()) and torch.equal(found[wanted.isinf()], wanted[wanted.isinf()])
    finite = wanted.isfinite()
    # One unit of the last digit, of denormal numbers theirs.
    unit = torch.exp2(torch.floor(torch.log2(wanted[finite].double().abs().clamp(min=2.0**-126)))) * 2.0**-23
    errors = (found[finite].double() - exact[finite]).abs() / unit
    assert errors.max() <= digits + 0.5
