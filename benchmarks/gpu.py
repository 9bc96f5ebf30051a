"""Layers on a GPU against torch.nn with cuDNN, in one process: a table and a plot, in a few minutes.

    python benchmarks/gpu.py                          all cases, into GPU.md, gpu.json and gpu.png of benchmarks/
    python benchmarks/gpu.py --only H512 --seconds 0.5

Each case is written to gpu.json when it is done, and a case that is there, of this device and these versions, is not
run again: a run that was cut short goes on where it stopped, and ``--minutes`` ends one before it is.  Remove the file
to begin anew.

Both sides run the same module with the same weights and the same switches (torch's defaults: TF32 for float32 RNNs),
each inside a CUDA graph, so that what is compared is the device's work and not Python's, and once without; a side that
torch cannot capture is named, and runs as called.  Of a packed case there is a third time, that of torch.nn on the
padded batch.  No time is taken of a case before its outputs and gradients are right: within twice the error that
torch.nn itself makes, against float64, plus one rounding.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CASES, Case, estimate
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import backends

FOLDER = Path(__file__).resolve().parent


class Side:
    """One module on one case: ``infer`` and ``train`` run it once."""

    def __init__(self, module: nn.RNNBase, x: Tensor | PackedSequence, grad: Tensor, backend: str | None):
        self.module, self.x, self.grad, self.backend = module, x, grad, backend
        self.leaves = [x.data if isinstance(x, PackedSequence) else x, *module.parameters()]

    def forward(self) -> Tensor:
        if self.backend is None:
            y, _ = self.module(self.x)
        else:
            with backends.use_backend(self.backend):
                y, _ = self.module(self.x)
        return y.data if isinstance(y, PackedSequence) else y

    def infer(self) -> None:
        with torch.no_grad():
            self.forward()

    def train(self) -> list[Tensor]:
        y = self.forward()
        return [y.detach(), *torch.autograd.grad(y, self.leaves, self.grad)]


def sides(case: Case) -> tuple[Side, Side, Side]:
    """torch.nn, fastrnn, and torch.nn in float64 (on the CPU's own code, without cuDNN)."""
    torch.manual_seed(0)
    options: dict[str, Any] = dict(bidirectional=case.directions == 2, device="cuda")
    theirs = getattr(nn, case.mode)(case.hidden, case.hidden, **options).to(case.dtype)
    ours = getattr(fastrnn, case.mode)(case.hidden, case.hidden, **options).to(case.dtype)
    exact = getattr(nn, case.mode)(case.hidden, case.hidden, **options).double()
    x = torch.randn(case.steps, case.rows, case.hidden, device="cuda").to(case.dtype)
    grad = torch.randn(case.steps, case.rows, case.directions * case.hidden, device="cuda").to(case.dtype)
    lengths = torch.linspace(case.steps, case.steps // 4, case.rows).long()
    if case.packed:
        grad = pack_padded_sequence(grad, lengths).data

    def leaf(dtype: torch.dtype) -> Tensor | PackedSequence:
        if not case.packed:
            return x.to(dtype).clone().requires_grad_()
        packed = pack_padded_sequence(x.to(dtype), lengths)
        return packed._replace(data=packed.data.requires_grad_())

    for module in (ours, exact):
        module.load_state_dict(theirs.state_dict())
    return (
        Side(theirs, leaf(case.dtype), grad, None),
        Side(ours, leaf(case.dtype), grad, "triton"),
        Side(exact, leaf(torch.float64), grad.double(), None),
    )


def compile_ahead(case: Case) -> None:
    """Leaves the kernels of a case in Triton's cache; a length is not part of what is compiled."""
    _, ours, _ = sides(replace(case, steps=4))
    ours.infer()
    ours.train()


def gate(theirs: Side, ours: Side, exact: Side, dtype: torch.dtype) -> float:
    """The largest error of ours as a share of what is allowed; raises where it is more than 1."""
    worst = 0.0
    # Where TF32 is allowed, its rounding is the band.
    tf32 = dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    eps = 2**-11 if tf32 else torch.finfo(dtype).eps
    for a, b, truth in zip(theirs.train(), ours.train(), exact.train(), strict=True):
        allowed = 2 * ((a - truth).abs().max() + eps * truth.abs().max())
        worst = max(worst, float((b - truth).abs().max() / allowed))
    if not worst <= 1:  # NaN too
        raise AssertionError(f"wrong by {worst:.3g} times what is allowed")
    return worst


def graphed(call: Callable[[], object]) -> Callable[[], object] | None:
    """The same device work, replayed; None where torch cannot capture it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print(f"not captured: {error}", file=sys.stderr)
        torch.cuda.synchronize()
        return None
    return graph.replay


@dataclass(frozen=True)
class Pair:
    """Median milliseconds of torch.nn and of fastrnn, and between which their ratio lies in 8 of 10 AB/BA pairs."""

    theirs: float
    ours: float
    low: float
    high: float

    @classmethod
    def of(cls, theirs: list[float], ours: list[float]) -> Pair:
        ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
        tenth = len(ratios) // 10
        return cls(statistics.median(theirs), statistics.median(ours), ratios[tenth], ratios[-1 - tenth])

    def __str__(self) -> str:
        return (
            f"{self.theirs:.3g} / {self.ours:.3g} ({self.theirs / self.ours:.2f}x, {self.low:.2f} to {self.high:.2f})"
        )


def milliseconds(calls: list[Callable[[], object]], seconds: float) -> Pair:
    """Of torch.nn's and fastrnn's call by CUDA events, in turn: AB, BA, AB, and so on."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    samples: list[list[float]] = [[], []]
    spent, begin, end = 0.0, torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    order = [0, 1]
    while spent < seconds * 2e3 and len(samples[0]) < 200 or len(samples[0]) < 6:
        for k in order:
            begin.record()
            calls[k]()
            end.record()
            end.synchronize()
            samples[k].append(begin.elapsed_time(end))
            spent += samples[k][-1]
        order.reverse()
    return Pair.of(*samples)


@dataclass(frozen=True)
class Row:
    """Milliseconds of torch.nn and of fastrnn: inference and training, as called, and training inside a CUDA graph, but
    of ``uncaptured`` sides as called; of a packed case training with torch.nn's batch padded, as called."""

    case: Case
    gate: float
    infer: Pair
    train: Pair
    graph: Pair
    uncaptured: str = ""
    padded: Pair | None = None

    def ratio(self) -> float:
        return self.graph.theirs / self.graph.ours

    def fields(self) -> list[str]:
        graph = f"{self.graph}{self.uncaptured and f', {self.uncaptured} as called'}"
        return [str(self.case), str(self.infer), str(self.train), graph, str(self.padded or "-"), f"{self.gate:.2f}"]

    def content(self) -> dict[str, Any]:
        """As it stands in gpu.json."""
        return {name: value for name, value in asdict(self).items() if name != "case"}

    @classmethod
    def read(cls, case: Case, content: dict[str, Any]) -> Row:
        pairs = {name: Pair(**content[name]) for name in ("infer", "train", "graph", "padded") if content[name]}
        return cls(case, content["gate"], uncaptured=content["uncaptured"], **pairs)


class Results:
    """gpu.json: the rows of one device and its versions; a row that was written stays, whatever ends the run."""

    def __init__(self, path: Path, versions: str):
        self.path, self.versions = path, versions
        found = json.loads(path.read_text()) if path.exists() else {}
        self.rows: dict[str, dict[str, Any]] = found.get("rows", {}) if found.get("versions") == versions else {}

    def get(self, case: Case) -> Row | None:
        content = self.rows.get(str(case))
        return None if content is None else Row.read(case, content)

    def add(self, row: Row) -> None:
        self.rows[str(row.case)] = row.content()
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"versions": self.versions, "rows": self.rows}, indent=1) + "\n")
        part.replace(self.path)


def measure(case: Case, seconds: float) -> Row:
    theirs, ours, exact = sides(case)
    worst = gate(theirs, ours, exact, case.dtype)
    del exact
    infer = milliseconds([theirs.infer, ours.infer], seconds)
    train = milliseconds([theirs.train, ours.train], seconds)
    replays = [graphed(theirs.train), graphed(ours.train)]
    uncaptured = " and ".join(name for name, replay in zip(("torch.nn", "fastrnn"), replays, strict=True) if not replay)
    graph = milliseconds([replays[0] or theirs.train, replays[1] or ours.train], seconds)
    padded = None
    if case.packed:
        padded = milliseconds([sides(replace(case, packed=False))[0].train, ours.train], seconds)
    return Row(case, worst, infer, train, graph, uncaptured, padded)


def run(
    cases: list[Case], results: Results, measured: Callable[[Case], Row], end: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Measures the cases that are not there yet, as long as it is not ``end``."""
    for case in cases:
        if results.get(case):
            continue
        if clock() >= end:
            print(f"out of time before {case}: run it again")
            return
        results.add(measured(case))
        print(case, *results.rows[str(case)].items(), sep="  ", flush=True)


def table(rows: list[Row]) -> str:
    header = ["case", "inference ms", "training ms", "training ms, CUDA graph", "training ms, torch.nn padded", "gate"]
    lines = [header, ["---"] * len(header), *(row.fields() for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text += [
        "",
        "Each pair is torch.nn / fastrnn (ratio, and between which 8 of 10 pairs lie).  Geometric means of training:",
        "",
    ]
    for group in dict.fromkeys(row.case.isolates for row in rows):
        ratios = [row.ratio() for row in rows if row.case.isolates == group]
        text.append(f"- {group}: {statistics.geometric_mean(ratios):.2f}x, slowest {min(ratios):.2f}x")
    return "\n".join(text) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * len(rows)), layout="constrained")
    axes.barh([str(row.case) for row in rows], [row.ratio() for row in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="training: times as fast as torch.nn with cuDNN")
    axes.invert_yaxis()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.25, help="a side and mode")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of GPU.md, gpu.json and gpu.png")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after these")
    arguments = parser.parse_args()
    if reason := backends.available()["triton"]:
        sys.exit(reason)
    cases = [case for case in CASES if arguments.only in str(case)]
    properties = torch.cuda.get_device_properties(0)
    versions = f"{properties.name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, end = Results(arguments.out / "gpu.json", versions), time.monotonic() + 60 * arguments.minutes
    left = [case for case in cases if results.get(case) is None]
    processes = min(12, os.cpu_count() or 1)
    print(f"{len(left)} cases, estimated {estimate(left, arguments.seconds, processes) / 60:.1f} minutes")
    # One after another, compiling would take longer than all measurements.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_ahead, left))
    run(left, results, lambda case: measure(case, arguments.seconds), end)
    rows = [row for case in cases if (row := results.get(case))]
    text = f"# Layers on a GPU\n\n{versions}; `python benchmarks/gpu.py`\n\n{table(rows)}"
    (arguments.out / "GPU.md").write_text(text)
    plot(rows, arguments.out / "gpu.png")
    print(text)


if __name__ == "__main__":
    main()
