"""Time series: an LSTM or a GRU forecasts a season ahead, against the naive forecast that the last season comes again.

    python examples/forecasting.py                     # monthly carbon dioxide on Mauna Loa, twelve months ahead
    python examples/forecasting.py --series sunspots   # yearly sunspots, four years ahead; a cycle takes about eleven

Both series come with the package ``statsmodels``; the last fifth is held out.  At each step the network is given how
far the series lies from its mean over the last season and from its value a season ago, and forecasts the latter for all
steps of the horizon at once; the naive forecast has zeros there.
"""

from __future__ import annotations

import csv
import itertools
from functools import partial
from typing import Any, NamedTuple

import torch
from common import folder_of, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class Series(NamedTuple):
    """``values`` (N) at ``times``, their unit, the steps of a season, and how many steps ahead is forecast."""

    times: Tensor
    values: Tensor
    unit: str
    season: int
    horizon: int


class Forecaster(nn.Module):
    """inputs (T, B, 2) -> forecasts at each step (T, B, horizon)"""

    def __init__(self, cell: str, hidden: int, horizon: int) -> None:
        super().__init__()
        self.rnn = CELLS[cell](2, hidden)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(hidden, horizon)

    def forward(self, inputs: Tensor) -> Tensor:
        y, _ = self.rnn(inputs)
        return self.head(self.dropout(y))


def read_co2() -> Series:
    """Monthly means of the weekly values, the few months without any between their neighbours."""
    weekly: dict[int, list[float]] = {}
    with open(folder_of("statsmodels") / "datasets" / "co2" / "co2.csv") as lines:
        for row in csv.DictReader(lines):
            month = 12 * int(row["date"][:4]) + int(row["date"][4:6]) - 1
            weekly.setdefault(month, []).extend([float(row["co2"])] if row["co2"] else [])
    means = {month: sum(values) / len(values) for month, values in weekly.items() if values}
    for (month, value), (after, next_value) in itertools.pairwise(sorted(means.items())):
        for gap in range(1, after - month):
            means[month + gap] = value + (next_value - value) * gap / (after - month)
    months = torch.tensor(sorted(means))
    return Series(months / 12, torch.tensor([means[int(month)] for month in months]), "CO2, ppm", 12, 12)


def read_sunspots() -> Series:
    """Square roots, whose scatter is the same at few and at many."""
    with open(folder_of("statsmodels") / "datasets" / "sunspots" / "sunspots.csv") as lines:
        rows = [(float(row["YEAR"]), float(row["SUNACTIVITY"])) for row in csv.DictReader(lines)]
    years, numbers = torch.tensor(rows).unbind(1)
    return Series(years, numbers.sqrt(), "square root of sunspots", 11, 4)


SERIES = {"co2": read_co2, "sunspots": read_sunspots}


class Windows(NamedTuple):
    """For every step that a forecast can begin after: inputs (T, N, 2) up to there, targets (T, N, horizon), and the
    naive forecast (N, horizon) in the series' own unit; ``scale`` leads from that unit to inputs and targets."""

    inputs: Tensor
    targets: Tensor
    naive: Tensor
    origins: Tensor
    scale: float


def windows(series: Series, length: int, cut: int) -> Windows:
    values, season, horizon = series.values, series.season, series.horizon
    change = values[season:] - values[:-season]  # from a season before; begins at step ``season``
    level = values[season:] - values.unfold(0, season, 1).mean(1)[1:]
    scale = change[: cut - season].std().item()
    features = torch.stack((level, change), 1) / scale
    ahead = (change / scale)[1:].unfold(0, horizon, 1)  # at row t, the changes of the steps after t
    count = len(ahead)
    inputs = features[:count].unfold(0, length, 1).permute(2, 0, 1)
    targets = ahead.unfold(0, length, 1).permute(2, 0, 1)
    origins = torch.arange(season + length - 1, season + count)
    naive = values[1:].unfold(0, horizon, 1)[origins - season]
    return Windows(inputs.contiguous(), targets.contiguous(), naive, origins, scale)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], state: None) -> tuple[Tensor, None]:
    return F.mse_loss(model(batch[0]), batch[1]), None


@torch.inference_mode()
def forecasts(model: nn.Module, data: Windows) -> Tensor:
    """(N, horizon) in the series' own unit."""
    return data.naive + data.scale * model.eval()(data.inputs)[-1]


def root_mean_square(errors: Tensor, dim: int | None = None) -> Tensor:
    return errors.square().mean(dim).sqrt()


def show_forecasts(series: Series, tested: Windows, found: Tensor, name: str, axes: Axes) -> None:
    first = int(tested.origins[0])
    axes.plot(series.times[first:], series.values[first:], color="black", linewidth=0.8, label="series")
    for place in range(0, len(found), series.horizon):
        times = series.times[tested.origins[place] + 1 :][: series.horizon]
        for values, color, label in ((tested.naive, "C7", "naive"), (found, "C1", name)):
            axes.plot(times, values[place], color=color, label=label if place == 0 else None)
    axes.set(title=f"forecasts {series.horizon} steps ahead, held out", ylabel=series.unit)
    axes.legend()


def show_errors(errors: dict[str, Tensor], unit: str, axes: Axes) -> None:
    for (name, values), color in zip(errors.items(), ("C7", "C0", "C1"), strict=True):
        steps = range(1, values.shape[1] + 1)
        axes.plot(steps, root_mean_square(values, 0), "o--" if color == "C1" else "o-", color=color, label=name)
    axes.set(title="root mean square error by steps ahead", xlabel="steps ahead", ylabel=unit, ylim=(0, None))
    axes.legend()


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--series", choices=SERIES, default="co2")
    options.add_argument("--cell", choices=CELLS, default="lstm")
    options.add_argument("--hidden", type=int, default=32)
    options.add_argument("--length", type=int, default=33, help="steps that a forecast is made from")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--steps", type=int, default=200)
    return parse(options, steps=150)


def main() -> None:
    options = arguments()
    series = SERIES[options.series]()
    cut = len(series.values) * 4 // 5
    data = windows(series, options.length, cut)
    known = torch.nonzero(data.origins + series.horizon < cut).flatten()
    later = data.origins >= cut
    tested = data._replace(inputs=data.inputs[:, later], naive=data.naive[later], origins=data.origins[later])
    generator = torch.Generator().manual_seed(options.seed)
    drawn = [known[torch.randint(len(known), (options.batch,), generator=generator)] for _ in range(options.steps)]
    batches = [(data.inputs[:, rows], data.targets[:, rows]) for rows in drawn]
    torch.manual_seed(options.seed)
    model = Forecaster(options.cell, options.hidden, series.horizon)
    sides = two_sides(model, partial(torch.optim.Adam, lr=3e-3, weight_decay=1e-2))
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    true = series.values[1:].unfold(0, series.horizon, 1)[tested.origins]
    found = [forecasts(side.model, tested) for side in sides]
    errors = {"naive": tested.naive - true} | {
        f"{options.cell}, {side.name}": values - true for side, values in zip(sides, found, strict=True)
    }
    naive, *reached = (root_mean_square(values).item() for values in errors.values())
    name = f"forecasting_{options.series}_{options.cell}"
    stories = (
        partial(show_forecasts, series, tested, found[1], options.cell),
        partial(show_errors, errors, series.unit),
    )
    plot(sides, f"{options.series}, {options.cell}", options.out / f"{name}.png", *stories)
    metric = f"root mean square error, {series.unit}"
    conclude(name, sides, options, metric, reached, ("seasonal naive", naive), higher=False)


if __name__ == "__main__":
    main()
