"""What ``test_guarded_memory.py`` runs: ``python guarded_runs.py COUNT`` draws COUNT layers and modules.

All that they are given and give is guarded (``guarded.py``).  Each array that the kernels work in is memory of its own,
from an allocator that the test has told to look behind it when it is given back.
"""

from __future__ import annotations

import ctypes
import faulthandler
import random
import sys
from typing import Any

import guarded
import torch

guarded.guard_results()

from guarded import guard  # noqa: E402
from support import Case, gradients, make  # noqa: E402
from torch import nn  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn import Network, cells  # noqa: E402
from fastrnn.backends import cpp  # noqa: E402
from fastrnn.modes import CELLS  # noqa: E402

ENGINE_CELLS = [cells.LSTM, cells.GRU, cells.PeepholeLSTM, cells.NAS, cells.SLSTM, cells.IndRNN, cells.LayerNormLSTM]
LANES = (7, 8, 9, 15, 16, 17, 31, 32, 33, 65, 70)  # beside the ends of vectors and panels


def drawn(dice: random.Random) -> Case:
    """A layer whose sizes stand beside those at which tiles, panels, chunks and stretches end."""
    mode, rows = dice.choice(sorted(CELLS)), dice.choice([1, 1, 2, 3, 5, 12, 13, 47, 48, 49, 64, 130])
    steps = dice.choice([1, 2, 3, 11] if rows > 12 else [1, 2, 5, 11, 41, 61])
    inputs, hidden = dice.choice([1, 2, 3, *LANES]), dice.choice([1, 2, 3, *LANES])
    lengths: tuple[int, ...] = ()
    if dice.random() < 0.4:
        lengths = tuple(sorted([steps, *(dice.randint(1, steps) for _ in range(rows - 1))], reverse=True))
    dtype = dice.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    projected = CELLS[mode].output or (mode == "LSTM" and dice.random() < 0.4)
    outputs, directions = dice.choice([1, 2, 3, *LANES]) if projected else 0, dice.choice([1, 2])
    if dice.random() < 0.05:  # enough work for two threads, which share the units
        mode, outputs, lengths, inputs, hidden = "LSTM", 0, (11,) * 30 + (4,) * 30, 70, 130
    return Case("", mode, steps, rows, inputs, hidden, lengths, outputs, directions, dice.random() < 0.7, dtype)


def layer(dice: random.Random) -> None:
    """Forward and backward of a layer, without and with all that can be left out."""
    case = drawn(dice)
    print(case, torch.get_num_threads(), flush=True)
    inputs, needs = make(case), [dice.random() < 0.8 for _ in range(3)]
    if dice.random() < 0.2:
        places = torch.arange(inputs.x.shape[:-1].numel()).view(inputs.x.shape[:-1]) % case.inputs
        inputs, needs = inputs._replace(x=places), [False, *needs[1:]]
    inputs = inputs.map(guard)
    cpp.forward(*inputs[:6], save=False)
    y, hn, cn, saved = cpp.forward(*inputs[:6], save=True)
    assert saved is not None
    for result in (y, hn, cn, *saved, *gradients(cpp, inputs, saved, *needs).values()):
        assert result.isfinite().all(), "part of a result was not written"


def module(dice: random.Random) -> None:
    """A module without gradients, with weights of 8 bits and without, in one call of the C++ core."""
    kind = dice.choice(["RNN", "LSTM", "GRU"])
    options: dict[str, Any] = {"bidirectional": dice.random() < 0.5, "num_layers": dice.choice([1, 2])}
    inputs, hidden = dice.choice([1, 2, 3, 63, 130, *LANES]), dice.choice([1, 3, *LANES])
    if kind == "LSTM" and hidden > 3 and dice.random() < 0.5:
        options["proj_size"] = dice.choice([1, 3, hidden - 1])
    print(kind, inputs, hidden, options, flush=True)
    plain = getattr(nn, kind)(inputs, hidden, **options)
    quantized = fastrnn.quantize_dynamic(plain)
    for name, buffer in list(quantized.named_buffers()):
        setattr(quantized, name, guard(buffer))
    for name, parameter in list(plain.named_parameters()):
        setattr(plain, name, nn.Parameter(guard(parameter)))
    x = guard(torch.randn(dice.choice([1, 2, 9, 33]), dice.choice([1, 2, 5, 33]), inputs))
    with torch.no_grad():
        for network in (quantized, fastrnn.convert(plain)):
            y, _ = network(x)
            assert y.isfinite().all() and torch.equal(y, network(x)[0])


def network(dice: random.Random) -> None:
    """A layer of another cell, by the engine of programs, with all of its gradients."""
    cell = dice.choice(ENGINE_CELLS)
    inputs, hidden = dice.choice([1, 2, 3, *LANES]), dice.choice([1, 2, 3, *LANES])
    hidden = hidden * 4 if cell is cells.SLSTM else hidden
    steps, rows = dice.choice([1, 2, 11, 41]), dice.choice([1, 2, 5, 12, 13, 48])
    print(cell.__name__, inputs, hidden, steps, rows, flush=True)
    net = Network(cell, inputs, hidden, batch_first=dice.random() < 0.5)
    for name, parameter in list(net.named_parameters()):
        setattr(net, name, nn.Parameter(guard(parameter.detach())))
    lengths = sorted((dice.randint(1, steps) for _ in range(rows)), reverse=True) if dice.random() < 0.4 else None
    x = guard(torch.randn(*((rows, steps) if net.batch_first else (steps, rows)), inputs)).requires_grad_()
    given = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=net.batch_first) if lengths else x
    with fastrnn.use_backend("cpp"):
        y, _ = net(given)
        y = y.data if lengths else y
        found = torch.autograd.grad(y, [x, *net.parameters()], guard(torch.randn_like(y)), allow_unused=True)
    for result in (y, *found):
        assert result is None or result.isfinite().all(), "part of a result was not written"


if __name__ == "__main__":
    faulthandler.enable()
    count = int(sys.argv[1])
    cpp._core.assume_apart(True)
    own = random.Random(count)
    for seed in range(count):
        torch.manual_seed(seed)
        torch.set_num_threads(own.choice([1, 2]))
        own.choice([layer, layer, module, network])(own)
    print("nothing beyond its memory was touched", flush=True)
    last = guarded.guarded((3,), torch.float32, behind=True)
    ctypes.string_at(last.data_ptr(), 13)  # the end, by which the test knows that the guards hold
