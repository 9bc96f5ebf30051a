"""What makes no `Network`, calls of one that are none, and graphs that cannot be: the error says what was expected."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import Network, cells
from fastrnn.fused import cpp

T, B, X, H = 6, 3, 4, 5


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_torch_jit_script_is_refused():
    with pytest.raises(NotImplementedError, match=r"torch.jit.script knows no Network of LSTM\(\)"):
        torch.jit.script(Network(cells.LSTM, X, H))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_trace_is_refused():
    net = Network(cells.LSTM, X, H)
    with pytest.raises(NotImplementedError, match="a trace would hold T"):
        torch.jit.trace(net, (torch.randn(T, B, X),))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda net: net(torch.randn(T, B, X + 1)), RuntimeError, "Expected 4, got 5"),
        (lambda net: net(torch.randn(T, B, X, 1)), ValueError, "2D or 3D, got 4D"),
        (lambda net: net(torch.randn(T, B, X).double()), ValueError, "float32"),
        (lambda net: net(torch.randn(T, B, X), torch.zeros(1, B, H)), RuntimeError, "expected 2 states, h, c, got 1"),
        (lambda net: net(torch.randn(T, B, X), (torch.zeros(1, B, H),) * 3), RuntimeError, "expected 2 states"),
        (lambda net: net(torch.randn(T, B, X), (torch.zeros(1, B, H), torch.zeros(1, B, 9))), RuntimeError, "state c"),
        (lambda net: net(torch.randn(T, B, X), t=torch.zeros(T, B)), TypeError, "'t'"),
        (lambda net: net([1.0]), TypeError, "list"),
        (lambda net: net(torch.randn(0, B, X)), RuntimeError, "sequence length"),
        (lambda net: net(torch.randn(T, B, X), embedding=3), TypeError, "int"),
    ],
)
def test_wrong_calls_are_refused_with_what_was_expected(call, error, words):
    net = Network(cells.LSTM, X, H)
    with pytest.raises(error, match=words):
        call(net)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Network(nn.LSTM, X, H), TypeError, "type"),
        (lambda: Network(cells.LSTM, 0, H), ValueError, "input_size"),
        (lambda: Network(cells.LSTM, X, H, num_layers=0), ValueError, "num_layers"),
        (lambda: Network(cells.LSTM, X, H, dropout=1.5), ValueError, "dropout"),
        (lambda: Network(cells.LSTM, X, H, bias=1), TypeError, "bias"),
        (lambda: Network(cells.LSTM, X, H, proj_size=3), TypeError, "proj_size"),
        (lambda: Network(cells.LSTM, X, 2.0), TypeError, "hidden_size"),
    ],
)
def test_what_makes_no_network_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.skipif(bool(cpp.unavailable()), reason=str(cpp.unavailable()))
def test_a_backend_that_cannot_serve_says_why():
    net = Network(cells.LSTM, X, H, device="meta")
    with fastrnn.use_backend("cpp"), pytest.raises(fastrnn.BackendError, match="float32 on meta"):
        net(torch.randn(T, B, X, device="meta"))
