"""A cell of one's own: a network of rotations on the copy problem, beside an LSTM with as many weights.

    python examples/own_cell.py
    python examples/own_cell.py --length 200 --steps 500

Ten symbols are to be repeated after T blanks (Hochreiter, Schmidhuber 1997).  A state that is turned at every step
neither fades nor grows, and neither do gradients (Arjovsky, Shah, Bengio 2016; Helfrich, Willmott, Ye 2018); an LSTM
has to learn first to hold what it saw, in some thousand steps.  The cell is :class:`Rotation` below, all of it; it
learns on ``fastrnn.Network``, and in a loop of torch's operators, which computes the same.  What is to be beaten is the
LSTM, which gets the same batches, as many steps and weights, gates that begin open for T steps (Tallec, Ollivier 2018)
and a rate of its own, the best of 1e-3, 3e-3, 1e-2 and 3e-2.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from functools import partial
from typing import Any

import torch
from classics import PROBLEMS, TOKENS, loss_of
from common import Side, one_hot_input, parse, parser, train
from matplotlib.axes import Axes
from results import conclude, plot, report, show_values
from torch import Tensor, nn
from torch.nn import functional as F

import fastrnn
from fastrnn.cell import Cell, Input, Recurrent, Vector, relu

PROBLEM = PROBLEMS["copy"]
RATES = {"rotation": 1e-3, "lstm": 1e-2}


class Rotation(Cell):
    """::

    s  = W x + U h                          U begins as rotations
    h' = relu(s + b) - relu(b - s)          s itself where b = 0, as at first; modReLU where b < 0
    """

    W, U, b = Input(bias=False), Recurrent(bias=False), Vector(init=0.0)

    def step(self, x, h):
        s = self.W(x) + self.U(h)
        return dict(h=relu(s + self.b) - relu(self.b - s))


class RotationLoop(fastrnn.Network):
    """The same in torch's operators, as one writes it: W x of all steps at once, then one step after the other."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:
        drive, u, b = F.linear(input, self.weight_ih_l0), self.weight_hh_l0, self.b_l0
        h, outputs = input.new_zeros(input.shape[1], self.hidden_size), []
        for x in drive:
            s = x + F.linear(h, u)
            h = F.relu(s + b) - F.relu(b - s)
            outputs.append(h)
        return torch.stack(outputs), h[None]


class Copier(nn.Module):
    """tokens (T, B) -> logits of what is to be written at each step (T, B, 10)"""

    def __init__(self, rnn: nn.Module, hidden: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(hidden, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.rnn(one_hot_input(self.rnn, tokens, TOKENS))
        return self.head(y)


def rotations(units: int) -> Tensor:
    """(H, H), a turn by an angle of its own for each pair of units."""
    angles = math.pi * (2 * torch.rand(units // 2) - 1)
    turns = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), 1).view(-1, 2, 2)
    return torch.block_diag(*turns)


def optimizer(model: Copier, rate: float) -> torch.optim.Optimizer:
    """Turns are slower to change than all else: what changes them counts at every step."""
    turns = [parameter for name, parameter in model.named_parameters() if name == "rnn.weight_hh_l0"]
    others = [parameter for parameter in model.parameters() if parameter is not turns[0]]
    return PROBLEM.optimizer([dict(params=others), dict(params=turns, lr=rate / 10)], lr=rate)


def build(options: argparse.Namespace) -> list[Side]:
    """The cell in a loop, the cell on fastrnn with the same weights, and the LSTM."""
    torch.manual_seed(options.seed)
    own = Copier(fastrnn.Network(Rotation, TOKENS, options.hidden), options.hidden)
    with torch.no_grad():
        own.rnn.weight_hh_l0.copy_(rotations(options.hidden))
    units = options.hidden // 2  # four gates: as many weights
    lstm = Copier(fastrnn.LSTM(TOKENS, units), units)
    fastrnn.init.orthogonal_(lstm.rnn)
    fastrnn.init.chrono_(lstm.rnn, options.length)
    loop = copy.deepcopy(own)
    loop.rnn.__class__ = RotationLoop
    sides = [
        Side(name, model, lambda _, model=model: optimizer(model, RATES["rotation"]))
        for name, model in (("loop", loop), ("fastrnn", own))
    ]
    return [*sides, Side("LSTM", lstm, partial(PROBLEM.optimizer, lr=options.lstm_rate))]


def show_losses(sides: list[Side], baseline: float, axes: Axes) -> None:
    for side, style in zip(sides, ("-", "--", "-"), strict=True):
        axes.semilogy(side.losses, style, label=side.name, linewidth=1.2)
    axes.axhline(baseline, color="black", linestyle=":", label="without memory")
    axes.set(title="loss: the cell in a loop and on fastrnn, and the LSTM", xlabel="step")
    axes.legend()


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--length", type=int, default=100, help="T")
    options.add_argument("--hidden", type=int, default=128, help="units of the cell; the LSTM has half as many")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--steps", type=int, default=500)
    options.add_argument("--lstm-rate", type=float, default=RATES["lstm"])
    return parse(options, length=20, batch=16, steps=60)


def main() -> None:
    options = arguments()
    sides = build(options)
    batches = [PROBLEM.draw(options.length, options.batch) for _ in range(options.steps)]
    given, wanted = PROBLEM.draw(options.length, 250)
    train(sides, batches, loss_of, seed=options.seed)

    report(sides[:2])
    times = {side.name: statistics.median(side.seconds) * 1e3 for side in sides}
    print(f"\n{'':<10}{'weights':>10}{'loss, last tenth':>18}{PROBLEM.metric:>24}{'ms/step':>10}")
    wrong = []
    for side in sides:
        with torch.inference_mode():
            wrong.append(PROBLEM.measure(side.model(given), wanted).item())
        weights = sum(parameter.numel() for parameter in side.model.parameters())
        loss = statistics.fmean(side.losses[-max(1, options.steps // 10) :])
        print(f"{side.name:<10}{weights:>10,}{loss:>18.4f}{wrong[-1]:>24.4f}{times[side.name]:>10.1f}")
    memoryless = 10 * math.log(8) / (options.length + 20)
    print(f"Without memory the loss is {memoryless:.4f}.")

    title = f"copy over {options.length} steps"
    bars = {name: times[name] for name in ("LSTM", "loop", "fastrnn")}
    stories = partial(show_losses, sides, memoryless), partial(show_values, "milliseconds a training step", bars)
    plot(sides[:2], title, options.out / f"own_cell_{options.length}.png", *stories)
    baseline = ("fastrnn.LSTM", wrong[2])
    name = f"own_cell_{options.length}"
    conclude(name, sides[:2], options, f"rotations: {PROBLEM.metric}", wrong[:2], baseline, higher=False)


if __name__ == "__main__":
    main()
