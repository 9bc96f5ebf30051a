"""Weights of 8 bits: against integers in NumPy, against the module in float32, and as a module among others."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "both ways, two layers": {"bidirectional": True, "num_layers": 2},
    "projected": {"proj_size": 5, "num_layers": 2},
}
KINDS = ("RNN", "LSTM", "GRU")


def made(kind: str, inputs: int = 19, hidden: int = 33, **form: Any) -> tuple[nn.RNNBase, nn.Module]:
    torch.manual_seed(5)
    single = getattr(nn, kind)(inputs, hidden, **form)
    return single, fastrnn.quantize_dynamic(single)


def product(weight: Tensor, v: np.ndarray) -> np.ndarray:
    """W v, both rounded to integers from -127 to 127 by the largest of their rows; sums exact, scales float32."""

    def integers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = (np.abs(rows).max(1, keepdims=True) / np.float32(127)).astype(np.float32)
        return np.rint(rows / np.where(scales > 0, scales, np.float32(1))).astype(np.int64), scales.astype(np.float64)

    (q, s), (p, t) = integers(weight.detach().numpy()), integers(v.astype(np.float32))
    return (p @ q.T) * (t * s.T)


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def oracle(module: nn.RNNBase, x: np.ndarray, h: np.ndarray, c: np.ndarray, end: str) -> list[np.ndarray]:
    """One layer and direction on (T, B, I), in float64 but for h, which is float32 as the kernel rounds it."""
    own = {name.split("_l")[0]: value for name, value in module.named_parameters() if name.endswith(end)}
    zero = np.zeros(own["weight_ih"].shape[0])
    b_ih, b_hh = (own[n].detach().double().numpy() if n in own else zero for n in ("bias_ih", "bias_hh"))
    ys: list[Any] = [None] * len(x)
    for t in reversed(range(len(x))) if end.endswith("_reverse") else range(len(x)):
        a, b = product(own["weight_ih"], x[t]) + b_ih, product(own["weight_hh"], h) + b_hh
        if module.mode == "LSTM":
            i, f, g, o = np.split(a + b, 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            h = product(own["weight_hr"], h) if "weight_hr" in own else h
        elif module.mode == "GRU":
            (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3, 1), np.split(b, 3, 1)
            z, n = sigmoid(a_z + b_z), np.tanh(a_n + sigmoid(a_r + b_r) * b_n)
            h = (1 - z) * n + z * h
        else:
            h = np.tanh(a + b)
        ys[t] = h
    return [np.stack(ys), h, c]


def network(module: nn.RNNBase, x: Tensor) -> list[np.ndarray]:
    y, hs, cs = x.double().numpy(), [], []
    rows = x.shape[1]
    for layer in range(module.num_layers):
        sides = []
        for end in ("", "_reverse")[: 1 + module.bidirectional]:
            h, c = np.zeros((rows, module.proj_size or module.hidden_size)), np.zeros((rows, module.hidden_size))
            out, h, c = oracle(module, y, h, c, f"_l{layer}{end}")
            sides.append(out)
            hs.append(h)
            cs.append(c)
        y = np.concatenate(sides, 2)
    return [y, np.stack(hs), *([np.stack(cs)] if module.mode == "LSTM" else [])]


def flat(result: Any) -> list[Tensor]:
    y, state = result
    return [y.data if isinstance(y, PackedSequence) else y, *(state if isinstance(state, tuple) else (state,))]


def off(found: list[Tensor], exact: list[np.ndarray]) -> float:
    assert [tuple(f.shape) for f in found] == [e.shape for e in exact]
    return max(float(np.abs(f.double().numpy() - e).max()) for f, e in zip(found, exact, strict=True))


@pytest.mark.parametrize("steps, rows", [(1, 1), (1, 5), (9, 2)])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_integers(kind: str, form: dict[str, Any], steps: int, rows: int):
    """Where nothing rounds to another integer in float32 than in float64, errors are those of float32 alone.

    A value within eps of the middle of two integers may go to either; a step of one in 127 of one of 33 terms then
    moves a gate by some 1e-3.  So most of the results are held to float32's budget and all to a few such steps.
    """
    if "proj_size" in form and kind != "LSTM":
        pytest.skip(f"{kind} has no projection")
    single, narrow = made(kind, **form)
    x = torch.randn(steps, rows, 19)
    found, exact = flat(narrow(x)), network(single, x)
    errors = np.concatenate([np.abs(f.double().numpy() - e).ravel() for f, e in zip(found, exact, strict=True)])
    assert np.median(errors) < 64 * 2**-24 and off(found, exact) < 5e-3
    if steps == 1 and form.get("num_layers", 1) == 1:
        assert errors.max() < 64 * 2**-24
        found[0].view(-1)[-1] += 1e-4
        assert off(found, exact) > 64 * 2**-24


@pytest.mark.parametrize("kind", KINDS)
def test_near_the_module_in_float32(kind: str):
    """A weight is off by half its row's scale at most, as is an activation: in all, a product of K terms by
    K (|w| s_v + |v| s_w) / 2 at worst, and about sqrt(K / 6) of a term's share as a rule; gates halve that or less."""
    single, narrow = made(kind, 64, 96)
    x = torch.randn(20, 4, 64)
    with torch.no_grad():
        for found, exact in zip(flat(narrow(x)), flat(single(x)), strict=True):
            assert 1e-5 < float((found - exact).abs().max()) < 0.06
            assert float((found - exact).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_call(kind: str):
    _, narrow = made(kind, bidirectional=True)
    x = torch.randn(6, 3, 19)
    y, state = narrow(x)
    turned = copy.deepcopy(narrow)
    turned.batch_first = True
    assert torch.equal(turned(x.transpose(0, 1))[0].transpose(0, 1), y)
    one, one_state = narrow(x[:, 1])
    assert torch.equal(one, y[:, 1])
    for a, b in zip(flat((one, one_state))[1:], flat((y, state))[1:], strict=True):
        assert torch.equal(a, b[:, 1])
    again, _ = narrow(x, state)
    assert not torch.equal(again, y)
    lengths = (2, 6, 4)
    packed = pack_sequence([x[:length, row] for row, length in enumerate(lengths)], enforce_sorted=False)
    result, last = narrow(packed)
    padded, _ = nn.utils.rnn.pad_packed_sequence(result)
    for row, length in enumerate(lengths):
        alone, alone_last = narrow(x[:length, row])
        assert torch.equal(padded[:length, row], alone)
        for a, b in zip(flat((alone, alone_last))[1:], flat((alone, last))[1:], strict=True):
            assert torch.equal(a, b[:, row])
    assert narrow(x[:, :0])[0].shape == (6, 0, 66)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_make_a_sequence_and_threads_the_same_bits(kind: str):
    _, narrow = made(kind, 128, 256)
    x, state, steps, before = torch.randn(5, 2, 128), None, [], torch.get_num_threads()
    for t in range(5):
        y, state = narrow(x[t : t + 1], state)
        steps.append(y)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(narrow(x)[0], torch.cat(steps))
    finally:
        torch.set_num_threads(before)


def test_every_instruction_set_gives_the_same_integers():
    """The gates' math differs by a rounding; a relu has none, so there the bits are the same but for the last sum."""
    core = pytest.importorskip("fastrnn._core")
    code = (
        "import torch, fastrnn, sys; torch.manual_seed(0); m = fastrnn.quantize_dynamic(torch.nn.RNN(70, 45, "
        "nonlinearity='relu')); torch.save(m(torch.randn(1, 9, 70))[0], sys.stdout.buffer)"
    )
    found = []
    for isa in core.supported_isas():
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"FASTRNN_ISA": isa}, capture_output=True, check=True
        )
        found.append(torch.load(io.BytesIO(done.stdout)))
    assert len(found) > 1
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=4 * 2**-23, rtol=4 * 2**-23)


def test_rows_of_zeros_and_what_is_not_finite():
    single, _ = made("LSTM", 8, 8)
    with torch.no_grad():
        single.weight_ih_l0[3] = 0
    narrow = fastrnn.quantize_dynamic(single)
    x = torch.zeros(2, 3, 8)
    assert bool(narrow(x)[0].isfinite().all())
    for bad in (float("nan"), float("inf"), -float("inf")):
        x[0, 1, 2] = bad
        y = narrow(x)[0]
        assert bool(y[:, 1].isnan().all()) and bool(y[:, [0, 2]].isfinite().all())
    with torch.no_grad():
        single.weight_hh_l0[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        fastrnn.quantize_dynamic(single)


def test_in_a_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"a": nn.GRU(4, 5), "b": fastrnn.LSTM(4, 6)}))
    model[1]["c"] = model[1]["a"]  # a module in two places
    narrow = fastrnn.quantize_dynamic(model)
    assert type(model[1]["a"]) is nn.GRU and type(narrow[1]["a"]) is fastrnn.QuantizedGRU
    assert narrow[1]["a"] is narrow[1]["c"] and type(narrow[1]["b"]) is fastrnn.QuantizedLSTM
    assert narrow[0].weight is not model[0].weight
    assert repr(narrow[1]["b"]) == "QuantizedLSTM(4, 6)"
    inplace = copy.deepcopy(model)
    assert fastrnn.quantize_dynamic(inplace, inplace=True) is inplace
    assert type(inplace[1]["c"]) is fastrnn.QuantizedGRU and inplace[1]["c"] is inplace[1]["a"]
    assert not list(narrow[1].parameters())
    x = torch.randn(3, 2, 4)
    for twin in (copy.deepcopy(narrow), pickle.loads(pickle.dumps(narrow))):
        assert torch.equal(twin[1]["b"](x)[0], narrow[1]["b"](x)[0])
    other = fastrnn.quantize_dynamic(nn.LSTM(4, 6))
    other.load_state_dict(narrow[1]["b"].state_dict())
    assert torch.equal(other(x)[0], narrow[1]["b"](x)[0])
    assert other.weight_ih_l0.dtype is torch.int8


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind, sizes, matrix", [("LSTMCell", (0, 4), "16, 0"), ("GRUCell", (3, 0), "0, 3")])
def test_no_weights(kind: str, sizes: tuple[int, int], matrix: str):
    """torch.nn has cells of no size, and no layers."""
    with pytest.raises(ValueError, match=rf"to be quantized must be some, got a matrix of size \[{matrix}\]"):
        fastrnn.quantize_dynamic(getattr(nn, kind)(*sizes))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_what_it_refuses():
    _, narrow = made("LSTM", 4, 6)
    x = torch.randn(3, 2, 4)
    for bad in (x[..., :3], x[:0]):
        with pytest.raises(RuntimeError, match="Expected"):
            narrow(bad)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 6\), got \[1, 2, 5\]"):
        narrow(x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 6)))
    with pytest.raises(RuntimeError, match="pair of tensors"):
        narrow(x, torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="2D or 3D, got 1D"):
        narrow(x[0, 0])
    with pytest.raises(TypeError, match="got list"):
        narrow([1.0])
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match="float32"):
            narrow(x[..., 0].to(dtype) if dtype is torch.int64 else x.to(dtype))
    with pytest.raises(RuntimeError, match="trace"):
        torch.jit.trace(narrow, (x,))
    with fastrnn.use_backend("reference"), pytest.raises(fastrnn.BackendError, match="reference"):
        narrow(x)
    with pytest.raises(ValueError, match="float32"):
        fastrnn.quantize_dynamic(nn.GRU(3, 3).double())
    with pytest.raises(ValueError, match="learn_initial_state"):
        fastrnn.quantize_dynamic(fastrnn.GRU(3, 3, learn_initial_state=True))
    with pytest.raises(TypeError, match="expected a module of GRU, got LSTM"):
        fastrnn.QuantizedGRU.from_float(nn.LSTM(3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(x)[0].dtype is torch.float32
