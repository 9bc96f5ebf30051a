"""What the processes of ``test_extremes.py`` run: ``python extreme_processes.py [--backend=NAME] FUNCTION...``."""

from __future__ import annotations

import copy
import faulthandler
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from team_processes import different, results, tensors, ways
from torch import Tensor

import fastrnn

PATIENCE = 350  # seconds after which a process that waits for ever says where, and ends itself
BACKEND = "cpp"
MIB = 1 << 20


def same(found: list[Tensor], exact: list[Tensor]) -> bool:
    return all(torch.equal(f.detach(), e.detach()) for f, e in zip(found, exact, strict=True))


# Memory.
@contextmanager
def no_more_than(more: int) -> Iterator[None]:
    """Room for so many more bytes in this process."""
    with open("/proc/self/statm") as pages:
        now = int(pages.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def hungry() -> list[tuple[Any, Tensor]]:
    """Networks that want megabytes, for packed weights, products, results or what is saved for backward."""
    networks = [
        (fastrnn.LSTM(64, 600), torch.randn(2, 40, 64)),
        (fastrnn.GRU(500, 300, bidirectional=True), torch.randn(2, 60, 500)),
        (fastrnn.LSTM(16, 64, num_layers=2), torch.randn(400, 20, 16)),
        (fastrnn.RNN(8, 16), torch.randn(20, 6000, 8)),
    ]
    if BACKEND == "cpp":
        networks.append(
            (fastrnn.quantize_dynamic(torch.nn.Sequential(fastrnn.LSTM(64, 700)))[0], torch.randn(1, 500, 64))
        )
        return networks
    return [(fastrnn.LSTM(16, 64), torch.randn(600, 64, 16))]  # malloc keeps what is smaller


def without_memory() -> None:
    """Memory that cannot be had is an error, whichever allocation fails, and the next call is right."""
    torch.set_num_threads(2)
    failed = passed = 0
    for network, x in hungry():
        exact = results(network, x)  # and a team, whose threads could not be made any more
        for more in (0, 2, 5, 11, 100):
            fresh = copy.deepcopy(network)  # of which nothing is kept
            try:
                with no_more_than(more * MIB):
                    found = results(fresh, x)
            except (RuntimeError, MemoryError) as error:  # torch's allocator raises the former, with a sentence
                assert "bad_alloc" not in str(error), error
                failed += 1
            else:
                passed += 1
                assert same(found, exact), (network, more)
            assert same(results(fresh, x), exact), (network, more)
    assert failed > 2 and passed, (failed, passed)


# Signals.
def interrupted() -> None:
    """Ctrl-C is raised when the call returns, and the calls behind it are right."""
    torch.set_num_threads(2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may be told to ignore it
    for network, x in [
        (fastrnn.LSTM(64, 128), torch.randn(300, 8, 64)),
        (fastrnn.LSTM(32, 48, 3), torch.randn(500, 2, 32)),
    ]:
        exact = results(network, x)
        for _ in range(4):
            timer = threading.Timer(random.uniform(0.02, 0.1), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                end = time.monotonic() + 60
                while time.monotonic() < end:
                    results(network, x)
                raise AssertionError("KeyboardInterrupt did not come")
            except KeyboardInterrupt:
                pass
            timer.join()
            assert same(results(network, x), exact)


# Processes.
def in_child(compute: Callable[[], bool]) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # where it waits for ever
        os._exit(0 if compute() else 1)
    assert os.waitpid(child, 0)[1] == 0


def forked_meanwhile() -> None:
    """A child forked before any call has teams of its own; one forked in the midst of another thread's calls computes,
    and the parent goes on."""
    torch.set_num_threads(2)
    # So small that torch copies and compares on one thread: on more, its operators wait for ever in such a child.
    networks = [(fastrnn.LSTM(64, 64), torch.randn(20, 8, 64)), (fastrnn.LSTM(32, 48, 3), torch.randn(60, 2, 32))]

    def forward(kept: bool = True) -> list[Tensor]:
        with torch.no_grad():
            return sum((tensors((network if kept else copy.deepcopy(network))(x)) for network, x in networks), [])

    in_child(lambda: same(forward(), forward(kept=False)))
    exact, stopped, wrong = forward(), threading.Event(), []

    def others_calls() -> None:
        with fastrnn.use_backend(BACKEND):
            while not stopped.is_set():
                wrong.append(not same(forward(), exact))

    other = threading.Thread(target=others_calls)
    other.start()
    try:
        for _ in range(6):
            time.sleep(random.uniform(0.0, 0.02))
            in_child(lambda: same(forward(), exact))
    finally:
        stopped.set()
        other.join()
    assert wrong and not any(wrong)
    assert same(forward(), exact)


def many_threads() -> None:
    """64 threads on fewer cores: right, and in no more than some 50 times the time of one."""
    everything = list(ways(random.Random(0)))
    if BACKEND != "cpp":
        everything = [way for way in everything if type(way[1]) is fastrnn.LSTM and way[2][0].dtype == torch.float32][
            :2
        ]
    torch.set_num_threads(1)
    exact = [results(network, given) for _, network, given in everything]
    began = time.monotonic()
    assert not different(everything, exact)
    alone = time.monotonic() - began
    torch.set_num_threads(64)
    assert not different(everything, exact)  # the threads are made
    began = time.monotonic()
    assert not different(everything, exact)
    assert time.monotonic() - began < 50 * alone + 1


# Sizes.  Rows and units do not depend on one another, so that a few of them are computed once more alone.
def spread(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A huge tensor of numbers between -1 and 1, which repeat after a few thousand rows."""
    filled, rows = torch.empty(shape, dtype=dtype), torch.rand(4099, *shape[1:], dtype=dtype) * 2 - 1
    for begin in range(0, len(filled), 4099):
        part = filled[begin : begin + 4099]
        part.copy_(rows[: len(part)])
    return filled


def alike(found: Tensor, exact: Tensor) -> None:
    assert bool(exact.any())
    torch.testing.assert_close(found, exact)


def many_rows() -> None:
    """x of more than 2^31 numbers."""
    dtype = torch.bfloat16 if BACKEND == "cpp" else torch.float32
    network = fastrnn.RNN(2048, 8, dtype=dtype)
    x = spread((1 << 14) + 2, 64, 2048, dtype=dtype)
    assert x.numel() > 1 << 31
    with torch.no_grad():
        y = network(x)[0]
        for row in (0, 63):
            alike(y[:, row], network(x[:, row].contiguous())[0])


def many_steps() -> None:
    """y of more than 2^31 numbers, in both directions."""
    wide = BACKEND != "cpp"  # whose gates are in float32 and by themselves too many
    network: Any = fastrnn.LSTM(1, 8) if wide else fastrnn.RNN(1, 16, bidirectional=True, dtype=torch.bfloat16)
    x = spread((1 << 20) + 5 if wide else (1 << 23) + 5, 64 if wide else 8, 1, dtype=network.weight_hh_l0.dtype)
    with torch.no_grad():
        y = network(x)[0]
        assert max(y.numel(), 4 * y.numel() * wide) > 1 << 31
        for row in (0, x.shape[1] - 1):
            alike(y[:, row], network(x[:, row].contiguous())[0])


def wide_input() -> None:
    """W_ih of more than 2^31 numbers, as it lies and packed; the last 64 units alone make the output."""
    inputs, hidden, last = 1024, 524352, 64
    network = fastrnn.LSTM(inputs, 64, proj_size=1, bias=False, dtype=torch.bfloat16)
    small: Any = copy.deepcopy(network)
    weights = [torch.zeros(4 * hidden, inputs, dtype=torch.bfloat16), torch.zeros(4 * hidden, 1, dtype=torch.bfloat16)]
    for whole, part in zip(weights, (small.weight_ih_l0, small.weight_hh_l0), strict=True):
        whole.view(4, hidden, -1)[:, hidden - last :] = part.detach().view(4, last, -1)
    weights.append(torch.cat([torch.zeros(1, hidden - last), small.weight_hr_l0.detach().float()], 1).bfloat16())
    assert weights[0].numel() > 1 << 31
    with torch.no_grad(), fastrnn.use_backend(BACKEND):
        for steps, rows in ((3, 1), (9, 8)):
            x = torch.randn(steps, rows, inputs).bfloat16()
            states = torch.zeros(1, rows, 1).bfloat16(), torch.zeros(1, rows, hidden).bfloat16()
            y, (_, cn) = fastrnn.lstm(x, states, weights)
            exact, (_, exact_cn) = small(x)
            alike(y, exact)
            alike(cn[..., hidden - last :], exact_cn)


def tokens() -> None:
    """A vocabulary of 2^31 weights and more."""
    words, hidden = 5_600_000, 128
    network = fastrnn.GRU(50, hidden, dtype=torch.bfloat16)
    parameters = [parameter.detach() for parameter in network.parameters()]
    named = torch.cat([torch.arange(25), torch.arange(words - 25, words)])
    whole = torch.zeros(3 * hidden, words, dtype=torch.bfloat16)
    whole[:, named] = parameters[0]
    assert whole.numel() > 1 << 31
    few = torch.randint(0, 50, (20, 4))
    h0 = torch.zeros(1, 4, hidden).bfloat16()
    with torch.no_grad():
        exact = fastrnn.gru(few, h0, parameters)[0]
        alike(fastrnn.gru(named[few], h0, [whole, *parameters[1:]])[0], exact)


def eight_bits() -> None:
    """A matrix of more than 2^31 bytes; of h = 0, the last 64 units by themselves."""
    from fastrnn.backends import cpp, cpp_tensors

    inputs, hidden, last = 131072, 4160, 64
    integers = torch.zeros(4 * hidden, inputs, dtype=torch.int8)
    part = torch.randint(-127, 128, (4, last, inputs), dtype=torch.int8)
    integers.view(4, hidden, inputs)[:, hidden - last :] = part
    assert integers.numel() > 1 << 31
    x = torch.randn(1, 2, inputs)
    found = []
    for units, w_ih in ((hidden, integers), (last, part.view(4 * last, inputs))):
        scales, w_hh = torch.full((4 * units,), 1e-5), torch.zeros(4 * units, units, dtype=torch.int8)
        state = torch.zeros(1, 2, units)
        y, hn, cn = torch.empty(1, 2, units), torch.empty_like(state), torch.empty_like(state)
        sizes = cpp_tensors.layer_sizes("LSTM", x, None, state, w_ih)
        weights = [scales, w_ih, scales, w_hh]
        cpp.forward_int8(layer=sizes, x=x, h0=state, c0=state, weights=weights, y=y, hn=hn, cn=cn)
        found.append(y[..., units - last :])
    assert torch.equal(*found) and bool(found[0].any())


def gradients() -> None:
    """Saved gates of more than 2^31 numbers; every row's gradient of x is that of the row alone."""
    steps, rows = (1 << 20) + 3, 64
    network: Any = fastrnn.LSTM(1, 8, dtype=torch.bfloat16 if BACKEND == "cpp" else torch.float32)
    x = spread(steps, rows, 1, dtype=network.weight_hh_l0.dtype).requires_grad_()
    assert steps * rows * 4 * 8 > 1 << 31
    y = network(x)[0]
    (grad,) = torch.autograd.grad(y, x, torch.ones((), dtype=y.dtype).expand_as(y))
    del y
    for row in (0, rows - 1):
        alone = x[:, row : row + 1].detach().contiguous().requires_grad_()
        y = network(alone)[0]
        alike(grad[:, row], torch.autograd.grad(y, alone, torch.ones_like(y))[0][:, 0])


if __name__ == "__main__":
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    torch.manual_seed(0)
    random.seed(0)
    for argument in sys.argv[1:]:
        if argument.startswith("--backend="):
            BACKEND = argument.partition("=")[2]
            continue
        with fastrnn.use_backend(BACKEND):
            globals()[argument]()
