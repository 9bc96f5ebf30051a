"""Recurrent policies: those of sb3-contrib, and torchrl's modules, which ask whose LSTM they were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastrnn


@pytest.mark.parametrize("policy", ["MlpLstmPolicy"])
def test_sb3_contrib(policy: str):
    """The same actions, values and chances; and it goes on learning."""
    contrib = pytest.importorskip("sb3_contrib")
    agents = [contrib.RecurrentPPO(policy, "CartPole-v1", n_steps=32, batch_size=32, seed=0) for _ in range(2)]
    _, report = fastrnn.convert(agents[1].policy, report=True)
    assert str(report).count("fastrnn.LSTM") == 2, report
    observed = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    states: list[Any] = [None, None]
    for step in range(5):
        begins = np.arange(6) == step
        found = []
        for number, agent in enumerate(agents):
            action, states[number] = agent.predict(observed + step, states[number], begins, deterministic=True)
            found.append((action, states[number]))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        for ours, theirs in zip(found[1][1], found[0][1], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for agent in agents:
        torch.manual_seed(1)
        agent.set_random_seed(1)
        agent.learn(64)
    for ours, theirs in zip(agents[1].policy.parameters(), agents[0].policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def given(width: int) -> Any:
    """Two sequences of eight steps, with an episode that ends in each."""
    tensordict = pytest.importorskip("tensordict")
    begins = torch.zeros(2, 8, 1, dtype=torch.bool)
    begins[0, 3], begins[1, 5] = True, True
    states = {name: torch.zeros(2, 8, 1, width) for name in ("h", "c")}
    return tensordict.TensorDict({"x": torch.randn(2, 8, 4), "is_init": begins, **states}, [2, 8])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchrl(kind: str):
    rl = pytest.importorskip("torchrl.modules")
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    keys = dict(in_keys=["x", *states, "is_init"], out_keys=["y", *(("next", name) for name in states)])

    def module(net: nn.Module) -> Any:
        return getattr(rl, f"{kind}Module")(**{kind.lower(): net}, **keys, default_recurrent_mode=True)

    theirs = getattr(nn, kind)(4, 6, batch_first=True)
    ours = fastrnn.convert(getattr(nn, kind)(4, 6, batch_first=True))
    ours.load_state_dict(theirs.state_dict())
    data = given(6)
    results = [module(net)(data.clone()) for net in (theirs, ours)]
    for name in ("y", *(("next", name) for name in states)):
        torch.testing.assert_close(results[1][name], results[0][name], atol=1e-6, rtol=1e-5)

    # Classes that are none of torch.nn's: torchrl takes them for its own, which have a mask, and is told what to do.
    compilable = fastrnn.convert(getattr(nn, kind)(4, 6, batch_first=True), compilable=True)
    for other in (compilable, fastrnn.quantize_dynamic(theirs)):
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'mask': "):
            module(other)(data.clone())
    fastrnn.revert(compilable)
