"""speechbrain's wrappers of torch.nn's layers and cells, and its attentional decoder."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn


@pytest.fixture(scope="module")
def layers() -> Any:
    """speechbrain imports torchaudio, of which the registry has a build for CUDA alone, whose own library does not load
    beside torch's CPU build.  Nothing here calls it: it is imported as if it had been built without."""
    glob = Path.glob
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "glob", lambda path, name, **how: [] if "_torchaudio" in name else glob(path, name, **how))
        pytest.importorskip("torchaudio")
    pytest.importorskip("speechbrain")
    return importlib.import_module("speechbrain.nnet.RNN")


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]


def both(model: nn.Module, *given: Any) -> tuple[list[Tensor], list[Tensor], nn.Module]:
    """Results and gradients of the model, and of it converted."""
    converted, found = fastrnn.convert(copy.deepcopy(model)), []
    for one in (model, converted):
        results = flat(one(*given))
        sum(tensor.square().sum() for tensor in results if tensor.requires_grad).backward()
        found.append([*results, *(parameter.grad for parameter in one.parameters() if parameter.grad is not None)])
    return *found, converted


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_layers(layers: Any, kind: str, bidirectional: bool):
    model = getattr(layers, kind)(hidden_size=8, input_shape=[4, 10, 6], num_layers=2, bidirectional=bidirectional)
    x, lengths = torch.randn(4, 10, 6), torch.tensor([1.0, 0.5, 0.8, 0.3])
    theirs, ours, converted = both(model, x, None, lengths)
    assert type(converted.rnn) is getattr(fastrnn, kind)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    narrow = fastrnn.quantize_dynamic(model)  # its forward calls flatten_parameters
    assert (flat(narrow(x, None, lengths))[0] - theirs[0]).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(layers: Any, kind: str):
    model = getattr(layers, kind)(hidden_size=8, input_size=6, num_layers=2)
    theirs, ours, converted = both(model, torch.randn(4, 6))
    assert {type(cell) for cell in converted.rnn_cells} == {getattr(fastrnn, kind)}
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_attentional_decoder(layers: Any, kind: str):
    model = layers.AttentionalRNNDecoder(
        rnn_type=kind, attn_type="content", hidden_size=8, attn_dim=6, num_layers=1, enc_dim=7, input_size=5
    )
    theirs, ours, _ = both(model, torch.randn(3, 6, 5), torch.randn(3, 9, 7), torch.tensor([1.0, 0.7, 0.4]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
