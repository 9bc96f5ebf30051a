"""`Network` and `NetworkCell`: the LSTM and GRU of the language beside torch.nn's, in every form that those take."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import Network, NetworkCell, cells
from fastrnn.fused import cpp
from fastrnn.fused.layer import direction

T, B, X, H = 6, 3, 4, 5
PAIRS = {"LSTM": (cells.LSTM, nn.LSTM), "GRU": (cells.GRU, nn.GRU)}
BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(bool(cpp.unavailable()), reason=str(cpp.unavailable()))),
]


def pair(name: str, dtype=torch.float64, **options):
    torch.manual_seed(0)
    cell, theirs = PAIRS[name]
    other = theirs(X, H, dtype=dtype, **options)
    net = Network(cell, X, H, dtype=dtype, **options)
    net.load_state_dict(other.state_dict())
    return net, other


def flat(found) -> list[torch.Tensor]:
    y, state = found
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *(state if isinstance(state, tuple) else (state,))]


def same(ours, theirs, inputs, others, tolerance=1e-10):
    """Results and all gradients, of the same seeds."""
    ours, theirs = flat(ours), flat(theirs)
    seeds = [torch.randn_like(each) for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(ours, inputs, seeds)
    for one, other in zip(found, torch.autograd.grad(theirs, others, seeds), strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(num_layers=2, bidirectional=True),
        dict(batch_first=True, bias=False),
        dict(num_layers=3, batch_first=True, bidirectional=True, bias=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["batch", "single", "packed", "unsorted", "states"])
def test_results_and_gradients_are_torch_nns(backend, name, options, form):
    net, other = pair(name, **options)
    slots = net.num_layers * (2 if net.bidirectional else 1)
    x = torch.randn(*((T, X) if form == "single" else (B, T, X) if net.batch_first else (T, B, X)), dtype=torch.float64)
    x.requires_grad_()
    hx, states = None, []
    if form in ("states", "single", "unsorted"):
        shape = (slots, H) if form == "single" else (slots, B, H)
        states = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in net.state_names]
        hx = states[0] if len(states) == 1 else tuple(states)

    def given():
        if form not in ("packed", "unsorted"):
            return x
        lengths = [6, 4, 1] if form == "packed" else [2, 6, 3]
        return pack_padded_sequence(x, lengths, net.batch_first, enforce_sorted=form == "packed")

    with fastrnn.use_backend(backend):
        ours = net(given(), hx)
    theirs = other(given(), hx)
    same(ours, theirs, [x, *states, *net.parameters()], [x, *states, *other.parameters()])


@pytest.mark.parametrize("name", PAIRS)
def test_dropout_draws_as_torch_nn_does(name):
    net, other = pair(name, num_layers=3, dropout=0.4)
    x = torch.randn(T, B, X, dtype=torch.float64)
    torch.manual_seed(5)
    ours = net(x)
    torch.manual_seed(5)
    torch.testing.assert_close(ours[0], other(x)[0])
    torch.testing.assert_close(net.eval()(x)[0], other.eval()(x)[0])


@pytest.mark.parametrize("name", PAIRS)
def test_lengths_and_resets_are_pieces(name):
    net, other = pair(name, bidirectional=True)
    x, lengths = torch.randn(T, B, X, dtype=torch.float64, requires_grad=True), [3, 6, 2]
    y, _ = other(pack_padded_sequence(x, lengths, enforce_sorted=False))
    wanted, _ = pad_packed_sequence(y, total_length=T)
    torch.testing.assert_close(net(x, lengths=lengths)[0], wanted)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = reset[4, 0] = reset[1, 2] = True
    found = net(x, reset=reset)[0]
    pieces = [(0, 0, 2), (0, 2, 4), (0, 4, 6), (1, 0, 6), (2, 0, 1), (2, 1, 6)]
    for row, begin, end in pieces:
        torch.testing.assert_close(found[begin:end, row], other(x[begin:end, row])[0])


@pytest.mark.parametrize("name", PAIRS)
def test_tokens_stand_for_one_hot_rows_and_embeddings_for_vectors(name):
    net, other = pair(name)
    tokens = torch.randint(0, X, (T, B))
    rows = nn.functional.one_hot(tokens, X).double()
    torch.testing.assert_close(net(tokens)[0], other(rows)[0])
    table = nn.Embedding(9, X, dtype=torch.float64)
    tokens = torch.randint(0, 9, (T, B))
    torch.testing.assert_close(net(tokens, embedding=table)[0], other(table(tokens))[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_those_of_the_equations(backend):
    net = Network(cells.GRU, 2, 3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = list(net.parameters())

    def run(x, *weights):
        names = dict(zip((name for name, _ in net.named_parameters()), weights, strict=True))
        return torch.func.functional_call(net, names, (x,))[0]

    with fastrnn.use_backend(backend):
        assert torch.autograd.gradcheck(run, (x, *weights))
        assert torch.autograd.gradgradcheck(run, (x, *weights))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # of torch's own jvp
def test_torch_func_goes_through():
    net, other = pair("LSTM", num_layers=2)
    x = torch.randn(4, T, B, X, dtype=torch.float64)
    wanted = torch.stack([other(each)[0] for each in x])
    torch.testing.assert_close(torch.vmap(lambda v: net(v)[0])(x), wanted)
    _, ours = torch.func.jvp(lambda v: net(v)[0], (x[0],), (x[1],))
    with torch.no_grad():  # a directional derivative by central differences
        step = 1e-6
        theirs = (other(x[0] + step * x[1])[0] - other(x[0] - step * x[1])[0]) / (2 * step)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_narrow_dtypes_are_as_near_as_their_digits(name, dtype):
    net, other = pair(name)
    x = torch.randn(T, B, X, dtype=torch.float64)
    wanted = other(x)[0]
    found = net.to(dtype)(x.to(dtype))[0]
    assert found.dtype is dtype
    # Rounded weights and inputs, and every state that is carried on: some ten roundings of numbers below 2.
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("form", ["batch", "packed", "lengths"])
def test_states_of_every_step(backend, recompute, form):
    net, other = pair("LSTM", num_layers=2, bidirectional=True)
    net.recompute = recompute
    x, lengths = torch.randn(T, B, X, dtype=torch.float64, requires_grad=True), [6, 4, 1]
    given = pack_padded_sequence(x, lengths) if form == "packed" else x
    with fastrnn.use_backend(backend):
        y, (h, c), (hs, cs) = net(given, lengths=lengths if form == "lengths" else None, return_states=True)
        grads = torch.autograd.grad((cs.data if form == "packed" else cs).pow(2).sum(), [x, *net.parameters()])
    plain = fastrnn.LSTM(X, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    plain.load_state_dict(other.state_dict())
    given = pack_padded_sequence(x, lengths) if form == "packed" else x
    wanted = plain(given, lengths=lengths if form == "lengths" else None, return_cell_states=True)
    again = torch.autograd.grad(
        (wanted[2].data if form == "packed" else wanted[2]).pow(2).sum(), [x, *plain.parameters()]
    )
    for ours, theirs in ((y, wanted[0]), (hs, wanted[0]), (cs, wanted[2])):
        ours, theirs = (each.data if form == "packed" else each for each in (ours, theirs))
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip((h, c, *grads), (*wanted[1], *again), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["batch", "packed"])
def test_recompute_changes_no_number(form, reverse):
    net, _ = pair("GRU", bidirectional=reverse)
    x = torch.randn(11, B, X, dtype=torch.float64, requires_grad=True)

    def results():
        given = pack_padded_sequence(x, [11, 7, 2]) if form == "packed" else x
        found = flat(net(given))
        return [*found, *torch.autograd.grad(sum(each.pow(2).sum() for each in found), [x, *net.parameters()])]

    plain = results()
    net.recompute = True
    for ours, theirs in zip(results(), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", PAIRS)
def test_under_autocast_the_loop_keeps_its_digits(name):
    net, other = pair(name, torch.float32)
    x = torch.randn(T, B, X, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x)[0]
    assert found.dtype is torch.float32
    # The product with x has 8 bits of fraction: a few parts in 2^8 of a gate's argument, below 4 here.
    torch.testing.assert_close(found, other(x)[0], rtol=0, atol=16 * torch.finfo(torch.bfloat16).eps)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), [x, *net.parameters()]))


def test_copies_and_pickles_are_the_network():
    net, _ = pair("LSTM", num_layers=2, bidirectional=True)
    x = torch.randn(T, B, X, dtype=torch.float64)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert repr(other) == repr(net)
        torch.testing.assert_close(other(x)[0], net(x)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "x", "h"])
def test_memory_that_is_gone_is_an_error(backend, grad, name):
    net = Network(cells.LSTM, X, H)
    x, states = torch.randn(T, B, X), tuple(torch.randn(1, B, H) for _ in range(2))
    freed = {"x": x, "h": states[0]}.get(name)
    (getattr(net, name) if freed is None else freed).untyped_storage().resize_(0)
    with (
        fastrnn.use_backend(backend),
        torch.set_grad_enabled(grad),
        pytest.raises((RuntimeError, ValueError), match="memory|storage|bytes"),
    ):
        net(x, states)


@pytest.mark.parametrize("shape", [(T, 0, X), (1, 1, X), (1, B, X)])
@pytest.mark.parametrize("grad", [False, True])
def test_few_rows_and_steps_and_none(shape, grad):
    net, other = pair("LSTM")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        for ours, theirs in zip(flat(net(x)), flat(other(x)), strict=True):
            torch.testing.assert_close(ours, theirs)
    if grad:
        net(x)[0].sum().backward()


def test_strided_input_and_numbers_stored_with_the_wrong_sign():
    net, other = pair("LSTM")
    x = torch.randn(T, B, X, dtype=torch.float64)
    wanted = other(x)[0]
    twice = torch.stack([x, x], -1)[..., 0]
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg() and not twice.is_contiguous()
    for given in (twice, turned, negative):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(net(given)[0], wanted)


def test_a_learned_initial_state_is_where_no_state_is_given():
    net = Network(cells.LSTM, X, H, num_layers=2, learn_initial_state=True, dtype=torch.float64)
    assert {"initial_h", "initial_c"} <= set(dict(net.named_parameters()))
    with torch.no_grad():
        for name in ("initial_h", "initial_c"):
            getattr(net, name).normal_()
    x = torch.randn(T, B, X, dtype=torch.float64)
    given = tuple(each.unsqueeze(1).expand(-1, B, -1) for each in (net.initial_h, net.initial_c))
    torch.testing.assert_close(net(x)[0], net(x, given)[0])
    grads = torch.autograd.grad(net(x)[0].sum(), [net.initial_h, net.initial_c])
    assert all(grad.abs().min() > 0 for grad in grads)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("rows", [None, B])
@pytest.mark.parametrize("grad", [False, True])
def test_one_step_is_torch_nns_cell(name, rows, grad):
    cell, _ = PAIRS[name]
    torch.manual_seed(0)
    other = getattr(nn, name + "Cell")(X, H, dtype=torch.float64)
    net = NetworkCell(cell, X, H, dtype=torch.float64)
    net.load_state_dict(other.state_dict())
    lead = () if rows is None else (rows,)
    x = torch.randn(*lead, X, dtype=torch.float64)
    states = [torch.randn(*lead, H, dtype=torch.float64) for _ in net.state_names]
    hx = states[0] if len(states) == 1 else tuple(states)
    for given in (hx, None):
        with torch.set_grad_enabled(grad):
            ours, theirs = net(x, given), other(x, given)
        for one, two in zip(*((each if isinstance(each, tuple) else (each,)) for each in (ours, theirs)), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.skipif(bool(cpp.unavailable()), reason=str(cpp.unavailable()))
def test_a_plain_step_is_one_call_of_the_engine(monkeypatch):
    """And what is out of the ordinary goes the general way, to the same results or the same errors."""
    cell = NetworkCell(cells.LSTM, X, H)
    x, state = torch.randn(B, X), torch.randn(2, B, H).unbind()
    calls = []
    monkeypatch.setattr("fastrnn.network.calls.direction", lambda *given, own=direction: calls.append(0) or own(*given))
    with torch.no_grad():
        found = cell(x, state)
        assert not calls
        for others in (
            (x.double().float().t().contiguous().t(), state),
            (x, [*state]),
            (x, (state[0][:, :H], state[1])),
        ):
            for one, two in zip(cell(*others), found, strict=True):
                torch.testing.assert_close(one, two)
        assert calls
        with pytest.raises(RuntimeError, match="Expected state c size"):
            cell(x, (state[0], state[1][:1]))
        with pytest.raises(RuntimeError, match="inconsistent input_size"):
            cell(x[:, :2], state)


def test_graphs_hold_the_loop_as_one_operator():
    net, other = pair("LSTM", torch.float32, num_layers=2)
    x = torch.randn(T, B, X, requires_grad=True)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    same(compiled(x), other(x), [x, *net.parameters()], [x, *other.parameters()], 1e-5)
    exported = torch.export.export(net.eval(), (x.detach(),))
    assert "fastrnn.scan" in str(exported.graph) or cpp.unavailable()
    torch.testing.assert_close(exported.module()(x.detach())[0], other(x)[0])


def test_torch_fx_records_one_call():
    net, other = pair("LSTM", torch.float32)
    model = nn.Sequential(net)
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    x = torch.randn(T, B, X)
    torch.testing.assert_close(graph(x)[0], other(x)[0])
