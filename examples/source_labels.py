"""Many to many, aligned: a stacked bidirectional LSTM names the kind of every character of Python source.

    python examples/source_labels.py

The shape is ELMo's: character embeddings and two bidirectional LSTM layers whose output is projected to a smaller size.
Data: modules of the running Python's standard library, cut into pieces of a few lines and packed, with the classes that
``tokenize`` gives.  A piece may begin within a string; what stands behind tells.
"""

from __future__ import annotations

import builtins
import io
import keyword
import random
import sysconfig
import tokenize
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import embedded, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

COLORS = {
    "space": "#999999",
    "keyword": "#cf222e",
    "name": "#24292f",
    "builtin": "#8250df",
    "defined": "#0550ae",
    "called": "#0a7ea4",
    "number": "#b35900",
    "string": "#116329",
    "comment": "#8c6d31",
    "operator": "#d63384",
}
CLASSES = list(COLORS)
SYMBOLS = 128  # ASCII; token 0 stands for all else

Piece = tuple[str, list[int]]  # source and the class of each of its characters


class Labeller(nn.Module):
    """packed characters (N) -> logits (N, classes)"""

    def __init__(self, embedding: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, bidirectional=True, proj_size=projection, dropout=0.1)
        self.head = nn.Linear(2 * projection, len(CLASSES))

    def forward(self, characters: PackedSequence) -> Tensor:
        y, _ = embedded(self.lstm, self.embedding, characters)
        return self.head(y.data)


def kind(token: tokenize.TokenInfo, before: str, behind: str) -> str:
    if token.type == tokenize.NAME:
        if before in ("def", "class"):
            return "defined"
        if keyword.iskeyword(token.string):
            return "keyword"
        if hasattr(builtins, token.string) and before != ".":
            return "builtin"
        return "called" if behind == "(" else "name"
    name = tokenize.tok_name[token.type]  # since Python 3.12, an f-string is several tokens: FSTRING_START, ...
    kinds = {"NUMBER": "number", "COMMENT": "comment", "OP": "operator"}
    return "string" if "STRING" in name else kinds.get(name, "space")


def labels(source: str) -> list[int]:
    """The class of each character; what lies between tokens is space."""
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    found = [CLASSES.index("space")] * len(source)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    strings = ["", *(token.string for token in tokens), ""]
    for token, before, behind in zip(tokens, strings, strings[2:], strict=False):
        start, end = (begins[min(line, len(begins)) - 1] + column for line, column in (token.start, token.end))
        found[start:end] = [CLASSES.index(kind(token, before, behind))] * len(source[start:end])
    return found


def read_pieces(files: int, longest: int) -> list[list[Piece]]:
    """The pieces of each file, of whole lines: as many as fit into ``longest`` characters."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in folder.glob("*.py") if 5_000 < path.stat().st_size < 60_000)
    random.Random(0).shuffle(paths)
    result = []
    for path in paths[:files]:
        source = path.read_text(encoding="utf-8").replace("\f", "")
        kinds = labels(source)
        pieces, start, end = [], 0, 0
        for line in source.splitlines(keepends=True):
            if end + len(line) - start > longest and end > start:
                pieces.append((source[start:end], kinds[start:end]))
                start = end
            end += len(line)
        result.append([piece for piece in pieces if len(piece[0]) <= longest])
    return result


def collate(pieces: list[Piece]) -> tuple[PackedSequence, Tensor]:
    """Packed characters, and their classes in the same order."""
    characters = [torch.tensor([ord(c) if ord(c) < SYMBOLS else 0 for c in text]) for text, _ in pieces]
    packed = pack_sequence(characters, enforce_sorted=False)
    return packed, pack_sequence([torch.tensor(kinds) for _, kinds in pieces], enforce_sorted=False).data


def loss_of(model: nn.Module, batch: tuple[PackedSequence, Tensor], state: None) -> tuple[Tensor, None]:
    return F.cross_entropy(model(batch[0]), batch[1]), None


@torch.inference_mode()
def accuracy(model: nn.Module, batch: tuple[PackedSequence, Tensor]) -> float:
    return (model.eval()(batch[0]).argmax(1) == batch[1]).float().mean().item()


def accuracy_by_counting(known: list[Piece], batch: tuple[PackedSequence, Tensor]) -> float:
    """Each character given the class that it has most often in the training pieces."""
    packed, true = collate(known)
    counts = torch.zeros(SYMBOLS, len(CLASSES)).index_put((packed.data, true), torch.ones(len(true)), accumulate=True)
    return (counts.argmax(1)[batch[0].data] == batch[1]).float().mean().item()


@torch.inference_mode()
def show(model: nn.Module, pieces: list[Piece], axes: Axes) -> None:
    """Source in the colours of the classes that the model finds, wrong ones underlined."""
    row = 0
    for text, kinds in pieces:
        column = 0
        for character, true, found in zip(text, kinds, model(collate([(text, kinds)])[0]).argmax(1), strict=True):
            axes.text(column, row, character, color=list(COLORS.values())[found], family="monospace", clip_on=True)
            if true != found and character != "\n":
                axes.plot([column, column + 0.9], [row + 0.25] * 2, color="red", linewidth=1.5)
            column, row = (0, row + 1) if character == "\n" else (column + 1, row)
    for place, (name, color) in enumerate(COLORS.items()):
        axes.text(place * 10, -1.2, name, color=color, weight="bold")
    axes.set(xlim=(0, 100), ylim=(15.5, -2), title="source of a module held out: classes found, wrong ones underlined")
    axes.set_axis_off()


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--embedding", type=int, default=32)
    options.add_argument("--hidden", type=int, default=96)
    options.add_argument("--projection", type=int, default=48)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--longest", type=int, default=120, help="characters of a piece, at most")
    options.add_argument("--files", type=int, default=60)
    return parse(options, hidden=48, projection=24, batch=16, steps=60, longest=60, files=12)


def main() -> None:
    options = arguments()
    files = read_pieces(options.files, options.longest)
    known = [piece for pieces in files[: -len(files) // 6] for piece in pieces]
    held_out = [piece for pieces in files[-len(files) // 6 :] for piece in pieces]
    print(f"{len(known)} pieces for training, {len(held_out)} held out, of other modules")
    shuffle = random.Random(options.seed)
    batches = [collate(shuffle.sample(known, options.batch)) for _ in range(options.steps)]
    torch.manual_seed(options.seed)
    sides = two_sides(
        Labeller(options.embedding, options.hidden, options.projection), partial(torch.optim.Adam, lr=1e-2)
    )
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    tested = collate(shuffle.sample(held_out, min(len(held_out), 500)))
    values = [accuracy(side.model, tested) for side in sides]
    plot(
        sides,
        "classes of the characters of Python source",
        options.out / "source_labels.png",
        partial(show, sides[1].model, held_out[len(held_out) // 2 :][:8]),
    )
    baseline = ("each character's most frequent class", accuracy_by_counting(known, tested))
    conclude("source_labels", sides, options, "accuracy per character", values, baseline)


if __name__ == "__main__":
    main()
