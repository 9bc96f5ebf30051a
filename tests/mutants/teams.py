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
    Fault(
        "round-of-a-new-group",
        "groups that are formed anew begin with other meetings than they are at",
        "csrc/plan-inl.h",
        "own.round = round;",
        "own.round = PLANTED ? 0 : round;",
        "test_teams.py -k formed_anew",
    ),
    Fault(
        "group-left-alone",
        "backward, half leaves a group of threads while the other groups do not",
        "csrc/barrier.cpp",
        "if (fixed_) threads = came;",
        "if (fixed_ && !PLANTED) threads = came;",
        "test_teams.py -k formed_anew",
    ),
    Fault(
        "rows-of-another-group",
        "backward, who takes another thread's share of a step does it for the rows of the first group",
        "csrc/backward-inl.h",
        "part(z.batch, place.group, left.groups)",
        "part(z.batch, PLANTED ? 0 : place.group, left.groups)",
        "test_teams.py -k formed_anew",
    ),
]
