"""One to many: a GRU writes a first name from one input, a letter and a gender, feeding each letter back to itself.

    python examples/name_generation.py

Data: census first names, of the package ``names``.  The gender is the state that the network begins with, the letter
its first input; in training, the true letters follow.  Letters are one-hot input, which fastrnn needs not build.
"""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import torch
from common import folder_of, one_hot_input, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, counted_bits, plot, report, show_table, show_values
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

GENDERS = ("female", "male")
END = 26  # the token that closes a name, after the letters of the alphabet
LONGEST = 14

Name = tuple[str, int]  # and the number of its gender
Batch = tuple[Tensor, Tensor]  # letters with END behind, filled up with END (1 + T, B); genders (B)


class Writer(nn.Module):
    """letters (T, B), state or genders (B) -> logits of the next letters (T, B, 27), state"""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.begin = nn.Embedding(len(GENDERS), hidden)
        self.gru = nn.GRU(END + 1, hidden)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(hidden, END + 1)

    def forward(self, letters: Tensor, genders: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first = self.begin(genders)[None] if state is None else state
        y, state = self.gru(one_hot_input(self.gru, letters, END + 1), first)
        return self.head(self.dropout(y)), state


def read_names() -> tuple[list[Name], list[Name]]:
    """Names for training and a tenth held out: those that only it has, under any gender."""
    folder = folder_of("names")
    names = [
        (line.split()[0], number)
        for number, gender in enumerate(GENDERS)
        for line in (folder / f"dist.{gender}.first").read_text().splitlines()
    ]
    different = sorted({name for name, _ in names})
    held_out = set(random.Random(0).sample(different, len(different) // 10))
    return [name for name in names if name[0] not in held_out], [name for name in names if name[0] in held_out]


def tokens_of(name: str) -> list[int]:
    return [ord(letter) - ord("A") for letter in name]


def collate(names: list[Name]) -> Batch:
    letters = pad_sequence([torch.tensor([*tokens_of(name), END]) for name, _ in names], padding_value=END)
    return letters, torch.tensor([gender for _, gender in names])


def loss_of(model: nn.Module, batch: Batch, state: None) -> tuple[Tensor, None]:
    """Mean cross-entropy in nats of all letters but the first, and of the end of each name."""
    letters, genders = batch
    logits, _ = model(letters[:-1], genders)
    counted = letters[:-1] != END  # what follows a letter; the filling follows END
    return F.cross_entropy(logits[counted], letters[1:][counted]), None


@torch.inference_mode()
def bits(model: nn.Module, names: list[Name]) -> float:
    return loss_of(model.eval(), collate(names), None)[0].item() / math.log(2)


@torch.inference_mode()
def write(model: nn.Module, letter: str, gender: int, generator: torch.Generator, temperature: float = 0.6) -> str:
    """One name, letter by letter: each step is given the letter drawn in the last and the state after it."""
    tokens, state = tokens_of(letter), None
    while tokens[-1] != END and len(tokens) < LONGEST:
        logits, state = model(torch.tensor([tokens[-1:]]), torch.tensor([gender]), state)
        tokens.append(int(torch.multinomial((logits[0, 0] / temperature).softmax(0), 1, generator=generator)))
    return "".join(chr(ord("A") + token) for token in tokens if token != END)


def show_names(model: nn.Module, known: list[Name], axes: Axes) -> None:
    generator = torch.Generator().manual_seed(0)
    existing = {name for name, _ in known}
    cells = [
        [", ".join(name + "*" * (name not in existing) for name in drawn)]
        for letter in "ACEJKLMRSV"
        for drawn in [[write(model, letter, gender, generator) for _ in range(3)] for gender in range(len(GENDERS))]
    ]
    cells = [left + right for left, right in zip(cells[::2], cells[1::2], strict=True)]
    title = "from the first letter and the gender (*: not in the training)"
    show_table(title, cells, 9, axes, colLabels=GENDERS, rowLabels=list("ACEJKLMRSV"))


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--hidden", type=int, default=128)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--steps", type=int, default=800)
    return parse(options, hidden=64, batch=32, steps=100)


def main() -> None:
    options = arguments()
    known, held_out = read_names()
    shuffle = random.Random(options.seed)
    batches = [collate(shuffle.sample(known, options.batch)) for _ in range(options.steps)]
    torch.manual_seed(options.seed)
    sides = two_sides(Writer(options.hidden), partial(torch.optim.Adam, lr=3e-3))
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    values = [bits(side.model, held_out) for side in sides]
    spelled = [[[*tokens_of(name), END] for name, _ in names] for names in (known, held_out)]
    counted = {
        name: counted_bits(*spelled, END + 1, seen) for seen, name in enumerate(("unigrams", "bigrams", "trigrams"))
    }
    reached = counted | {f"GRU, {side.name}": value for side, value in zip(sides, values, strict=True)}
    stories = (
        partial(show_names, sides[1].model, known),
        partial(show_values, "bits per letter, names held out", reached),
    )
    plot(sides, "names from a letter and a gender", options.out / "name_generation.png", *stories)
    baseline = ("unigrams", counted["unigrams"])
    conclude("name_generation", sides, options, "bits per letter", values, baseline, higher=False)


if __name__ == "__main__":
    main()
