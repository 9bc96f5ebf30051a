"""Gates that close entirely: sigmoid and tanh over all numbers, and what a layer makes of biases of any size."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from conftest import Target
from support import Inputs, run
from torch import Tensor

import fastrnn
from fastrnn import backends

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GATES = [("LSTM", gate) for gate in "ifgo"] + [("GRU", gate) for gate in "rzn"] + [("RNN_TANH", "h")]
NAMES = {"LSTM": "ifgo", "GRU": "rzn", "RNN_TANH": "h"}

inf, nan = float("inf"), float("nan")
# The least arguments of float32 and float64 with a normal, a denormal, and no sigmoid at all, and the greatest ones.
EDGES = [87.3, 88.4, 88.7, 88.8, 95.0, 103.9, 104.0, 110.5, 110.8, 111.0, 112.0, 128.0]
EDGES += [708.3, 709.8, 740.0, 745.1, 745.2, 753.9, 754.1, 755.0, 1e4, 1e30, 1e300, inf]


def every_size(dtype: torch.dtype) -> Tensor:
    """Numbers of each power of two, the edges and their neighbours, both signs, infinities and NaN."""
    generator = torch.Generator().manual_seed(0)
    powers = torch.arange(-1074.0, 1024.0, 0.25, dtype=torch.float64).exp2()
    dense = torch.rand(4000, generator=generator, dtype=torch.float64) * 800
    small = torch.rand(4000, generator=generator, dtype=torch.float64) * 112
    sizes = torch.cat([powers, dense, small, torch.tensor(EDGES, dtype=torch.float64)]).to(dtype)
    sizes = torch.cat([sizes, sizes.nextafter(torch.zeros_like(sizes))])
    return torch.cat([sizes, -sizes, torch.tensor([0.0, -0.0, nan], dtype=dtype)])


def ulps(found: Tensor, exact: Tensor) -> Tensor:
    """How far off, in units of the last place that the dtype has there: of denormal numbers the least one."""
    info = torch.finfo(found.dtype)
    place = (exact.abs().clamp(min=info.smallest_normal).log2().floor().exp2() * info.eps).clamp(min=5e-324)
    return (found.double() - exact).abs() / place


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("output", ["sigmoid", "tanh"])
@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_sigmoid_and_tanh_are_right_for_every_number(backend: str, output: str, dtype: torch.dtype):
    """To the last denormal number and 0 below it; torch's own sigmoid is 0 a little earlier, where e^-x overflows."""
    if reason := backends.available()[backend]:
        pytest.skip(reason)
    x = every_size(dtype)
    network = fastrnn.JordanRNN(1, 1, len(x), output_nonlinearity=output, dtype=dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.bias_hr_l0.copy_(x)  # type: ignore[operator]
        with fastrnn.use_backend(backend):
            found = network(torch.zeros(1, 1, 1, dtype=dtype))[0].flatten()
    wide = x.double()
    # From the smaller of both exponentials, or the sum would round what is far below 1, or be infinite.
    small = torch.exp(-wide.abs())
    exact = torch.where(wide < 0, small, 1.0) / (1 + small) if output == "sigmoid" else wide.tanh()
    assert torch.equal(found.isnan(), x.isnan())
    off = ulps(found, exact).nan_to_num()
    if backend == "reference":
        off[exact.abs() < 4 * torch.finfo(dtype).smallest_normal] = 0
    if backend == "cpp" and dtype is torch.bfloat16 and importlib.import_module("fastrnn._core").multiplies_bfloat16():
        off[(exact.abs() < torch.finfo(dtype).smallest_normal) & (found == 0)] = (
            0  # its instruction makes zeros of them
        )
    worst = int(off.argmax())
    assert off[worst] <= 4, f"{output}({x[worst]}) is {found[worst]}, not {exact[worst]}"
    if output == "sigmoid":
        assert (found[x < -746] == 0).all() and (found[x >= 40] == 1).all() and not found.signbit()[~x.isnan()].any()
        assert dtype is torch.float64 or (found[x <= -104] == 0).all()
    else:
        assert (found[x.abs() >= 20] == x.sign()[x.abs() >= 20]).all()


def layer(mode: str, gate: str, biases: Tensor, behind: float, seed: float, steps: int) -> Inputs:
    """A layer of units that see nothing but their own biases: of one gate those given, of the others 0.25.

    ``behind`` is what an LSTM's f, a GRU's z or r multiplies: c0, h0 or the bias of n.
    """
    units, place, dtype = len(biases), NAMES[mode].index(gate), biases.dtype
    rows = len(NAMES[mode]) * units
    zeros = {"dtype": dtype, "device": biases.device}
    weights = [torch.zeros(rows, 2, **zeros), torch.zeros(rows, units, **zeros)]
    weights += [torch.zeros(rows, **zeros), torch.full((rows,), 0.25, **zeros)]
    weights[2][place * units : (place + 1) * units] = biases
    has_c = mode == "LSTM"
    if gate == "r":
        weights[3][2 * units :] = behind
    first = torch.full((1, 2, units), behind if gate in "fz" else 0.5, **zeros)
    grads = [torch.full(size, seed, **zeros) for size in ((steps, 2, units), (1, 2, units), (1, 2, units))]
    h0 = torch.full_like(first, 0.5) if has_c else first
    x = torch.ones(steps, 2, 2, **zeros)
    return Inputs(mode, x, None, h0, first if has_c else None, weights, *grads[:2], grads[2] if has_c else None)


def exact(inputs: Inputs, units: int) -> dict[str, Tensor]:
    """The results in float64, step by step, each derivative written so that no product of it overflows."""
    mode, names = inputs.mode, NAMES[inputs.mode]
    biases = inputs.weights[2].double().view(len(names), units)
    fed_back = inputs.weights[3].double().view(len(names), units)
    steps, h, c = inputs.x.shape[0], inputs.h0[0].double(), None if inputs.c0 is None else inputs.c0[0].double()
    sums = dict(zip(names, biases + fed_back, strict=True))
    value = {name: (torch.tanh if name in "gnh" else torch.sigmoid)(sums[name]) for name in names}
    slope = {name: 1 - v * v if name in "gnh" else v * torch.sigmoid(-sums[name]) for name, v in value.items()}
    if mode == "GRU":
        value["n"] = torch.tanh(biases[2] + value["r"] * fed_back[2])
        slope["n"] = 1 - value["n"] ** 2
    before, ys = [], []
    for _ in range(steps):
        before.append((h, c))
        if mode == "LSTM":
            c = value["f"] * c + value["i"] * value["g"]
            h = value["o"] * c.tanh()
        elif mode == "GRU":
            h = (1 - value["z"]) * value["n"] + value["z"] * h
        else:
            h = value["h"].expand_as(h)
        ys.append(h)
    before.append((h, c))
    grads = {name: torch.zeros(units, dtype=torch.float64) for name in names}
    dh = inputs.grad_hn[0].double()  # type: ignore[index]
    dc = None if c is None else inputs.grad_cn[0].double()  # type: ignore[index]
    for s in reversed(range(steps)):
        dh = dh + inputs.grad_y[s].double()  # type: ignore[index]
        h, c = before[s]
        if mode == "LSTM":
            t = before[s + 1][1].tanh()
            dc = dc + dh * value["o"] * (1 - t * t)
            found = {"i": dc * (value["g"] * slope["i"]), "f": dc * (c * slope["f"])}
            found |= {"g": dc * value["i"] * slope["g"], "o": dh * t * slope["o"]}
            dh, dc = torch.zeros_like(dh), dc * value["f"]
        elif mode == "GRU":
            d_n = dh * (1 - value["z"]) * slope["n"]
            found = {"r": d_n * (fed_back[2] * slope["r"]), "z": dh * ((h - value["n"]) * slope["z"]), "n": d_n}
            dh = dh * value["z"]
        else:
            found, dh = {"h": dh * slope["h"]}, torch.zeros_like(dh)
        for name, grad in found.items():
            grads[name] += grad.sum(0)
    results = {"y": torch.stack(ys), "hn": ys[-1][None], "grad h0": dh[None]}
    results["grad weights[2]"] = torch.cat([grads[name] for name in names])
    if mode == "LSTM":
        results |= {"cn": before[-1][1][None], "grad c0": dc[None]}
    return results


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize(("mode", "gate"), GATES, ids=str)
def test_closed_and_open_gates_are_right_forward_and_backward(target: Target, mode: str, gate: str, dtype: torch.dtype):
    """A gate that is shut lets nothing of the largest number through, and no gradient becomes 0 times infinity."""
    if target.name == "triton" and dtype is not torch.float32:
        pytest.skip("its kernels are of float32 whatever the tensors are")
    if reason := backends.unsupported(target.module, target.device, dtype, mode):
        pytest.skip(reason)
    sizes = [1.0, 9.0, 17.0, 40.0, 89.0, 112.0, 800.0, 1e30, inf]
    shut = [-size for size in (800.0, 1e30, inf, *((104.0, 110.8, 111.0) if dtype is not torch.float64 else ()))]
    huge = torch.finfo(dtype).max / 4
    seed = 1.0 if target.name == "reference" else 16.0  # torch multiplies the gradient first, which overflows here
    cases = [([*sizes, *(-size for size in sizes)], 0.5, 2.0)] + [(shut, huge, seed)] * (gate in "fzr")
    for biases, behind, seed in cases:
        given = torch.tensor(biases, dtype=torch.float64).to(dtype)
        inputs = layer(mode, gate, given, behind, seed, steps=2).map(target.move)
        results, wanted = run(target.module, inputs), exact(inputs.map(Tensor.cpu), len(biases))
        for name, right in wanted.items():
            found = results[name].cpu().double()
            # A few roundings of each element and, where numbers of order 1 cancel, of 1.
            budget = 16 * torch.finfo(dtype).eps * (right.abs() + (8 * seed if "grad" in name else 1))
            wrong = ~((found - right).abs() <= budget) & (found != right)
            where = wrong.nonzero()[:1].tolist()
            assert not wrong.any(), f"{name} at {where}: {found[wrong][0]} where {right[wrong][0]} is right"


@pytest.mark.parametrize(("mode", "gate"), GATES, ids=str)
def test_a_gate_of_nan_is_nan(target: Target, mode: str, gate: str):
    biases = torch.tensor([0.5, nan, -0.5])
    results = run(target.module, layer(mode, gate, biases, 0.5, 1.0, steps=1).map(target.move))
    for name in ("y", "hn"):
        assert results[name].isnan().all(-2).flatten().tolist() == [False, True, False]
        assert results[name].isnan().any(-2).flatten().tolist() == [False, True, False]


CLOSED = [-104.0, -111.0, -800.0, -1e30, -inf]


@pytest.mark.parametrize("form", ["layer", "steps", "grad", "cell", "packed", "int8", "int8 cell", "compilable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_form_of_a_call_shuts_its_forget_gate(form: str, dtype: torch.dtype):
    """An LSTM forgets c0, and a GRU whose z is open keeps h0, whichever way the call takes to the kernels."""
    if "int8" in form and dtype is not torch.float32:
        pytest.skip("weights of 8 bits stand beside float32")
    closed = CLOSED[2 * (dtype is torch.float64) :]
    for kind, opened in itertools.product(("LSTM", "GRU"), (False, True)):
        rows, units = 3, len(closed)
        cell = "cell" in form
        network = getattr(fastrnn, f"{kind}{'Cell' * cell}")(2, units, dtype=dtype)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.zero_()
                if "bias_ih" in name:  # f of i, f, g, o; z of r, z, n
                    parameter[units : 2 * units] = torch.tensor(closed) * (-1 if opened else 1)
        if form == "compilable":
            network = fastrnn.convert(network, compilable=True)
        if "int8" in form:
            network = fastrnn.quantize_dynamic(network)
        steps = 1 if form == "layer" or cell else 3
        x = torch.zeros(steps, rows, 2, dtype=dtype)
        large = 1e38 if kind == "LSTM" else 0.75  # int8 products want a scale that is a number
        state = torch.full((1, rows, units), large, dtype=dtype)
        hx = (torch.zeros_like(state), state) if kind == "LSTM" else state
        with torch.set_grad_enabled(form == "grad"):
            if cell:
                hx = (hx[0][0], hx[1][0]) if kind == "LSTM" else hx[0]
                last = network(x[0], hx)
                last = last[1] if kind == "LSTM" else last
            else:
                input = torch.nn.utils.rnn.pack_padded_sequence(x, [steps] * rows) if form == "packed" else x
                last = network(input, hx)[1]
                last = last[1] if kind == "LSTM" else last
        right = large if opened else 0.0
        assert (last == torch.tensor(right, dtype=dtype)).all(), (kind, opened, last)
