"""Packed weights that are kept between calls: of no change of the weights, however it is made, is a call unaware."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import search_path
from weight_changes import CHANGES, DTYPES, KINDS, WAYS, WRITES, bits, network

import fastrnn
from fastrnn.backends import cpp

core = pytest.importorskip("fastrnn._core", reason="the compiled core is missing")

ISAS = ("generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx", "neon_dotprod", "neon_bf16")


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
    environment = os.environ | {"FASTRNN_ISA": isa, "PYTHONPATH": search_path()}
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
