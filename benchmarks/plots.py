"""Plots of results, made of their JSON alone: ratios over torch.nn, a panel for each cell and kind of work.

python benchmarks/plots.py docs/results      every results/*.json as an SVG, and the page that shows them
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from records import FIRST, RESULTS

PAGE = """\
# Plots

Every result of `benchmarks/results`, drawn of its JSON: how many times as fast as torch.nn a side is, on a logarithmic
scale; filled marks are one thread, open ones two. A bar is the middle half of a run's samples; older tables, which kept
none, have marks alone. Means are geometric ones, of ratios over torch.nn.
[Speed, and how to read it](../speed.md) says what a ratio means.
"""


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float, float, float]]:
    """Each row but torch.nn's with its ratio, and those of the middle half of its samples."""
    first = {(row["case"], row["threads"]): row["milliseconds"] for row in rows if row["peer"] == FIRST}
    found = []
    for row in rows:
        if row["peer"] != FIRST:
            base, spread = first[row["case"], row["threads"]], row["spread"]
            ends = (spread["upper_quartile"], spread["lower_quartile"]) if spread else (row["milliseconds"],) * 2
            found.append((row, base / row["milliseconds"], *(base / end for end in ends)))
    return found


def figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A figure of matplotlib, or None where nothing stands beside torch.nn."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    shown = ratios(rows)
    panels = sorted({(row["cell"], row["work"]) for row, *_ in shown})
    series = sorted({(row["peer"], row["threads"]) for row, *_ in shown})
    names = sorted({peer for peer, _ in series}, key=lambda name: (not name.startswith("fastrnn"), name))
    if not panels:
        return None
    cases = {
        panel: list(dict.fromkeys(r["case"] for r, *_ in shown if (r["cell"], r["work"]) == panel)) for panel in panels
    }
    tallest = max(map(len, cases.values()))
    size = 9, len(panels) * (1.2 + 0.24 * tallest)
    drawn, axes = pyplot.subplots(len(panels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        labels = cases[panel]
        for peer, threads in series:
            points = [
                point
                for point in shown
                if (point[0]["cell"], point[0]["work"]) == panel
                and (point[0]["peer"], point[0]["threads"]) == (peer, threads)
            ]
            color, middle = f"C{names.index(peer)}", [ratio for _, ratio, _, _ in points]
            axis.errorbar(
                middle,
                [labels.index(row["case"]) for row, *_ in points],
                xerr=[[ratio - low for _, ratio, low, _ in points], [high - ratio for _, ratio, _, high in points]],
                linestyle="none",
                elinewidth=1,
                marker="o" if threads == 1 else "s",
                markersize=6,
                markerfacecolor=color if threads == 1 else "none",
                color=color,
                label=f"{peer}, {threads} thread{'s' * (threads > 1)}",
            )
        axis.axvline(1, color="black", linewidth=1)
        axis.set(title=f"{panel[0]}, {panel[1]}: times as fast as torch.nn", xscale="log", yticks=range(len(labels)))
        axis.set_yticklabels(labels, fontsize=8)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(ScalarFormatter())
        axis.tick_params(axis="x", which="both", labelsize=7, labelbottom=True)
        axis.invert_yaxis()
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].legend(fontsize=7)
    return drawn


def save(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """As PNG or SVG, by the name's end; the same bytes for the same rows."""
    drawn = figure(rows)
    if drawn is None:
        return
    from matplotlib import pyplot, rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "fastrnn", "svg.fonttype": "none"}):
        drawn.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(drawn)


def section(name: str, found: Mapping[str, Any]) -> str:
    """What the page says of a result: where it is from, means, the plot."""
    over: dict[tuple[str, str, int, str], list[float]] = {}
    for row, ratio, _, _ in ratios(found["rows"]):
        over.setdefault((row["cell"], row["work"], row["threads"], row["peer"]), []).append(ratio)
    lines = [
        "| cell | work | threads | side | mean | least | cases |",
        "|---|---|---|---|---|---|---|",
    ]
    for (cell, work, threads, peer), values in sorted(over.items()):
        means = f"{statistics.geometric_mean(values):.2f} | {min(values):.2f} | {len(values)}"
        lines.append(f"| {cell} | {work} | {threads} | {peer} | {means} |")
    facts = [f"{found['machine']}.", f"`{found['command']}`", f"Provenance: {found['provenance']}."]
    return "\n\n".join([f"## {name}", *facts, "\n".join(lines), f"![ratios over torch.nn, {name}]({name}.svg)"]) + "\n"


def main(folder: Path) -> None:
    parts = [PAGE]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        if "rows" in found and found["rows"] and "peer" in found["rows"][0]:  # not those of compare.py
            save(found["rows"], folder / f"{path.stem}.svg")
            parts.append(section(path.stem, found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plots.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
