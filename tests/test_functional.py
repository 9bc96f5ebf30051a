"""The functions over plain tensors: parts of a state that are not given, and the modules' dtypes under autocast."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from support import needs_torch_under_autocast
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

FUNCTIONS = {"RNN": fastrnn.rnn, "LSTM": fastrnn.lstm, "GRU": fastrnn.gru, "JordanRNN": fastrnn.jordan_rnn}


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [each for part in results for each in flat(part)]


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=["h0", "c0", "neither"])
@pytest.mark.parametrize("form", ["padded", "batch first", "packed", "tokens", "cells"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_each_part_of_a_state_that_is_not_given_is_zeros(target, form: str, given: tuple[bool, bool]):
    if target.device.type != "cpu":
        pytest.skip("the tensors are on the CPU")
    small = target.name == "triton"  # whose interpreter takes a second
    if small and form in ("batch first", "tokens"):
        pytest.skip("not of the backend's making")
    options: dict[str, Any] = {"num_layers": 2 - small, "bidirectional": not small, "batch_first": form[:5] == "batch"}
    network = nn.LSTM(3, 4, proj_size=2, **options)
    own = {"return_cell_states": True} if form == "cells" else {}
    h0, c0 = (torch.randn(1 if small else 4, 2, units) for units in (2, 4))
    x: Any = torch.tensor([[0, 2], [1, 1], [2, 0]]) if form == "tokens" else torch.randn(*(3, 2), 3)
    x = x.transpose(0, 1) if form == "batch first" else x
    rows = nn.functional.one_hot(x).float() if form == "tokens" else x
    if form == "packed":
        rows = pack_padded_sequence(x, [3, 1])
        x, own["batch_sizes"] = rows.data, rows.batch_sizes
    y, (hn, cn) = network(rows, (h0 * given[0], c0 * given[1]))
    wanted = [y.data if form == "packed" else y, hn, cn]
    hx = (h0 if given[0] else None, c0 if given[1] else None)
    for state, grad in [(hx, False)] if small else itertools.product((hx, [*hx]), (False, True)):
        with torch.set_grad_enabled(grad), fastrnn.use_backend(target.name):
            found = fastrnn.lstm(x, state, network._flat_weights, **options, **own)
        for ours, right in zip(flat(found), wanted, strict=False):
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6, check_layout=False)


@pytest.mark.parametrize("cell", ["", "Cell"])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_modules_take_no_half_a_state_just_as_torchs(kind: str, cell: str):
    h = torch.zeros(2, 4) if cell else torch.zeros(1, 2, 4)
    x = torch.zeros(2, 3) if cell else torch.zeros(5, 2, 3)
    for hx in ((h, None), (None, h), (None, None), [h, None]):
        errors = []
        for library in (nn, fastrnn):
            with pytest.raises(Exception) as caught:
                getattr(library, kind + cell)(3, 4)(x, hx)
            errors.append(caught.type)
        assert errors[0] is errors[1]


def test_what_is_no_tensor_is_named():
    network = nn.LSTM(3, 4)
    x, h, weights = torch.zeros(5, 2, 3), torch.zeros(1, 2, 4), network._flat_weights
    for arguments, name in [
        (([1.0], None, weights), "input"),
        ((None, None, weights), "input"),
        ((x, (h, 1), weights), "hx"),
        ((x, "ab", weights), "hx"),
        ((x, None, [*weights[:3], None]), "weights"),
    ]:
        with pytest.raises(TypeError, match=name):
            fastrnn.lstm(*arguments)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="two hidden states, got 3"):
        fastrnn.lstm(x, (h, h, h), weights)


DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [*FUNCTIONS, "LSTM projected"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_under_autocast_dtypes_are_the_modules(kind: str, dtype: torch.dtype):
    """Whatever input, weights and state are of: both run, with results of the same dtypes, or both raise."""
    needs_torch_under_autocast(kind)
    name, _, projected = kind.partition(" ")
    sizes = (3, 4, 2) if name == "JordanRNN" else (3, 4)
    options = {"proj_size": 2} if projected else {}
    networks = {own: getattr(fastrnn, name)(*sizes, **options).to(own) for own in DTYPES}
    either, tokens = (False, True), torch.tensor([[0, 1], [2, 0]])
    inputs = [tokens, *(torch.ones(2, 2, 3, dtype=own) for own in DTYPES)]
    for packed, x, weights, given, grad in itertools.product(either, inputs, DTYPES, either, either):
        network, function = networks[weights], FUNCTIONS[name]
        state = x.dtype if x.is_floating_point() else weights
        h0, c0 = torch.zeros(1, 2, network.proj_size or 4, dtype=state), torch.zeros(1, 2, 4, dtype=state)
        hx = ((h0, c0) if name == "LSTM" else h0) if given else None
        whole = pack_padded_sequence(x, [2, 1]) if packed else x
        parts: Any = (whole.data, hx, network._flat_weights) if packed else (x, hx, network._flat_weights)
        own = {"batch_sizes": whole.batch_sizes} if packed else {}
        found: list[Any] = []
        with torch.autocast("cpu", dtype), torch.set_grad_enabled(grad):
            for run in (lambda w=whole, s=hx, n=network: n(w, s), lambda p=parts, o=own, f=function: f(*p, **o)):
                try:
                    y, last = run()
                    found.append([each.dtype for each in flat((y if isinstance(y, Tensor) else y.data, last))])
                except (RuntimeError, ValueError) as error:
                    found.append(not isinstance(error, NotImplementedError))
        assert found[0] == found[1], (packed, x.dtype, weights, given, grad)
