"""Music: an LSTM learns the melodies of Bach's chorales, continues one that it has not heard, and writes it as MIDI.

    python examples/chorale_melodies.py

Data: the sopranos of the chorales in the corpus of the package ``music21`` (MusicXML), transposed to C major or A
minor.  A note is one token, its pitch and duration together, and one-hot input.  Forget gates begin open.
"""

from __future__ import annotations

import math
import random
import struct
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from common import folder_of, one_hot_input, parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, counted_bits, plot, report, show_values
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import fastrnn

Note = tuple[int, float]  # MIDI pitch, 0 for a rest; duration in quarter notes
Melody = list[Note]

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
RARE, END = 0, 1  # tokens; those of notes follow
PROMPT = 8  # notes that are given


class Composer(nn.Module):
    """tokens (T, B), state -> logits of the next tokens (T, B, V), state"""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.lstm = nn.LSTM(tokens, hidden)
        self.dropout = nn.Dropout(0.4)
        self.head = nn.Linear(hidden, tokens)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.lstm(one_hot_input(self.lstm, tokens, self.tokens), state)
        return self.head(self.dropout(y)), state


def read_melody(path: Path) -> Melody:
    """The soprano; empty where a piece has none."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("xml") and "/" not in name)
        score = ElementTree.fromstring(archive.read(name))
    part = score.find("part")
    if part is None or "Soprano" not in (score.findtext(".//part-name") or ""):
        return []
    divisions = float(part.findtext(".//divisions") or 1)
    shift = (-7 * int(part.findtext(".//fifths") or 0) + 6) % 12 - 6  # to the key without sharps and flats
    melody: Melody = []
    for note in part.iter("note"):
        if note.find("chord") is not None or note.find("grace") is not None:
            continue
        pitch, duration = 0, float(note.findtext("duration") or 0) / divisions
        if (step := note.findtext("pitch/step")) is not None:
            octave, alter = (int(note.findtext(f"pitch/{what}") or 0) for what in ("octave", "alter"))
            pitch = 12 * (octave + 1) + STEPS[step] + alter + shift
        if any(tie.get("type") == "stop" for tie in note.iter("tie")) and melody and melody[-1][0] == pitch:
            duration += melody.pop()[1]
        melody.append((pitch, duration))
    return melody


def read_melodies() -> tuple[list[Melody], list[Melody]]:
    """For training and held out.  Bach set many tunes several times; those that begin alike are in the same part."""
    paths = sorted((folder_of("music21") / "corpus" / "bach").glob("bwv*.mxl"))
    melodies = [melody for path in paths if len(melody := read_melody(path)) > 2 * PROMPT]
    beginnings = sorted({str([pitch for pitch, _ in melody[:5]]) for melody in melodies})
    held_out = set(random.Random(0).sample(beginnings, len(beginnings) // 8))
    parts: tuple[list[Melody], list[Melody]] = [], []
    for melody in melodies:
        parts[str([pitch for pitch, _ in melody[:5]]) in held_out].append(melody)
    return parts


def collate(melodies: list[list[int]]) -> Tensor:
    """(1 + T, B): every melody behind an END, with another one behind it, filled up with END."""
    return pad_sequence([torch.tensor([END, *tokens, END]) for tokens in melodies], padding_value=END)


def loss_of(model: nn.Module, batch: Tensor, state: None) -> tuple[Tensor, None]:
    """Mean cross-entropy in nats of all notes and the end of each melody."""
    logits, _ = model(batch[:-1])
    counted = batch[:-1] != END
    counted[0] = True
    return F.cross_entropy(logits[counted], batch[1:][counted]), None


@torch.inference_mode()
def bits(model: nn.Module, melodies: list[list[int]]) -> float:
    return loss_of(model.eval(), collate(melodies), None)[0].item() / math.log(2)


@torch.inference_mode()
def continuation(model: nn.Module, prompt: list[int], longest: int, temperature: float = 0.6) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    tokens, given, state = list(prompt), [END, *prompt], None
    while len(tokens) < longest:
        logits, state = model.eval()(torch.tensor(given)[:, None], state)
        logits[-1, 0, RARE] = -math.inf
        given = [int(torch.multinomial((logits[-1, 0] / temperature).softmax(0), 1, generator=generator))]
        if given == [END]:
            break
        tokens += given
    return tokens


def write_midi(melody: Melody, path: Path, ticks: int = 480) -> None:
    """One track, 80 quarter notes a minute."""

    def delay(count: int) -> bytes:  # seven bits a byte, the highest bit set in all but the last
        digits = [count >> shift & 127 for shift in (21, 14, 7, 0)]
        first = next((place for place, digit in enumerate(digits) if digit), 3)
        return bytes([*(digit | 128 for digit in digits[first:3]), digits[3]])

    events, waited = b"\x00\xff\x51\x03" + (60_000_000 // 80).to_bytes(3, "big"), 0
    for pitch, duration in melody:
        length = round(duration * ticks)
        if pitch:
            events += delay(waited) + bytes((0x90, pitch, 80)) + delay(length) + bytes((0x80, pitch, 0))
            waited = 0
        else:
            waited += length
    events += delay(waited) + b"\xff\x2f\x00"
    path.write_bytes(struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, ticks, b"MTrk", len(events)) + events)


def show_melodies(melodies: dict[str, Melody], axes: Axes) -> None:
    for place, (name, melody) in enumerate(melodies.items()):
        start = 0.0
        for number, (pitch, duration) in enumerate(melody):
            color = "C7" if number < PROMPT else f"C{place}"
            if pitch:
                axes.barh(pitch - 14 * place, duration - 0.08, left=start, height=0.9, color=color)
            start += duration
        axes.text(0, 79 - 14 * place, name, color=f"C{place}", weight="bold")
    axes.set(title=f"the first {PROMPT} notes were given", xlabel="quarter notes", ylim=(44, 82))
    axes.set_yticks([])


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--hidden", type=int, default=160)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--steps", type=int, default=600)
    return parse(options, hidden=64, batch=8, steps=150)


def main() -> None:
    options = arguments()
    parts = read_melodies()
    counts = Counter(note for melody in parts[0] for note in melody)
    notes = [note for note, count in counts.most_common() if count >= 5]
    number = {note: token for token, note in enumerate(notes, 2)}
    known, held_out = ([[number.get(note, RARE) for note in melody] for melody in melodies] for melodies in parts)
    print(f"{len(known)} melodies for training, {len(held_out)} held out; {len(notes)} different notes")
    shuffle = random.Random(options.seed)
    batches = [collate(shuffle.sample(known, options.batch)) for _ in range(options.steps)]
    torch.manual_seed(options.seed)
    model = fastrnn.init.forget_bias_(Composer(len(notes) + 2, options.hidden))
    sides = two_sides(model, partial(torch.optim.Adam, lr=5e-3))
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    values = [bits(side.model, held_out) for side in sides]
    closed = [[[END, *tokens, END] for tokens in melodies] for melodies in (known, held_out)]
    counted = {name: counted_bits(*closed, len(notes) + 2, seen) for seen, name in enumerate(("unigrams", "bigrams"))}
    reached = counted | {f"LSTM, {side.name}": value for side, value in zip(sides, values, strict=True)}
    prompt = next(tokens[:PROMPT] for tokens in held_out if RARE not in tokens[:PROMPT])
    original = next(m for m, tokens in zip(parts[1], held_out, strict=True) if tokens[:PROMPT] == prompt)
    continued = [notes[token - 2] for token in continuation(sides[1].model, prompt, 50)]
    stories = (
        partial(show_melodies, {"Bach": original, "LSTM": continued}),
        partial(show_values, "bits per note, melodies held out", reached),
    )
    plot(sides, "melodies of chorales", options.out / "chorale_melodies.png", *stories)
    write_midi(continued, options.out / "chorale_melodies.mid")
    print(f"MIDI: {options.out / 'chorale_melodies.mid'}")
    baseline = ("unigrams", counted["unigrams"])
    conclude("chorale_melodies", sides, options, "bits per note", values, baseline, higher=False)


if __name__ == "__main__":
    main()
