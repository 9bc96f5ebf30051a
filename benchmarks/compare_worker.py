"""One side of a comparison: a process with one build of fastrnn, which computes when told to and waits otherwise.

It reads one JSON object a line and answers each with one; while nothing comes it is blocked on the pipe.  Of fastrnn it
calls only what every version has: ``fastrnn.convert`` of a module of torch.nn, and that module.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cases import GROUPS, WORKS, cases
from problem import Problem, draw, evaluate, module_side
from timing import LINGERS, Side
from torch import nn

import fastrnn

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Worker:
    """The requests it answers; ``side`` is the case at hand, made ready by :meth:`prepare`."""

    def __init__(self) -> None:
        self.cases = {str(case): case for case in cases(GROUPS, works=WORKS)}
        self.side: Side | None = None
        self.threads = 1

    def hello(self) -> dict[str, Any]:
        """Which build this is."""
        reason = fastrnn.backends.available()["cpp"]
        return {"site": str(Path(fastrnn.__file__).parent.parent), "missing": reason}

    def prepare(self, case: str, threads: int, check: bool) -> dict[str, Any]:
        """Makes the case ready and warms it up; ``check`` holds its results against float64 first.

        ``seconds`` of one call; or ``failed``, with what was wrong."""
        torch.set_num_threads(threads)
        self.threads, self.side = threads, None
        chosen = self.cases[case]
        problem = Problem(chosen) if check else None
        own, data = (problem.module, problem.data) if problem else draw(chosen)
        train = chosen.work == "train"
        try:
            module = fastrnn.convert(nn.ModuleList([copy.deepcopy(own)]))[0]
            results = evaluate(module, data, train)
            if problem:
                problem.check(problem.name(results))
        except Exception as error:  # whatever a version raises is its result, and stands in the report
            return {"failed": f"{type(error).__name__}: {error}"}
        self.side = module_side(module, data, train, threads)
        self.side.sample()
        return {"seconds": self.side.sample()}

    def sample(self, number: int, clock: str) -> dict[str, Any]:
        """Seconds a call, over ``number`` calls; it answers when its threads have stopped spinning."""
        assert self.side is not None, "prepare a case first"
        seconds = self.side.sample(number, CLOCKS[clock])
        if self.threads > 1:
            time.sleep(LINGERS)
        return {"seconds": seconds}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes where errors go
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(getattr(worker, request.pop("do"))(**request)) + "\n")


if __name__ == "__main__":
    main()
