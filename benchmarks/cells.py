"""Any cell: an LSTM and a GRU written as a user's cell beside the built-in ones, and the library's beside modules of
torchrecurrent, Keras and xlstm.  ``python benchmarks/cells.py --threads 1``; results are checked before they are timed.

Ratios are the other side's time over ours, medians.  On a busy machine ``--least`` takes the least of many, and
``--processor`` the time of the calling thread on a processor, which is all there is of one thread.  What is not
installed is named and left out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import Side, race
from torch import Tensor, nn

import fastrnn
from fastrnn import Network, cells

# Of torchrecurrent, by its name for the cell; ours is the one of the same name but for case.
ZOO = (
    "PeepholeLSTM LiGRU MGU IndRNN JANET UGRNN NAS ATR RAN STAR SCRN coRNN LEM FastGRNN MUT1 MultiplicativeLSTM"
).split()
SHAPES = ((100, 1, 128), (100, 32, 256))
BUILT_IN = (*SHAPES, (50, 64, 512))


def output(found: Any) -> Tensor:
    """The output of a module's call."""
    return found[0] if isinstance(found, tuple) else found


def calls(module: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    """Inference, and training without the optimizer."""

    def infer() -> None:
        with torch.no_grad():
            module(x)

    def train() -> None:
        module.zero_grad()
        output(module(x)).sum().backward()

    return {"inference": infer, "training": train}


def check(ours: Tensor, theirs: Tensor) -> None:
    """Raises where two results in float32 differ by more than a long chain of roundings."""
    difference = (ours - theirs).abs().max().item()
    if not difference < 1e-4 * max(1.0, theirs.abs().max().item()):
        raise AssertionError(f"results differ by {difference}")


def built_in() -> Iterator[tuple[str, nn.Module, nn.Module, Tensor]]:
    """Name, ours, theirs and the input: cells of the language beside fastrnn's own modules."""
    for name, cell, kind in (("LSTM", cells.LSTM, fastrnn.LSTM), ("GRU", cells.GRU, fastrnn.GRU)):
        for steps, rows, hidden in BUILT_IN:
            theirs = kind(hidden, hidden)
            ours = Network(cell, hidden, hidden)
            ours.load_state_dict(theirs.state_dict())
            yield f"{name} {steps},{rows},{hidden}", ours, theirs, torch.randn(steps, rows, hidden)


def zoo() -> Iterator[tuple[str, nn.Module, nn.Module, Tensor]]:
    """Cells of the library beside torchrecurrent's modules.  That both compute the same is what tests/test_cells.py
    holds, with weights carried over; here each has its own."""
    import torchrecurrent

    library = {name.lower(): getattr(cells, name) for name in cells.__all__}
    modules = {name.lower(): getattr(torchrecurrent, name) for name in dir(torchrecurrent)}
    for steps, rows, hidden in SHAPES:
        for name in ZOO:
            ours, theirs = Network(library[name.lower()], hidden, hidden), modules[name.lower()](hidden, hidden)
            yield f"{name} {steps},{rows},{hidden}", ours, theirs, torch.randn(steps, rows, hidden)


def others() -> Iterator[tuple[str, nn.Module, nn.Module, Tensor]]:
    """Keras's GRU with its reset before the product, on torch; the sLSTM of xlstm in plain torch."""
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras

        for steps, rows, hidden in SHAPES:
            layer = keras.layers.GRU(hidden, reset_after=False, return_sequences=True)
            x = torch.randn(rows, steps, hidden)
            theirs = nn.Module()
            theirs.forward = lambda x, layer=layer: layer(x)  # type: ignore[method-assign]
            yield (
                f"ResetBeforeGRU {steps},{rows},{hidden}",
                Network(cells.ResetBeforeGRU, hidden, hidden, batch_first=True),
                theirs,
                x,
            )
    except ImportError as error:
        print(f"left out: {error}")
    try:
        from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

        steps, rows, hidden = 200, 8, 256
        config = sLSTMLayerConfig(
            embedding_dim=hidden, num_heads=4, backend="vanilla", conv1d_kernel_size=0, dropout=0.0
        )
        ours = Network(cells.SLSTM(kinds={"U": fastrnn.cell.Heads(4)}), hidden, hidden, batch_first=True)
        yield f"SLSTM {steps},{rows},{hidden}", ours, sLSTMLayer(config), torch.randn(rows, steps, hidden)
    except ImportError as error:
        print(f"left out: {error}")


GROUPS = {"built-in": built_in, "torchrecurrent": zoo, "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each side")
    parser.add_argument("--processor", action="store_true", help="the calling thread's time on a processor")
    parser.add_argument("--least", action="store_true", help="the least in the place of the median")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    clock = time.thread_time if args.processor else time.perf_counter
    middle = min if args.least else statistics.median
    for group in args.group:
        ratios: dict[tuple[str, str], list[float]] = {}
        for name, ours, theirs, x in GROUPS[group]():
            if group == "built-in":
                check(output(ours(x)), output(theirs(x)))
            else:
                assert output(ours(x)).shape == output(theirs(x)).shape
            own, other = calls(ours, x), calls(theirs, x)
            for form in own:
                times = race({"ours": Side(own[form]), "theirs": Side(other[form])}, args.seconds, clock)
                mine, another = middle(times["ours"]), middle(times["theirs"])
                ratios.setdefault((name.partition(" ")[2], form), []).append(another / mine)
                print(
                    f"{group:15} {name:28} {form:10} {mine * 1e3:9.3f} ms  {another * 1e3:9.3f}  {another / mine:6.2f}"
                )
        for (shape, form), found in ratios.items():
            mean = math.exp(statistics.fmean(map(math.log, found)))
            print(f"{group:15} {shape:28} {form:10} geometric mean {mean:.2f}, least {min(found):.2f} of {len(found)}")


if __name__ == "__main__":
    main()
