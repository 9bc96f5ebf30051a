"""Speech-like: a GRU hears which digit is spoken, frame by frame, in a voice that it has not met.

    python examples/spoken_digits.py

The voices are made here, as formant synthesisers make them: a buzz of harmonics, or a hiss, shaped by three resonances
that move from sound to sound (vowels after Peterson and Barney 1952), with a pitch, a vocal tract, a pace and noise of
their own.  Zero to nine are read from the sounds they are made of.  The network is given log-mel frames, 10 ms apart,
and names the word at its end; as its state is all that it keeps, it may as well listen to a stream.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from common import parse, parser, train, two_sides
from matplotlib.axes import Axes
from results import conclude, plot, report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

RATE, HOP, WINDOW, BANDS = 8000, 80, 256, 32

# Three resonances in Hz, how loud the buzz of the voice and the hiss of the breath are, and a length in ms.
SOUNDS = {
    "iy": (270, 2290, 3010, 1.0, 0.0, 120),
    "ih": (390, 1990, 2550, 1.0, 0.0, 90),
    "eh": (530, 1840, 2480, 1.0, 0.0, 110),
    "ah": (640, 1190, 2390, 1.0, 0.0, 110),
    "aa": (730, 1090, 2440, 1.0, 0.0, 120),
    "ao": (570, 840, 2410, 1.0, 0.0, 130),
    "uh": (440, 1020, 2240, 1.0, 0.0, 80),
    "uw": (300, 870, 2240, 1.0, 0.0, 140),
    "er": (490, 1350, 1690, 1.0, 0.0, 90),
    "r": (420, 1300, 1600, 0.7, 0.0, 70),
    "w": (300, 610, 2200, 0.6, 0.0, 70),
    "n": (250, 1400, 2500, 0.4, 0.0, 90),
    "v": (250, 1100, 2100, 0.3, 0.15, 70),
    "z": (250, 1800, 3400, 0.25, 0.4, 90),
    "s": (500, 2400, 3600, 0.0, 0.5, 110),
    "f": (700, 1900, 3300, 0.0, 0.2, 100),
    "th": (600, 1500, 3000, 0.0, 0.15, 90),
    "t": (400, 2000, 3500, 0.0, 0.45, 35),
    "k": (400, 1700, 2500, 0.0, 0.4, 40),
    "-": (400, 1500, 2500, 0.0, 0.0, 50),
}
DIGITS = {
    "zero": "z ih r ao uh",
    "one": "w ah n",
    "two": "- t uw",
    "three": "th r iy",
    "four": "f ao r",
    "five": "f aa ih v",
    "six": "s ih - k s",
    "seven": "s eh v uh n",
    "eight": "eh ih - t",
    "nine": "n aa ih n",
}


def spoken(sounds: list[str], random: np.random.Generator) -> np.ndarray:
    """Samples (N) of these sounds, in a voice that is drawn anew."""
    pitch, tract, pace = random.uniform(85, 240), random.uniform(0.85, 1.2), random.uniform(0.75, 1.35)
    table = np.array([SOUNDS[sound] for sound in ["-", *sounds, "-"]])
    table[:, :3] *= tract * random.normal(1, 0.04, (len(table), 3))
    lengths = table[:, 5] * pace * random.uniform(0.8, 1.25, len(table)) * RATE / 1000
    ends = np.cumsum(lengths)
    when = np.arange(int(ends[-1]))
    # Each sound is met in its middle; between two of them all glides.
    formants = [np.interp(when, ends - lengths / 2, table[:, column]) for column in range(3)]
    buzz, hiss = (np.interp(when, ends - lengths / 2, table[:, column]) ** 1.5 for column in (3, 4))
    bend = 1 + 0.1 * np.linspace(1, -1, len(when)) + 0.02 * np.sin(2 * np.pi * 5 * when / RATE)
    phase = 2 * np.pi * np.cumsum(pitch * bend) / RATE

    def loudness(frequency: np.ndarray | float) -> np.ndarray:
        """What the resonances let through at each moment."""
        bands = zip((1.0, 0.5, 0.3), (80, 110, 160), formants, strict=True)
        return sum(gain / (1 + ((frequency - formant) / width) ** 2) for gain, width, formant in bands)  # type: ignore[return-value]

    sound = np.zeros(len(when))
    for harmonic in range(1, int(RATE / 2 / (1.15 * pitch))):
        sound += buzz * loudness(harmonic * pitch * bend) * np.sin(harmonic * phase) / harmonic**0.3
    turns = when[::60]
    for frequency in np.arange(300, RATE / 2, 100):  # a band of noise is a tone of random strength and phase
        strength = np.interp(when, turns, random.standard_normal(len(turns)))
        shift = np.interp(when, turns, np.cumsum(2 * random.standard_normal(len(turns))))
        sound += hiss * loudness(frequency) * strength * np.sin(2 * np.pi * frequency * when / RATE + shift)
    return sound / np.abs(sound).max() + 10 ** random.uniform(-2.2, -0.8) * random.standard_normal(len(when))


def filters() -> np.ndarray:
    """Triangles over the bins of a window, evenly spread on the mel scale (WINDOW / 2 + 1, BANDS)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling))


def frames(sound: np.ndarray) -> Tensor:
    """Log-mel frames (T, BANDS), about 0 and of size 1."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows)) ** 2 @ filters()
    return torch.tensor((np.log(power + 1e-2) - 1) / 3, dtype=torch.float32)


def words(count: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Frames of each, and its digit."""
    random = np.random.default_rng(seed)
    digits = torch.tensor(random.permutation(np.arange(count) % len(DIGITS)))
    sounds = [sounds.split() for sounds in DIGITS.values()]
    return [frames(spoken(sounds[digit], random)) for digit in digits.tolist()], digits


class Listener(nn.Module):
    """frames of B words, packed -> logits at the end of each (B, 10); or a stream (T, 1, BANDS) -> logits at each frame
    (T, 1, 10), state"""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(BANDS, hidden, num_layers=2)
        self.head = nn.Linear(hidden, len(DIGITS))

    def forward(self, heard: PackedSequence) -> Tensor:
        return self.head(self.gru(heard)[1][-1])

    def listen(self, heard: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        y, last = self.gru(heard, state)
        return self.head(y), last


def loss_of(model: nn.Module, batch: tuple[PackedSequence, Tensor], state: None) -> tuple[Tensor, None]:
    return F.cross_entropy(model(batch[0]), batch[1]), None


@torch.inference_mode()
def right(model: nn.Module, heard: list[Tensor], digits: Tensor) -> tuple[float, Tensor]:
    """The share of words that it hears right, and what it hears."""
    found = model.eval()(pack_sequence(heard, enforce_sorted=False)).argmax(1)
    return (found == digits).float().mean().item(), found


def nearest_mean(known: list[Tensor], digits: Tensor, heard: list[Tensor]) -> Tensor:
    """The digit whose average spectrum lies nearest: what can be heard of a word without the order of its sounds."""
    spectra, asked = (torch.stack([one.mean(0) for one in some]) for some in (known, heard))
    means = torch.stack([spectra[digits == digit].mean(0) for digit in range(len(DIGITS))])
    return torch.cdist(asked, means).argmin(1)


@torch.inference_mode()
def stream(model: Listener, heard: Tensor) -> tuple[Tensor, float]:
    """Chances of each digit at each frame (T, 10), given one by one, and microseconds a frame."""
    state, found = None, []
    model.eval()
    begin = time.perf_counter()
    for frame in heard:
        logits, state = model.listen(frame[None, None], state)
        found.append(logits[0, 0])
    return torch.stack(found).softmax(1), (time.perf_counter() - begin) / len(heard) * 1e6


def show_heard(heard: Tensor, chances: Tensor, names: list[str], axes: Axes) -> None:
    """Frames of one word, and which digit it is held for as it goes on."""
    length = len(heard) * HOP / RATE
    axes.imshow(heard.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, length, 0, 1))
    when = np.linspace(0, length, len(heard))
    for digit in chances.amax(0).topk(4).indices.tolist():
        axes.plot(when, chances[:, digit] * 0.96 + 0.02, linewidth=2, label=names[digit])
    axes.set(title="log-mel frames of a word, and its chances as it is heard", xlabel="seconds", ylabel="chance")
    axes.legend(loc="upper left")


def confusion(true: Tensor, found: Tensor, names: list[str], axes: Axes) -> None:
    counts = torch.zeros(len(names), len(names)).index_put((true, found), torch.ones(len(true)), accumulate=True)
    axes.imshow(counts.numpy(), cmap="Blues")
    for row, column in torch.nonzero(counts).tolist():
        color = "white" if counts[row, column] > counts.max() / 2 else "black"
        axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=color)
    axes.set(title="digits heard in new voices", xlabel="heard", ylabel="spoken")
    axes.set_xticks(range(len(names)), names, rotation=45)
    axes.set_yticks(range(len(names)), names)


def arguments() -> Any:
    options = parser(__doc__)
    options.add_argument("--words", type=int, default=1500, help="words to learn from; a fifth as many are held out")
    options.add_argument("--hidden", type=int, default=96)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--steps", type=int, default=300)
    return parse(options, words=200, hidden=48, batch=16, steps=80)


def main() -> None:
    options = arguments()
    known, digits = words(options.words, 2 * options.seed)
    heard, true = words(max(100, options.words // 5), 2 * options.seed + 1)
    generator = torch.Generator().manual_seed(options.seed)
    drawn = [torch.randint(len(known), (options.batch,), generator=generator) for _ in range(options.steps)]
    batches = [(pack_sequence([known[row] for row in rows], enforce_sorted=False), digits[rows]) for rows in drawn]
    torch.manual_seed(options.seed)
    sides = two_sides(Listener(options.hidden), partial(torch.optim.Adam, lr=3e-3))
    train(sides, batches, loss_of, seed=options.seed)

    report(sides)
    values, found = zip(*(right(side.model, heard, true) for side in sides), strict=True)
    spoken_on = torch.cat(heard[:20])
    streams = [stream(side.model, spoken_on) for side in sides]  # type: ignore[arg-type]
    times = ", ".join(f"{side.name} {taken:.0f}" for side, (_, taken) in zip(sides, streams, strict=True))
    print(f"As a stream, microseconds a frame of {1e6 * HOP / RATE:.0f}: {times}.")

    names = list(DIGITS)
    longest = max(range(20), key=lambda word: len(heard[word]))
    chances, _ = stream(sides[1].model, heard[longest])  # type: ignore[arg-type]
    stories = partial(show_heard, heard[longest], chances, names), partial(confusion, true, found[1], names)
    plot(sides, "spoken digits", options.out / "spoken_digits.png", *stories)
    spectrum = (nearest_mean(known, digits, heard) == true).float().mean().item()
    conclude("spoken_digits", sides, options, "accuracy in new voices", values, ("nearest mean spectrum", spectrum))


if __name__ == "__main__":
    main()
