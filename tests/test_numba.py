"""What only the Numba backend has: compiled code, its cache, its threads.  Its results are judged in test_layer.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from support import Case, Inputs, expect, make, run, verify
from torch import Tensor
from torch.nn import functional as F

from fastrnn import backends
from fastrnn.backends import numba_company, numba_plan, numba_start

numba_backend = backends.load("numba")
pytestmark = pytest.mark.skipif(numba_backend.unavailable() is not None, reason=str(numba_backend.unavailable()))

# (mode, which kernel, divisions in its pointwise code: each sigmoid and each tanh has one)
KERNELS = [("LSTM", "forward", 5), ("LSTM", "backward", 1), ("GRU", "forward", 3)]
RUN = """
import sys, torch
from fastrnn.backends import numba, numba_start
numba_start.PATIENCE = float(sys.argv[1])
x, h0, weights = torch.ones(2, 1, 1), torch.zeros(1, 1, 1), [torch.ones(1, 1), torch.zeros(1, 1)]
y = numba.forward("RNN_RELU", x, None, h0, None, weights, False).y
assert y.flatten().tolist() == [1, 1], y
"""


def python(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program, *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("mode", "which", "divisions"), KERNELS)
def test_pointwise_code_is_vectorised_and_calls_nothing(mode: str, which: str, divisions: int):
    import numpy as np
    from fastrnn.kernels import numba_backward, numba_cells, numba_forward, numba_functions, numba_scan, numba_tiles
    from numba import cfunc, from_dtype, types

    make_kernel, table = {
        "forward": (numba_forward.forward_kernel, numba_scan.FORWARD),
        "backward": (numba_backward.backward_kernel, numba_scan.BACKWARD),
    }[which]
    kernel = make_kernel(numba_cells.CELLS[mode], np.float32)
    compiled = cfunc(types.void(types.CPointer(from_dtype(table.dtype))), **numba_functions.OPTIONS)(kernel)
    code = compiled.inspect_llvm()
    lanes = numba_tiles.VECTOR_BYTES // 4
    # Of some processors with AVX-512 LLVM holds vectors of half the width to be faster, where it chooses itself.
    widths = f"{lanes}|{lanes // 2}" if numba_tiles.VECTOR_BYTES == 64 else str(lanes)
    assert len(re.findall(rf"= fdiv (?:\w+ )*<(?:{widths}) x float>", code)) >= divisions
    assert not re.search(r"call [^\n]*@[\w.]*(exp|tanh)", code), "exp and tanh are to be inlined"
    assert f"alloca <{lanes} x float>" not in code, "the sums of a tile are to live in registers"


def test_what_kernels_are_made_of_has_names_of_their_own():
    """By which Numba links what it compiles with what was in its cache."""
    import numpy as np
    from fastrnn.kernels import numba_backward, numba_cells, numba_forward

    def parts_of(function: Any, found: dict[int, Any]) -> None:
        for cell in function.__closure__ or ():
            if isinstance(cell.cell_contents, FunctionType) and id(cell.cell_contents) not in found:
                found[id(cell.cell_contents)] = cell.cell_contents
                parts_of(cell.cell_contents, found)

    found: dict[int, Any] = {}
    for cell in set(numba_cells.CELLS.values()):  # some are the same
        for kernel in (numba_forward.forward_kernel, numba_backward.backward_kernel):
            for real in (np.float32, np.float64):
                parts_of(kernel(cell, real), found)
    names = [function.__qualname__ for function in found.values()]
    assert len(names) > 300 and len(set(names)) == len(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elementary_functions_are_good_to_three_ulp_and_right_beyond_numbers(dtype: torch.dtype):
    import numpy as np
    from fastrnn.kernels import numba_functions
    from numba import njit

    @njit(**numba_functions.OPTIONS)
    def evaluate(x, s, t):
        for i in range(x.size):
            s[i], t[i] = numba_functions.sigmoid(x[i]), numba_functions.tanh(x[i])

    largest = 80 if dtype == torch.float32 else 700
    x = torch.cat([torch.linspace(-b, b, 20001, dtype=torch.float64) for b in (largest, 8, 0.5, 1e-6)]).to(dtype)
    x = torch.cat([x, torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30], dtype=dtype)])
    found = [torch.empty_like(x), torch.empty_like(x)]
    evaluate(x.numpy(), *(f.numpy() for f in found))
    wide = x.numpy().astype(np.longdouble)
    with np.errstate(over="ignore"):
        exact = [1 / (1 + np.exp(-wide)), np.tanh(wide)]
    smallest = torch.finfo(dtype).tiny
    for name, values, right in zip(("sigmoid", "tanh"), found, exact, strict=True):
        values = values.numpy()
        ulp = np.spacing(np.maximum(np.abs(right), smallest).astype(values.dtype)).astype(np.longdouble)
        assert np.isnan(values[-5]) and np.isfinite(np.delete(values, -5)).all(), name
        assert np.nanmax(np.abs(values - right) / ulp) <= 3, name


def test_kernels_are_kept_on_disk_and_compiling_is_announced_only_when_it_takes_long(tmp_path: Path):
    first = python(RUN, "0", NUMBA_CACHE_DIR=str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("\n") == 1 and "compiling the RNN_RELU forward float32 kernel" in first.stderr
    kept = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert {path.suffix for path in kept} == {".nbi", ".nbc"}
    times = [path.stat().st_mtime_ns for path in kept]

    second = python(RUN, "60", NUMBA_CACHE_DIR=str(tmp_path))
    assert second.returncode == 0 and not second.stderr, second.stderr
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == kept
    assert [path.stat().st_mtime_ns for path in kept] == times, "the second process compiled again"


def test_where_no_folder_can_be_written_kernels_still_run_and_the_user_is_told(monkeypatch: pytest.MonkeyPatch):
    import numba

    real = numba.cfunc

    def cfunc(signature, cache=False, **options):
        if cache:
            raise RuntimeError("no locator available")
        return real(signature, **options)

    monkeypatch.setattr(numba, "cfunc", cfunc)
    with pytest.warns(RuntimeWarning, match=r"no locator available.*NUMBA_CACHE_DIR"):
        compiled = numba_start.compile_callback(lambda x: x + 1, numba.types.int64(numba.types.int64), {})
    assert compiled.ctypes(41) == 42


@pytest.fixture
def fresh_plans():
    """Nothing is known of earlier calls, nor stays for later ones."""
    numba_plan.plan.cache_clear()
    yield
    numba_plan.plan.cache_clear()


FORMS = [
    Case(
        "rows enter late; tails of rows, units and depth", lengths=(6, 5, 5, 2, 1), directions=2, inputs=37, hidden=50
    ),
    Case("whole tiles", "GRU", steps=2, rows=8, inputs=16, hidden=64),
    Case("projection", steps=2, rows=7, inputs=21, hidden=50, proj_size=20),
    Case("float64", "RNN_TANH", steps=2, rows=7, inputs=21, hidden=34, dtype=torch.float64),
]


@pytest.mark.parametrize("most", [0, 1000], ids=["in panels", "as they lie"])
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_weights_in_panels_and_weights_as_they_lie(
    fresh_plans: None, case: Case, most: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(numba_plan, "DIRECT_ROWS", (most, most))
    expected = expect(case)
    verify(run(numba_backend, expected.inputs), expected)


def tokens_of(inputs: Inputs) -> Tensor:
    *lead, count = inputs.x.shape
    return torch.arange(inputs.x[..., 0].numel()).view(lead) % count


def one_hot(inputs: Inputs) -> Inputs:
    return inputs._replace(x=F.one_hot(tokens_of(inputs), inputs.x.shape[-1]).to(inputs.x.dtype))


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tokens_in_a_narrow_dtype(mode: str, dtype: torch.dtype):
    expected = expect(Case("tokens", mode, lengths=(6, 4, 4, 1), directions=2, dtype=dtype), one_hot)
    found = run(numba_backend, expected.inputs._replace(x=tokens_of(expected.inputs)), False, True, True)
    verify(found, expected._replace(exact={n: t for n, t in expected.exact.items() if n != "grad x"}))


SHARED = [  # enough work to be shared out: by rows, by units within a step, packed, with a projection
    Case("rows", steps=6, rows=20, inputs=30, hidden=100, directions=2),
    Case("units", steps=6, rows=1, inputs=30, hidden=300),
    Case("both", "GRU", steps=4, rows=9, inputs=30, hidden=400),
    Case("units, packed, projection", lengths=(6, 5, 2), inputs=30, hidden=400, proj_size=90),
    Case("units, plain", "RNN_TANH", steps=6, rows=2, inputs=30, hidden=500),
]


@pytest.fixture
def all_shared(fresh_plans: None, monkeypatch: pytest.MonkeyPatch):
    """Every call is shared out among the threads, however small."""
    if numba_start._openmp() is None:
        pytest.skip("torch's OpenMP library has no GOMP_parallel here: the backend runs on one thread")
    monkeypatch.setattr(numba_plan, "SERIAL_WORK", 0)
    monkeypatch.setattr(numba_start, "usable_cpus", lambda: 8)


@pytest.mark.parametrize(
    ("late_every", "absent_every"), [(0, 0), (3, 0), (4, 3)], ids=["", "threads leave", "threads leave and come late"]
)
@pytest.mark.parametrize("tokens", [False, True], ids=["", "tokens"])
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_the_same_bits_on_any_number_of_threads(
    all_shared: None,
    case: Case,
    tokens: bool,
    late_every: int,
    absent_every: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(numba_company, "late_every", late_every)
    monkeypatch.setattr(numba_company, "absent_every", absent_every)
    inputs, before, found = make(case), torch.get_num_threads(), []
    if tokens:
        inputs = inputs._replace(x=tokens_of(inputs))
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            numba_company.forget_company()
            found.append(run(numba_backend, inputs, not tokens, True, True))
    finally:
        torch.set_num_threads(before)
    for results in found[1:]:
        for name, value in results.items():
            assert torch.equal(value, found[0][name]), name


def test_threads_with_rows_of_their_own_keep_out_of_each_other_s_packed_blocks(all_shared: None):
    """One runs ahead of another by more than a block of steps: seen in two calls of five where their places overlap."""
    lengths = torch.linspace(600, 75, 32).long()
    case = Case("blocks", lengths=tuple(lengths.tolist()), inputs=16, hidden=64)
    inputs, before = make(case), torch.get_num_threads()
    assert len(inputs.x) > 4 * numba_plan.BLOCK_ROWS
    try:
        torch.set_num_threads(1)
        alone = numba_backend.forward(*inputs[:6], save=False).y
        torch.set_num_threads(2)
        for _ in range(20):
            assert torch.equal(numba_backend.forward(*inputs[:6], save=False).y, alone)
    finally:
        torch.set_num_threads(before)


def test_no_more_threads_than_cpus():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(numba_start.usable_cpus() + 7)
        assert 1 <= numba_start.threads() <= numba_start.usable_cpus()
    finally:
        torch.set_num_threads(before)


def test_calls_from_several_threads_at_once():
    case = SHARED[0]
    inputs = make(case)
    alone = run(numba_backend, inputs)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: run(numba_backend, inputs), range(8)):
            assert all(torch.equal(results[name], alone[name]) for name in alone)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_too():
    program = """
import os, signal, sys, torch
from fastrnn.backends import numba, numba_start
torch.manual_seed(0)
torch.set_num_threads(2)
x, h0, weights = torch.randn(30, 20, 64), torch.zeros(1, 20, 64), [torch.randn(64, 64) / 8, torch.randn(64, 64) / 8]
layer = lambda: numba.forward("RNN_RELU", x, None, h0, None, weights, False).y
parents = layer()
child = os.fork()
if child == 0:
    signal.alarm(60)  # where the child waits for threads that it does not have
    same = all(map(torch.equal, layer(), parents))  # step by step: on large tensors torch itself waits for ever
    os._exit(0 if numba_start.threads() == 1 and same else 1)
assert os.waitpid(child, 0)[1] == 0
assert numba_start.threads() == min(2, numba_start.usable_cpus()) or numba_start._openmp() is None
"""
    child = python(program)
    assert child.returncode == 0, child.stderr
