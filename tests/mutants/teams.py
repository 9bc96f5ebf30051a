"""Faults in how threads meet and share work."""

from mutants import Fault

FAULTS = [
    Fault(
        "shares-of-the-past",
        "who is behind takes shares of rounds that are over",
        "csrc/barrier.cpp",
        "static_cast<int32_t>(seen - round) <= 0",
        "static_cast<int32_t>(seen - round) <= PLANTED",
        "test_teams.py -k 'fewer_threads_come'",
    ),
    Fault(
        "behind-and-alone",
        "who is behind when the others leave does all of it again",
        "csrc/barrier.cpp",
        "behind ? 2 : 1",
        "behind && !PLANTED ? 2 : 1",
        "test_teams.py -k 'fewer_threads_come'",
    ),
]
