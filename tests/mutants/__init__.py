"""Faults to plant into the sources one at a time, each of which the tests have to see: their own strength.

``make mutants`` plants them (``__main__.py``).  ``test_mutants.py`` holds the list to the sources: what each
replaces stands there just once.  A fault changes what some call gives, reads or writes; one that changes nothing does
not count.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One exact replacement in a file.

    ``name`` is short, for the command line; ``wrong`` says what a call does with the fault in; ``tests`` are arguments
    of pytest, paths from ``tests/``, that are to see it: tried first, since the whole suite takes minutes.

    In C++, ``after`` holds ``PLANTED``, true while this fault is to be tried and false else, so that one build has them
    all: the kernels take a minute to compile.
    """

    name: str
    wrong: str
    file: str
    before: str
    after: str
    tests: str


def all_faults() -> list[Fault]:
    from mutants import (
        forward,
        gradients,
        memory,
        numba_kernels,
        python_backends,
        python_modules,
        python_options,
        streams,
        teams,
        triton_kernels,
    )

    kernels = forward, gradients, memory, numba_kernels, teams, triton_kernels
    modules = *kernels, python_backends, python_modules, python_options, streams
    return [fault for module in modules for fault in module.FAULTS]
