"""The classics: Elman, Jordan, LSTM and GRU networks on the adding and the copy problem, the longer the harder.

    python examples/classics.py                                 # the adding problem over 50 steps
    python examples/classics.py --problem copy --length 200 --networks lstm gru
    python examples/classics.py --length 1000 --networks lstm gru --hidden 32 --batch 16 --steps 1200

Adding (Hochreiter, Schmidhuber 1997): of T random numbers two are marked; their sum is wanted at the end.  Copy (the
same; Arjovsky, Shah, Bengio 2016): ten symbols are to be repeated after T blanks.  The baselines are what an answer
without memory gives.  Adam learns to add, RMSprop to copy; gradients are clipped.  Recurrent weights begin orthogonal,
those of the ReLU network as the identity (Le, Jaitly, Hinton 2015), and gates open for as long as the sequence is
(Tallec, Ollivier 2018).  torch has no Jordan network: its side runs one step by step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from common import Side, one_hot_input, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F

import fastrnn

RATES = {"tanh": 1e-3, "relu": 2e-3, "jordan": 1e-3, "lstm": 1e-2, "gru": 1e-2}  # what each network learns with
SYMBOLS, COPIED = 8, 10  # token 8 is the blank, 9 asks for the copy
BLANK, ASK, TOKENS = 8, 9, 10

Batch = tuple[Tensor, Tensor]


class JordanLoop(fastrnn.JordanRNN):
    """A tanh Jordan network of one layer and linear output in torch's own operators."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, bias_hr = self.parameters()
        drive = F.linear(input, weight_ih, bias_ih + bias_hh)
        h, outputs = input.new_zeros(input.shape[1], self.output_size), []
        for x in drive:
            h = F.linear((x + F.linear(h, weight_hh)).tanh(), weight_hr, bias_hr)
            outputs.append(h)
        return torch.stack(outputs), h[None]


class Network(nn.Module):
    """numbers (T, B, I) or tokens (T, B) -> outputs at each step (T, B, P)"""

    def __init__(self, kind: str, sizes: tuple[int, int], hidden: int, length: int, gain: float) -> None:
        super().__init__()
        self.inputs, outputs = sizes
        self.rnn: nn.Module
        if kind == "jordan":
            self.rnn, self.head = fastrnn.JordanRNN(self.inputs, hidden, outputs), nn.Identity()
        else:
            module = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, partial(nn.RNN, nonlinearity=kind))
            self.rnn, self.head = module(self.inputs, hidden), nn.Linear(hidden, outputs)
        if kind == "relu":
            fastrnn.init.identity_(self.rnn, gain)
        else:
            fastrnn.init.orthogonal_(self.rnn, gain)
        if kind in ("lstm", "gru"):
            fastrnn.init.chrono_(self.rnn, length)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x if x.is_floating_point() else one_hot_input(self.rnn, x, self.inputs))
        return self.head(y)


def adding(length: int, rows: int) -> Batch:
    """Numbers and marks (T, B, 2), one in either half; sums (B)."""
    numbers, marks = torch.rand(length, rows), torch.zeros(length, rows)
    half = length // 2
    for start, stop in ((0, half), (half, length)):
        marks[torch.randint(start, stop, (rows,)), torch.arange(rows)] = 1
    return torch.stack((numbers, marks), 2), (numbers * marks).sum(0)


def copying(length: int, rows: int) -> Batch:
    """Tokens in and out (T + 20, B)."""
    symbols = torch.randint(SYMBOLS, (COPIED, rows))
    given, wanted = (torch.full((length + 2 * COPIED, rows), BLANK) for _ in range(2))
    given[:COPIED], given[COPIED + length - 1], wanted[-COPIED:] = symbols, ASK, symbols
    return given, wanted


def loss_of(model: nn.Module, batch: Batch, state: None) -> tuple[Tensor, None]:
    y = model(batch[0])
    if batch[1].is_floating_point():
        return F.mse_loss(y[-1, :, 0], batch[1]), None
    return F.cross_entropy(y.flatten(0, 1), batch[1].flatten()), None


class Problem(NamedTuple):
    """``draw(length, rows)`` gives a batch, ``measure(y, wanted)`` is 0 where all is right; of an answer of ones, which
    needs no memory, it is the baseline."""

    draw: Callable[[int, int], Batch]
    sizes: tuple[int, int]  # of the input and of the output
    optimizer: Callable[..., torch.optim.Optimizer]
    metric: str
    measure: Callable[[Tensor, Tensor], Tensor]


def squared_error(y: Tensor, sums: Tensor) -> Tensor:
    return F.mse_loss(y[-1, :, 0], sums)


def copied_wrong(y: Tensor, wanted: Tensor) -> Tensor:
    return (y.argmax(-1) != wanted)[-COPIED:].float().mean()


PROBLEMS = {
    "adding": Problem(adding, (2, 1), torch.optim.Adam, "mean square error", squared_error),
    "copy": Problem(copying, (TOKENS, TOKENS), torch.optim.RMSprop, "share of symbols wrong", copied_wrong),
}


def make(kind: str, options: argparse.Namespace, gain: float = 1.0, length: int | None = None) -> Network:
    torch.manual_seed(options.seed)
    return Network(kind, PROBLEMS[options.problem].sizes, options.hidden, length or options.length, gain)


def gradients(options: argparse.Namespace, steps: int = 100) -> dict[str, Tensor]:
    """The norm of dL/dh_t over t before training: of the networks, and of two that begin with worse weights."""
    models = {kind: make(kind, options, length=steps) for kind in options.networks}
    for kind, gain in (("tanh", 0.7), ("relu", 1.2)):
        models[f"{kind}, weights x {gain}"] = make(kind, options, gain)
    batch, found = PROBLEMS[options.problem].draw(steps, options.batch), {}
    for name, model in models.items():
        with fastrnn.diagnostics.gradient_norms(model) as norms:
            loss_of(fastrnn.convert(model), batch, None)[0].backward()
        found[name] = norms["rnn.l0"]
    return found


def show_losses(losses: dict[str, list[float]], axes: Axes) -> None:
    for name, values in losses.items():
        width = max(1, len(values) // 50)
        means = [statistics.fmean(values[start : start + width]) for start in range(0, len(values), width)]
        axes.semilogy([width * place for place in range(len(means))], means, label=name)
    axes.set(title="loss of fastrnn's networks", xlabel="step")
    axes.legend()


def show_gradients(norms: dict[str, Tensor], axes: Axes) -> None:
    fastrnn.diagnostics.plot(norms, axes)
    axes.set(title="gradient of the loss at the end that reaches step t, before training")


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--problem", choices=PROBLEMS, default="adding")
    options.add_argument("--length", type=int, default=50, help="T")
    options.add_argument("--networks", choices=list(RATES), nargs="+", default=list(RATES))
    options.add_argument("--hidden", type=int, default=64)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--steps", type=int, default=2000)
    return parse(options, length=10, hidden=32, batch=16, steps=300)


def main() -> None:
    options = arguments()
    problem = PROBLEMS[options.problem]
    title = f"{options.problem} over {options.length} steps"
    norms = gradients(options)
    torch.manual_seed(options.seed)
    batches = [problem.draw(options.length, options.batch) for _ in range(options.steps)]
    given, wanted = problem.draw(options.length, 250)
    ones = torch.ones(*given.shape[:2], problem.sizes[1])
    baseline = ("without memory", problem.measure(ones, wanted).item())

    trained: dict[str, tuple[Side, Side]] = {}
    for kind in options.networks:
        print(f"\n{kind}, {title}")
        sides = trained[kind] = two_sides(make(kind, options), partial(problem.optimizer, lr=RATES[kind]))
        if kind == "jordan":
            sides[0].model.rnn.__class__ = JordanLoop
        train(sides, batches, loss_of, seed=options.seed)
        report(sides)
        with torch.inference_mode():
            values = [problem.measure(side.model(given), wanted).item() for side in sides]
        name = f"classics_{options.problem}_{options.length}_{kind}"
        conclude(name, sides, options, f"{kind}: {problem.metric}", values, baseline, higher=False)

    losses = {kind: sides[1].losses for kind, sides in trained.items()}
    shown = "lstm" if "lstm" in trained else options.networks[-1]
    stories = partial(show_losses, losses), partial(show_gradients, norms)
    path = options.out / f"classics_{options.problem}_{options.length}.png"
    plot(trained[shown], f"{shown}, {title}", path, *stories)


if __name__ == "__main__":
    main()
