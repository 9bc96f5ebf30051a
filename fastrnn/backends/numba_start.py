"""How the Numba kernels are compiled, kept on disk and started on torch's own threads."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

# Seconds of compilation after which a line says what is going on.  Loading from Numba's cache takes a tenth of one.
PATIENCE = 1.0


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, by the calls that GCC's and LLVM's have in common, else None.

    On its threads run torch's own operators.  A pool of our own would compete with them: behind every operator they
    spin for milliseconds on cores that the pool then wants (a product of 5 ms on such a pool took 12 behind one).
    Numba's own parallel loops would be no better: with its `workqueue` two threads that call at once end the process,
    and so does, with its `omp`, a call in a forked child.
    """
    for name in (None, "libgomp.so.1", "libomp.dylib", "libiomp5.dylib", "libiomp5.so"):
        try:  # NOLOAD: a second runtime beside torch's is what must not be
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD if name else ctypes.DEFAULT_MODE)
        except (OSError, TypeError, AttributeError):  # not loaded; or Windows, where torch's has none of these calls
            continue
        if hasattr(library, "GOMP_parallel"):
            return library
    return None


_in_forked_child = False


def _after_fork() -> None:
    global _in_forked_child
    _in_forked_child = True  # the threads did not come along, and OpenMP would wait for them for ever


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def usable_cpus() -> int:
    """The CPUs that this process may use: as the C++ core counts them where there is one, else by affinity."""
    try:
        from fastrnn._core import usable_cpus as counted
    except ImportError:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return counted()


def threads() -> int:
    """The number of threads that a large call runs on in this process: more than there are CPUs would wait for each
    other's."""
    return 1 if _in_forked_child or _openmp() is None else min(torch.get_num_threads(), usable_cpus())


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Says on stderr what is being compiled, if it takes long."""
    line = f"fastrnn: compiling the {what} kernel with Numba; later processes load it from Numba's cache"
    timer = threading.Timer(PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def compile_callback(function: Callable[..., Any], signature: Any, options: dict[str, Any]) -> Any:
    """Numba's callback, from its cache on disk where it is there; compiled and put there where it is not."""
    from numba import cfunc

    try:
        return cfunc(signature, cache=True, **options)(function)
    except (RuntimeError, OSError) as error:  # Numba found no folder, or could not write to the one it found
        warnings.warn(
            f"fastrnn's Numba kernels cannot be kept on disk ({error}), so every process compiles them again: "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
        return cfunc(signature, **options)(function)


def team_functions(team: int) -> dict[str, int]:
    """The addresses of the functions by which the threads of a team know of one another, and of those that get and set
    a thread's floating-point mode; 0 for a thread alone."""
    names = {"team_size": "omp_get_num_threads", "thread_number": "omp_get_thread_num"}
    modes = {"get_mode": "fegetenv", "set_mode": "fesetenv"}
    openmp = _openmp() if team > 1 else None
    if openmp is None:
        return dict.fromkeys((*names, *modes), 0)
    found = {field: getattr(openmp, name) for field, name in names.items()}
    found |= {field: getattr(_process(), name) for field, name in modes.items()}
    return {field: ctypes.cast(function, ctypes.c_void_p).value or 0 for field, function in found.items()}


@functools.cache
def _process() -> ctypes.CDLL:
    """What the process has loaded for all to see, libm among it: torch needs it."""
    return ctypes.CDLL(None)


class Kernel(NamedTuple):
    """A compiled callback over a table of 64-bit fields: ``sizes``, addresses of parameters, other ``addresses``."""

    address: int
    call: Callable[[bytes], None]
    sizes: tuple[str, ...]
    addresses: tuple[str, ...]
    cell: Any
    units: int
    columns: int


def start(kernel: Any, team: int, table: bytes, mode: int) -> None:
    """Runs a compiled callback (its ``address``, and ``call``) on a team of threads; ctypes releases the GIL meanwhile.
    ``mode`` is the address where a team reads the floating-point mode of this thread."""
    library = _openmp() if team > 1 else None
    if library is None:
        kernel.call(table)
    else:
        _process().fegetenv(ctypes.c_void_p(mode))
        library.GOMP_parallel(ctypes.c_void_p(kernel.address), table, ctypes.c_uint(team), ctypes.c_uint(0))


@functools.cache
def kernel(mode: str, which: str, dtype: torch.dtype) -> Kernel:
    """The kernel ``forward`` or ``backward`` of a cell."""
    import numpy as np
    from numba import from_dtype, types

    from fastrnn.kernels import numba_backward, numba_cells, numba_forward, numba_functions, numba_scan

    make, table = {
        "forward": (numba_forward.forward_kernel, numba_scan.FORWARD),
        "backward": (numba_backward.backward_kernel, numba_scan.BACKWARD),
    }[which]
    cell, real = numba_cells.CELLS[mode], np.float32 if dtype == torch.float32 else np.float64
    signature = types.void(types.CPointer(from_dtype(table.dtype)))
    with announced(f"{mode} {which} {dtype}".replace("torch.", "")):
        compiled = compile_callback(make(cell, real), signature, numba_functions.OPTIONS)
    call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(compiled.address)
    units, columns = numba_scan.widths(cell, dtype.itemsize)
    return Kernel(compiled.address, call, table.sizes, table.addresses, cell, units, columns)
