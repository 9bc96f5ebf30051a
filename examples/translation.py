"""Many to many, of free length: an encoder-decoder with attention translates English messages to German.

    python examples/translation.py

The shape is GNMT's: a bidirectional LSTM and another above it read the message; a first decoder layer attends to what
they found, a second one reads its output and what it attended to.  Data: the message catalogues (gettext) of the
package ``django``, letter by letter.  They are few, so the same network learns Dutch, Danish, Swedish and Norwegian as
well; the first token of a translation says which language it shall be.  What is held out is held out in all of them.
"""

from __future__ import annotations

import gettext
import math
import random
import statistics
from functools import partial
from typing import Any, NamedTuple

import torch
from common import folder_of, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import chrf, conclude, counted_bits, plot, report, show_table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

LANGUAGES = ("de", "nl", "da", "sv", "nb")  # tokens 2, 3, ...; letters follow
FILL, END = 0, 1

Pair = tuple[list[int], list[int]]  # English; language, translation, END


class Memory(NamedTuple):
    """What the encoder found (S, B, H), the same turned into keys, and which of it is only filling (B, S)."""

    values: Tensor
    keys: Tensor
    filling: Tensor


class Translator(nn.Module):
    """English (S, B) of given lengths, translation so far (T, B) -> logits of its next letters (T, B, V)"""

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.both_ways = nn.LSTM(embedding, hidden // 2, bidirectional=True)
        self.upper = nn.LSTM(hidden, hidden)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.attending = nn.LSTM(embedding, hidden)
        self.deciding = nn.LSTM(2 * hidden, hidden)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * hidden, vocabulary)

    def encode(self, source: Tensor, lengths: Tensor) -> Memory:
        packed = pack_padded_sequence(self.dropout(self.embedding(source)), lengths, enforce_sorted=False)
        lower, _ = self.both_ways(packed)
        upper, _ = self.upper(lower._replace(data=self.dropout(lower.data)))
        values = pad_packed_sequence(upper._replace(data=upper.data + lower.data))[0]
        return Memory(values, self.key(values), (source == FILL).t())

    def decode(self, memory: Memory, target: Tensor, state: Any = (None, None)) -> tuple[Tensor, Any, Tensor]:
        """Logits, the state after the last letter, and how much each letter attended to each of the message's."""
        query, first = self.attending(self.dropout(self.embedding(target)), state[0])
        scores = torch.einsum("tbh,sbh->bts", query, memory.keys) / math.sqrt(query.shape[-1])
        attention = scores.masked_fill(memory.filling[:, None], -math.inf).softmax(-1)
        context = torch.einsum("bts,sbh->tbh", attention, memory.values)
        y, second = self.deciding(self.dropout(torch.cat((query, context), -1)), state[1])
        return self.head(self.dropout(torch.cat((y + query, context), -1))), (first, second), attention

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        return self.decode(self.encode(source, lengths), target)[0]


def read_messages(longest: int) -> dict[str, dict[str, str]]:
    """English message -> language -> translation; of plural forms the singular."""
    messages: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        for path in sorted(folder_of("django").glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
            with open(path, "rb") as catalogue:
                entries = gettext.GNUTranslations(catalogue)._catalog  # type: ignore[attr-defined]
            for key, translation in entries.items():
                english = (key[0] if isinstance(key, tuple) else key).split("\x04")[-1]  # \4 closes a context
                if 1 < len(english) <= longest and 1 < len(translation) <= longest:
                    messages.setdefault(english, {}).setdefault(language, translation)
    return messages


def collate(pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    source, target = (pad_sequence([torch.tensor(pair[side]) for pair in pairs]) for side in (0, 1))
    return source, torch.tensor([len(pair[0]) for pair in pairs]), target


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], state: None) -> tuple[Tensor, None]:
    source, lengths, target = batch
    logits = model(source, lengths, target[:-1])
    return F.cross_entropy(logits.flatten(0, 1), target[1:].flatten(), ignore_index=FILL), None


@torch.inference_mode()
def translate(model: Translator, source: list[int], language: int, beams: int, longest: int) -> list[int]:
    """The likeliest translation found with that many at a time; with one, the greedy choice of each letter."""
    memory = model.eval().encode(torch.tensor(source)[:, None], torch.tensor([len(source)]))
    open_beams: list[tuple[float, list[int], Any]] = [(0.0, [language], (None, None))]
    finished: list[tuple[float, list[int]]] = []
    while open_beams and len(open_beams[0][1]) < longest:
        grown = []
        for score, tokens, state in open_beams:
            logits, after, _ = model.decode(memory, torch.tensor([tokens[-1:]]), state)
            chances, letters = logits[0, 0].log_softmax(0).topk(beams)
            grown += [(score + c, [*tokens, t], after) for c, t in zip(chances.tolist(), letters.tolist(), strict=True)]
        grown.sort(key=lambda beam: -beam[0])
        finished += [(s / len(tokens), tokens) for s, tokens, _ in grown[:beams] if tokens[-1] == END]
        open_beams = [beam for beam in grown[:beams] if beam[1][-1] != END][: beams - len(finished)]
    finished += [(s / len(tokens), tokens) for s, tokens, _ in open_beams if not finished]
    return max(finished)[1]


def show_attention(model: Translator, source: list[int], found: list[int], letters: str, axes: Axes) -> None:
    with torch.inference_mode():
        memory = model.encode(torch.tensor(source)[:, None], torch.tensor([len(source)]))
        attention = model.decode(memory, torch.tensor(found[:-1])[:, None])[2][0]
    axes.imshow(attention.numpy(), cmap="magma", aspect="auto")
    axes.set_xticks(range(len(source)), [letters[token] for token in source], fontsize=7)
    axes.set_yticks(range(len(found) - 1), ["END" if t == END else letters[t] for t in found[1:]], fontsize=7)
    axes.set(title="what each letter written attended to")


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--embedding", type=int, default=64)
    options.add_argument("--hidden", type=int, default=192)
    options.add_argument("--batch", type=int, default=48)
    options.add_argument("--steps", type=int, default=900)
    options.add_argument("--beams", type=int, default=4)
    options.add_argument("--longest", type=int, default=60, help="letters of a message, at most")
    return parse(options, embedding=16, hidden=32, batch=16, steps=60, longest=16, beams=2)


def main() -> None:
    options = arguments()
    messages = read_messages(options.longest)
    texts = [text for english, others in messages.items() for text in (english, *others.values())]
    letters = [*("\0" * (2 + len(LANGUAGES))), *sorted(set("".join(texts)))]
    number = {letter: token for token, letter in enumerate(letters)}
    german = random.Random(0).sample(sorted(key for key, others in messages.items() if "de" in others), 60)
    known: list[Pair] = []
    held_out: list[Pair] = []
    for english, others in messages.items():
        for language, text in others.items():
            target = [2 + LANGUAGES.index(language), *(number[c] for c in text), END]
            if english not in german or language == "de":
                (held_out if english in german else known).append(([number[c] for c in english], target))
    print(f"{len(known)} pairs of messages for training, {len(held_out)} held out; {len(letters)} letters")

    shuffle = random.Random(options.seed)
    batches = [collate(shuffle.sample(known, options.batch)) for _ in range(options.steps)]
    torch.manual_seed(options.seed)
    model = Translator(len(letters), options.embedding, options.hidden)
    sides = two_sides(model, partial(torch.optim.Adam, lr=3e-3 if options.quick else 2e-3))
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    with torch.inference_mode():
        bits = [loss_of(side.model.eval(), collate(held_out), None)[0].item() / math.log(2) for side in sides]
    targets = [[target for _, target in part] for part in (known, held_out)]
    unigrams = ("unigrams", counted_bits(*targets, len(letters), 0))

    def text_of(tokens: list[int]) -> str:
        return "".join(letters[token] for token in tokens[1:] if token != END)

    english = ["".join(letters[token] for token in source) for source, _ in held_out]
    true = [text_of(target) for _, target in held_out]
    scores, written = {}, []
    for side, beams in ((sides[0], options.beams), (sides[1], 1), (sides[1], options.beams)):
        written = [translate(side.model, source, target[0], beams, options.longest) for source, target in held_out]
        scores[side.name, beams] = statistics.fmean(map(chrf, map(text_of, written), true))
        print(f"chrF, {side.name}, {'greedy' if beams == 1 else f'{beams} beams'}: {scores[side.name, beams]:.3f}")
    copied = ("English copied", statistics.fmean(map(chrf, english, true)))
    rows = [[e[:38], text_of(w)[:38], t[:38]] for e, w, t in zip(english, written, true, strict=True)][:13]
    shown = max(range(len(held_out)), key=lambda place: chrf(text_of(written[place]), true[place]) * len(true[place]))
    stories = (
        partial(show_attention, sides[1].model, held_out[shown][0], written[shown], letters),
        partial(show_table, "messages held out: English, by beam search, of the catalogue", rows, 7),
    )
    plot(sides, "English to German", options.out / "translation.png", *stories)
    conclude("translation", sides, options, "bits per letter", bits, unigrams, higher=False)
    if not options.quick:
        reached = [scores[side.name, options.beams] for side in sides]
        conclude("translation_chrf", sides, options, "chrF of beam search", reached, copied)


if __name__ == "__main__":
    main()
