"""float32 modules whose products torch was allowed to round to bfloat16, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import modules
from fastrnn.backends import load

cpp = load("cpp")
if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)
newer = pytest.mark.skipif(cpp._precision is None, reason="this torch has no fp32_precision")


@pytest.fixture(autouse=True)
def as_if_it_paid(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that multiplies bfloat16; and torch's settings as they were."""
    if not cpp.NATIVE:
        monkeypatch.setattr(cpp, "NATIVE", True)
        monkeypatch.setattr(modules, "fast_path", lambda *call: None)  # it knew what machine it is on
    yield
    torch.set_float32_matmul_precision("highest")
    if cpp._precision is not None:
        torch._C._set_fp32_precision_setter("mkldnn", "matmul", "none")
        torch._C._set_fp32_precision_setter("mkldnn", "rnn", "none")


def results(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y, _ = module(leaf)
    return [y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_products_are_rounded_when_the_user_asks_and_only_then(name: str):
    module, x = getattr(fastrnn, name)(9, 17, num_layers=2, bidirectional=True), torch.randn(6, 4, 9)
    exact = results(module, x)
    torch.set_float32_matmul_precision("medium")
    rounded = results(module, x)
    torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(a, b) for a, b in zip(results(module, x), exact, strict=True))
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.float32
        error = (a - b).norm() / b.norm()
        assert 1e-4 < error < 4 * torch.finfo(torch.bfloat16).eps


@newer
@pytest.mark.parametrize(
    ("op", "value", "other"), [("matmul", "bf16", None), ("rnn", "bf16", None), ("rnn", "ieee", "bf16")]
)
def test_the_settings_of_onednn(op: str, value: str, other: str | None):
    module, x = fastrnn.LSTM(9, 17), torch.randn(6, 4, 9)
    with torch.no_grad():
        exact = module(x)[0]
        torch._C._set_fp32_precision_setter("mkldnn", op, value)
        if other:
            torch._C._set_fp32_precision_setter("mkldnn", "matmul", other)
        assert torch.equal(module(x)[0], exact) == (value != "bf16")
