"""JordanRNN against its equations, written as a loop over single steps, on the backends that have its cells."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import assert_close
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import backends, recompute
from fastrnn.modes import OUTPUTS

FUNCTIONS = {"identity": lambda x: x, "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}
BACKENDS = [name for name in backends.NAMES if "JORDAN_TANH_IDENTITY" in backends.load(name).MODES]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    if reason := backends.available()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    with fastrnn.use_backend(request.param):
        yield request.param


def loop(network: fastrnn.JordanRNN, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """Equations of JordanRNN, step after step: x (T, B, I) -> outputs (T, B, D*P), last outputs."""
    f, g = FUNCTIONS[network.nonlinearity], FUNCTIONS[network.output_nonlinearity]
    own = dict(network.named_parameters())
    last = []
    for layer in range(network.num_layers):
        sides = []
        for d, end in enumerate(("", "_reverse")[: 2 if network.bidirectional else 1]):
            part = {name: own.get(f"{name}_l{layer}{end}", torch.zeros(())) for name in
                    ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh", "bias_hr")}  # fmt: skip
            h, outputs = hx[layer * (network.bidirectional + 1) + d], []
            for step in x.flip(0) if d else x:
                u = f(step @ part["weight_ih"].T + part["bias_ih"] + h @ part["weight_hh"].T + part["bias_hh"])
                h = g(u @ part["weight_hr"].T + part["bias_hr"])
                outputs.append(h)
            sides.append(torch.stack(outputs[::-1] if d else outputs))
            last.append(h)
        x = torch.cat(sides, -1)
    return x, torch.stack(last)


def gradients(y: Tensor, hn: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    seeds = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, hn)]
    return list(torch.autograd.grad([y, hn], leaves, seeds))


OPTIONS: list[dict[str, Any]] = [
    {"hidden": 9, "outputs": 4},
    {"hidden": 33, "outputs": 33, "nonlinearity": "relu", "bias": False},
    {"hidden": 5, "outputs": 70, "num_layers": 2, "bidirectional": True},
]
DTYPES = torch.float32, torch.float64


def cases() -> Iterator[Any]:
    """Numba compiles a kernel for each pair of functions and each dtype, up to 15 seconds long: the quick suite has
    those of the other tests, and in float32 sigmoid and relu of the output and relu with the identity; test_gates.py
    has the values of the functions in both dtypes."""
    for backend, options, output, dtype in itertools.product(BACKENDS, OPTIONS, OUTPUTS, DTYPES):
        few = dtype == DTYPES[0] and output in ("sigmoid", "relu")
        plain = output == "identity" or "nonlinearity" not in options and few
        marks = () if plain or backend != "numba" else pytest.mark.slow
        name = f"{backend}-{dtype}-H{options['hidden']}-P{options['outputs']}-{output}"
        yield pytest.param(backend, options, output, dtype, marks=marks, id=name)


@pytest.mark.parametrize(("backend", "options", "output", "dtype"), list(cases()), indirect=["backend"])
def test_is_its_equations(backend: str, options: dict[str, Any], output: str, dtype: torch.dtype):
    torch.manual_seed(0)
    options = dict(options)
    sizes = options.pop("hidden"), options.pop("outputs")
    network = fastrnn.JordanRNN(3, *sizes, output_nonlinearity=output, **options).to(dtype)
    x = torch.randn(6, 4, 3, dtype=dtype, requires_grad=True)
    layers = network.num_layers * (1 + network.bidirectional)
    hx = torch.randn(layers, 4, sizes[1], dtype=dtype, requires_grad=True)

    def everything(run, network, x, hx) -> list[Tensor]:
        y, hn = run(network, x, hx)
        return [y.detach(), hn.detach(), *gradients(y, hn, [x, hx, *network.parameters()])]

    def in_double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_()

    exact = everything(loop, copy.deepcopy(network).double(), in_double(x), in_double(hx))
    rounded = everything(loop, network, x, hx)
    found = everything(lambda network, x, hx: network(x, hx), network, x, hx)
    eps = torch.finfo(dtype).eps
    for k, (ours, theirs, right) in enumerate(zip(found, rounded, exact, strict=True)):
        scale = right.abs().max().item()
        # As in support.expect; in float64 the loop is exact by definition, so its noise is taken from its length.
        noise = (theirs.double() - right).abs().max().item() if dtype == torch.float32 else 8 * eps * scale
        assert_close(ours, right, 2 * (noise + 2 * eps * scale), dtype, f"result {k}")


def test_packed_is_each_sequence_alone(backend: str):
    torch.manual_seed(0)
    network = fastrnn.JordanRNN(3, 8, 5, bidirectional=True, output_nonlinearity="sigmoid").double()
    pieces = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 6, 1, 4)]
    y, hn = network(pack_sequence(pieces, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(y)
    for k, piece in enumerate(pieces):
        alone, last = network(piece)
        torch.testing.assert_close(padded[: lengths[k], k], alone)
        torch.testing.assert_close(hn[:, k], last)


def test_forms_and_states(backend: str):
    torch.manual_seed(0)
    network = fastrnn.JordanRNN(3, 8, 5, num_layers=2, batch_first=True).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    whole, last = network(x)
    first, middle = network(x[:, :2])
    second, end = network(x[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[0], whole)
    again = copy.deepcopy(network)
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(x)[0], whole, rtol=0, atol=0)


def test_tokens_stand_for_one_hot_rows(backend: str):
    if not backends.load(backend).TOKENS:
        pytest.skip(f"{backend} takes no tokens")
    torch.manual_seed(0)
    network = fastrnn.JordanRNN(7, 8, 5, bidirectional=True).double()
    tokens = torch.randint(7, (6, 4))
    rows = F.one_hot(tokens, 7).double()
    forms = (tokens, rows), (tokens[:, 1], rows[:, 1]), (pack_sequence([*tokens]), pack_sequence([*rows]))
    for given, meant in forms:
        found, expected = network(given), network(meant)
        torch.testing.assert_close(found, expected)
        parameters = list(network.parameters())
        grads = [torch.autograd.grad(hn.square().sum(), parameters) for _, hn in (found, expected)]
        torch.testing.assert_close(*grads)


def test_second_derivatives(backend: str):
    torch.manual_seed(0)
    network = fastrnn.JordanRNN(2, 3, 2, output_nonlinearity="sigmoid").double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*network.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_options(backend: str, monkeypatch: pytest.MonkeyPatch):
    """Lengths, resets, an embedding, a learned state and recomputation: each against its plain equivalent."""
    monkeypatch.setattr(recompute, "CHUNK_ROWS", 2)
    torch.manual_seed(0)
    network = fastrnn.JordanRNN(3, 8, 5, bidirectional=True, learn_initial_state=True).double()
    assert repr(network) == "JordanRNN(3, 8, 5, bidirectional=True, learn_initial_state=True)"
    assert network.initial_h.shape == (2, 5) and not network.initial_h.any()
    network.reset_parameters()
    assert not network.initial_h.any()
    network.initial_h.data.uniform_(-1, 1)
    table, tokens = torch.randn(7, 3, dtype=torch.float64, requires_grad=True), torch.randint(7, (6, 4))
    x, reset = table[tokens], torch.zeros(6, 4, dtype=torch.bool)
    reset[4] = True
    y, hn = network(x, lengths=(6, 2, 6, 6), reset=reset)
    torch.testing.assert_close(y[4:, 0], network(x[4:, 0])[0])
    torch.testing.assert_close(y[:4, 2], network(x[:4, 2], network.initial_h)[0])
    torch.testing.assert_close(hn[0, 1], network(x[:2, 1])[1][0])
    assert (y[2:, 1] == 0).all()
    found = []
    for again, given in ((False, {}), (True, {}), (False, {"embedding": table})):
        network.recompute = again
        y, hn = network(tokens if given else table[tokens], **given)
        found.append([y, hn, *torch.autograd.grad(y.square().sum() + hn.sum(), [table, *network.parameters()])])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_matrices_begin_within_the_root_of_their_columns():
    network = fastrnn.JordanRNN(900, 400, 100)
    columns = {"weight_ih_l0": 900, "weight_hh_l0": 100, "weight_hr_l0": 400}
    for name, parameter in network.named_parameters():
        bound = columns.get(name, 400) ** -0.5  # of a bias by the hidden units
        # The largest of n >= 100 uniform draws is below 0.6 of the bound with probability 0.6^100 = 7e-23.
        assert 0.6 * bound < parameter.abs().max() <= bound, name


def test_errors():
    with pytest.raises(ValueError, match="return_cell_states is for an LSTM"):
        network = fastrnn.JordanRNN(3, 8, 5)
        network.return_cell_states = True
        network(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match="output_nonlinearity"):
        fastrnn.JordanRNN(1, 1, 1, output_nonlinearity="gelu")
    with pytest.raises(ValueError, match="greater than zero"):
        fastrnn.JordanRNN(1, 0, 1)
    with pytest.raises(TypeError, match="type int"):
        fastrnn.JordanRNN(1, 1.5, 1)  # pyright: ignore[reportArgumentType]
    network = fastrnn.JordanRNN(3, 8, 5)
    with pytest.raises(RuntimeError, match=r"\(1, 4, 5\).*\[1, 4, 8\]"):
        network(torch.randn(2, 4, 3), torch.randn(1, 4, 8))
    with pytest.raises(RuntimeError, match="Expected .*3.*got 2"):
        network(torch.randn(2, 4, 2))
    with fastrnn.use_backend("cpp"), pytest.raises(fastrnn.BackendError, match="on meta"):
        network.to("meta")(torch.randn(2, 4, 3, device="meta"))


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_a_closed_relu_hands_on_no_gradient_whatever_it_is(backend: str):
    """Of a step whose output relu has closed the gradient is 0, though that of the step after it is NaN."""
    if reason := fastrnn.backends.available()[backend]:
        pytest.skip(reason)
    network = fastrnn.JordanRNN(1, 1, 3, output_nonlinearity="relu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
        network.bias_hr_l0.fill_(-9.0)  # type: ignore[union-attr]
    x = torch.tensor([0.5, float("nan")]).view(2, 1, 1).requires_grad_()
    with fastrnn.use_backend(backend):
        y, _ = network(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
    assert (y[0] == 0).all() and y[1].isnan().all()
    assert grad[0].item() == 0 and grad[1].isnan()
