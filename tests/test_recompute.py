"""recompute=True: the same results and gradients, of which little is kept for backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Case, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import recompute

STEPS, ROWS, INPUTS, HIDDEN = 7, 3, 2, 3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    """Of two steps, where all of a test's input would fit into one."""
    monkeypatch.setattr(recompute, "CHUNK_ROWS", 2)


def everything(network: Any, x: Any, hx: Any, leaves: list[Tensor]) -> list[Tensor]:
    """Results and gradients, from seeds that are no constants."""
    y, state, *cells = network(x, hx)
    found = [each.data if isinstance(each, PackedSequence) else each for each in (y, *cells)]
    found += state if isinstance(state, tuple) else (state,)
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in found]
    return [*found, *torch.autograd.grad(found, leaves, seeds)]


CASES = [
    Case("both directions", mode, lengths=lengths, directions=2, dtype=torch.float64)
    for mode in ("LSTM", "GRU", "RNN_TANH")
    for lengths in ((), (7, 4, 2))
]
CASES.append(Case("a backend without float64", "GRU", small=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_results_and_gradients(target, case: Case):
    torch.manual_seed(0)
    layers = case.directions
    options = {"num_layers": layers, "bidirectional": layers == 2, "dropout": 0.5 if layers == 2 else 0.0}
    network = getattr(fastrnn, case.mode.removesuffix("_TANH"))(INPUTS, HIDDEN, **options)
    network.to(target.device, case.dtype)
    network.return_cell_states = case.mode == "LSTM"
    x: Any = torch.randn(STEPS, ROWS, INPUTS, dtype=case.dtype, device=target.device, requires_grad=True)
    count = 2 if case.mode == "LSTM" else 1
    hx = [torch.randn(layers * layers, ROWS, HIDDEN).to(x).requires_grad_() for _ in range(count)]
    leaves = [x, *hx, *network.parameters()]
    results = []
    with fastrnn.use_backend(target.name):
        for again in (False, True):
            network.recompute = again
            given = pack_padded_sequence(x, torch.tensor(case.lengths)) if case.lengths else x
            torch.manual_seed(2)  # of the masks between the layers
            results.append(everything(network, given, tuple(hx) if count == 2 else hx[0], leaves))
    for right, ours in zip(*results, strict=True):
        # The same kernels; sums over chunks add up in another order, and so may rows beside fewer others.
        budget = 64 * torch.finfo(case.dtype).eps * max(1.0, right.abs().max().item())
        assert_close(ours, right.double(), budget, case.dtype)


@pytest.mark.parametrize("case", [Case("", dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_derivatives(target, case: Case, packed: bool):
    torch.manual_seed(0)
    network = fastrnn.GRU(2, 2, bidirectional=True, recompute=True).to(target.device, torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64, device=target.device, requires_grad=True)

    def run(x: Tensor, weight: Tensor) -> Any:
        given = PackedSequence(x, torch.tensor([2, 2, 1])) if packed else x.unsqueeze(1)
        y, hn = torch.func.functional_call(network, {"weight_hh_l0": weight}, (given,))
        return y.data if isinstance(y, PackedSequence) else y, hn

    with fastrnn.use_backend(target.name):
        assert torch.autograd.gradcheck(run, (x, network.weight_hh_l0))
        assert torch.autograd.gradgradcheck(run, (x, network.weight_hh_l0))


def saved_bytes(network: nn.Module, x: Tensor, run: Any = None) -> int:
    """What is kept for backward, each storage once, but for the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = (run or network)(x)  # alive until all is counted, so that no storage stands where another stood
    assert results
    return sum(seen.values())


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_keeps_a_fraction_of_what_torch_keeps(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recompute, "CHUNK_ROWS", 64)
    x = torch.randn(64, 16, 32)
    theirs = saved_bytes(getattr(nn, name)(32, 32, **options), x)
    ours = saved_bytes(getattr(fastrnn, name)(32, 32, recompute=True, **options), x)
    assert ours <= 0.4 * theirs


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 8}], ids=str)
def test_cell_states_are_kept_once_and_no_gates(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Asked for all cell states, recomputation keeps no more than these beside what it keeps without."""
    monkeypatch.setattr(recompute, "CHUNK_ROWS", 64)
    x = torch.randn(64, 16, 32)
    lstm = fastrnn.LSTM(32, 32, recompute=True, **options)
    without = saved_bytes(lstm, x)
    lstm.return_cell_states = True
    cells = lstm(x)[2]
    assert saved_bytes(lstm, x) <= without + cells.nbytes


def test_chunks_cover_all_steps_in_order():
    for steps, rows in ((1, 1), (7, 3), (100, 1), (100, 50)):
        bounds = recompute._bounds(torch.empty(steps, rows, 1), None, rows)
        assert [0, *(end for _, end in bounds)] == [*(start for start, _ in bounds), steps]
        assert all(start < end for start, end in bounds)
    assert len(recompute._bounds(torch.empty(100, 50, 1), None, 50)) == 10, "as many as the root of the steps"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # forward-mode derivatives script functions
def test_where_nothing_is_recomputed():
    """Without gradients and under torch.func: as without the option."""
    torch.manual_seed(0)
    network, x = fastrnn.LSTM(INPUTS, HIDDEN, recompute=True), torch.randn(STEPS, ROWS, INPUTS)
    plain = fastrnn.LSTM(INPUTS, HIDDEN)
    plain.load_state_dict(network.state_dict())

    def loss(network: nn.Module) -> Any:
        return lambda parameters, x: torch.func.functional_call(network, parameters, (x,))[0].square().sum()

    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x))
    grads = [
        torch.func.vmap(torch.func.grad(loss(each)), (None, 1))(dict(each.named_parameters()), x.unsqueeze(2))
        for each in (network, plain)
    ]
    torch.testing.assert_close(*grads)
    jacobians = [torch.func.jacfwd(lambda x, each=each: each(x)[0])(x[:2]) for each in (network, plain)]
    torch.testing.assert_close(*jacobians)


def test_under_autocast():
    """Recomputed in the dtype in which it ran, though backward stands outside of autocast."""
    torch.manual_seed(0)
    network, x = fastrnn.LSTM(32, 32), torch.randn(64, 16, 32)
    found, kept = [], []

    def cast(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x)

    for again in (False, True):
        network.recompute = again
        y, _ = cast(x)
        found.append([y.float(), *torch.autograd.grad(y.float().square().sum(), list(network.parameters()))])
        kept.append(saved_bytes(network, x, cast))
    assert kept[1] < kept[0]
    for right, ours in zip(*found, strict=True):
        # Sums of 64 * 16 rows in chunks, each rounded to 8 bits at the scale of the largest of a result.
        assert_close(ours, right.double(), 64 * torch.finfo(torch.bfloat16).eps * right.abs().max().item(), ours.dtype)


def test_with_lengths_resets_and_tokens():
    torch.manual_seed(0)
    table, tokens = torch.randn(5, INPUTS, dtype=torch.float64), torch.randint(5, (STEPS, ROWS))
    network = fastrnn.LSTM(INPUTS, HIDDEN, learn_initial_state=True).double()
    leaves, found = [table.requires_grad_(), *network.parameters()], []
    for again in (False, True):
        network.recompute = again
        y, (hn, _) = network(tokens, lengths=(7, 3, 5), reset=torch.rand(STEPS, ROWS) < 0, embedding=table)
        found.append([y, hn, *torch.autograd.grad(y.square().sum() + hn.sum(), leaves)])
    torch.testing.assert_close(*found)
