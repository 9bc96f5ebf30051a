"""One to one: an RNN of length 1 is a feed-forward network, and learns the same.

    python examples/one_to_one.py

With one step from a state of zeros, ``h = tanh(W x + b)`` is a linear layer and a tanh: given the same weights and
batches, both must take the same course.  Data: census first names of the package ``names``; from its first and its last
two letters the network tells whether women or men bear a name more often.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from common import Side, folder_of, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import ROUNDING, conclude, differences, plot, report
from torch import Tensor, nn
from torch.nn import functional as F

LETTERS = 26
FEATURES = 3 * LETTERS

Batch = tuple[Tensor, Tensor]  # features (B, 78), genders (B)


class FeedForward(nn.Module):
    """features (B, 78) -> logits (B, 2)"""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(FEATURES, hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.input(features).tanh())


class Recurrent(nn.Module):
    """The same with an RNN that is run for one step.

    Its recurrent weights meet zeros only and never change; its second bias would count twice and is held at zero.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(FEATURES, hidden)
        self.head = nn.Linear(hidden, 2)
        nn.init.zeros_(self.rnn.bias_hh_l0).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        y, _ = self.rnn(features[None])
        return self.head(y[0])


def same_weights(network: FeedForward, recurrent: Recurrent) -> None:
    with torch.no_grad():
        network.input.weight.copy_(recurrent.rnn.weight_ih_l0)
        network.input.bias.copy_(recurrent.rnn.bias_ih_l0)
    network.head.load_state_dict(recurrent.head.state_dict())


def read_names() -> tuple[Batch, Batch]:
    """Names for training and a tenth held out, as features and genders."""
    folder = folder_of("names")
    share: dict[str, tuple[float, int]] = {}
    for number, file in enumerate(("dist.female.first", "dist.male.first")):
        for line in (folder / file).read_text().splitlines():
            name, percent = line.split()[:2]
            share[name] = max(share.get(name, (0.0, 0)), (float(percent), number))
    names = random.Random(0).sample(sorted(share), len(share))
    letters = torch.tensor([[ord(name[place]) - ord("A") for place in (0, -2, -1)] for name in names])
    features = F.one_hot(letters, LETTERS).flatten(1).float()
    genders = torch.tensor([share[name][1] for name in names])
    cut = len(names) // 10
    return (features[cut:], genders[cut:]), (features[:cut], genders[:cut])


def loss_of(model: nn.Module, batch: Batch, state: None) -> tuple[Tensor, None]:
    return F.cross_entropy(model(batch[0]), batch[1]), None


@torch.inference_mode()
def accuracy(model: nn.Module, batch: Batch) -> float:
    return (model(batch[0]).argmax(1) == batch[1]).float().mean().item()


def show_distances(sides: list[Side], axes: Axes) -> None:
    for side in sides[1:]:
        axes.plot([max(gap, 1e-9) for gap in differences(sides[0], side)], label=side.name, linewidth=0.8)
    axes.plot([ROUNDING * loss for loss in sides[0].losses], color="black", linestyle=":", label="rounding")
    axes.set(title="distance from the loss of the feed-forward network", xlabel="step", yscale="log")
    axes.legend()


@torch.inference_mode()
def show_endings(model: nn.Module, axes: Axes) -> None:
    """How likely a name is a man's, by its last two letters; the first letter left out."""
    pairs = torch.cartesian_prod(torch.arange(LETTERS), torch.arange(LETTERS))
    features = torch.cat((torch.zeros(len(pairs), LETTERS), F.one_hot(pairs, LETTERS).flatten(1).float()), 1)
    chances = model(features).softmax(1)[:, 1].view(LETTERS, LETTERS)
    image = axes.imshow(chances.numpy(), cmap="coolwarm", vmin=0, vmax=1)
    alphabet = [chr(ord("A") + letter) for letter in range(LETTERS)]
    axes.set_xticks(range(LETTERS), alphabet)
    axes.set_yticks(range(LETTERS), alphabet, fontsize=7)
    axes.set(title="a man's name? by its last two letters", xlabel="last", ylabel="last but one")
    axes.figure.colorbar(image, ax=axes)


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--hidden", type=int, default=64)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--steps", type=int, default=2000)
    return parse(options, steps=200)


def main() -> None:
    options = arguments()
    known, held_out = read_names()
    generator = torch.Generator().manual_seed(options.seed)
    drawn = [torch.randint(len(known[1]), (options.batch,), generator=generator) for _ in range(options.steps)]
    batches = [(known[0][rows], known[1][rows]) for rows in drawn]

    torch.manual_seed(options.seed)
    optimizer = partial(torch.optim.Adam, lr=3e-3)
    network, recurrent = FeedForward(options.hidden), Recurrent(options.hidden)
    same_weights(network, recurrent)
    sides = [Side("feed-forward", network, optimizer), *two_sides(recurrent, optimizer)]
    train(sides, batches, loss_of, seed=options.seed)

    for first in sides[:2]:
        report((first, sides[2]))
    values = [accuracy(side.model, held_out) for side in sides]
    print(f"The feed-forward network finds {values[0]:.3f} of the names held out, the RNN of length 1 {values[2]:.3f}.")
    stories = partial(show_distances, sides), partial(show_endings, sides[2].model)
    plot(sides[1:], "RNN of length 1", options.out / "one_to_one.png", *stories)
    majority = known[1].bincount().argmax()
    baseline = ("majority class", (held_out[1] == majority).float().mean().item())
    conclude("one_to_one", sides[1:], options, "accuracy", values[1:], baseline)


if __name__ == "__main__":
    main()
