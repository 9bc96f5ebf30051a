"""What is asked of fastrnn on a CPU, and what the rows of a report say of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cases import CELLS, WORKS, Case

FIRST = "torch.nn"
OURS = "fastrnn[cpp]"
STREAM = "fastrnn.stream"


@dataclass(frozen=True)
class Row:
    """One peer's median on one case."""

    case: Case
    threads: int
    peer: str
    seconds: float
    ratio: float
    share: float
    gate: float
    error: tuple[float, str] | None
    spread: Mapping[str, float] | None = None  # of its samples, as records.spread has it

    def fields(self) -> tuple[str, ...]:
        ratio = "" if self.peer == FIRST else f"{self.ratio:.2f}"
        rate = self.case.flops / self.seconds / 1e9
        milliseconds = f"{self.seconds * 1e3:.4g}"
        return (
            *(str(self.case), str(self.threads), self.peer, milliseconds),
            *(ratio, f"{rate:.1f}", f"{self.share:.0%}", f"{self.gate:.2f}"),
            "" if self.peer == FIRST or self.error is None else f"{self.error[0]:.2f} {self.error[1]}",
        )


@dataclass(frozen=True)
class Measure:
    """``values`` gives one number for each row of ours that counts; ``joined`` makes one of them; more is better,
    unless ``more`` is false."""

    what: str
    asked: float
    values: Callable[[Row, Found], float | None]
    joined: Callable[[Iterable[float]], float] = statistics.geometric_mean
    more: bool = True

    def line(self, own: Sequence[Row], found: Found) -> str | None:
        values = [value for row in own if (value := self.values(row, found)) is not None]
        if not values:
            return None
        reached = self.joined(values)
        met = "yes" if (reached >= self.asked if self.more else reached <= self.asked) else "no"
        return f"| {self.what} | {self.asked:g} | {reached:.2f} | {min(values):.2f} to {max(values):.2f} | {met} |"


Found = dict[tuple[Case, int, str], Row]


def plain(case: Case) -> bool:
    return not case.shape.packed and case.shape.dtype == "float32" and case.shape.steps > 1


def wide(case: Case) -> bool:
    return plain(case) and case.shape.rows >= 32 and case.shape.hidden >= 256


def over_first(mode: str, work: str, packed: bool = False) -> Callable[[Row, Found], float | None]:
    def value(row: Row, found: Found) -> float | None:
        case = row.case
        counts = case.shape.packed if packed else plain(case)
        return row.ratio if counts and case.mode == mode and case.work == work else None

    return value


def over(peer: str, hidden: int) -> Callable[[Row, Found], float | None]:
    """One step of one row over a peer's."""

    def value(row: Row, found: Found) -> float | None:
        shape, other = row.case.shape, found.get((row.case, row.threads, peer))
        one = shape.steps == shape.rows == row.threads == 1 and row.case.mode == "LSTM" and shape.hidden == hidden
        return other.seconds / row.seconds if one and other is not None else None

    return value


def over_others(row: Row, found: Found) -> float | None:
    others = [
        other.seconds
        for (case, threads, peer), other in found.items()
        if (case, threads) == (row.case, row.threads) and peer != FIRST and "fastrnn" not in peer and "cell" not in peer
    ]
    return min(others) / row.seconds if others and row.case.work == "infer" else None


def over_one_thread(row: Row, found: Found) -> float | None:
    alone = found.get((row.case, 1, OURS))
    shape = row.case.shape
    counts = row.threads == 2 and shape.rows >= 16 and shape.hidden >= 256 and plain(row.case)
    return alone.seconds / row.seconds if alone is not None and counts else None


def streaming(row: Row, found: Found) -> float | None:
    shape = row.case.shape
    counts = shape.rows == row.threads == 1 and shape.steps == 100 and row.case.work == "infer" and plain(row.case)
    return row.share if counts and shape.hidden in (128, 512) else None


def step_of_64(row: Row, found: Found) -> float | None:
    shape = row.case.shape
    one = shape.steps == shape.rows == row.threads == 1 and shape.hidden == 64
    return row.seconds * 1e6 if one and row.case.mode == "LSTM" else None


def step_of_stream(mode: str) -> Callable[[Row, Found], float | None]:
    """The same of a stream's handle, of a mode."""

    def value(row: Row, found: Found) -> float | None:
        other = found.get((row.case, row.threads, STREAM))
        shape = row.case.shape
        one = shape.rows == row.threads == 1 and shape.hidden == 64 and row.case.mode == mode
        return other.seconds * 1e6 if one and other is not None else None

    return value


def error(row: Row, found: Found) -> float | None:
    return row.error and row.error[0]


ASKED = {"train": (1.7, 3.5, 3.5), "infer": (1.4, 3.5, 3.5)}
PACKED = {"train": (2.5, 2.5, 2.5), "infer": (4.0, 3.5, 3.5)}
MEASURES = (
    *(
        Measure(f"{mode} {work}, over torch.nn", asked, over_first(mode, work))
        for work in WORKS
        for mode, asked in zip(CELLS, ASKED[work], strict=True)
    ),
    *(
        Measure(f"{mode} {work}, packed, over torch.nn packed", asked, over_first(mode, work, packed=True))
        for work in WORKS
        for mode, asked in zip(CELLS, PACKED[work], strict=True)
    ),
    Measure("inference over the best other library", 1.15, over_others),
    Measure("the same, least", 1.0, over_others, min),
    Measure("one row, T = 100: share of the streaming rate, all of the call counted", 0.9, streaming, min),
    Measure(
        "share of the product's rate, B >= 32, H >= 256, inference",
        0.92,
        lambda row, _: row.share if wide(row.case) and row.case.work == "infer" else None,
    ),
    Measure(
        "the same, training",
        0.88,
        lambda row, _: row.share if wide(row.case) and row.case.work == "train" else None,
    ),
    Measure("2 threads over 1, B >= 16, H >= 256", 1.8, over_one_thread),
    Measure("one step, H = 128, over LSTM", 7, over(FIRST, 128)),
    Measure("one step, H = 128, over LSTMCell", 1.5, over("torch.nn cell", 128)),
    Measure("one step, H = 512, over LSTM", 25, over(FIRST, 512)),
    Measure("one step, H = 512, over LSTMCell", 1.3, over("torch.nn cell", 512)),
    Measure("one step, H = 64, microseconds", 10, step_of_64, more=False),
    Measure("one step of a stream's handle, LSTM, H = 64, microseconds", 4.5, step_of_stream("LSTM"), more=False),
    Measure("the same, GRU", 3.8, step_of_stream("GRU"), more=False),
    Measure("least of all, over torch.nn", 1.0, lambda row, _: row.ratio, min),
    Measure("error over torch.nn's own, geometric mean of each row's largest", 1.0, error, more=False),
    Measure("error over torch.nn's own, largest of all results", 1.0, error, max, more=False),
)


def measures(rows: Sequence[Row]) -> list[str]:
    """A table: what was asked, what the rows reached (geometric means unless it says otherwise), and their range."""
    own = [row for row in rows if row.peer == OURS]
    found = {(row.case, row.threads, row.peer): row for row in rows}
    lines = [line for measure in MEASURES if (line := measure.line(own, found)) is not None]
    if not lines:
        return []
    return ["| measure | asked | reached | range | met |", "|---|---|---|---|---|", *lines, ""]
