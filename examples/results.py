"""What an example shows in the end: loss and time side by side, a plot, and its row of the table in the README."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import torch
from common import Side
from matplotlib.axes import Axes

matplotlib.use("agg")
from matplotlib import pyplot

# Losses nearer to each other than this share of their size count as equal: the loss is itself a float32.
ROUNDING = 8 * torch.finfo(torch.float32).eps


def report(sides: Sequence[Side]) -> None:
    """Loss and milliseconds a step side by side, the ratios, and how far apart the loss curves lie."""
    first, second = sides
    rows = [
        ("loss, mean of the last tenth", *(statistics.fmean(_tail(side.losses)) for side in sides), None),
        *_ratio_rows("training step, ms", [side.seconds for side in sides]),
        *_ratio_rows("recurrent part of it, ms", [side.recurrent_seconds for side in sides]),
    ]
    print(f"\n{'':<30}{first.name:>10}{second.name:>10}{'ratio':>9}")
    for what, left, right, ratio in rows:
        print(f"{what:<30}{left:>10.3f}{right:>10.3f}" + ("" if ratio is None else f"{ratio:>8.2f}x"))
    apart = differences(first, second)
    farthest = max(range(len(apart)), key=apart.__getitem__)
    parted = next((i for i, gap in enumerate(apart) if gap > ROUNDING * abs(first.losses[i])), None)
    when = "never part by" if parted is None else f"first part at step {parted + 1} by"
    print(f"The losses {when} more than rounding ({ROUNDING:.0e} of the loss); their largest difference")
    where = f"at step {farthest + 1} of {len(apart)}, loss {first.losses[farthest]:.3f}"
    print(f"is {apart[farthest]:.1e}, {where}.")


def _tail(values: Sequence[float]) -> Sequence[float]:
    return values[-max(1, len(values) // 10) :]


def _ratio_rows(what: str, seconds: Sequence[Sequence[float]]) -> Iterable[tuple[str, float, float, float]]:
    left, right = (statistics.median(values) * 1e3 for values in seconds)
    return [(what, left, right, left / right)] if right else []


def differences(first: Side, second: Side) -> list[float]:
    """How far the losses of two sides lie apart at each step."""
    return [abs(left - right) for left, right in zip(first.losses, second.losses, strict=True)]


def plot(sides: Sequence[Side], title: str, path: Path, *stories: Callable[[Axes], None]) -> None:
    """Loss curves, their difference and the time of each step, as a PNG; above them what each of ``stories`` draws."""
    figure = pyplot.figure(figsize=(14, 9 if stories else 4), layout="constrained")
    if stories:
        above, below = figure.subfigures(2, 1, height_ratios=(5, 4))
        for story, axes in zip(stories, above.subplots(1, len(stories), squeeze=False)[0], strict=True):
            story(axes)
    losses, apart, times = (below if stories else figure).subplots(1, 3)
    steps = range(1, len(sides[0].losses) + 1)
    for side, style in zip(sides, ("-", "--"), strict=True):
        losses.plot(steps, side.losses, style, label=side.name, linewidth=1.2)
        milliseconds = [taken * 1e3 for taken in side.seconds]
        label = f"{side.name}, median {statistics.median(milliseconds):.1f}"
        times.plot(steps, milliseconds, ".", markersize=3, label=label)
    losses.set(title=title, xlabel="step", ylabel="loss")
    losses.legend()
    apart.plot(steps, [max(gap, 1e-9) for gap in differences(*sides)], linewidth=0.8, color="C2")
    apart.set(title="distance of the two losses", xlabel="step", yscale="log")
    middle = statistics.median(sides[0].seconds) * 1e3
    times.set(title="time of a training step, ms", xlabel="step", ylim=(0, 2 * middle))
    times.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"Plot: {path}")


def counted_bits(known: Sequence[list[int]], held_out: Sequence[list[int]], vocabulary: int, seen: int) -> float:
    """Bits per token by how often it followed the ``seen`` tokens before it in known sequences; the first is given."""

    def moments(sequences: Sequence[list[int]]) -> list[tuple[tuple[int, ...], int]]:
        return [
            (tuple(tokens[max(0, place - seen) : place]), tokens[place])
            for tokens in sequences
            for place in range(1, len(tokens))
        ]

    both = Counter(moments(known))
    before = Counter(context for context, _ in moments(known))
    tested = moments(held_out)
    return -sum(math.log2((both[m] + 0.1) / (before[m[0]] + 0.1 * vocabulary)) for m in tested) / len(tested)


def chrf(found: str, true: str, longest: int = 6) -> float:
    """Popović's F2 of the pieces of 1 to 6 letters that two strings share, spaces left out."""
    scores = []
    for length in range(1, longest + 1):
        left, right = (
            Counter(text[i : i + length] for i in range(len(text) - length + 1))
            for text in (found.replace(" ", ""), true.replace(" ", ""))
        )
        if right:
            common = (left & right).total()
            scores.append(5 * common / (4 * right.total() + left.total()))
    return statistics.fmean(scores)


def show_values(title: str, values: dict[str, float], axes: Axes) -> None:
    """A bar for each value; the last two are those of the two sides."""
    colors = ["C7"] * (len(values) - 2) + ["C0", "C1"]
    axes.bar_label(axes.barh(list(values), list(values.values()), color=colors), fmt="%.2f")
    axes.set(title=title, xlim=(0, 1.15 * max(values.values())))


def show_table(title: str, cells: Sequence[Sequence[str]], size: int, axes: Axes, **labels: Sequence[str]) -> None:
    """Text in rows and columns, in letters of this size; ``labels`` are those of matplotlib's tables."""
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    table = axes.table(cells, loc="center", cellLoc="left", **labels)
    table.auto_set_font_size(False)
    table.set_fontsize(size)
    table.scale(0.95, 1.7)


def conclude(
    name: str,
    sides: Sequence[Side],
    options: argparse.Namespace,
    metric: str,
    values: Sequence[float],
    baseline: tuple[str, float],
    higher: bool = True,
) -> None:
    """Prints what both sides reached beside a trivial baseline, and writes it down as ``NAME.json``.

    ``run_all.py`` makes the table of the README from these files.  ``higher`` says which end of the metric is good.
    """
    milliseconds = [statistics.median(side.seconds) * 1e3 for side in sides]
    row = dict(
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        metric=metric,
        values=list(values),
        baseline=baseline,
        beaten=all(value > baseline[1] if higher else value < baseline[1] for value in values),
        parameters=sum(parameter.numel() for parameter in sides[0].model.parameters()),
        milliseconds=milliseconds,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
    reached = " and ".join(f"{value:.3f} ({side.name})" for side, value in zip(sides, values, strict=True))
    print(f"{metric}: {reached}; {baseline[0]}: {baseline[1]:.3f}.  {row['parameters']:,} parameters.")
