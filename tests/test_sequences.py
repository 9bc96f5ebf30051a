"""lengths= and reset=: every piece gives what it gives alone, and padding is never seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Case, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn

STEPS, ROWS, INPUTS, HIDDEN = 6, 3, 2, 3
LENGTHS = (4, 6, 1)
RESET = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()
FIRST = RESET.roll(1, 0) & (torch.arange(STEPS)[:, None] == 0)
BOUNDS = {
    "lengths": (LENGTHS, None),
    "reset": (None, RESET),
    "both": (LENGTHS, RESET),
    "nothing cut": ((STEPS,) * ROWS, FIRST),
}


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(fastrnn, name)(INPUTS, HIDDEN, **options).double()


def as_tuple(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def pieces_alone(
    network: Any, x: Tensor, hx: Any, lengths: tuple[int, ...] | None, reset: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What the network gives for one piece after the other, from x (T, B, I), with zeros in the padding."""
    width = 2 if network.bidirectional else 1
    ys, ends = [], []
    for row in range(x.shape[1]):
        end = len(x) if lengths is None else lengths[row]
        cuts = [0] if reset is None else [t for t in range(end) if t == 0 or reset[t, row]]
        outputs, finals = [], []
        for start, stop in zip(cuts, [*cuts[1:], end], strict=True):
            states = []
            for given in as_tuple(hx):
                state = torch.zeros_like(given[:, [row]])
                if start == 0 and not (reset is not None and reset[0, row]):
                    state[::width] = given[::width, [row]]
                if stop == end and width == 2:
                    state[1::2] = given[1::2, [row]]
                states.append(state)
            y, last = network(x[start:stop, [row]], tuple(states) if isinstance(hx, tuple) else states[0])
            outputs.append(y)
            finals.append(as_tuple(last))
        ys.append(torch.cat([*outputs, x.new_zeros(len(x) - end, 1, outputs[0].shape[2])]))
        merged = []
        for first, last in zip(finals[0], finals[-1], strict=True):
            merged.append(last.clone())
            if width == 2:
                merged[-1][1::2] = first[1::2]
        ends.append(merged)
    return torch.cat(ys, 1), tuple(torch.cat(parts, 1) for parts in zip(*ends, strict=True))


def gradients(results: tuple[Tensor, Any], leaves: list[Tensor]) -> list[Tensor]:
    """With seeds that are no constants, and not zero in the padding either."""
    found = [results[0], *as_tuple(results[1])]
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in found]
    return [*found, *torch.autograd.grad(found, leaves, seeds)]


CASES = [
    Case("each cell", mode, directions=directions, dtype=torch.float64)
    for mode, directions in (("LSTM", 2), ("GRU", 2), ("RNN_TANH", 1))
] + [Case("a backend without float64", "LSTM", small=True)]


@pytest.mark.parametrize(
    ("case", "bounds"), [(case, bounds) for case in CASES for bounds in BOUNDS if not case.small or bounds == "both"]
)
def test_equals_the_pieces_alone(target, case: Case, bounds: str):
    lengths, reset = BOUNDS[bounds]
    layers = case.directions
    network = build(case.mode.removesuffix("_TANH"), num_layers=layers, bidirectional=case.directions == 2)
    exact, leaves = network, []
    x = torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64)
    shape = layers * case.directions, ROWS, HIDDEN
    hx = tuple(torch.randn(shape, dtype=torch.float64) for _ in range(1 + (case.mode == "LSTM")))
    right: list[Tensor] = []
    for dtype, device in ((torch.float64, "cpu"), (case.dtype, target.device)):
        network = exact if not right else build(type(exact).__name__, num_layers=layers, bidirectional=layers == 2)
        network.load_state_dict(exact.state_dict())
        network.to(device, dtype)
        leaves = [tensor.to(device, dtype).requires_grad_() for tensor in (x, *hx)]
        state = tuple(leaves[1:]) if len(hx) == 2 else leaves[1]
        leaves += network.parameters()
        if not right:
            with fastrnn.use_backend("reference"):
                right = gradients(pieces_alone(network, leaves[0], state, lengths, reset), leaves)
    with fastrnn.use_backend(target.name):
        found = gradients(network(leaves[0], state, lengths=lengths, reset=reset), leaves)
    for ours, exactly in zip(found, right, strict=True):
        # Rounding of at most T steps and sums of T * B rows, at the scale of the largest of a result.
        budget = 64 * torch.finfo(case.dtype).eps * max(1.0, exactly.abs().max().item())
        assert_close(ours, exactly, budget, case.dtype)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_one_step_of_a_stream(kind: str, single: bool, learned: bool):
    """Nothing is packed there; a NaN that a row carried is gone where it begins anew."""
    network = build(kind, num_layers=2, bidirectional=True, learn_initial_state=learned)
    x, reset = torch.randn(1, ROWS, INPUTS, dtype=torch.float64), torch.tensor([[False, True, False]])
    hx = tuple(torch.randn(4, ROWS, HIDDEN, dtype=torch.float64) for _ in range(1 + (kind == "LSTM")))
    fresh = [getattr(network, name) if learned else None for name in ("initial_h", "initial_c")[: len(hx)]]
    begun = [state.clone() for state in hx]
    for state, given, first in zip(begun, hx, fresh, strict=True):
        state[::2, 1] = 0 if first is None else first[::2].detach()
        given[::2, 1] = torch.nan
    if single:  # one sequence, the one that begins anew
        x, reset, hx, begun = x[:, 1], reset[:, 1], [s[:, 1] for s in hx], [s[:, 1] for s in begun]
    given, expected = (tuple(s) if kind == "LSTM" else s[0] for s in (hx, begun))
    for gradients_on in (False, True):
        with torch.set_grad_enabled(gradients_on):
            found, right = network(x, given, reset=reset), network(x, expected)
        # Sums of a handful of terms, which another path may add up in another order; NaN is near nothing.
        for ours, exactly in zip((found[0], *as_tuple(found[1])), (right[0], *as_tuple(right[1])), strict=True):
            torch.testing.assert_close(ours, exactly, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("case", [Case("", dtype=torch.float64)], ids=str)
def test_derivatives(target, case: Case):
    network = fastrnn.GRU(INPUTS, 2, bidirectional=True).to(target.device, torch.float64)
    x = torch.randn(4, 2, INPUTS, dtype=torch.float64, device=target.device, requires_grad=True)
    hx = torch.randn(2, 2, 2, dtype=torch.float64, device=target.device, requires_grad=True)

    def run(x: Tensor, hx: Tensor, weight: Tensor) -> Any:
        options = {"lengths": (4, 2), "reset": RESET[1:5, :2]}
        return torch.func.functional_call(network, {"weight_hh_l0": weight}, (x, hx), options)

    with fastrnn.use_backend(target.name):
        assert torch.autograd.gradcheck(run, (x, hx, network.weight_hh_l0))
        if target.name == "reference":
            assert torch.autograd.gradgradcheck(run, (x, hx, network.weight_hh_l0))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # forward-mode derivatives script functions
def test_function_transforms():
    try:
        torch.func.jacrev(lambda x: x * torch.arange(3).cumsum(0).tolist()[1])(torch.ones(1))
    except RuntimeError as error:
        pytest.skip(f"this torch reads no value of a tensor made inside jacrev: {error}")
    network, x = build("GRU"), torch.randn(3, STEPS, 2, INPUTS, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        return network(x, lengths=(6, 3), reset=RESET[:, :2])[0]

    torch.testing.assert_close(torch.func.vmap(run)(x), torch.stack([run(each) for each in x]))
    backward, forward = torch.func.jacrev(run)(x[0]), torch.func.jacfwd(run)(x[0])
    torch.testing.assert_close(backward, forward)
    torch.testing.assert_close(backward, torch.autograd.functional.jacobian(run, x[0]))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_lengths_are_packing(name: str):
    network, x = build(name, num_layers=2, bidirectional=True), torch.randn(STEPS + 1, ROWS, INPUTS).double()
    packed, state = network(pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False))
    y = pad_packed_sequence(packed, total_length=STEPS + 1)[0]
    for lengths in (LENGTHS, list(LENGTHS), torch.tensor(LENGTHS), torch.tensor(LENGTHS, dtype=torch.int32)):
        torch.testing.assert_close(network(x, lengths=lengths), (y, state))


@pytest.mark.parametrize("bounds", BOUNDS)
def test_nothing_is_seen_of_padding(bounds: str):
    lengths, reset = BOUNDS[bounds]
    network, x = build("LSTM", bidirectional=True), torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64)
    padding = torch.arange(STEPS).unsqueeze(1) >= torch.tensor(lengths or (STEPS,) * ROWS)
    spoilt = x.masked_fill(padding.unsqueeze(2), float("nan")).requires_grad_()
    y, (hn, cn) = network(spoilt, lengths=lengths, reset=reset)
    assert (y[padding] == 0).all() and y.isfinite().all() and hn.isfinite().all() and cn.isfinite().all()
    y.backward(torch.randn_like(y).masked_fill(padding.unsqueeze(2), float("nan")))
    assert spoilt.grad is not None and (spoilt.grad[padding] == 0).all() and spoilt.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    y.detach().add_(1)  # the result is no view of anything


@pytest.mark.parametrize("steps, rows", [(1, 1), (1, 4), (5, 1)])
def test_one_step_and_one_row(steps: int, rows: int):
    network, x = build("LSTM", bidirectional=True), torch.randn(steps, rows, INPUTS, dtype=torch.float64)
    hx = (torch.randn(2, rows, HIDDEN, dtype=torch.float64), torch.randn(2, rows, HIDDEN, dtype=torch.float64))
    reset = torch.arange(steps * rows).view(steps, rows) % 2 == 0
    y, state = pieces_alone(network, x, hx, (steps,) * rows, reset)
    torch.testing.assert_close(network(x, hx, lengths=[steps] * rows, reset=reset), (y, state))
    torch.testing.assert_close(network(x, hx, reset=torch.zeros_like(reset)), network(x, hx))


def test_batch_first_and_unbatched():
    network, x = build("LSTM", batch_first=True), torch.randn(ROWS, STEPS, INPUTS, dtype=torch.float64)
    turned = build("LSTM")
    y, state = turned(x.transpose(0, 1), lengths=LENGTHS, reset=RESET)
    torch.testing.assert_close(network(x, lengths=LENGTHS, reset=RESET.t()), (y.transpose(0, 1), state))
    hx = (torch.randn(1, HIDDEN, dtype=torch.float64),) * 2
    alone = network(x[1], hx, lengths=LENGTHS[1], reset=RESET[:, 1])
    y, (hn, cn) = turned(x[1].unsqueeze(1), [h.unsqueeze(1) for h in hx], lengths=LENGTHS[1:2], reset=RESET[:, 1:2])
    torch.testing.assert_close(alone, (y.squeeze(1), (hn.squeeze(1), cn.squeeze(1))))


def test_with_tokens_dropout_and_autocast():
    table, tokens = torch.randn(5, INPUTS, dtype=torch.float64), torch.randint(5, (STEPS, ROWS))
    network = build("GRU", num_layers=2, dropout=0.5)
    torch.manual_seed(1)
    expected = network(table[tokens], lengths=LENGTHS, reset=RESET)
    torch.manual_seed(1)
    torch.testing.assert_close(network(tokens, lengths=LENGTHS, reset=RESET, embedding=table), expected)
    network, x = fastrnn.LSTM(INPUTS, HIDDEN), torch.randn(STEPS, ROWS, INPUTS)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x, lengths=LENGTHS)[0], pad_packed_sequence(network(packed)[0])[0])


def outcome(function: Any, *arguments: Any, **options: Any) -> tuple[type, str]:
    with pytest.raises(Exception) as error:
        function(*arguments, **options)
    return error.type, str(error.value)


def test_errors():
    network, x = build("LSTM"), torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64)
    zero = torch.tensor([3, 0, 2])
    assert outcome(network, x, lengths=zero) == outcome(pack_padded_sequence, x, zero, enforce_sorted=False)
    for lengths, message in (((7, 1, 1), "at most the 6 steps"), ((1, 2), "3 integers"), ((1.0, 2.0, 3.0), "float")):
        with pytest.raises((RuntimeError, ValueError), match=message):
            network(x, lengths=lengths)
    for reset, message in ((RESET.t(), r"\[6, 3\], got torch.bool of size \[3, 6\]"), (RESET.int(), "int32")):
        with pytest.raises(ValueError, match=message):
            network(x, reset=reset)
    packed = pack_padded_sequence(x, torch.tensor([6, 4, 1]))
    for options in ({"lengths": LENGTHS}, {"reset": RESET}):
        with pytest.raises(ValueError, match="PackedSequence has lengths of its own"):
            network(packed, **options)
    theirs = nn.LSTM(INPUTS, HIDDEN).double()
    for bad in (torch.zeros(1, 2, HIDDEN).double(), torch.zeros(1, ROWS, 9).double(), torch.zeros(2, ROWS, HIDDEN)):
        assert outcome(network, x, (bad, bad), lengths=LENGTHS) == outcome(theirs, x, (bad, bad))
    assert outcome(network, x[..., :1], reset=RESET)[0] is RuntimeError
    assert outcome(network, x[:0], reset=RESET[:0]) == outcome(theirs, x[:0])


def test_hooks_see_the_call_and_not_the_pieces():
    network, x = build("GRU"), torch.randn(STEPS, ROWS, INPUTS, dtype=torch.float64)
    seen = []
    network.register_forward_hook(lambda module, args, output: seen.append(output))
    network(x, reset=RESET)
    assert len(seen) == 1 and not isinstance(seen[0][0], PackedSequence)
