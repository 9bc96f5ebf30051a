"""The cells that layers of Keras and nodes of ONNX make, on the engines, Triton's by its interpreter, beside their
equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn.fused import cpp, numba, triton
from fastrnn.interop import cells as chosen

GATE, NEW = ("hard_sigmoid", 0.2, 0.5), ("leaky_relu", 0.1)
CELLS = {
    **dict.fromkeys((chosen.ChosenRNN,), (NEW,)),
    **dict.fromkeys((chosen.ChosenGRU, chosen.ChosenResetBeforeGRU), (GATE, NEW)),
    **dict.fromkeys((chosen.ChosenLSTM, chosen.ChosenPeepholeLSTM), (GATE, NEW, ("softsign",))),
    **dict.fromkeys((chosen.ChosenCoupledLSTM, chosen.ChosenCoupledPeepholeLSTM), (GATE, NEW, ("elu", 0.7))),
}
ENGINES = {"cpp": cpp, "numba": numba, "triton": triton}


def results(net: fastrnn.Network, x: Tensor, backend: str) -> list[Tensor]:
    """The output, the last states, and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    with fastrnn.use_backend(backend):
        y, state = net(x)
        states = state if isinstance(state, tuple) else (state,)
        loss: Any = sum((k + 1) * tensor.sin().sum() for k, tensor in enumerate((y, *states)))
        grads = torch.autograd.grad(loss, [x, *net.parameters()])
    return [y, *states, *grads]


def test_every_cell_is_here():
    named = {cls for cls in vars(chosen).values() if isinstance(cls, type) and issubclass(cls, chosen.Chosen)}
    assert named - {chosen.Chosen} == set(CELLS)


@pytest.mark.parametrize("clip", [float("inf"), 0.4])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("backend", ENGINES)
def test_engines_are_the_equations(backend: str, cell: Any, clip: float):
    """In float64, where rounding alone tells them apart."""
    if reason := ENGINES[backend].unavailable():
        pytest.skip(reason)
    torch.manual_seed(0)
    net = fastrnn.Network(cell(activations=CELLS[cell], clip=clip), 5, 17, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for found, right in zip(results(net, x, backend), results(net, x, "reference"), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
