"""What the examples share: their options, where the data lie, and two sides trained in turn behind progress bars.

A *side* is one copy of the example's model with its own optimizer: ``torch.nn`` as it was built, and ``fastrnn``, the
same model after :func:`fastrnn.convert`.  Both begin with the same parameters, see the same batches and draw the same
dropout masks, so their losses may differ by rounding only.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

import fastrnn

OURS = (fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU, fastrnn.JordanRNN, fastrnn.Network)
BLOCK = 10  # steps that one side runs before the other has its turn


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every example has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: as many as torch takes")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quick", action="store_true", help="small sizes and few steps: does it run?")
    options.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out", help="where plots go")
    return options


def parse(options: argparse.ArgumentParser, **quick: object) -> argparse.Namespace:
    """The arguments; under ``--quick`` these defaults replace the example's own.  Sets torch's threads."""
    if options.parse_known_args()[0].quick:
        options.set_defaults(**quick)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def folder_of(package: str) -> Path:
    """Where an installed package lies, without importing it: some examples read the data that it carries."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the data of this example come with the package {package}: pip install 'fastrnn[examples]'")
    return Path(spec.origin).parent


def one_hot_input(rnn: nn.Module, tokens: Tensor, count: int) -> Tensor:
    """What ``rnn`` is given for the one-hot rows of tokens below ``count``: fastrnn takes the tokens themselves."""
    return tokens if type(rnn) in OURS else F.one_hot(tokens, count).float()


def embedded(rnn: nn.Module, embedding: nn.Embedding, tokens: Tensor | PackedSequence, state: Any = None) -> Any:
    """What ``rnn`` returns for the vectors of these tokens: fastrnn takes both, and multiplies each vector once."""
    if type(rnn) in OURS:
        return rnn(tokens, state, embedding=embedding)
    if isinstance(tokens, PackedSequence):
        return rnn(tokens._replace(data=embedding(tokens.data)), state)
    return rnn(embedding(tokens), state)


def detached(state: Any) -> Any:
    """The state cut off from the graph: the next step goes on from it but does not go back through it."""
    if isinstance(state, (tuple, list)):
        return tuple(detached(part) for part in state)
    return state if state is None else state.detach()


class Bars:
    """One progress bar a side on standard error, drawn in place on a terminal, else a line each tenth of the way."""

    def __init__(self, names: Sequence[str], total: int) -> None:
        self.lines = dict.fromkeys(names, "")
        self.total = max(total, 1)
        self.terminal = sys.stderr.isatty()
        if self.terminal:
            print("\n" * (len(names) - 1), file=sys.stderr)

    def update(self, name: str, done: int, text: str) -> None:
        full = 30 * done // self.total
        self.lines[name] = f"{name:<9}{'#' * full}{'.' * (30 - full)} {done}/{self.total}  {text}"
        if self.terminal:
            drawn = "".join(f"\033[K{line}\n" for line in self.lines.values())
            print(f"\033[{len(self.lines)}A{drawn}", end="", file=sys.stderr)
        elif done * 10 // self.total > (done - 1) * 10 // self.total:
            print(self.lines[name], file=sys.stderr)


class Stopwatch:
    """Seconds that a recurrent module takes in a step, forward and backward.

    The forward pass is what lies between the module's two hooks.  The backward pass runs from the gradients of what the
    module returned to those of the weights of its first layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.seconds = self._begin = 0.0
        self._handles = [module.register_forward_pre_hook(self._start), module.register_forward_hook(self._stop)]
        for name, weight in module.named_parameters():
            if name.startswith("weight_ih_l0"):
                self._handles.append(weight.register_post_accumulate_grad_hook(self._add))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, *_: Any) -> None:
        self._begin = time.perf_counter()

    def _add(self, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds += now - self._begin
        self._begin = now  # a second direction ends later

    def _stop(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._add()
        y, state = output
        for tensor in (
            y.data if isinstance(y, PackedSequence) else y,
            *(state if isinstance(state, tuple) else [state]),
        ):
            if tensor.requires_grad:
                tensor.register_hook(self._start)


class Side:
    """A model with its optimizer, what it carries from step to step, and what was measured on the way."""

    def __init__(self, name: str, model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        self.name = name
        self.model = model
        self.optimizer = optimizer(model.parameters())
        self.state: Any = None
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.recurrent_seconds: list[float] = []
        self.stopwatches = [
            Stopwatch(module)
            for module in model.modules()
            if isinstance(module, nn.RNNBase | fastrnn.JordanRNN | fastrnn.Network)
        ]

    def step(self, loss_of: Callable[[nn.Module, Any, Any], tuple[Tensor, Any]], batch: Any, clip: float) -> None:
        """One training step, timed: forward, backward, gradient clipping, optimizer."""
        for stopwatch in self.stopwatches:
            stopwatch.seconds = 0.0
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss, state = loss_of(self.model, batch, self.state)
        self.state = detached(state)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - begin)
        self.recurrent_seconds.append(sum(stopwatch.seconds for stopwatch in self.stopwatches))


def two_sides(model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> tuple[Side, Side]:
    """The model on torch.nn, and an identical copy of it on fastrnn."""
    return Side("torch.nn", model, optimizer), Side("fastrnn", fastrnn.convert(copy.deepcopy(model)), optimizer)


def train(
    sides: Sequence[Side],
    batches: Sequence[Any],
    loss_of: Callable[[nn.Module, Any, Any], tuple[Tensor, Any]],
    clip: float = 1.0,
    seed: int = 0,
) -> None:
    """Train every side on every batch: ``loss, state = loss_of(model, batch, state)``, state None at first.

    A model that returns its state carries it to the next batch, cut off from the graph: truncated backpropagation
    through time.  One that returns None begins each batch anew: full backpropagation through time.

    The sides take turns of a few steps, in changing order, so that whatever else the machine does hits them alike.
    The generator is seeded before each step, which gives all sides the same dropout masks.  The stopwatches come off at
    the end: what is timed later is the bare model.
    """
    bars = Bars([side.name for side in sides], len(batches))
    for start in range(0, len(batches), BLOCK):
        for side in sides if start // BLOCK % 2 == 0 else reversed(sides):
            for number, batch in enumerate(batches[start : start + BLOCK], start):
                torch.manual_seed(seed + number)
                side.step(loss_of, batch, clip)
                typical = statistics.median(side.seconds[-50:])
                bars.update(side.name, number + 1, f"loss {side.losses[-1]:.3f}  {typical * 1e3:.1f} ms/step")
    for side in sides:
        while side.stopwatches:
            side.stopwatches.pop().remove()
