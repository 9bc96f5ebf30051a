"""Reinforcement learning: a GRU balances a pole on a cart whose velocities it is not shown.

    python examples/reinforcement.py

The cart and pole of Barto, Sutton and Anderson (1983), many of them side by side; the policy sees where the cart is and
how the pole leans, not how fast either moves, and has to keep in mind what it saw before.  A policy without memory, the
same in all but its recurrent layer, is the baseline.  All learn by proximal policy
optimization (Schulman et al. 2017).

Episodes end at their own times within the stretch of steps that is learned from, and the state begins anew there.
fastrnn takes the stretch whole, ``gru(x, state, reset=began)``; torch.nn has to be called for each piece between two
ends, of whichever cart.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from common import OURS, Side, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F

DISCOUNT, TRACE, CLIP = 0.99, 0.95, 0.2  # of returns, of advantages (Schulman et al. 2016), of the ratio of chances
REWARD = 1 - DISCOUNT  # of each step, so that no return is over 1
LIMIT = 500  # steps of the longest episode
STARTS = 0.05  # each of the four numbers of a new state lies within


class Carts:
    """N carts, those of Gymnasium's CartPole-v1; ``state`` (N, 4): position, velocity, angle and angular velocity."""

    def __init__(self, count: int, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.state = self._fresh(count)
        self.steps = torch.zeros(count)
        self.began = torch.ones(count, dtype=torch.bool)

    def _fresh(self, count: int) -> Tensor:
        return (2 * torch.rand(count, 4, generator=self.random) - 1) * STARTS

    def seen(self) -> Tensor:
        """Position and angle alone (N, 2), each over where an episode ends."""
        return self.state[:, ::2] / torch.tensor((2.4, 0.2095))

    def step(self, pushed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pushes each to the left (0) or the right (1): which fell, which reached the limit, and the steps of each
        episode so far.  What fell or is over begins anew."""
        x, v, angle, turning = self.state.unbind(1)
        sine, cosine = angle.sin(), angle.cos()
        force = (20.0 * pushed - 10.0 + 0.05 * turning.square() * sine) / 1.1
        bending = (9.8 * sine - cosine * force) / (0.5 * (4 / 3 - 0.1 * cosine.square() / 1.1))
        pulling = force - 0.05 * bending * cosine / 1.1
        changes = torch.stack((v, pulling, turning, bending), 1)
        self.state = self.state + 0.02 * changes
        age = self.steps + 1
        fell = (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > 0.2095)
        late = (age >= LIMIT) & ~fell
        self.began = fell | late
        self.state = torch.where(self.began[:, None], self._fresh(len(self.state)), self.state)
        self.steps = torch.where(self.began, 0.0, age)
        return fell, late, age


class Policy(nn.Module):
    """seen (T, N, 2), state (1, N, H), began (T, N) -> logits of left and right (T, N, 2), value (T, N), state"""

    def __init__(self, hidden: int, remembers: bool = True) -> None:
        super().__init__()
        self.memory = nn.GRU(2, hidden) if remembers else nn.Sequential(nn.Linear(2, hidden), nn.Tanh())
        self.layer = nn.Linear(hidden, hidden)
        self.action, self.value = nn.Linear(hidden, 2), nn.Linear(hidden, 1)
        nn.init.zeros_(self.action.weight)  # both ways alike, at first

    def forward(self, seen: Tensor, state: Tensor, began: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, state = with_resets(self.memory, seen, state, began)
        y = self.layer(y).tanh()
        return self.action(y), self.value(y)[..., 0], state


def with_resets(memory: nn.Module, x: Tensor, state: Tensor, began: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrent layer, whose state is zero before each step at which ``began`` holds (T, N)."""
    if not isinstance(memory, nn.GRU):
        return memory(x), state
    if type(memory) in OURS:
        return memory(x, state, reset=began)
    cuts = [0, *(torch.nonzero(began[1:].any(1))[:, 0] + 1).tolist(), len(x)]
    pieces = []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        y, state = memory(x[begin:end], state * ~began[begin, None, :, None])
        pieces.append(y)
    return torch.cat(pieces), state


class Experience:
    """The carts of one side, and the last stretch of steps that its policy drove them: what is learned from."""

    def __init__(self, options: Any) -> None:
        self.carts = Carts(options.carts, options.seed)
        self.length = options.length
        self.state = torch.zeros(1, options.carts, options.hidden)
        self.random = torch.Generator().manual_seed(options.seed + 1)
        self.lengths: list[float] = []  # of the episodes that ended in each stretch, their mean
        self.seconds: list[float] = []

    def detach(self) -> Experience:
        """Itself: nothing that it keeps is part of a graph."""
        return self

    @torch.no_grad()
    def collect(self, policy: nn.Module) -> None:
        """One stretch, a step at a time."""
        begin, self.first, rows, ages = time.perf_counter(), self.state, [], []
        for _ in range(self.length):
            seen, began = self.carts.seen(), self.carts.began
            logits, value, self.state = policy(seen[None], self.state, began[None])
            chances = logits[0].softmax(1)[:, 1]
            pushed = (torch.rand(len(seen), generator=self.random) < chances).long()
            fell, late, age = self.carts.step(pushed)
            ages.append(age[fell | late])
            # Where time is up the episode would have gone on: it is worth what it was worth a step before.
            reward = REWARD + DISCOUNT * value[0] * late
            rows.append(
                (seen, began, pushed, torch.where(pushed > 0, chances, 1 - chances), value[0], reward, fell | late)
            )
        self.seen, self.began, self.pushed, self.chances, values, reward, over = map(
            torch.stack, zip(*rows, strict=True)
        )
        _, value, _ = policy(self.carts.seen()[None], self.state, self.carts.began[None])
        surprise = reward + DISCOUNT * torch.cat((values[1:], value)) * ~over - values
        gains = [torch.zeros_like(value[0])]
        for now, ends in zip(surprise.flip(0), over.flip(0), strict=True):
            gains.append(now + DISCOUNT * TRACE * gains[-1] * ~ends)
        gain = torch.stack(gains[:0:-1])
        self.returns, self.gains = gain + values, (gain - gain.mean()) / gain.std()
        self.lengths.append(torch.cat(ages).mean().item())  # NaN where none ended
        self.seconds.append(time.perf_counter() - begin)


def loss_of(options: Any, model: nn.Module, number: int, state: Experience | None) -> tuple[Tensor, Experience]:
    """That of proximal policy optimization: a stretch is collected, then learned from several times."""
    known = Experience(options) if state is None else state
    if number % options.epochs == 0:
        known.collect(model)
    logits, value, _ = model(known.seen, known.first, known.began)
    chances = logits.softmax(-1)
    ratio = chances.gather(-1, known.pushed[..., None])[..., 0] / known.chances
    gain = torch.minimum(ratio * known.gains, ratio.clamp(1 - CLIP, 1 + CLIP) * known.gains).mean()
    entropy = -(chances * chances.log()).sum(-1).mean()
    return F.mse_loss(value, known.returns) - gain - 0.01 * entropy, known


@torch.inference_mode()
def episodes(policy: nn.Module, options: Any, count: int = 100) -> tuple[Tensor, Tensor]:
    """How long new ones last (N), and how the poles lean on the way (LIMIT, N), NaN from their end on."""
    carts, random = Carts(count, options.seed + 2), torch.Generator().manual_seed(options.seed + 3)
    state, alive, angles = torch.zeros(1, count, options.hidden), torch.ones(count, dtype=torch.bool), []
    while alive.any():
        angles.append(torch.where(alive, carts.state[:, 2], torch.nan))
        logits, _, state = policy(carts.seen()[None], state, carts.began[None])
        carts.step((torch.rand(count, generator=random) < logits[0].softmax(1)[:, 1]).long())
        alive = alive & ~carts.began
    leaning = torch.stack(angles)
    return (~leaning.isnan()).sum(0).float(), leaning


def show_learning(sides: list[Side], axes: Axes) -> None:
    for side, style, color in zip(sides, ("-", "-", "--"), ("C7", "C0", "C1"), strict=True):
        axes.plot(side.state.lengths, style, color=color, label=side.name, linewidth=1.2)
    axes.set(title="mean length of the episodes that end", xlabel="stretch of steps", ylabel="steps")
    axes.legend()


def show_angles(found: dict[str, Tensor], axes: Axes) -> None:
    for (name, leaning), color in zip(found.items(), ("C7", "C1"), strict=True):
        for number in range(5):
            label = name if number == 0 else None
            axes.plot(leaning[:, number].rad2deg(), color=color, linewidth=0.8, label=label)
    axes.set(title="how the pole leans, five episodes", xlabel="step", ylabel="degrees", ylim=(-13, 13))
    axes.legend()


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--hidden", type=int, default=64)
    options.add_argument("--carts", type=int, default=32)
    options.add_argument("--length", type=int, default=128, help="steps of a stretch")
    options.add_argument("--epochs", type=int, default=4, help="steps of learning from a stretch")
    options.add_argument("--steps", type=int, default=400)
    return parse(options, hidden=32, length=64, steps=100)


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    optimizer = partial(torch.optim.Adam, lr=3e-3)
    policy, forgetful = Policy(options.hidden), Policy(options.hidden, remembers=False)
    sides = [Side("no memory", forgetful, optimizer), *two_sides(policy, optimizer)]
    train(sides, range(options.steps), partial(loss_of, options), seed=options.seed)

    report(sides[1:])
    left, right = (statistics.median(side.state.seconds) * 1e3 for side in sides[1:])
    print(f"{'collecting a stretch, ms':<30}{left:>10.3f}{right:>10.3f}{left / right:>8.2f}x")
    lengths, leaning = zip(*(episodes(side.model, options) for side in sides), strict=True)
    baseline, *values = (length.mean().item() for length in lengths)
    angles = {"no memory": leaning[0], "fastrnn": leaning[2]}
    stories = partial(show_learning, sides), partial(show_angles, angles)
    plot(sides[1:], "proximal policy optimization", options.out / "reinforcement.png", *stories)
    conclude("reinforcement", sides[1:], options, f"steps balanced, of {LIMIT}", values, ("no memory", baseline))


if __name__ == "__main__":
    main()
