"""The classics: Elman, Jordan, LSTM and GRU networks on the adding and the copy problem, the longer the harder.

    python examples/classics.py                                 # the adding problem over 50 steps
    python examples/classics.py --problem copy --length 1000 --networks lstm gru --steps 5000

Adding (Hochreiter, Schmidhuber 1997): of T random numbers two are marked; their sum is wanted at the end.  Copy (the
same; Arjovsky, Shah, Bengio 2016): ten symbols are to be repeated after T blanks.  The baselines are what an answer
without memory gives.  Clipped gradients, orthogonal recurrent weights, open forget gates; the ReLU network has the
identity at first (Le, Jaitly, Hinton 2015).  torch has no Jordan network: its side runs one step by step.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from common import Side, one_hot_input, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F

import fastrnn

RATES = {"tanh": 1e-3, "relu": 5e-4, "lstm": 5e-3, "gru": 5e-3, "jordan": 1e-3}  # what each network learns with
OPTIMIZERS = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
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

    def __init__(self, kind: str, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.rnn: nn.Module
        if kind == "jordan":
            self.rnn, self.head = JordanLoop(inputs, hidden, outputs), nn.Identity()
            return
        if kind in ("tanh", "relu"):
            self.rnn = nn.RNN(inputs, hidden, nonlinearity=kind)
        else:
            self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](inputs, hidden)
        self.head = nn.Linear(hidden, outputs)
        if kind == "relu":
            fastrnn.init.identity_(self.rnn)
        else:
            fastrnn.init.orthogonal_(self.rnn)
        if kind == "lstm":
            fastrnn.init.forget_bias_(self.rnn)

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


def sides_of(kind: str, sizes: tuple[int, int, int], options: argparse.Namespace) -> tuple[Side, Side]:
    torch.manual_seed(options.seed)
    model, optimizer = Network(kind, *sizes), partial(OPTIMIZERS[options.optimizer], lr=RATES[kind])
    if kind != "jordan":
        return two_sides(model, optimizer)
    fused = copy.deepcopy(model)
    fused.rnn.__class__ = fastrnn.JordanRNN
    return Side("torch.nn", model, optimizer), Side("fastrnn", fused, optimizer)


def gradient_norms(sides: Sequence[Side], batch: Batch) -> Tensor:
    """The norm of dL/dh_t over t, of an untrained network."""
    with fastrnn.diagnostics.gradient_norms(sides[1].model) as norms:
        loss_of(sides[1].model, batch, None)[0].backward()
    sides[1].model.zero_grad()
    return norms["rnn.l0"]


def show_losses(losses: dict[str, list[float]], baseline: float, axes: Axes) -> None:
    for name, values in losses.items():
        width = max(1, len(values) // 50)
        means = [statistics.fmean(values[start : start + width]) for start in range(0, len(values), width)]
        axes.semilogy([width * place for place in range(len(means))], means, label=name)
    axes.axhline(baseline, color="black", linestyle=":", label="without memory")
    axes.set(title="loss of fastrnn's networks", xlabel="step")
    axes.legend()


def show_norms(norms: dict[str, Tensor], axes: Axes) -> None:
    fastrnn.diagnostics.plot(norms, axes)
    axes.set(title="gradient that reaches each step, before training")


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--problem", choices=("adding", "copy"), default="adding")
    options.add_argument("--length", type=int, default=50, help="T")
    options.add_argument("--networks", choices=list(RATES), nargs="+", default=list(RATES))
    options.add_argument("--optimizer", choices=OPTIMIZERS, default="adam")
    options.add_argument("--hidden", type=int, default=64)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--steps", type=int, default=2000)
    return parse(options, length=10, hidden=32, batch=16, steps=150)


def main() -> None:
    options = arguments()
    if options.problem == "adding":
        draw, sizes, baseline = adding, (2, options.hidden, 1), 1 / 6  # the variance of a sum of two
    else:
        blanks = options.length + COPIED  # all surely known but the last ten
        draw, sizes = copying, (TOKENS, options.hidden, TOKENS)
        baseline = COPIED * math.log(SYMBOLS) / (blanks + COPIED)
    torch.manual_seed(options.seed)
    batches = [draw(options.length, options.batch) for _ in range(options.steps)]

    trained: dict[str, tuple[Side, Side]] = {}
    norms: dict[str, Tensor] = {}
    for kind in options.networks:
        trained[kind] = sides_of(kind, sizes, options)
        if kind != "jordan":
            norms[kind] = gradient_norms(trained[kind], batches[0])
        print(f"\n{kind}, {options.problem} over {options.length} steps")
        train(trained[kind], batches, loss_of, seed=options.seed)
        report(trained[kind])
        values = [statistics.fmean(side.losses[-max(1, options.steps // 10) :]) for side in trained[kind]]
        name = f"classics_{options.problem}_{options.length}_{kind}"
        conclude(name, trained[kind], options, f"{kind}, loss", values, ("without memory", baseline), higher=False)

    losses = {kind: sides[1].losses for kind, sides in trained.items()}
    shown = "lstm" if "lstm" in trained else options.networks[-1]
    stories = partial(show_losses, losses, baseline), partial(show_norms, norms)
    path = options.out / f"classics_{options.problem}_{options.length}.png"
    plot(trained[shown], f"{shown}, {options.problem} over {options.length} steps", path, *stories)


if __name__ == "__main__":
    main()
