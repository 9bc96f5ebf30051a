"""Packed weights that are kept between calls: of no change of the weights, however it is made, is a call unaware."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.backends import cpp

core = pytest.importorskip("fastrnn._core", reason="the compiled core is missing")

ISAS = ("generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx", "neon_dotprod", "neon_bf16")


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


def spoilt(bits: np.ndarray, rng: random.Random) -> np.ndarray:
    """Words of 32 bits, some changed where a fingerprint that is built as ours might lose it: the same bit or another,
    at the same place of blocks, chains and strides."""
    changed, size = bits.copy(), len(bits)
    step = rng.choice([1, 2, 4, 8, 16, 28, 32, 36, 64, 128])
    first, bit = rng.randrange(size), np.uint32(1 << rng.choice([0, 15, 16, 31, rng.randrange(32)]))
    at = np.arange(first, size, step)[: rng.choice([1, 2, 3, 4, 8, size])]
    match rng.randrange(4):
        case 0:
            changed[at] ^= bit
        case 1:  # another bit in the second place
            changed[first] ^= bit
            changed[(first + step) % size] ^= np.uint32(1 << rng.randrange(32))
        case 2:  # what one gains, the other loses
            changed[[first]] += bit
            changed[[(first + step) % size]] -= bit
        case 3:
            other = (first + step) % size
            changed[[first, other]] = changed[[other, first]]
    return changed


def fingerprints(count: int, seed: int = 0) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    for _ in range(count // 100):
        size = rng.choice([1, 3, 31, 64, 65, 96, 128, 192, 1000])
        floats = rng.choice([numbers.uniform(-0.2, 0.2, size), np.zeros(size), np.full(size, 0.5)])
        bits = floats.astype(np.float32).view(np.uint32)
        known = core.fingerprint(bits)
        for _ in range(100):
            changed = spoilt(bits, rng)
            assert core.fingerprint(changed) != known or np.array_equal(changed, bits), (bits, changed)


def test_a_fingerprint_sees_every_small_change():
    fingerprints(20_000)


@pytest.mark.slow
def test_a_fingerprint_sees_every_small_change_of_a_million():
    fingerprints(1_000_000, 1)


def test_every_bit_of_a_word_reaches_every_bit_of_the_fingerprint():
    numbers = np.random.default_rng(0)
    for size in (1, 64, 300):
        bits = numbers.uniform(-0.2, 0.2, size).astype(np.float32).view(np.uint32)
        known, flips = core.fingerprint(bits), []
        for at in {0, size // 2, size - 1}:
            for bit in range(32):
                changed = bits.copy()
                changed[at] ^= np.uint32(1 << bit)
                flips.append([int(digit) for digit in f"{core.fingerprint(changed) ^ known:064b}"])
        counts = np.array(flips)
        assert 12 < counts.sum(1).min() and counts.sum(1).max() < 52  # of 64, each with a chance of a half
        assert 0.1 < counts.mean(0).min() and counts.mean(0).max() < 0.9


@torch.no_grad()
def change(count: int, seed: int, large: bool = False) -> None:
    """Changes one module's weights again and again; after each a call gives what a module just made gives."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    while count > 0:
        kind, dtype = rng.choice(KINDS), rng.choice(DTYPES)
        inputs, hidden = rng.choice([(5, 7), (16, 32), (33, 40), (9, 64)]) if not large else (64, 520)
        module, x = network(kind, inputs, hidden, dtype), torch.randn(rng.choice([40, 61]), 2, inputs).to(dtype)
        way = WAYS[named_way := rng.choice([w for w in WAYS if kind != "JORDAN" or w not in ("lengths", "recompute")])]
        kept = core.weight_cache_count()
        way(module, x)
        if dtype is not torch.float16:  # whose weights are widened in each call
            assert core.weight_cache_count() > kept, f"{named_way} of {kind} in {dtype} keeps nothing"
        for _ in range(25):
            name, parameter = rng.choice(list(module.named_parameters()))
            what, how = rng.choice(list(CHANGES)), rng.choice(list(WRITES))
            new = parameter.detach().clone()
            CHANGES[what](new, rng)
            if not bool(new.float().abs().le(1e4).all()):  # an exponent's bit, or scaled often
                new.copy_(torch.nan_to_num(new, 0.1).clamp(-1e4, 1e4))
            WRITES[how](module, name, new)
            fresh = network(kind, inputs, hidden, dtype)
            fresh.load_state_dict(module.state_dict())
            said = f"{kind} {dtype} {inputs, hidden}, {name}: {what}, {how}, {named_way}; seed {seed}"
            assert bits(way(module, x)) == bits(way(fresh, x)), said
        count -= 25


def test_no_change_of_the_weights_is_missed():
    change(500, 0)


def test_no_change_of_large_weights_is_missed():
    change(25, 1, large=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_no_change_of_ten_thousand_is_missed(seed: int):
    change(1000, 100 + seed, large=seed == 9)


@pytest.mark.parametrize("count", [75, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("isa", ISAS)
def test_no_instruction_set_misses_a_change(isa: str, count: int):
    if isa not in core.supported_isas():
        pytest.skip(f"this machine does not run {isa}")
    if isa == core.isa():
        pytest.skip(f"the other tests run {isa}")
    code = (
        f"import test_weight_cache; test_weight_cache.change({count}, 2); test_weight_cache.fingerprints({100 * count})"
    )
    environment = os.environ | {"FASTRNN_ISA": isa, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@torch.no_grad()
def test_cells_see_changes(kind: str):
    cell, x = getattr(fastrnn, kind)(33, 40), torch.randn(70, 33)
    rng = random.Random(3)
    for what in list(CHANGES) * 4:
        name, parameter = rng.choice(list(cell.named_parameters()))
        new = parameter.detach().clone()
        CHANGES[what](new, rng)
        new = new.nan_to_num(0.1).clamp(-1e4, 1e4)
        WRITES[rng.choice(list(WRITES))](cell, name, new)
        fresh = getattr(fastrnn, kind)(33, 40)
        fresh.load_state_dict(cell.state_dict())
        assert bits(cell(x)) == bits(fresh(x)), what


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("count", [63, 64, 512])
def test_all_signs_at_once(compiled: bool, count: int):
    """Each changes every number, and most of the sums that one would take of them not at all."""
    module = fastrnn.LSTM(64, count)
    if compiled:
        fastrnn.convert(module, compilable=True)
    x = torch.randn(16, 4, 64)
    way = torch.compile(module, backend="eager") if compiled else module
    before = way(x)[0]
    for factor in (-1, -1, 2, 0.5, -4, -0.25):
        for parameter in module.parameters():
            parameter.mul_(factor)
        after = way(x)[0]
        assert torch.equal(after, fastrnn.lstm(x, None, [p.detach().clone() for p in module.parameters()])[0])
        assert not torch.equal(before, after)
        before = after


@torch.no_grad()
def test_packed_weights_are_kept_with_their_memory_and_freed_with_it():
    gc.collect()
    before = core.weight_cache_count()
    lstm = fastrnn.LSTM(8, 16, num_layers=2, bidirectional=True)
    lstm(torch.randn(1, 1, 8))
    assert core.weight_cache_count() == before  # one row multiplies the weights as they lie
    lstm(torch.randn(50, 2, 8))
    assert core.weight_cache_count() == before + 4
    twin = pickle.loads(pickle.dumps(copy.deepcopy(lstm)))
    assert core.weight_cache_count() == before + 4
    for _ in range(3):  # memory that is exchanged, or moves
        lstm.weight_hh_l0.data = torch.randn(64, 16)
        lstm.weight_hh_l1.untyped_storage().resize_(0)
        lstm.weight_hh_l1.untyped_storage().resize_(64 * 16 * 4)
        lstm.weight_hh_l1.fill_(0.1)
        lstm(torch.randn(50, 2, 8))
    assert core.weight_cache_count() == before + 4
    del lstm, twin
    gc.collect()
    assert core.weight_cache_count() == before


@torch.no_grad()
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "GRUCell"])
def test_parameters_may_be_swapped_for_others(kind: str):
    """torch swaps the very objects, and refuses those that something refers to weakly."""
    module, x = getattr(fastrnn, kind)(8, 16), torch.randn(50, 8)
    module(x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    fresh = getattr(fastrnn, kind)(8, 16, dtype=torch.float64)
    fresh.load_state_dict(module.state_dict())
    assert bits(module(x.double())) == bits(fresh(x.double()))


def test_what_the_way_of_a_call_is():
    """The ways above are those that keep something, the quick one among them."""
    gru = fastrnn.GRU(4, 6)
    with torch.no_grad():
        assert cpp.fast_path(vars(gru), torch.randn(9, 4, 4), None) is not None or not core.storages_are_at_hand()
