"""torch.compile: models with the default classes, and one graph of those that `convert(compilable=True)` makes."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from support import needs_torch_under_autocast
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from fastrnn import compilable

dynamo: Any = pytest.importorskip("torch._dynamo", reason="this torch has no compiler")
testing: Any = pytest.importorskip("torch._dynamo.testing", reason="this torch has no compiler")

NAMES = ("RNN", "LSTM", "GRU")
names = pytest.mark.parametrize("name", NAMES)
OPTIONS: dict[str, dict[str, Any]] = {
    "RNN": dict(nonlinearity="relu", num_layers=2),
    "LSTM": dict(proj_size=3, num_layers=2, bidirectional=True),
    "GRU": dict(batch_first=True, bidirectional=True, bias=False),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's, of itself
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]


class Model(nn.Module):
    """A recurrent layer between others."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.before, self.rnn = nn.Linear(4, 4, dtype=rnn.weight_ih_l0.dtype), rnn

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        y, state = self.rnn(self.before(x).relu(), hx)
        return y.tanh(), state


class Compiled:
    """A module compiled to one graph, or not at all; and what was compiled."""

    def __init__(self, module: nn.Module, backend: str = "aot_eager") -> None:
        dynamo.reset()
        self.counter = testing.CompileCounterWithBackend(backend)
        self.run = torch.compile(module, backend=self.counter, fullgraph=True)

    def targets(self) -> list[str]:
        nodes = [node for graph in self.counter.graphs for node in graph.graph.nodes]
        return [str(node.target) for node in nodes if node.op == "call_function"]


@pytest.fixture(autouse=True)
def fresh():
    yield
    dynamo.reset()


def pair(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and a compilable one, of the same parameters."""
    theirs = getattr(nn, name)(4, 5, **options, dtype=dtype)
    return theirs, fastrnn.convert(copy.deepcopy(theirs), compilable=True)


def symbolic(x: Tensor, *dims: int) -> Tensor:
    """Tells Dynamo that these sizes will change, which it learns by itself from the first change."""
    for dim in dims:
        dynamo.mark_dynamic(x, dim)
    return x


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors(part)]


def agree(run: Any, ours: nn.Module, theirs: nn.Module, *arguments: Any) -> None:
    """Results and the gradients of all parameters, in float64."""
    found, expected = tensors(run(*arguments)), tensors(theirs(*arguments))
    torch.testing.assert_close(found, expected)
    for outputs, module in ((found, ours), (expected, theirs)):
        module.zero_grad()
        sum(output.square().sum() for output in outputs).backward()
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


@names
def test_the_classes_and_back(name: str):
    ours = getattr(compilable, name)
    for library in (nn, fastrnn):
        model = nn.Sequential(getattr(library, name)(4, 5), nn.LSTMCell(4, 5))
        rnn, parameters, keys = model[0], list(model.parameters()), list(model.state_dict())
        assert fastrnn.convert(model, compilable=True) is model and model[0] is rnn
        assert type(rnn) is ours and type(model[1]) is fastrnn.LSTMCell
        assert isinstance(rnn, nn.RNNBase) and not isinstance(rnn, getattr(nn, name))
        assert list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        fastrnn.revert(model)
        assert type(rnn) is getattr(nn, name) and type(model[1]) is nn.LSTMCell


def test_a_module_with_options_is_refused():
    model = nn.Sequential(nn.GRU(4, 5), fastrnn.LSTM(4, 5, learn_initial_state=True))
    with pytest.raises(ValueError, match="1 has learn_initial_state on"):
        fastrnn.convert(model, compilable=True)
    assert type(model[0]) is nn.GRU


@names
@pytest.mark.parametrize("argument", ["mask", "lengths", "return_cell_states"])
def test_arguments_of_other_classes_are_refused_with_advice(name: str, argument: str):
    """Libraries with networks of their own take what is no instance of torch.nn's for these."""
    ours, x = pair(name)[1], torch.randn(3, 2, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match=rf"{name}.forward.*'{argument}'.*convert.*makes it a fastrnn.{name}, an inst"):
        ours(x, **{argument: None})
    default = fastrnn.convert(fastrnn.revert(ours))
    assert type(default) is getattr(fastrnn, name) and isinstance(default, getattr(nn, name))


@names
def test_construction_and_eager_calls_are_those_of_the_default_class(name: str):
    options = OPTIONS[name]
    made = []
    for library in (compilable, fastrnn):
        torch.manual_seed(0)
        made.append(getattr(library, name)(4, 5, **options))
    ours, other = made
    assert repr(ours) == repr(other) and ours.state_dict().keys() == other.state_dict().keys()
    packed = pack_sequence([torch.randn(n, 4) for n in (2, 6, 3)], enforce_sorted=False)
    for x in (torch.randn(6, 3, 4), torch.randn(6, 4), packed):
        assert all(torch.equal(a, b) for a, b in zip(tensors(ours(x)), tensors(other(x)), strict=True))
    for bad, error in ((torch.randn(6, 3, 5), RuntimeError), (torch.randn(4), ValueError)):
        with pytest.raises(error):
            ours(bad)
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        getattr(compilable, name)(4, 0)


@names
@pytest.mark.parametrize("told", [True, False], ids=["told", "learned"])
def test_one_graph_for_every_T_and_B(name: str, told: bool):
    theirs, ours = pair(name, **OPTIONS[name])
    theirs, ours = Model(theirs), Model(ours)
    ours.load_state_dict(theirs.state_dict())
    compiled = Compiled(ours)
    for steps, rows in ((6, 3), (7, 3), (7, 4), (9, 5), (2, 8), (3, 3)):
        x = torch.randn(steps, rows, 4, dtype=torch.float64)
        agree(compiled.run, ours, theirs, symbolic(x, 0, 1) if told else x)
    graphs = 1 if told else 3  # learned: one of numbers, one where the first size is a symbol, one where both are
    assert compiled.counter.frame_count == graphs
    targets = compiled.targets()
    assert sum("fastrnn.layer" in target for target in targets) == theirs.rnn.num_layers * graphs
    assert not any(word in target for target in targets for word in ("lstm", "gru", "rnn_"))


@names
def test_states_go_in_and_out(name: str):
    theirs, ours = pair(name, **OPTIONS[name])
    compiled = Compiled(ours)
    x = torch.randn(6, 6, 4, dtype=torch.float64)
    state = theirs(x)[1]
    hx = tuple(part.detach() for part in state) if name == "LSTM" else state.detach()
    agree(compiled.run, ours, theirs, x, hx)
    assert compiled.counter.frame_count == 1
    single = tuple(part[:, 0] for part in hx) if name == "LSTM" else hx[:, 0]
    torch.testing.assert_close(compiled.run(x[0], single), theirs(x[0], single))


@names
@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
def test_packed_input(name: str, enforce_sorted: bool):
    theirs, ours = pair(name, **OPTIONS[name])
    compiled = Compiled(ours)

    def packed(*lengths: int) -> PackedSequence:
        rows = [torch.randn(n, 4, dtype=torch.float64) for n in lengths]
        made = pack_sequence(rows if enforce_sorted else rows[::-1], enforce_sorted=enforce_sorted)
        for tensor in made:
            if tensor is not None:
                symbolic(tensor, 0)
        return made

    first = packed(5, 3, 3)
    try:
        found = compiled.run(first)[0]
    except dynamo.exc.Unsupported as error:
        pytest.skip(f"this torch's Dynamo cannot: {str(error).splitlines()[0]}")
    assert isinstance(found, PackedSequence) and torch.equal(found.batch_sizes, first.batch_sizes)
    for lengths in ((5, 3, 3), (6, 3, 2), (8, 8, 4, 2), (9, 3), (4, 2, 1, 1, 1)):
        agree(compiled.run, ours, theirs, packed(*lengths))
    assert compiled.counter.frame_count == 1
    wrong = packed(5, 3, 3)
    wrong.batch_sizes.copy_(wrong.batch_sizes.flip(0))
    with pytest.raises(RuntimeError, match="batch_sizes must be positive"):
        compiled.run(wrong)


def test_the_backend_is_the_one_chosen_when_the_graph_is_made(target):
    if target.device.type == "cuda":
        pytest.skip("the modules here are on the CPU")
    theirs, ours = pair("LSTM", torch.float32)
    x = torch.randn(3, 2, 4)
    with fastrnn.use_backend(target.name):
        compiled = Compiled(ours)
        found = compiled.run(x)[0]
    torch.testing.assert_close(found, theirs(x)[0], rtol=0, atol=1e-5)
    (node,) = (node for node in compiled.counter.graphs[0].graph.nodes if "fastrnn.layer" in str(node.target))
    assert target.name in node.args


@names
@pytest.mark.filterwarnings("ignore:Graph break due to")  # Dynamo of early torch warns of what it leaves to Python
def test_errors_are_torchs(name: str):
    """Where a graph must not break, Dynamo wraps some of them into its own."""
    theirs, ours = pair(name, torch.float32)
    compiled = torch.compile(ours, backend="aot_eager")
    compiled(torch.randn(3, 2, 4))
    hx = torch.randn(1, 3, 5)
    for arguments in (
        (torch.randn(3, 2, 3),),
        (torch.randn(3, 2, 4, dtype=torch.float64),),
        (torch.randn(3, 2, 4), (hx, hx) if name == "LSTM" else hx),
        (torch.randn(0, 2, 4),),
    ):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            theirs(*arguments)
        with pytest.raises((RuntimeError, ValueError)) as found:
            compiled(*arguments)
        assert len(arguments[0]) == 0 or str(expected.value)[:40] in str(found.value)


@names
def test_autocast(name: str):
    """torch.nn's dtypes; off by no more than twice what torch.nn is off by, and a rounding to bfloat16."""
    needs_torch_under_autocast(name)
    theirs, ours = pair(name, torch.float32)
    x = torch.randn(6, 3, 4)
    exact = theirs(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        expected = theirs(x)
        compiled = Compiled(ours)
        found = compiled.run(x.bfloat16())[0], compiled.run(x)[0]
    assert found[1].dtype == expected[0].dtype

    def close(own: Tensor, other: Tensor, right: Tensor) -> bool:
        noise, band = (other.float() - right).abs().max(), 2**-8 * right.abs().max()
        return bool((own.float() - right).abs().max() <= 2 * (noise + band))

    assert close(found[1], expected[0], exact)
    assert any("fastrnn.layer" in target for target in compiled.targets())
    grads = [
        torch.autograd.grad(y.float().sum(), list(m.parameters()))
        for y, m in ((found[1], ours), (expected[0], theirs), (exact, theirs))
    ]
    for own, other, right in zip(*grads, strict=True):
        assert own.dtype == torch.float32 and close(own, other, right)


@names
def test_what_no_backend_serves_is_torchs_own_operator(name: str, monkeypatch):
    theirs, ours = pair(name)
    monkeypatch.setattr(compilable, "choose", lambda *layer: None)
    compiled = Compiled(ours, backend="eager")
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(compiled.run(x), theirs(x))
    assert not any("fastrnn" in target for target in compiled.targets())


def test_dropout_and_weights_that_change():
    theirs, ours = pair("LSTM", num_layers=2, dropout=0.5)
    compiled = Compiled(ours)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    assert not torch.equal(compiled.run(x)[0], compiled.run(x)[0])
    ours.eval(), theirs.eval()
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (ours, theirs)]
    for _ in range(3):
        agree(compiled.run, ours, theirs, x)
        for optimizer in optimizers:
            optimizer.step()
    assert compiled.counter.frame_count == 2  # training and eval


def test_parametrized_weights_and_tokens():
    theirs, ours = pair("GRU")
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh_l0")
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    agree(torch.compile(ours, backend="aot_eager"), ours, theirs, x)
    dynamo.reset()
    fastrnn.revert(ours)
    assert type(ours).__bases__ == (nn.GRU,)
    tokens = torch.randint(4, (6, 3))
    ours = compilable.GRU(4, 5)
    torch.testing.assert_close(Compiled(ours).run(tokens), ours(tokens))


def test_vmap_inside_takes_the_equations():
    _, ours = pair("LSTM")
    rows = torch.randn(3, 6, 4, dtype=torch.float64)
    compiled = Compiled(ours)
    found = torch.compile(lambda rows: torch.vmap(lambda row: ours(row)[0])(rows), backend="eager", fullgraph=True)
    torch.testing.assert_close(found(rows), compiled.run(rows.transpose(0, 1))[0].transpose(0, 1))


@names
def test_the_default_classes_break_the_graph_as_torchs_do(name: str, monkeypatch):
    """And nowhere else; their kernels run in between."""
    frames, kernels = [], []
    forward = fastrnn.backends.reference.forward
    monkeypatch.setattr(fastrnn.backends.reference, "forward", lambda *a: kernels.append(1) or forward(*a))
    for library in (nn, fastrnn):
        dynamo.reset()
        dynamo.utils.counters.clear()
        model = Model(getattr(library, name)(4, 5))
        with torch.no_grad(), fastrnn.use_backend("reference"):
            torch.compile(model, backend="eager")(torch.randn(3, 2, 4))
        frames.append({key: dict(dynamo.utils.counters[key]) for key in ("frames", "graph_break")})
    if not hasattr(torch._C._dynamo.eval_frame, "set_code_exec_strategy"):
        pytest.skip("this torch cannot be told to leave a function to Python")
    assert frames[0] == frames[1] and len(kernels) == 1


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="inductor needs a C++ compiler")
def test_inductor(tmp_path, monkeypatch):
    # Its cache on disk would not notice that an operator of the working tree has other arguments than yesterday.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    theirs, ours = pair("GRU")
    compiled = Compiled(ours, backend="inductor")
    for steps in (6, 9):
        agree(compiled.run, ours, theirs, symbolic(torch.randn(steps, 3, 4, dtype=torch.float64), 0))
    assert compiled.counter.frame_count == 1
