"""Time every peer on the chosen cases: a table, ratios over torch.nn, geometric means, and a plot.

    python benchmarks/report.py --group measured --cells LSTM GRU --threads 1 --mode train
    python benchmarks/report.py --write standard           the standard groups, into benchmarks/results/standard.md
    python benchmarks/report.py --group company --threads 2 --busy 2        beside two other programs

Each peer first passes the correctness gate of its case; one that fails it ends the report, and no time is printed for
it.  All peers of a case are then timed in turn in this process.  ``share`` is the time that the machine's own limit
would take over the time taken: the larger of (operations / rate of the best matrix product that torch has) and (bytes
of weights read / rate at which a plain loop reads an array of their size), both measured in this process.  ``gate`` is
the largest error as a share of what the gate allows, ``error`` the root mean square error against float64 over
torch.nn's own, of the result where that is largest.  The head gives the rates that times are held against.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import plots
import records
import sections
import torch
from cases import CELLS, GROUPS, STANDARD, WORKS, Case, cases
from measures import FIRST, Row, measures
from peers import Peer, peers
from problem import Problem
from timing import company, peak_rate, product_rate, race, stream_rate

from fastrnn.backends import BackendError

FOLDER = Path(__file__).resolve().parent
COLUMNS = ("case", "threads", "peer", "ms", "x torch.nn", "GF/s", "share", "gate", "error")


def measure(case: Case, threads: int, sides: Sequence[Peer], seconds: float) -> list[Row]:
    """Gate every peer, then time them all in turn."""
    torch.set_num_threads(threads)
    problem = Problem(case)
    racing, gates, errors = {}, {}, {}
    for peer in sides:
        reason = peer.refusal(case, threads)
        if reason is None:
            try:
                side, results = peer.build(problem, threads)
                found = results()
                gates[peer.name], errors[peer.name] = problem.check(found), problem.error_over_own(found)
                racing[peer.name] = side
            except BackendError as refused:
                reason = str(refused)
        if reason is not None and peer.name.startswith("fastrnn"):
            print(f"# {case}: {peer.name} does not run it: {reason}", file=sys.stderr)
    samples = race(racing, seconds)
    medians = {name: statistics.median(taken) for name, taken in samples.items()}
    product = case.flops / product_rate(threads, getattr(torch, case.shape.dtype))
    limit = max(product, case.bytes_read / stream_rate(threads, case.weight_bytes))
    return [
        Row(
            *(case, threads, name, taken, medians[FIRST] / taken, limit / taken, gates[name], errors[name]),
            spread=records.spread(samples[name]),
        )
        for name, taken in medians.items()
    ]


def means(rows: Iterable[Row]) -> list[str]:
    """Geometric mean and smallest ratio over torch.nn for each cell, kind of work, number of threads and peer; and
    fastrnn's over the fastest foreign library on each case, where there is one."""
    ratios: dict[str, list[float]] = {}
    fastest: dict[tuple[Case, int], float] = {}
    rows = list(rows)
    for row in rows:
        if row.peer != FIRST and not row.peer.startswith("fastrnn"):
            key = (row.case, row.threads)
            fastest[key] = min(row.seconds, fastest.get(key, row.seconds))
    for row in rows:
        what = f"{row.case.mode} {row.case.work}, {row.threads} thread{'s' * (row.threads > 1)}: {row.peer}"
        if row.peer != FIRST:
            ratios.setdefault(f"{what} over torch.nn", []).append(row.ratio)
        if row.peer.startswith("fastrnn") and (row.case, row.threads) in fastest:
            best = fastest[row.case, row.threads]
            ratios.setdefault(f"{what} over the fastest other", []).append(best / row.seconds)
    return [
        f"{what}: geometric mean {statistics.geometric_mean(found):.2f}x, least {min(found):.2f}x, {len(found)} cases"
        for what, found in sorted(ratios.items())
    ]


def rates(threads: int) -> str:
    """What the machine can do: multiply-adds on registers, the best product that torch has, reading again and again."""
    streams = [
        f"{size >> 10} KiB {stream_rate(threads, size) / 1e9:.0f}" for size in (1 << 18, 1 << 20, 1 << 22, 1 << 25)
    ]
    return (
        f"{threads} thread{'s' * (threads > 1)}: multiply-adds {peak_rate(threads) / 1e9:.0f} GF/s, matrix product "
        f"{product_rate(threads, torch.float32) / 1e9:.0f} GF/s, reading GB/s: {', '.join(streams)}."
    )


def record(name: str, rows: Sequence[Row], limits: Sequence[str], folder: Path) -> None:
    """The table as Markdown, its rows as JSON, and the plot that is made of these."""
    data = [records.row(str(r.case), r.threads, r.peer, r.seconds * 1e3, r.ratio, r.spread) for r in rows]
    versions = {package: version(package) for package in ("torch", "numpy", "fastrnn")}
    versions["Python"] = platform.python_version()
    provenance = "written by the run, of its samples"
    whole = records.record(sections.machine(), versions, sections.command(), provenance, data)
    records.write(name, whole, folder)
    plots.save(data, folder / f"{name}.png")
    head = [*limits, "The columns are explained in `report.py`.", f"![ratios over torch.nn]({name}.png)"]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row.fields()) + " |" for row in rows]
    asked = measures(rows)
    table = "\n".join([*asked, "## All", "", *lines] if asked else lines)
    sections.write(name, f"Times: {name}", head, means(rows), table + "\n", folder)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=STANDARD)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--mode", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--peers", nargs="+", help="names of the peers beside torch.nn; all that are live by default")
    parser.add_argument("--match", default="", help="only the cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each peer on each case")
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute all the while")
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md, NAME.json and the plot")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    where = sections.machine()
    sides = peers()
    if options.peers is not None:
        if unknown := set(options.peers) - {peer.name for peer in sides}:
            raise SystemExit(f"unknown or missing: {', '.join(unknown)}; there are {', '.join(map(str, sides))}")
        sides = [peer for peer in sides if peer.name in (FIRST, *options.peers)]
    limits = list(map(rates, options.threads))
    print(where, *limits, sep="\n")
    widths = (34, 7, 14, 9, 10, 7, 6, 5, 14)
    print(*(f"{name:<{width}}" for name, width in zip(COLUMNS, widths, strict=True)))
    rows: list[Row] = []
    with company(options.busy):
        for threads in options.threads:
            for case in cases(options.group, options.cells, options.mode):
                if options.match in str(case):
                    for row in measure(case, threads, sides, options.seconds):
                        rows.append(row)
                        print(*(f"{x:<{width}}" for x, width in zip(row.fields(), widths, strict=True)), flush=True)
    print(*means(rows), sep="\n")
    record("last", rows, limits, FOLDER / "out")
    if options.write:
        record(options.write, rows, limits, sections.RESULTS)


if __name__ == "__main__":
    main()
