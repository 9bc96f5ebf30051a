"""How many threads a call is worth, as csrc/team_plan.h plans it: the table of ``python -m fastrnn team``."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.backends import cpp

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SHAPES = (
    (100, 1, 64),
    (100, 1, 128),
    (100, 1, 512),
    (60, 32, 128),
    (50, 64, 256),
    (40, 32, 256),
    (50, 64, 512),
    (25, 64, 1024),
)
THREADS = (1, 2, 4, 8, 16, 32, 64, 128)


class Plan(NamedTuple):
    """Threads of each direction, whether directions run side by side, groups of threads that share rows, the threads of
    a group sharing units, and the microseconds that the model predicts."""

    threads: int
    side_by_side: bool
    groups: int
    predicted: float

    @property
    def kind(self) -> str:
        """What threads share: nothing, rows (``r``), units (``u``), or rows in so many groups and units within each."""
        if self.threads == 1:
            return ""
        if 1 < self.groups < self.threads:
            return f"{self.groups}r{self.threads // self.groups}u"
        return "r" if self.groups > 1 else "u"


def work_of(cell: str, steps: int, rows: int, hidden: int, training: bool = False) -> dict[str, Any]:
    """A layer of as many inputs as units, as csrc/plan-inl.h describes it to the plan, with panels of 16 units."""
    products = GATES[cell] * hidden * hidden
    return {
        "recurrent": products, "ahead": 3 * products if training else products, "weight_bytes": 4 * products,
        "steps": steps, "rows": steps * rows, "batch": rows, "least_rows": 3, "panels": -(-hidden // 16),
        "directions": 1, "meet_by_units": True,
    }  # fmt: skip


def plan(work: dict[str, Any], machine: dict[str, Any]) -> Plan:
    """The plan for this work on this machine (``fastrnn._core.this_machine``, or numbers of your own)."""
    found = cpp._core.plan_team(work, machine)
    return Plan(*found, cpp._core.predicted_time(work, machine, *found))


def wavefront(work: dict[str, Any], machine: dict[str, Any], layers: int) -> tuple[int, float]:
    """How many of these layers, one upon the other, run at a time on a thread each, and the microseconds of a layer
    that the model predicts; 1 where they run one after the other, by the plan of one."""
    piece = max(12, work["rows"] // 8)  # wavefront_rows of csrc/plan-inl.h
    height = cpp._core.plan_wavefront(work, machine, layers, piece)
    if height == 1:
        return 1, plan(work, machine).predicted
    return height, cpp._core.predicted_wavefront(work, machine, height, piece) / height


def table() -> str:
    """Forward passes of layers on 1 to 128 CPUs of this kind: threads, what they share, predicted microseconds; and how
    many layers of a stack run at a time."""
    machine = cpp._core.this_machine(1)
    rates = ", ".join(f"{name} {value:.4g}" for name, value in machine.items() if "threads" not in name)
    lines = [f"CPUs for this process: {cpp._core.usable_cpus()}    {rates}"]
    lines += [
        "us, bytes, multiply-adds a us    u: threads share units, r: rows, 4r8u: rows in 4 groups, units within",
        "",
    ]
    lines.append(f"{'cell, T, B, H':18}" + "".join(f"{count:>17}" for count in THREADS))
    machines = [machine | {"threads": count, "threads_in_company": count} for count in THREADS]
    for cell in GATES:
        for steps, rows, hidden in SHAPES:
            work, shown = work_of(cell, steps, rows, hidden), ""
            for found in (plan(work, each) for each in machines):
                shown += f"{f'{found.threads} {found.kind}  {found.predicted:.0f}':>17}"
            lines.append(f"{f'{cell} {steps},{rows},{hidden}':18}{shown}")
    lines += ["", "of 4 layers, how many run in a wavefront (1: each by its own plan), us of a layer"]
    for cell in GATES:
        for steps, rows, hidden in SHAPES[:2]:
            shown = ""
            for height, predicted in (wavefront(work_of(cell, steps, rows, hidden), each, 4) for each in machines):
                shown += f"{f'{height}  {predicted:.0f}':>17}"
            lines.append(f"{f'{cell} {steps},{rows},{hidden}':18}{shown}")
    return "\n".join(lines)
