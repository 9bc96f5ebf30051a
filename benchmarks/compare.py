"""Is the working tree faster than another commit?  Builds both, runs them in turn, and says so.

    make bench-compare BASE=7c246bf
    make bench-compare BASE=HEAD~3 ARGS="--group measured stream --threads 1 --work infer --quick"

Each build runs in a worker process of its own, which is blocked on a pipe while the other works.  A case is held
against float64 before it is timed; one that is wrong is not timed, and the command fails.  A sample is some calls in a
row; samples come in AB/BA pairs, a ratio being the geometric mean of both orders, so that what the first leaves to the
second cancels.  Pairs are spread over several launches of both workers, for where a process happens to place its memory
can make some per cent that no later sample of that process takes back.

The ratio is the base's time over the tree's: more than 1 is a faster tree.  Its interval is the narrowest pair of
order statistics that covers the median with 95% whatever the distribution is.  ``better`` and ``worse`` mean that the
interval lies beyond 1 and so does every launch's own median, by 1%; anything else is ``not told apart``.  A group's
ratio is the geometric mean of its cases, pair by pair, with the interval of those means.

On one thread the clock is the processor time of the process, from which other programs of a busy machine take nothing
but caches and frequency; on more threads it is the wall's.  ``--clock`` chooses.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import compare_build
import sections
from cases import CELLS, GROUPS, STANDARD, WORKS, cases
from compare_build import Build

FOLDER = Path(__file__).resolve().parent
COVERAGE, LEAST = 0.95, 0.01


def worker() -> list[str]:
    """The command of a worker; :func:`compare_build.environment` says why ``-S``."""
    return [sys.executable, "-S", str(FOLDER / "compare_worker.py")]


class Side:
    """A worker as seen from here: one question, one answer."""

    def __init__(self, build: Build) -> None:
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.process = subprocess.Popen(worker(), env=compare_build.environment(build.site), **pipes)
        told = self.ask("hello")
        if Path(told["site"]) != build.site or told["missing"]:
            raise SystemExit(f"{build.name}: expected the build in {build.site}, got {told}")

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker ended with status {self.process.wait()} on {do} {values}")
        return json.loads(answer)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Order statistics that cover the median of what the samples are drawn from with :data:`COVERAGE` or more, whatever
    its distribution; everything, where there are too few for that (below six)."""
    ordered, count = sorted(samples), len(samples)
    outside, rank = 0.0, -1  # the bounds ordered[rank], ordered[-1 - rank] leave out what ``outside`` says
    while rank + 1 < count // 2:
        outside += 2 * math.comb(count, rank + 1) / 2**count
        if 1 - outside < COVERAGE:
            break
        rank += 1
    return (ordered[rank], ordered[-1 - rank]) if rank >= 0 else (0.0, math.inf)


@dataclass
class Result:
    """One case, or a group as the mean of its cases: ``launches`` holds one list of ratios a launch."""

    name: str
    group: str
    threads: int
    launches: list[list[float]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"base": [], "tree": []})
    failed: str = ""

    @property
    def ratios(self) -> list[float]:
        return [ratio for launch in self.launches for ratio in launch]

    @property
    def verdict(self) -> str:
        if self.failed:
            return f"not timed: {self.failed}"
        low, high = interval(self.ratios)
        medians = [statistics.median(launch) for launch in self.launches]
        if low > 1 and min(medians) > 1 + LEAST:
            return "better"
        if high < 1 and max(medians) < 1 / (1 + LEAST):
            return "worse"
        return "not told apart"

    def data(self) -> dict[str, Any]:
        """For the JSON file: every ratio, and what the tables say of them."""
        if self.failed:
            return asdict(self) | {"verdict": self.verdict}
        median, (low, high) = statistics.median(self.ratios), interval(self.ratios)
        return asdict(self) | {"ratio": median, "low": low, "high": high, "verdict": self.verdict}

    def found(self) -> tuple[str, str, str]:
        """Ratio, interval and verdict, as the tables show them."""
        if self.failed:
            return "", "", self.verdict
        low, high = interval(self.ratios)
        return f"{statistics.median(self.ratios):.3f}", f"{low:.3f} to {high:.3f}", self.verdict

    def fields(self) -> tuple[str, ...]:
        times = [f"{statistics.median(taken) * 1e3:.4g}" if taken else "" for taken in self.seconds.values()]
        return self.name, str(self.threads), *times, *self.found()


def pairs(base: Side, tree: Side, result: Result, options: argparse.Namespace, check: bool) -> None:
    """One launch of a case: its pairs of samples, added to the result."""
    found = {}
    for name, side in (("base", base), ("tree", tree)):
        found[name] = side.ask("prepare", case=result.name, threads=result.threads, check=check)
        if "failed" in found[name]:
            result.failed = f"{name}: {found[name]['failed']}"
            return
    number = max(1, round(options.sample / max(1e-7, *(each["seconds"] for each in found.values()))))
    clock = options.clock or ("cpu" if result.threads == 1 else "wall")
    question: dict[str, Any] = {"do": "sample", "number": number, "clock": clock}
    ratios = []
    for _ in range(options.pairs):
        logs = []
        for first, second in ((base, tree), (tree, base)):
            taken = {side: side.ask(**question)["seconds"] for side in (first, second)}
            logs.append(math.log(taken[base] / taken[tree]))
            result.seconds["base"].append(taken[base])
            result.seconds["tree"].append(taken[tree])
        ratios.append(math.exp(statistics.fmean(logs)))
    result.launches.append(ratios)


def run(base: Build, tree: Build, options: argparse.Namespace) -> list[Result]:
    results = [
        Result(str(case), group, threads)
        for group in options.group
        for threads in options.threads
        for case in cases([group], options.cells, options.work)
        if options.match in str(case)
    ]
    if not results:
        raise SystemExit(f"no case: {options.match!r} in {options.group}")
    for launch in range(options.launches):
        with ExitStack() as workers:
            sides = [workers.enter_context(Side(build)) for build in (base, tree)]
            for result in results:
                if not result.failed:
                    pairs(*sides, result, options, check=launch == 0)
                    print(f"launch {launch + 1}:", *result.fields(), sep="  ", flush=True)
    return results


def groups(results: Iterable[Result]) -> list[tuple[Result, float, str]]:
    """For each group, cell, kind of work and number of threads: the mean of its cases, and the least with its name."""
    found: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        if not result.failed:
            mode, *_, work = result.name.split("-")
            for name in (f"{result.group}, {mode} {work}", f"{result.group}, all"):
                found.setdefault((name, result.threads), []).append(result)
    means = []
    for (name, threads), own in found.items():
        launches = [
            [statistics.geometric_mean(ratios) for ratios in zip(*launch, strict=True)]
            for launch in zip(*(result.launches for result in own), strict=True)
        ]
        least = min(own, key=lambda result: statistics.median(result.ratios))
        means.append((Result(name, name, threads, launches), statistics.median(least.ratios), least.name))
    return means


def record(base: Build, tree: Build, results: Sequence[Result], name: str, folder: Path) -> list[str]:
    """Writes ``name.json`` and ``name.md``; gives the lines of the groups' table."""
    titles = ("group", "threads", "geometric mean", "interval", "verdict", "least", "of")
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    means = groups(results)
    for mean, least, least_name in means:
        cells = (mean.name, str(mean.threads), *mean.found(), f"{least:.3f}", least_name)
        lines.append("| " + " | ".join(cells) + " |")
    titles = ("case", "threads", "base ms", "tree ms", "ratio", "interval", "verdict")
    table = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    table += ["| " + " | ".join(result.fields()) + " |" for result in results]
    told = [result.verdict.split(":")[0] for result in results]
    counts = ", ".join(f"{told.count(word)} {word}" for word in dict.fromkeys(sorted(told)))
    head = [
        f"Base {base.name}, tree {tree.name}. A ratio is the base's time over the tree's: more than 1 is a faster "
        "tree. `compare.py` says how it is measured.",
        f"Cases: {counts}.",
        "\n".join(lines),
    ]
    sections.write(name, f"{base.name} against {tree.name}", head, [], "\n".join(table) + "\n", folder)
    facts = {"base": base.name, "tree": tree.name, "machine": sections.machine(), "command": sections.command()}
    data = {**facts, "groups": [mean.data() for mean, *_ in means], "cases": [result.data() for result in results]}
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    return [*lines, f"Cases: {counts}."]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=STANDARD)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--match", default="", help="only the cases whose name contains this")
    parser.add_argument("--launches", type=int, default=3, help="times that both workers are started")
    parser.add_argument("--pairs", type=int, default=7, help="AB/BA pairs of samples a launch")
    parser.add_argument("--sample", type=float, default=0.02, help="seconds that a sample is to take")
    parser.add_argument("--quick", action="store_true", help="one launch, samples of 5 ms")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="by default cpu on one thread, wall on more")
    parser.add_argument("--instruction-sets", help="those to build, as avx512;generic; by default this machine's best")
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md and .json, too")
    options = parser.parse_args(arguments)
    if options.quick:
        options.launches, options.sample = 1, 0.005
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.instruction_sets is None:
        from fastrnn.backends import cpp

        options.instruction_sets = f"{cpp.isa()};generic"
    base = compare_build.commit(options.base, options.instruction_sets)
    tree = compare_build.tree(options.instruction_sets)
    print(sections.machine(), f"base {base.name}, tree {tree.name}", sep="\n", flush=True)
    results = run(base, tree, options)
    print(*record(base, tree, results, "compare", FOLDER / "out"), sep="\n")
    if options.write:
        record(base, tree, results, options.write, sections.RESULTS)
    if any(result.failed for result in results):
        raise SystemExit("some cases are wrong or did not run")


if __name__ == "__main__":
    main()
