"""Many to one: a bidirectional LSTM reads a word letter by letter, packed, and names its class.

    python examples/classify.py                    # is it a woman's name, a man's or a family's?
    python examples/classify.py --task sentiment   # does it sound good or bad?

Names: census first and last names of the package ``names``.  Sentiment: what ten people on average thought of a word,
an idiom or an emoticon, in the package ``vaderSentiment``.  Many words held out have a relative among those of the
training (abandon, abandoned): the network has to find what they share.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from common import embedded, folder_of, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

Word = tuple[str, int]  # and the number of its class

CLASSES = {"names": ("female", "male", "family"), "sentiment": ("negative", "positive")}
NUMBER = {chr(code): token for token, code in enumerate(range(32, 127))}  # token 0, the space, stands for any other


class Classifier(nn.Module):
    """packed letters of B words -> logits (B, classes)"""

    def __init__(self, classes: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(NUMBER), embedding)
        self.lstm = nn.LSTM(embedding, hidden, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, letters: PackedSequence) -> Tensor:
        _, (h, _) = embedded(self.lstm, self.embedding, letters)
        return self.head(self.dropout(torch.cat((h[0], h[1]), 1)))  # what either direction knows at its end


def names() -> list[Word]:
    """First names, each with the sex that has it more often, and as many family names, none of them a first name."""
    folder = folder_of("names")
    share: dict[str, tuple[float, int]] = {}
    for number, file in enumerate(("dist.female.first", "dist.male.first")):
        for line in (folder / file).read_text().splitlines():
            name, percent = line.split()[:2]
            share[name] = max(share.get(name, (0.0, 0)), (float(percent), number))
    families = [line.split()[0] for line in (folder / "dist.all.last").read_text().splitlines()]
    families = [name for name in families if name not in share][: len(share)]
    words = [(name, number) for name, (_, number) in share.items()] + [(name, 2) for name in families]
    return [(name.lower(), number) for name, number in words]


def sentiment() -> list[Word]:
    lines = (folder_of("vaderSentiment") / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
    fields = [line.split("\t") for line in lines if line.strip()]
    return [(text, int(float(rating) > 0)) for text, rating, *_ in fields]


def split(words: list[Word], share: float = 0.1) -> tuple[list[Word], list[Word]]:
    """For training and held out: the same two parts each time."""
    shuffled = random.Random(0).sample(words, len(words))
    count = int(share * len(words))
    return shuffled[count:], shuffled[:count]


def pack(texts: list[str]) -> PackedSequence:
    tokens = [torch.tensor([NUMBER.get(c, 0) for c in text]) for text in texts]
    return pack_sequence(tokens, enforce_sorted=False)


def batches(words: list[Word], size: int, steps: int, seed: int) -> list[tuple[PackedSequence, Tensor]]:
    shuffle = random.Random(seed)
    drawn = [shuffle.sample(words, size) for _ in range(steps)]
    return [(pack([text for text, _ in some]), torch.tensor([number for _, number in some])) for some in drawn]


def loss_of(model: nn.Module, batch: tuple[PackedSequence, Tensor], state: None) -> tuple[Tensor, None]:
    return F.cross_entropy(model(batch[0]), batch[1]), None


@torch.inference_mode()
def chances(model: nn.Module, texts: list[str]) -> Tensor:
    return model.eval()(pack(texts)).softmax(1)


def confusion(classes: tuple[str, ...], true: Tensor, found: Tensor, axes: Axes) -> None:
    counts = torch.zeros(len(classes), len(classes)).index_put((true, found), torch.ones(len(true)), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in torch.cartesian_prod(*[torch.arange(len(classes))] * 2).tolist():
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=color)
    axes.set(title="words held out", xlabel="found", ylabel="true")
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)


def reading(model: nn.Module, classes: tuple[str, ...], words: list[Word], axes: Axes) -> None:
    """What the model thinks after each letter: how likely it holds the true class."""
    for row, (text, number) in enumerate(words):
        likely = chances(model, [text[: end + 1] for end in range(len(text))])[:, number]
        axes.imshow(likely[None].numpy(), cmap="RdYlGn", vmin=0, vmax=1, extent=(0, len(text), row + 0.45, row - 0.45))
        for place, letter in enumerate(text):
            axes.text(place + 0.5, row, letter, ha="center", va="center", family="monospace")
    axes.set(xlim=(0, max(len(text) for text, _ in words)), ylim=(len(words) - 0.5, -0.5), aspect="auto")
    axes.set(title="as it reads on: green where the true class is likely", xlabel="letters read")
    axes.set_yticks(range(len(words)), [classes[number] for _, number in words])


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--task", choices=CLASSES, default="names")
    options.add_argument("--embedding", type=int, default=32)
    options.add_argument("--hidden", type=int, default=128)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--steps", type=int, default=700)
    return parse(options, hidden=32, batch=32, steps=100)


def main() -> None:
    options = arguments()
    classes = CLASSES[options.task]
    known, held_out = split(names() if options.task == "names" else sentiment())
    texts, true = [text for text, _ in held_out], torch.tensor([number for _, number in held_out])
    torch.manual_seed(options.seed)
    model = Classifier(len(classes), options.embedding, options.hidden)
    sides = two_sides(model, partial(torch.optim.Adam, lr=3e-3))
    train(sides, batches(known, options.batch, options.steps, options.seed), loss_of, seed=options.seed)

    report(sides)
    found = [chances(side.model, texts).argmax(1) for side in sides]
    values = [(guess == true).float().mean().item() for guess in found]
    majority = torch.tensor([number for _, number in known]).bincount().argmax()
    name = f"classify_{options.task}"
    shown = random.Random(1).sample(held_out, 14)
    stories = (
        partial(confusion, classes, true, found[1]),
        partial(reading, sides[1].model, classes, shown),
    )
    plot(sides, f"classify {options.task}", options.out / f"{name}.png", *stories)
    baseline = ("majority class", (true == majority).float().mean().item())
    conclude(name, sides, options, "accuracy", values, baseline)


if __name__ == "__main__":
    main()
