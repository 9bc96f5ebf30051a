"""Networks, changes of their weights, and ways to write them and to call: what `test_weight_cache.py` draws from."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastrnn


def network(kind: str, inputs: int, hidden: int, dtype: torch.dtype) -> Any:
    names = {"RELU": "RNN", "PROJECTED": "LSTM", "BOTH": "GRU", "STACKED": "LSTM", "JORDAN": "JordanRNN"}
    options: dict[str, dict[str, Any]] = {
        "RELU": dict(nonlinearity="relu"),
        "PROJECTED": dict(proj_size=max(1, hidden // 3)),
        "BOTH": dict(bidirectional=True),
        "STACKED": dict(num_layers=2),
        "JORDAN": dict(output_size=max(1, hidden // 2)),
    }
    return getattr(fastrnn, names.get(kind, kind))(inputs, hidden, dtype=dtype, **options.get(kind, {}))


KINDS = ("RNN", "RELU", "LSTM", "GRU", "PROJECTED", "BOTH", "STACKED", "JORDAN")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# What becomes of some weights: most are such as keep sums of them, or of their bits, as they were.


def some(values: Tensor, rng: random.Random) -> Tensor:
    """A part of the values, to be changed in place: rows, columns, single numbers or all."""
    view = values.view(values.shape[0], -1)
    rows, columns = view.shape
    first, last = sorted(rng.choices(range(rows + 1), k=2))
    return rng.choice(
        [
            view,
            view[first : max(last, first + 1)],
            view[:, rng.randrange(columns) :],
            view[:, :: rng.randint(1, 3)],
            view[rng.randrange(rows)],
        ]
    )


def flip(values: Tensor, rng: random.Random, count: int, bit: int | None = None) -> None:
    bits = values.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[values.element_size()]).view(-1)
    size = 8 * values.element_size()
    bit = rng.randrange(size) if bit is None else bit
    mask = -1 << bit if bit == size - 1 else 1 << bit
    for at in rng.sample(range(bits.numel()), min(count, bits.numel())):
        bits[at] ^= mask


def swap(values: Tensor, rng: random.Random, dim: int) -> None:
    one, other = (rng.randrange(values.shape[dim]) for _ in range(2))
    order = list(range(values.shape[dim]))
    order[one], order[other] = other, one
    values.copy_(values.index_select(dim, torch.tensor(order)))


def roll(values: Tensor, rng: random.Random) -> None:
    by = rng.choice([1, 2, 4, 8, 16, 32, 64, 128, rng.randint(1, 300)])
    values.copy_(values.roll(by, rng.randrange(values.dim())) if rng.random() < 0.5 else values.roll(by))


def swap_vectors(values: Tensor, rng: random.Random) -> None:
    """Two stretches as long as a vector, near each other: what one takes from a sum, the other may add."""
    flat, size = values.view(-1), rng.choice([16, 32, 64]) // values.element_size()
    start = rng.randrange(max(1, flat.numel() // (8 * size))) * 8 * size
    places = [start + k * size for k in range(8) if start + (k + 1) * size <= flat.numel()]
    if len(places) > 1:
        one, other = rng.sample(places, 2)
        kept = flat[one : one + size].clone()
        flat[one : one + size] = flat[other : other + size]
        flat[other : other + size] = kept


CHANGES: dict[str, Callable[[Tensor, random.Random], Any]] = {
    "signs": lambda w, rng: some(w, rng).neg_(),
    "powers of two": lambda w, rng: some(w, rng).mul_(2.0 ** rng.choice([-3, -2, -1, 1, 2, 3])),
    "fill": lambda w, rng: some(w, rng).fill_(rng.choice([0.0, -0.0, 0.5, 1.0, 2.0, -2.0])),
    "rows": lambda w, rng: swap(w, rng, 0),
    "columns": lambda w, rng: swap(w, rng, w.dim() - 1),
    "vectors": swap_vectors,
    "a bit": lambda w, rng: flip(w, rng, 1),
    "the same bit of two": lambda w, rng: flip(w, rng, 2),
    "the same bit of many": lambda w, rng: flip(w, rng, rng.choice([4, 8, 16, 64])),
    "signs of some": lambda w, rng: flip(w, rng, rng.choice([2, 4, 6, 64]), 8 * w.element_size() - 1),
    "roll": roll,
    "reverse": lambda w, rng: w.copy_(w.flip(rng.randrange(w.dim()))),
    "one more, one less": lambda w, rng: (some(w, rng).add_(0.25), some(w, rng).sub_(0.25)),
    "others": lambda w, rng: w.uniform_(-0.3, 0.3),
}


# How the new numbers come into a module.


def by_storage(module: nn.Module, name: str, new: Tensor) -> None:
    own = getattr(module, name)
    start, size = own.storage_offset() * own.element_size(), own.numel() * own.element_size()
    memory = torch.empty(0, dtype=torch.uint8).set_(own.untyped_storage())
    memory[start : start + size] = new.contiguous().view(torch.uint8).view(-1)


def by_numpy(module: nn.Module, name: str, new: Tensor) -> None:
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[new.element_size()]
    array = getattr(module, name).detach().view(bits).numpy()
    np.copyto(array, new.view(bits).numpy())


def by_optimizer(module: nn.Module, name: str, new: Tensor) -> None:
    own = getattr(module, name)
    own.grad = own.detach() - new
    torch.optim.SGD([own], lr=1.0).step()
    own.grad = None


def by_loading(module: nn.Module, name: str, new: Tensor) -> None:
    module.load_state_dict(module.state_dict() | {name: new})


WRITES: dict[str, Callable[[Any, str, Tensor], Any]] = {
    "in place": lambda module, name, new: getattr(module, name).copy_(new),
    "by .data": lambda module, name, new: getattr(module, name).data.copy_(new),
    "exchanged": lambda module, name, new: setattr(getattr(module, name), "data", new.clone()),
    "a new parameter": lambda module, name, new: setattr(module, name, nn.Parameter(new.clone())),
    "NumPy": by_numpy,
    "storage": by_storage,
    "an optimizer": by_optimizer,
    "load_state_dict": by_loading,
    "a vector": lambda module, name, new: nn.utils.vector_to_parameters(
        torch.cat([new.view(-1) if n == name else p.view(-1) for n, p in module.named_parameters()]),
        module.parameters(),
    ),
}


# The ways on which packed weights are kept.


def by_function(module: Any, x: Tensor) -> Any:
    kind = type(module).__name__.lower()
    options: dict[str, Any] = dict(num_layers=module.num_layers, bidirectional=module.bidirectional)
    if kind == "rnn":
        options["nonlinearity"] = module.nonlinearity
    function = fastrnn.jordan_rnn if kind == "jordanrnn" else getattr(fastrnn, kind)
    return function(x, None, module._flat_weights, **options)


def recomputed(module: Any, x: Tensor) -> Any:
    module.recompute = True
    try:
        return module(x)
    finally:
        module.recompute = False


WAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "module": lambda module, x: module(x),
    "a state": lambda module, x: module(x, module(x)[1]),
    "lengths": lambda module, x: module(x, lengths=[x.shape[0]] + [3] * (x.shape[1] - 1)),
    "packed": lambda module, x: module(nn.utils.rnn.pack_padded_sequence(x, [x.shape[0]] * x.shape[1])),
    "function": by_function,
    "recompute": recomputed,
}


def bits(result: Any) -> list[bytes]:
    if isinstance(result, Tensor):
        return [result.contiguous().view(torch.uint8).numpy().tobytes()]
    return [one for part in result if part is not None for one in bits(part) if not isinstance(part, list)]
