"""What one training step keeps and takes: bytes, over torch.nn's, which need no quiet machine.

    python benchmarks/memory.py --write

*saved*: bytes that autograd saves for backward (``torch.autograd.graph.saved_tensors_hooks``), each storage once,
parameters left out.  Checkpointing keeps its tensors elsewhere, so there is no such figure for ``recompute``.
*kept*: bytes that are allocated during forward and still there when it returns, output and last states included
(torch's profiler, which sees torch's allocator), and the input's.
*peak*: by how much the resident memory rises above what it was before, at most, during forward and backward; each in
a process of its own, on one thread, after a step of a small layer of the same kind has brought in what the libraries
keep for good.  Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import records
import sections
import torch
from cases import CELLS, Case, cases
from problem import draw, evaluate, rows
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import fastrnn

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it prints a line each time it starts and stops
SIDES = ("torch.nn", "fastrnn", "fastrnn, recompute")
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Bytes:
    """Of one side on one case; ``saved`` is None where hooks see nothing of it."""

    saved: int | None
    kept: int
    peak: int


def own(side: str, module: nn.RNNBase) -> nn.Module:
    if side == SIDES[0]:
        return module
    module = fastrnn.convert(nn.ModuleList([module]))[0]
    module.recompute = side == SIDES[2]
    return module


def saved(case: Case, side: str) -> int:
    module, data = draw(case)
    module = own(side, module)
    found: list[Tensor] = []  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        results = module(data.x, data.hx)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    del results
    return sum(size for address, size in storages.items() if address not in parameters)


def kept(case: Case, side: str) -> int:
    module, data = draw(case)
    module = own(side, module)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        results = module(data.x, data.hx)
    after = sum(event.self_cpu_memory_usage for event in found.key_averages())
    del results
    return after + rows(data.x).nbytes


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is resident now, VmHWM at most since the last look."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak(case: Case, side: str) -> int:
    """To be called first in a process."""
    small, data = draw(replace(case, shape=replace(case.shape, steps=3, rows=4, inputs=8, hidden=16, proj_size=0)))
    evaluate(own(side, small), data, True)
    module, data = draw(case)
    module = own(side, module)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
    evaluate(module, data, True)
    return resident("VmHWM") - before


def measure(case: Case, side: str) -> Bytes:
    """To be called first in a process: what was freed before stays resident and would hide what a step takes."""
    torch.set_num_threads(1)
    most = peak(case, side)
    return Bytes(None if side == SIDES[2] else saved(case, side), kept(case, side), most)


def fields(case: Case, side: str, found: Bytes, theirs: Bytes) -> list[str]:
    def pair(value: int | None, over: int | None) -> str:
        if value is None or over is None:
            return ""
        return f"{value / MEBIBYTE:.2f}" + ("" if side == SIDES[0] else f" ({value / over:.2f}x)")

    pairs = ((found.saved, theirs.saved), (found.kept, theirs.kept), (found.peak, theirs.peak))
    return [str(case).removesuffix("-train"), side, *(pair(*each) for each in pairs)]


def table(found: dict[tuple[Case, str], Bytes]) -> str:
    header = ["case", "side", "saved MiB", "kept MiB", "peak MiB"]
    lines = [header, ["---"] * len(header)]
    lines += [fields(case, side, own, found[case, SIDES[0]]) for (case, side), own in found.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def summary(found: dict[tuple[Case, str], Bytes]) -> list[str]:
    """For each cell, the largest ratios over torch.nn."""
    lines = []
    for mode in dict.fromkeys(case.mode for case, _ in found):
        for side in SIDES[1:]:
            pairs = [
                (b, found[case, SIDES[0]]) for (case, name), b in found.items() if (case.mode, name) == (mode, side)
            ]
            most = {
                "saved": max((b.saved / a.saved for b, a in pairs if b.saved and a.saved), default=None),
                "kept": max(b.kept / a.kept for b, a in pairs),
                "peak": max(b.peak / a.peak for b, a in pairs),
            }
            words = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in most.items() if ratio is not None)
            lines.append(f"{mode}, {side}: at most {words} of torch.nn's")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", nargs="+", default=["memory"])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/memory.md")
    options = parser.parse_args()
    found: dict[tuple[Case, str], Bytes] = {}
    for case in cases(options.group, options.cells, ["train"]):
        for side in SIDES:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found[case, side] = process.submit(measure, case, side).result()
            print(*fields(case, side, found[case, side], found[case, SIDES[0]]), sep="  ", flush=True)
    lines = summary(found)
    print(*lines, sep="\n")
    if options.write:
        sections.write("memory", "Memory of a training step", [str(__doc__)], lines, table(found))
        data = [dict(case=str(case), side=side, **vars(own)) for (case, side), own in found.items()]
        versions = {"torch": torch.__version__, "Python": platform.python_version()}
        whole = records.record(sections.machine(), versions, sections.command(), "written by the run, in bytes", data)
        records.write("memory", whole)


if __name__ == "__main__":
    main()
