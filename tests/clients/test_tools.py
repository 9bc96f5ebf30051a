"""Tools that look into a model, or take it for training: what they make of ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrnn


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 8, num_layers=2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@pytest.fixture
def models() -> tuple[nn.Module, nn.Module]:
    theirs = Tagger()
    return theirs, fastrnn.convert(copy.deepcopy(theirs))


def test_torchviz(models: Any):
    torchviz = pytest.importorskip("torchviz")
    x = torch.randn(3, 5, 4, requires_grad=True)
    for saved in (False, True):
        drawn = torchviz.make_dot(models[1](x), dict(models[1].named_parameters()), show_saved=saved, show_attrs=saved)
        assert "StackBackward" in drawn.source and "rnn.weight_hh_l1" in drawn.source


def test_captum(models: Any):
    attr = pytest.importorskip("captum.attr")
    x = torch.randn(3, 5, 4)
    for method in ("IntegratedGradients", "Saliency", "GradientShap", "FeatureAblation"):
        extra = {"baselines": torch.zeros(3, 5, 4)} if method == "GradientShap" else {}
        found = []
        for model in models:
            torch.manual_seed(0)
            np.random.seed(0)  # GradientShap draws from it, too
            found.append(getattr(attr, method)(model).attribute(x, target=1, **extra))
        torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    layers = [attr.LayerIntegratedGradients(model, model.out).attribute(x, target=1) for model in models]
    torch.testing.assert_close(layers[1], layers[0], atol=1e-5, rtol=1e-4)


def test_opacus(models: Any):
    """Its gradients of each sample take the results of a module for one tensor, so it has recurrent modules of its own:
    it puts them in the place of torch.nn's alone, and knows them by their exact class."""
    opacus, validators = pytest.importorskip("opacus"), pytest.importorskip("opacus.validators")
    x = torch.randn(3, 5, 4)
    with pytest.raises(TypeError, match="integer tensors of a single element"):
        opacus.GradSampleModule(copy.deepcopy(models[1]))(x).sum().backward()
    private = validators.ModuleValidator.fix(fastrnn.revert(models[1]))
    torch.testing.assert_close(private(x), models[0](x), atol=1e-6, rtol=1e-5)
    module = opacus.GradSampleModule(private)
    module(x).sum().backward()
    assert all(parameter.grad_sample.shape[0] == 3 for parameter in module.parameters())


def test_accelerate(models: Any):
    accelerate = pytest.importorskip("accelerate")
    x, found = torch.randn(8, 5, 4), []
    for model in models:
        accelerator = accelerate.Accelerator(cpu=True)
        prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(3):
            accelerator.backward(prepared(x).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        found.append(list(accelerator.unwrap_model(prepared).parameters()))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


def test_safetensors(models: Any, tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(models[1], tmp_path / "model.safetensors")
    other = Tagger()
    safetensors.load_model(other, tmp_path / "model.safetensors")
    x = torch.randn(3, 5, 4)
    assert torch.equal(fastrnn.convert(other)(x), models[1](x))
    narrow = fastrnn.quantize_dynamic(models[1])
    safetensors.save_model(narrow, tmp_path / "narrow.safetensors")
    again = fastrnn.quantize_dynamic(Tagger())
    safetensors.load_model(again, tmp_path / "narrow.safetensors")
    assert torch.equal(again(x), narrow(x))
