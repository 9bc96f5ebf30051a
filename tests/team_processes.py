"""What the processes of ``test_teams.py`` run: ``python team_processes.py BACKEND[,BACKEND] SEED CALLER...``.

Every way of sharing work out, on teams of several sizes, against one thread of the same process, bit for bit: with all
that come, and where at every third meeting half of the team leaves, as if that had been late.  The environment, and who
calls, decide how many of the threads that are asked for the OpenMP runtime gives.  With ``FASTRNN_CORE`` the compiled
core is that file (``other_core.py``), as one with threads of its own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any

import other_core  # noqa: F401  ahead of fastrnn
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.backends import cpp, numba_company, numba_start

PATIENCE = 200  # seconds after which a process that waits for ever says where, and ends itself
# Threads; of eight, half makes groups of several anew.
ASKED = (6, 8) if os.environ.get("FASTRNN_CPUS") == "8" else (2, 3, 4)

Way = tuple[str, Any, Any]  # a name, a network and its input


def ways(random: Random) -> Iterator[Way]:
    """Networks of sizes drawn at random within what makes the C++ core share work in the way named."""
    draw = random.randint

    def made(name: str, build: Any, steps: int, rows: int, *sizes: int, **options: Any) -> Way:
        network = build(*sizes, **options)
        return name, network, torch.randn(steps, rows, sizes[0], dtype=network.weight_hh_l0.dtype)

    lstm, gru, rnn = fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN
    yield made("rows", lstm, draw(8, 12), draw(60, 70), draw(10, 40), draw(40, 60))
    yield made("rows of both directions", gru, 9, draw(60, 70), draw(10, 40), draw(40, 60), bidirectional=True)
    yield made("rows and units", lstm, 12, draw(8, 11), draw(10, 40), draw(130, 144))
    yield made("rows and units, groups of several", lstm, draw(90, 110), 12, draw(10, 40), draw(58, 64))
    yield made("rows and units, a projection", lstm, 8, 2 * draw(4, 5), 20, draw(130, 144), proj_size=draw(50, 64))
    yield made("rows and units of bfloat16", gru, 8, draw(8, 11), 20, draw(130, 144), dtype=torch.bfloat16)
    yield made("shared units", gru, draw(15, 20), draw(2, 3), draw(10, 60), draw(150, 170))
    yield made("shared units of float64", lstm, 12, 2, draw(10, 60), draw(130, 150), dtype=torch.float64)
    yield made("shared units of bfloat16", lstm, 12, 2, draw(10, 60), draw(130, 150), dtype=torch.bfloat16)
    yield made("many rows, units too large for one cache", lstm, 4, draw(48, 60), 24, draw(270, 290))
    yield made("directions side by side", gru, draw(15, 20), draw(3, 5), draw(10, 60), draw(60, 80), bidirectional=True)
    yield made("side by side, shared units", lstm, 12, draw(3, 4), 20, draw(120, 140), 2, bidirectional=True)
    yield made("a projection", lstm, draw(12, 16), draw(3, 5), 32, draw(110, 130), proj_size=draw(40, 60))
    yield made("a wavefront of two", lstm, draw(50, 60), draw(1, 3), draw(20, 30), draw(40, 50), 2)
    yield made("a wavefront of four", rnn, draw(50, 60), draw(2, 3), draw(20, 30), draw(60, 70), 4)
    network, x = made("", lstm, 20, 9, draw(10, 30), draw(120, 140), bidirectional=True)[1:]
    yield "packed", network, pack_padded_sequence(x, torch.tensor([20, 18, 18, 11, 9, 9, 4, 1, 1]))


def eight_bits(random: Random) -> Iterator[Way]:
    """The same of weights of 8 bits, which run forward only."""
    every: list[dict[str, Any]] = [{}, {"bidirectional": True}, {"proj_size": 90}, {"num_layers": 2}]
    for options in every:
        inputs, hidden = random.randint(30, 60), random.randint(300, 320)
        narrow = fastrnn.quantize_dynamic(torch.nn.Sequential(fastrnn.LSTM(inputs, hidden, **options)))[0]
        yield f"8 bits {options}", narrow, torch.randn(random.randint(8, 12), 2, inputs)


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in tensors(part)]


def results(network: Any, given: Any) -> list[Tensor]:
    """All that comes of a call: without gradients, with them, and backward."""
    with torch.no_grad():
        found = tensors(network(given))
    parameters = list(network.parameters())
    if not parameters:
        return found
    if isinstance(given, Tensor):
        given = given.detach().requires_grad_()
        parameters.append(given)
    out = tensors(network(given))[:1]
    return [*found, *out, *torch.autograd.grad(out, parameters, [torch.ones_like(out[0]) / 8])]


def different(all_ways: list[Way], exact: list[list[Tensor]]) -> list[str]:
    """The ways that give other bits than these."""
    wrong = []
    for (name, network, given), wanted in zip(all_ways, exact, strict=True):
        found = results(network, given)
        if not all(torch.equal(f.detach(), w.detach()) for f, w in zip(found, wanted, strict=True)):
            wrong.append(name)
    return wrong


# Who calls: each runs `check`, which returns what is wrong, on some thread or threads.
def alone(check: Callable[[], list[str]]) -> list[str]:
    return check()


def many(check: Callable[[], list[str]]) -> list[str]:
    """Five threads of Python at once, each of which has a team of its own."""
    with ThreadPoolExecutor(5) as pool:
        return sum(pool.map(lambda _: check(), range(5)), [])


def inside(check: Callable[[], list[str]]) -> list[str]:
    """Every thread of a parallel region, which may open another one within it."""
    openmp: Any = numba_start._openmp()
    openmp.omp_set_max_active_levels(3)
    found: list[list[str]] = []
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(check()))
    openmp.GOMP_parallel(body, None, ctypes.c_uint(2), ctypes.c_uint(0))
    assert 1 <= len(found) <= 2, "an error in a region is printed, and no more"
    return sum(found, [])


def by_load(check: Callable[[], list[str]]) -> list[str]:
    """A program that lets the runtime choose the size of teams by how busy the machine is."""
    openmp: Any = numba_start._openmp()
    openmp.omp_set_dynamic(1)
    found = check()
    assert openmp.omp_get_dynamic(), "the program's setting is gone"
    openmp.omp_set_dynamic(0)
    return found


def no_regions(check: Callable[[], list[str]]) -> list[str]:
    """A program that has had its teams and then forbids them."""
    openmp: Any = numba_start._openmp()
    before = openmp.omp_get_max_active_levels()
    openmp.omp_set_max_active_levels(0)
    found = check()
    openmp.omp_set_max_active_levels(before)
    return found


@contextmanager
def flushed() -> Iterator[None]:
    """Denormals count as zeros to this thread."""
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def tiny(backend: str) -> Iterator[Way]:
    """Networks whose numbers are denormals: biases, products and states.  Two are large enough for the threads of a
    team to share their units: a thread's products alone tell nothing where another one, in the right mode, reads them.
    """
    torch.manual_seed(0)
    networks = [
        fastrnn.RNN(40, 300, nonlinearity="relu"),
        fastrnn.RNN(40, 60, nonlinearity="relu", num_layers=3),
        fastrnn.LSTM(40, 150, bidirectional=True),
    ]
    for network in networks:
        given = torch.randn(40, 3, 40) * 1e-38
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "bias" in name:
                    parameter.mul_(1e-38)
        yield "", network, given
    if backend == "cpp":
        narrow = fastrnn.quantize_dynamic(torch.nn.Sequential(fastrnn.RNN(40, 512, nonlinearity="relu")))[0]
        for name, buffer in narrow.named_buffers():
            if "bias" in name:
                buffer.mul_(1e-38)
        yield "", narrow, torch.randn(20, 2, 40) * 1e-36


def same_bits(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """To a thread that flushes them, denormals equal zeros, and large tensors are compared on the team's threads."""
    return all(torch.equal(f.view(torch.int32), w.view(torch.int32)) for f, w in zip(found, wanted, strict=True))


def denormals(backend: str) -> None:
    """The thread's floating-point mode is that of its team, which has its own back behind every call."""
    cpp._core.assume_absent(0)
    cpp._core.assume_late(0)  # whoever leaves computes nothing in a mode of its own
    numba_company.late_every = numba_company.absent_every = 0
    numba_company._slice = lambda: 10**13
    small = torch.full((1 << 20,), 1e-39)
    exact = [small * 0.5]
    for _, network, given in tiny(backend):
        torch.set_num_threads(1)
        plain = results(network, given)
        with flushed():
            wanted = results(network, given)
        assert not same_bits(plain, wanted), "denormals make no difference: the test tells nothing"
        for asked in ASKED:
            torch.set_num_threads(asked)
            assert same_bits([small * 0.5], exact)  # torch's operator, on the threads that ours run on
            with flushed():
                found = results(network, given)
            assert same_bits(found, wanted), f"{backend}, {network}, {asked} threads"
            assert same_bits([small * 0.5], exact), "a thread of the team keeps the mode of a caller"
            assert same_bits(results(network, given), plain)


def teams(backend: str, seed: str, *callers: str) -> None:
    """Every way on teams of the callers, against one thread; last, perhaps, denormals."""
    torch.manual_seed(int(seed))
    everything = list(ways(Random(int(seed))))
    if backend == "cpp":
        everything += eight_bits(Random(int(seed)))
    else:  # it shares out rows, units or both, and has a kernel to compile for every cell and dtype
        everything = [way for way in everything if type(way[1]) is fastrnn.LSTM and way[2][0].dtype == torch.float32]
    torch.set_num_threads(1)
    exact = [results(network, given) for _, network, given in everything]

    def check() -> list[str]:
        with fastrnn.use_backend(backend):  # for the thread that calls
            return different(everything, exact)

    for caller in callers:
        if caller == "denormals":
            denormals(backend)
            continue
        for asked in ASKED:
            torch.set_num_threads(asked)
            for late, absent in (0, 0), (3, 0), (0, 2), (5, 3):
                cpp._core.assume_late(late)
                cpp._core.assume_absent(absent)
                numba_company.late_every, numba_company.absent_every = late, absent
                numba_company.forget_company()  # of the machine's own, in which teams are small
                wrong = globals()[caller](check)
                where = f"{backend}, {caller}, {asked} threads, late {late}, absent {absent}"
                assert not wrong, f"{where}: {sorted(set(wrong))}"


if __name__ == "__main__":
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    # Whatever this machine is, teams of all sizes repay: work takes long, meetings nothing.
    cpp._core.assume_rates(start=1e-6, meeting=1e-6, multiply_adds=1.0, read=1.0)
    backends, *arguments = sys.argv[1:]
    for name in backends.split(","):
        with fastrnn.use_backend(name):
            teams(name, *arguments)
