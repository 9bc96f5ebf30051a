"""A character language model, trained with torch.nn and with fastrnn side by side.

    python examples/char_language_model.py                   # LSTM on the running Python's standard library
    python examples/char_language_model.py --cell gru --text FILE

Embedding, stacked recurrent layers with dropout, a linear layer, cross-entropy; truncated backpropagation through time
with the state carried over, gradient clipping, Adam.  Then both sides stream text from the trained model, one character
at a time.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sysconfig
import textwrap
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import embedded, parse, parser, train, two_sides
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F

import fastrnn
from fastrnn import backends

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
UNKNOWN = "\ufffd"  # stands for every rare character
PROMPT = "import "


class CharacterModel(nn.Module):
    """tokens (T, B), state -> logits (T, B, V), state"""

    def __init__(self, cell: str, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.rnn = CELLS[cell](embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = embedded(self.rnn, self.embedding, tokens, state)
        return self.head(self.dropout(y)), state


class Corpus(NamedTuple):
    """``characters`` by token, most frequent first; ``train`` and ``valid`` are tokens, cut from one text."""

    characters: list[str]
    train: Tensor
    valid: Tensor


def standard_library(limit: int) -> str:
    """The first ``limit`` characters of the running Python's own modules, shuffled, the same way each time, so that the
    end of the text is of the same kind as its beginning.  Tests and tables of character codes are left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    paths = [path for path in folder.rglob("*.py") if not skipped.intersection(path.relative_to(folder).parts)]
    paths.sort()
    random.Random(0).shuffle(paths)
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    if not text:
        raise SystemExit(f"no sources of the standard library in {folder}: name a text with --text FILE")
    return text[:limit]


def read_corpus(text: str, rare: int = 20) -> Corpus:
    """Tokens of the text, its last twentieth kept for validation; characters seen less than ``rare`` times are one."""
    cut = len(text) - len(text) // 20
    counts = Counter(text[:cut])
    counts.pop(UNKNOWN, None)
    characters = [character for character, count in counts.most_common() if count >= rare] + [UNKNOWN]
    number = {character: token for token, character in enumerate(characters)}
    tokens = torch.tensor([number.get(character, number[UNKNOWN]) for character in text])
    return Corpus(characters, tokens[:cut], tokens[cut:])


def windows(tokens: Tensor, batch: int, bptt: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets (T, B): ``batch`` streams side by side, cut into windows that follow upon each other."""
    length = (len(tokens) - 1) // batch
    if length < bptt:
        raise SystemExit(f"a text of {len(tokens)} characters is too short for {batch} streams of {bptt} steps")
    inputs, targets = (t[: length * batch].view(batch, length).t() for t in (tokens[:-1], tokens[1:]))
    return [
        (inputs[start : start + bptt].contiguous(), targets[start : start + bptt].contiguous())
        for start in range(0, length - bptt + 1, bptt)
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], state: Any) -> tuple[Tensor, Any]:
    """Mean cross-entropy in nats, and the state that the next window goes on from."""
    logits, state = model(batch[0], state)
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten()), state


@torch.no_grad()
def bits_per_character(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    losses, state = [], None
    for batch in batches:
        loss, state = loss_of(model, batch, state)
        losses.append(loss.item())
    return statistics.fmean(losses) / math.log(2)


def with_int8_weights(model: nn.Module, batches: list[tuple[Tensor, Tensor]], bits: float) -> None:
    """What the model loses when the weights of its recurrent layers are rounded to 8 bits."""
    if backends.load("cpp").unavailable() is None:
        narrow = bits_per_character(fastrnn.quantize_dynamic(model), batches)
        print(f"With int8 weights (fastrnn.quantize_dynamic): {narrow:.4f} bits per character, float32 {bits:.4f}")


def unigram_bits(corpus: Corpus) -> float:
    """Bits per character of the validation text by the frequencies of the training text alone."""
    counts = torch.bincount(corpus.train, minlength=len(corpus.characters)).double() + 1
    return -(counts / counts.sum()).log2()[corpus.valid].mean().item()


class Stream:
    """A model that writes: each call feeds one character and draws the next one."""

    def __init__(self, model: nn.Module, prompt: list[int], seed: int) -> None:
        self.model = model.eval()
        self.generator = torch.Generator().manual_seed(seed)
        self.state: Any = None
        self.tokens = list(prompt)
        self.seconds: list[float] = []
        for token in prompt[:-1]:
            _, self.state = model(torch.tensor([[token]]), self.state)

    def write(self, count: int, temperature: float = 0.7) -> None:
        for _ in range(count):
            begin = time.perf_counter()
            logits, self.state = self.model(torch.tensor([[self.tokens[-1]]]), self.state)
            chances = (logits[0, 0] / temperature).softmax(0)
            self.tokens.append(int(torch.multinomial(chances, 1, generator=self.generator)))
            self.seconds.append(time.perf_counter() - begin)


@torch.inference_mode()
def stream_both(models: list[nn.Module], corpus: Corpus, count: int, seed: int) -> None:
    """The same model written out by both sides, in turns of 25 characters."""
    prompt = [corpus.characters.index(c) if c in corpus.characters else len(corpus.characters) - 1 for c in PROMPT]
    streams = [Stream(model, prompt, seed) for model in models]
    for _ in range(0, count, 25):
        for stream in streams:
            stream.write(25)
    left, right = (statistics.median(stream.seconds) * 1e3 for stream in streams)
    print(f"{'streaming, ms a character':<30}{left:>10.3f}{right:>10.3f}{left / right:>8.2f}x")
    same = streams[0].tokens == streams[1].tokens
    print("Both write the same text:" if same else "Rounding parts the two texts; fastrnn's:")
    print(textwrap.indent("".join(corpus.characters[token] for token in streams[1].tokens), "  | ", lambda line: True))


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--text", type=Path, help="a UTF-8 file; default: the standard library's sources")
    options.add_argument("--cell", choices=CELLS, default="lstm")
    options.add_argument("--embedding", type=int, default=128)
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--dropout", type=float, default=0.1)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--bptt", type=int, default=64, help="steps between two truncations")
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--characters", type=int, default=4_000_000, help="of the text, at most")
    options.add_argument("--sample", type=int, default=600, help="characters to write")
    return parse(options, embedding=32, hidden=64, batch=16, bptt=32, steps=40, characters=100_000, sample=50)


def main() -> None:
    options = arguments()
    given = options.text and options.text.read_text(encoding="utf-8", errors="replace")[: options.characters]
    text = given or standard_library(options.characters)
    corpus = read_corpus(text)
    batches = windows(corpus.train, options.batch, options.bptt)
    batches = [batches[step % len(batches)] for step in range(options.steps)]

    torch.manual_seed(options.seed)
    model = CharacterModel(
        options.cell, len(corpus.characters), options.embedding, options.hidden, options.layers, options.dropout
    )
    print(f"{len(text):,} characters, {len(corpus.characters)} symbols")
    print(f"{options.steps} steps of {options.bptt} x {options.batch} characters, {options.threads} threads")
    sides = two_sides(model, partial(torch.optim.Adam, lr=3e-3))
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    held_out = windows(corpus.valid, options.batch, options.bptt)[:50]
    bits = [bits_per_character(side.model, held_out) for side in sides]
    with_int8_weights(sides[1].model, held_out, bits[1])
    # One set of parameters for both, so that they write the same text.
    sides[0].model.load_state_dict(sides[1].model.state_dict())
    stream_both([side.model for side in sides], corpus, options.sample, options.seed)
    name = f"char_language_model_{options.cell}"
    plot(sides, f"character language model, {options.cell}", options.out / f"{name}.png")
    conclude(name, sides, options, "bits per character", bits, ("unigrams", unigram_bits(corpus)), higher=False)


if __name__ == "__main__":
    main()
