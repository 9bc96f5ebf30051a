"""A trained speaker encoder, Resemblyzer's: three layers of LSTM on 40 mel powers, with the weights it comes with."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastrnn

resemblyzer = pytest.importorskip("resemblyzer")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture(scope="module")
def encoder() -> Any:
    return resemblyzer.VoiceEncoder("cpu", verbose=False).eval()


@pytest.fixture(scope="module")
def heard() -> Tensor:
    """Mel frames (16, 160, 40) of made voices, as the package makes them of sound."""
    digits, audio = importlib.import_module("spoken_digits"), importlib.import_module("resemblyzer.audio")
    random = np.random.default_rng(0)
    words, found = [sounds.split() for sounds in digits.DIGITS.values()], []
    while len(found) < 16:
        sound = np.concatenate([digits.spoken(words[random.integers(10)], random) for _ in range(5)])
        twice = np.interp(np.arange(0, len(sound), digits.RATE / 16000), np.arange(len(sound)), sound)
        mels = audio.wav_to_mel_spectrogram((twice / np.abs(twice).max()).astype(np.float32))
        found.append(torch.tensor(mels[:160]))
    return torch.stack(found)


@torch.no_grad()
def test_convert(encoder: Any, heard: Tensor):
    converted = fastrnn.convert(copy.deepcopy(encoder))
    assert type(converted.lstm) is fastrnn.LSTM
    torch.testing.assert_close(converted(heard), encoder(heard), atol=2e-6, rtol=1e-5)
    sound = np.random.default_rng(0).standard_normal(32000).astype(np.float32) / 8
    np.testing.assert_allclose(converted.embed_utterance(sound), encoder.embed_utterance(sound), atol=2e-6)


@torch.no_grad()
def test_weights_of_8_bits(encoder: Any, heard: Tensor):
    """The default keeps the embeddings; all in 8 bits does not, nor does torch's own."""
    exact = encoder(heard)

    def nearness(model: nn.Module) -> float:
        return float(F.cosine_similarity(model(heard), exact).min())

    by_default = fastrnn.quantize_dynamic(encoder)
    assert by_default.lstm.float_input and nearness(by_default) > 0.999
    rounded = nearness(fastrnn.quantize_dynamic(encoder, float_input=False))
    theirs = nearness(torch.ao.quantization.quantize_dynamic(copy.deepcopy(encoder), {nn.LSTM}))
    assert 0.999 > rounded > theirs, (rounded, theirs)
    assert nearness(fastrnn.quantize_dynamic(encoder, skip=["lstm"])) > 0.999999
    print(f"least cosine: default {nearness(by_default):.4f}, all {rounded:.3f}, torch.ao {theirs:.3f}")
