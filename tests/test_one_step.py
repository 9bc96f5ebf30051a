"""One step that is trained: by torch's function where it is the ordinary call, with torch.nn's numbers and errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastrnn
from fastrnn import cell_modules, modules
from fastrnn.backends import cpp

CELLS: list[tuple[str, dict[str, Any]]] = [
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    ("LSTMCell", {}),
    ("GRUCell", {"bias": False}),
    ("GRUCell", {"dtype": torch.float64}),
]
LAYERS: list[tuple[str, int, dict[str, Any]]] = [
    ("RNN", 1, {}),
    ("RNN", 3, {"nonlinearity": "relu", "num_layers": 2, "bias": False}),
    ("RNN", 2, {"bidirectional": True, "batch_first": True}),
    ("GRU", 1, {"num_layers": 2, "dropout": 0.5}),
    ("GRU", 1, {"bidirectional": True, "batch_first": True, "dtype": torch.float64}),
]


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]


def is_ours(outputs: list[Tensor]) -> bool:
    def ours(node: Any) -> bool:
        name = type(node).__name__
        return name.startswith(("_Layer", "_Stack")) or ("Squeeze" in name and ours(node.next_functions[0][0]))

    return any(ours(output.grad_fn) for output in outputs)


def both(kind: str, sizes: tuple[int, int], options: dict[str, Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(*sizes, **options)
    ours = getattr(fastrnn, kind)(*sizes, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def everything(module: Any, x: Tensor, hx: Any) -> list[Tensor]:
    """Results, gradients of all there is, and those of their squares."""
    torch.manual_seed(1)
    leaves = [x, *([] if hx is None else flat(hx)), *module.parameters()]
    outputs = flat(module(x, hx))
    first = torch.autograd.grad([out.square().sum() for out in outputs], leaves, create_graph=True)
    second = torch.autograd.grad([grad.square().sum() for grad in first], leaves)
    return [*outputs, *first, *second]


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(("kind", "options"), CELLS, ids=str)
def test_a_trained_cell_is_torchs(kind: str, options: dict[str, Any], state: bool):
    theirs, ours = both(kind, (5, 7), options)
    made = dict(dtype=options.get("dtype", torch.float32), requires_grad=True)
    x, h, c = torch.randn(3, 5, **made), torch.randn(3, 7, **made), torch.randn(3, 7, **made)
    hx = None if not state else (h, c) if kind == "LSTMCell" else h
    assert not is_ours(flat(ours(x, hx)))
    for a, b in zip(everything(theirs, x, hx), everything(ours, x, hx), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(("kind", "steps", "options"), LAYERS, ids=str)
def test_a_trained_layer_of_few_steps_is_torchs(kind: str, steps: int, options: dict[str, Any], state: bool):
    theirs, ours = both(kind, (5, 7), options)
    made = dict(dtype=options.get("dtype", torch.float32), requires_grad=True)
    x = torch.randn(*((3, steps) if options.get("batch_first") else (steps, 3)), 5, **made)
    slots = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    hx = torch.randn(slots, 3, 7, **made) if state else None
    outputs = flat(ours(x, hx))
    assert not is_ours(outputs)
    for a, b in zip(everything(theirs, x, hx), everything(ours, x, hx), strict=True):
        assert torch.equal(a, b)
    for output in outputs:  # each its own, which the user may change
        output.mul_(2)
    torch.autograd.backward([output.sum() for output in outputs])


def wider(weight: Tensor) -> Tensor:
    return weight * 2


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return wider(weight)


def test_what_is_out_of_the_ordinary_goes_our_way():
    x = torch.randn(3, 5)
    cell, layer = fastrnn.GRUCell(5, 7), fastrnn.RNN(5, 7)
    with fastrnn.use_backend("reference"):
        assert is_ours([cell(x), layer(x[None])[0]])
    assert not is_ours([cell(x), layer(x.expand(3, 3, 5))[0]])
    assert is_ours([layer(x.expand(4, 3, 5))[0]]) and is_ours([fastrnn.LSTM(5, 7)(x[None])[0]])
    with fastrnn.diagnostics.gradient_norms(layer) as norms:  # which sees the states of every step
        layer(x[None])[0].sum().backward()
    assert [len(each) for each in norms.values()] == [1]


def served(module: Any, x: Tensor, hx: Any = None) -> bool:
    """Whether the C++ core calls torch's function, with nothing else around it."""
    kind = type(module).__name__
    return cpp.fast_path(vars(module), x, hx, *([kind.removesuffix("Cell")] if "Cell" in kind else [])) is not None


@pytest.mark.skipif(cpp.unavailable() is not None, reason="the compiled core is missing")
@pytest.mark.skipif(not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API of DLPack")
def test_the_core_calls_the_function_of_ordinary_calls_alone():
    x, h = torch.randn(1, 3, 5), torch.randn(1, 3, 7)
    layer, gru, cell, lstm = fastrnn.RNN(5, 7), fastrnn.GRU(5, 7), fastrnn.GRUCell(5, 7), fastrnn.LSTMCell(5, 7)
    for module, given, state in ((layer, x, h), (gru, x, h), (cell, x[0], h[0]), (lstm, x[0], (h[0], h[0]))):
        assert served(module, given) and served(module, given, state)
        assert not served(module, given.double()) and not served(module, given.expand(1, *given.shape))
        assert not served(module, given[..., :4]), "sizes that do not fit are errors of the general way"
        with fastrnn.use_backend("cpp"):
            assert not served(module, given)
        with torch.no_grad():
            assert served(module, given), "by the core's own kernels"
        wrong = [h[0] if module is lstm else h[..., :6], (h,), h.to("meta"), torch.nn.Parameter(h)]
        assert not any(served(module, given, state) for state in wrong)
        frozen = copy.deepcopy(module).requires_grad_(False)
        assert not served(frozen, given) and served(frozen, given.clone().requires_grad_())
        name = next(iter(frozen._parameters))
        frozen._parameters[name] = None
        assert not served(frozen, given.clone().requires_grad_())
        freed = copy.deepcopy(module)
        next(freed.parameters()).untyped_storage().resize_(0)
        assert not served(freed, given)
        assert not torch.func.vmap(lambda part, module=module: torch.tensor(served(module, part)))(given[None])[0]
        with torch.autograd.forward_ad.dual_level():
            assert not served(module, given)
    assert not served(layer, x.expand(4, 3, 5)) and not served(gru, x.expand(2, 3, 5))
    assert not served(fastrnn.LSTM(5, 7), x) and not served(layer, x[0])


@pytest.mark.skipif(cpp.unavailable() is not None, reason="the compiled core is missing")
def test_where_torch_has_more_threads_than_there_are_cpus_steps_that_it_shares_out_are_ours(
    monkeypatch: pytest.MonkeyPatch,
):
    from fastrnn._core import usable_cpus

    kinds: list[tuple[str, int]] = [("RNN", 32), ("GRU", 11), ("RNNCell", 32), ("LSTMCell", 8), ("GRUCell", 11)]
    threads = torch.get_num_threads()
    for kind, shared in kinds:
        theirs, ours = both(kind, (5, shared), {})
        less = getattr(fastrnn, kind)(5, shared - 1)
        lead = () if "Cell" in kind else (1,)
        x, row = torch.randn(*lead, 3, 5, requires_grad=True), torch.randn(*lead, 1, 5, requires_grad=True)
        try:
            torch.set_num_threads(usable_cpus() + 1)
            for way in (cpp.fast_path, lambda *_: None):  # by the core, and by Python
                for caller in (cell_modules, modules):
                    monkeypatch.setattr(caller, "fast_path", way)
                found = flat(ours(x))
                assert is_ours(found) and not is_ours([*flat(ours(row)), *flat(less(x))])
                torch.testing.assert_close(found, flat(theirs(x)))
        finally:
            torch.set_num_threads(threads)
        assert not is_ours(flat(ours(x)))


def test_frozen_weights_are_no_training():
    cell = fastrnn.LSTMCell(5, 7).requires_grad_(False)
    x = torch.randn(3, 5)
    assert all(state.grad_fn is None for state in cell(x))
    assert cell(x.requires_grad_())[0].grad_fn is not None


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "RNN"])
def test_computed_and_exchanged_weights_are_seen(kind: str):
    theirs, ours = both(kind, (5, 7), {})
    name = "weight_hh" if "Cell" in kind else "weight_hh_l0"
    x = torch.randn(*(() if "Cell" in kind else (1,)), 3, 5)
    h = torch.randn(*(() if "Cell" in kind else (1,)), 3, 7)  # of zeros, weight_hh would make nothing
    for module in (theirs, ours):
        setattr(module, name, nn.Parameter(getattr(module, name).detach().flip(0)))
    assert torch.equal(flat(theirs(x, h))[0], flat(ours(x, h))[0])
    for module in (theirs, ours):  # past __setattr__, which would renew a layer's list of weights
        module._parameters[name] = nn.Parameter(getattr(module, name).detach() * 3)
    torch.testing.assert_close(flat(theirs(x, h))[0], flat(ours(x, h))[0])
    for module in (theirs, ours):
        parametrize.register_parametrization(module, name, Twice())
    torch.testing.assert_close(flat(theirs(x, h))[0], flat(ours(x, h))[0])


LAYOUTS = ("to_sparse", "to_sparse_csr", "to_sparse_csc", "to_mkldnn")


@pytest.mark.parametrize("trained", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("place", ["input", "state", "weight_ih", "weight_hh"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 3)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {"proj_size": 2}), *((kind, {}) for kind in ("RNNCell", "LSTMCell", "GRUCell", "RNN", "GRU", "LSTM"))],
)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_another_layout_gives_what_it_gives_torch(
    kind: str, options: dict[str, int], sizes: tuple[int, int], layout: str, place: str, trained: bool
):
    """Weights that were pruned, above all: where torch.nn has no function for them, an error of its type."""
    sizes = (sizes[0], sizes[1] + 2 * bool(options))  # more than are projected
    theirs, ours = both(kind, sizes, options)
    lead = () if "Cell" in kind else (1,)
    x, h = torch.randn(*lead, 2, sizes[0]), torch.randn(*lead, 2, options.get("proj_size", sizes[1]))
    hx: Any = (h, torch.randn(*lead, 2, sizes[1])) if kind.startswith("LSTM") else h
    turn = getattr(torch.Tensor, layout)
    if place in ("input", "state") and lead and layout in ("to_sparse_csr", "to_sparse_csc"):
        x, h = x.squeeze(0), h.squeeze(0)  # they have two dimensions
        hx = (h, hx[1].squeeze(0)) if isinstance(hx, tuple) else h
    if place == "input":
        x, hx = turn(x), None
    elif place == "state":
        hx = (turn(h), hx[1]) if isinstance(hx, tuple) else turn(h)
    else:
        name = place + "_l0" * bool(lead)
        for module in (theirs, ours):
            weight = turn(getattr(module, name).detach())
            setattr(module, name, nn.Parameter(weight, requires_grad=False))

    def called(module: Any) -> Any:
        with torch.set_grad_enabled(trained):
            try:
                return flat(module(x, hx))
            except RuntimeError as error:  # NotImplementedError, too
                return type(error)

    expected, found = called(theirs), called(ours)
    if isinstance(expected, type):
        assert found is expected
    else:
        assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(expected, found, strict=True))
