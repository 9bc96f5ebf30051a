"""Makes the modules of this folder importable, and lets ``--group`` and ``--threads`` choose what is timed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--group", nargs="+", help="groups of cases.py; the standard ones if none")
    parser.addoption("--threads", nargs="+", type=int, default=[1, 2])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "peer" not in metafunc.fixturenames:
        return
    from cases import STANDARD, cases
    from peers import peers

    groups = metafunc.config.getoption("--group") or STANDARD
    every = [(case, peer) for case in cases(groups) for peer in peers() if peer.refusal(case, 1) is None]
    metafunc.parametrize(("case", "peer"), every, ids=lambda value: str(value).replace(" ", "-"))
    metafunc.parametrize("threads", metafunc.config.getoption("--threads"))
