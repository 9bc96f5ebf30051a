"""Anomalies: a GRU that forecasts a series one step ahead is surprised where something is wrong.

    python examples/anomalies.py

The series is made here: pressure and flow of a pump, a rhythm whose rate and strength wander, where flow follows
pressure with a delay.  The network learns from healthy records alone.  In another, faults of four kinds are hidden and
labelled: a spike, a beat that fails, a rhythm that hurries, and a flow that follows too late, in which each value by
itself is nothing out of the ordinary.  The score of a step is the size of its forecast's error, in units of what errors
are in health; the alarm is set on healthy data, to be false in one step of two hundred.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from common import parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("spike", "beat fails", "hurries", "flow late")
SMOOTHED = 5  # steps that a score is the mean of
FALSE_ALARMS = 1 / 200


class Record(NamedTuple):
    """``values`` (T, 2), pressure and flow, and the kind of fault of each step (T), -1 for none."""

    values: Tensor
    faults: Tensor


class Forecaster(nn.Module):
    """values (T, B, 2), state -> forecast of the next value at each step (T, B, 2), state"""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(2, hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, values: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.gru(values, state)
        return values + self.head(y), state


def wander(random: np.random.Generator, steps: int, slow: float = 200) -> np.ndarray:
    """A smooth random course of variance 1."""
    width = int(4 * slow)
    window = np.exp(-0.5 * (np.arange(-width, width + 1) / slow) ** 2)
    course = np.convolve(random.standard_normal(steps + 2 * width), window, "valid")
    return course / np.sqrt(np.square(window).sum())


def record(steps: int, seed: int, fault_every: int | None = None) -> Record:
    """A record of the pump; faults of every kind in turn, in 15 to 40 steps each, or none."""
    random = np.random.default_rng(seed)
    faults = np.full(steps, -1)
    if fault_every:
        for number, middle in enumerate(range(fault_every, steps - fault_every // 2, fault_every)):
            begin = middle + int(random.integers(-fault_every // 4, fault_every // 4))
            kind = number % len(KINDS)
            faults[begin : begin + (3 if KINDS[kind] == "spike" else int(random.integers(15, 40)))] = kind
    rate = 2 * math.pi / 25 * (1 + 0.15 * wander(random, steps))
    phase = np.cumsum(rate * np.where(faults == KINDS.index("hurries"), 1.8, 1.0))
    beat = (1 + 0.2 * wander(random, steps)) * (np.sin(phase) + 0.4 * np.sin(2 * phase + 1))
    pressure = beat * np.where(faults == KINDS.index("beat fails"), 0.15, 1.0)
    delay = np.where(faults == KINDS.index("flow late"), 10, 4)
    flow = 0.8 * pressure[np.maximum(np.arange(steps) - delay, 0)]
    values = np.stack((pressure, flow), 1) + 0.05 * random.standard_normal((steps, 2))
    spikes = faults == KINDS.index("spike")
    values[spikes] += random.choice([-0.6, 0.6], (spikes.sum(), 2))
    return Record(torch.tensor(values, dtype=torch.float32), torch.tensor(faults))


def loss_of(model: nn.Module, batch: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state goes on to the next stretch of the record."""
    found, state = model(batch[:-1], state)
    return F.mse_loss(found, batch[1:]), state


@torch.inference_mode()
def errors(model: nn.Module, values: Tensor) -> Tensor:
    """Of the forecast of each step but the first (T - 1, 2)."""
    found, _ = model.eval()(values[:-1, None])
    return values[1:] - found[:, 0]


def scores(found: Tensor, healthy: Tensor) -> Tensor:
    """The size of errors in units of those in health, Mahalanobis' distance, as a mean over the last few steps."""
    squares = (found @ torch.linalg.inv(torch.cov(healthy.T)) * found).sum(1)
    return F.pad(squares, (SMOOTHED - 1, 0), value=2.0).unfold(0, SMOOTHED, 1).mean(1).sqrt()


def area_under_curve(score: Tensor, faulty: Tensor) -> float:
    """How likely a faulty step scores higher than a healthy one (Mann and Whitney), the area under the ROC curve."""
    ranks = score.argsort().argsort().double() + 1
    ill, well = int(faulty.sum()), int((~faulty).sum())
    return (ranks[faulty].sum().item() - ill * (ill + 1) / 2) / (ill * well)


def precision_and_recall(alarm: Tensor, faults: Tensor) -> tuple[float, float, list[float]]:
    """The share of alarms with a fault in the last steps that a score looks at; the share of faults with an alarm, and
    the same of each kind."""
    near = F.max_pool1d(F.pad((faults >= 0).float()[None], (SMOOTHED - 1, 0)), SMOOTHED, 1)[0].bool()
    precision = (near & alarm).sum().item() / max(1, int(alarm.sum()))
    starts = [0, *(torch.nonzero(faults[1:] != faults[:-1]).flatten() + 1).tolist(), len(faults)]
    seen: list[list[bool]] = [[] for _ in KINDS]
    for begin, end in zip(starts, starts[1:], strict=False):
        if faults[begin] >= 0:
            seen[int(faults[begin])].append(bool(alarm[begin : end + SMOOTHED - 1].any()))
    return precision, sum(map(sum, seen)) / sum(map(len, seen)), [sum(one) / len(one) for one in seen]


@torch.inference_mode()
def stream(model: nn.Module, values: Tensor) -> tuple[Tensor, float]:
    """The errors of :func:`errors`, found as the values come in one at a time, and microseconds for each."""
    state, forecast, found = None, None, []
    model.eval()
    begin = time.perf_counter()
    for value in values:
        if forecast is not None:
            found.append(value - forecast[0, 0])
        forecast, state = model(value[None, None], state)
    return torch.stack(found), (time.perf_counter() - begin) / len(values) * 1e6


def show_record(tested: Record, score: Tensor, limit: float, shown: slice, axes: Axes) -> None:
    steps = np.arange(len(tested.values))[shown]
    for column, name in enumerate(("pressure", "flow")):
        axes.plot(steps, tested.values[shown, column] - 3 * column, linewidth=0.7, color=f"C{column + 2}", label=name)
    axes.plot(steps, (score / limit)[shown].clamp(max=4) + 2, color="C1", linewidth=0.8, label="score")
    axes.axhline(3, color="black", linewidth=0.5, linestyle=":")
    for kind in range(len(KINDS)):
        there = (tested.faults[shown] == kind).numpy()
        axes.fill_between(steps, -5, 6, where=there, color=f"C{kind + 4}", alpha=0.3, label=KINDS[kind])
    axes.set(title="faults (shaded) and the score, over the dotted line an alarm", xlabel="step", ylim=(-5, 6.2))
    axes.set_yticks([])
    axes.legend(fontsize=7, ncols=4, loc="lower left")


def show_kinds(seen: dict[str, list[float]], axes: Axes) -> None:
    for number, (name, shares) in enumerate(seen.items()):
        axes.bar(
            np.arange(len(KINDS)) + 0.27 * (number - 1), shares, 0.25, label=name, color=("C7", "C0", "C1")[number]
        )
    axes.set(title="share of faults with an alarm", ylim=(0, 1.25))
    axes.set_xticks(range(len(KINDS)), KINDS)
    axes.legend(ncols=3, loc="upper left")


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--hidden", type=int, default=64)
    options.add_argument("--length", type=int, default=100, help="steps of a stretch; the state goes on between them")
    options.add_argument("--batch", type=int, default=16, help="healthy records side by side")
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--tested", type=int, default=20000, help="steps of the record that faults lie in")
    return parse(options, hidden=32, steps=100, tested=4000)


def main() -> None:
    options = arguments()
    records = [record(options.steps * options.length + 1, 1000 * options.seed + row) for row in range(options.batch)]
    healthy = torch.stack([one.values for one in records], 1)
    starts = range(0, options.steps * options.length, options.length)
    batches = [healthy[start : start + options.length + 1] for start in starts]
    torch.manual_seed(options.seed)
    sides = two_sides(Forecaster(options.hidden), partial(torch.optim.Adam, lr=3e-3))
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    calm = record(options.tested, 1000 * options.seed + 998).values
    tested = record(options.tested, 1000 * options.seed + 999, fault_every=150)
    faults, values, seen, ours = tested.faults[1:], [], {}, None
    naive = calm[1:] - calm[:-1], tested.values[1:] - tested.values[:-1]
    found = [(errors(side.model, calm), errors(side.model, tested.values)) for side in sides]
    print(f"\n{'':<30}{'AUC':>8}{'precision':>11}{'recall':>8}")
    for name, (well, ill) in zip(("last value", *(side.name for side in sides)), (naive, *found), strict=True):
        score = scores(ill, well)
        limit = scores(well, well).quantile(1 - FALSE_ALARMS).item()
        values.append(area_under_curve(score, faults >= 0))
        precision, recall, seen[name] = precision_and_recall(score > limit, faults)
        print(f"{name:<30}{values[-1]:>8.3f}{precision:>11.3f}{recall:>8.3f}")
        ours = score, limit
    streams = [stream(side.model, tested.values[:2000]) for side in sides]
    apart = max((one - whole[1][: len(one)]).abs().max().item() for (one, _), whole in zip(streams, found, strict=True))
    times = ", ".join(f"{side.name} {taken:.0f}" for side, (_, taken) in zip(sides, streams, strict=True))
    print(f"As a stream, one value at a time, errors are the same to {apart:.0e}; microseconds a value: {times}.")

    shown = slice(300, 1100)
    story = partial(show_record, Record(tested.values[1:], faults), *ours, shown)
    plot(sides, "forecast of the next value", options.out / "anomalies.png", story, partial(show_kinds, seen))
    conclude("anomalies", sides, options, "area under the ROC curve", values[1:], ("last value", values[0]))


if __name__ == "__main__":
    main()
