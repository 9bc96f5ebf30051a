"""Every class and option, called in every form, in the hands of those that make graphs of modules.

What comes out runs at other T, B, lengths and states and gives what the module itself gives, or the maker of the graph
is told, by the name of the class or of the option, that it cannot be.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import compilable

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's, of itself
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights"),  # of torch.nn's modules as well
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]
INPUTS, HIDDEN = 4, 5
NAMES = ("RNN", "LSTM", "GRU")


class Kind(NamedTuple):
    """A class of ours, and what it can be told."""

    make: Callable[..., nn.Module]
    options: tuple[str, ...] = ()  # of the module
    calls: tuple[str, ...] = ()  # by keyword, beside hx
    refused: str = ""  # of the class, by those that hold T


CALLS = "lengths", "reset", "embedding", "tokens"
OURS = ("learn_initial_state", "recompute"), CALLS
LSTMS = ("learn_initial_state", "recompute", "return_cell_states"), (*CALLS, "return_cell_states")


def layers(library: Any, name: str, **given: Any) -> Callable[..., nn.Module]:
    return lambda **options: getattr(library, name)(INPUTS, HIDDEN, **given, **options, dtype=torch.float64)


def jordan(**options: Any) -> nn.Module:
    return fastrnn.JordanRNN(INPUTS, HIDDEN, 3, num_layers=2, bidirectional=True, **options, dtype=torch.float64)


def int8(name: str) -> Callable[..., nn.Module]:
    return lambda: fastrnn.quantize_dynamic(getattr(nn, name)(INPUTS, HIDDEN))


KINDS = {
    "RNN": Kind(layers(fastrnn, "RNN", nonlinearity="relu", num_layers=2), *OURS),
    "LSTM": Kind(layers(fastrnn, "LSTM", num_layers=2, bidirectional=True), *LSTMS),
    "LSTM proj_size": Kind(layers(fastrnn, "LSTM", proj_size=3, batch_first=True), *LSTMS),
    "GRU": Kind(layers(fastrnn, "GRU", batch_first=True, bidirectional=True, bias=False), *OURS),
    "compilable RNN": Kind(layers(compilable, "RNN", bidirectional=True), (), ("tokens",)),
    "compilable LSTM": Kind(layers(compilable, "LSTM", num_layers=2, batch_first=True), (), ("tokens",)),
    "compilable GRU": Kind(layers(compilable, "GRU", num_layers=2), (), ("tokens",)),
    "JordanRNN": Kind(jordan, *OURS, refused="JordanRNN"),
    "RNNCell": Kind(layers(fastrnn, "RNNCell")),
    "LSTMCell": Kind(layers(fastrnn, "LSTMCell", bias=False)),
    "GRUCell": Kind(layers(fastrnn, "GRUCell")),
    "QuantizedLSTM": Kind(int8("LSTM"), refused="QuantizedLSTM"),
    "QuantizedGRU": Kind(int8("GRU"), refused="QuantizedGRU"),
    "QuantizedRNNCell": Kind(int8("RNNCell"), refused="QuantizedRNNCell"),
}


def tensors(result: Any) -> tuple[Tensor, ...]:
    if isinstance(result, PackedSequence):
        return (result.data,)
    return (result,) if isinstance(result, (Tensor, fx.Proxy)) else sum(map(tensors, result), ())


class Call(nn.Module):
    """One call of a module in one form: all that it is given is a tensor, whatever the module wants."""

    def __init__(self, rnn: nn.Module, *used: str) -> None:
        super().__init__()
        self.rnn = rnn
        self.used = used
        self.table = nn.Embedding(9, INPUTS, dtype=torch.float64)
        self.indices: tuple[Tensor | None, ...] = ()

    def forward(
        self,
        x,
        h0=None,
        c0=None,
        batch_sizes=None,
        sorted_indices=None,
        unsorted_indices=None,
        lengths=None,
        reset=None,
    ):
        options = {}
        if lengths is not None:
            options["lengths"] = lengths
        if reset is not None:
            options["reset"] = reset
        if "embedding" in self.used:
            options["embedding"] = self.table
        if "return_cell_states" in self.used:
            options["return_cell_states"] = True
        indices = self.indices if batch_sizes is None else (batch_sizes, sorted_indices, unsorted_indices)
        x = PackedSequence(x, *indices) if indices else x
        result = self.rnn(x, h0 if c0 is None else (h0, c0), **options)
        return tensors(result)


class Case(NamedTuple):
    """A class, with an option of the module or none, called in one form."""

    kind: str
    option: str
    form: tuple[str, ...]  # of: state, single, packed, unsorted, and the words of `CALLS`

    def module(self) -> Call:
        kind = KINDS[self.kind]
        torch.manual_seed(1)
        rnn = kind.make(**({self.option: True} if self.option else {}))
        if self.option == "learn_initial_state":
            with torch.no_grad():
                for name, parameter in rnn.named_parameters():
                    if name.startswith("initial"):
                        parameter.normal_()
        return Call(rnn, *self.form)

    @property
    def refused(self) -> str:
        """What no graph that is to run at any T may hold, as a regular expression."""
        words = {"return_cell_states", "reset"}.intersection((self.option, *self.form))
        return "|".join(sorted(words) + [KINDS[self.kind].refused] * bool(KINDS[self.kind].refused))

    def arguments(self, call: Call, steps: int, rows: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rnn: Any = call.rnn
        dtype = torch.float32 if "Quantized" in self.kind else torch.float64

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        def rows_of(count: int) -> Tensor:
            if "tokens" in self.form or "embedding" in self.form:
                return torch.randint(INPUTS, (count,), generator=generator)
            return normal(count, INPUTS)

        if "Cell" in self.kind:
            lead = () if "single" in self.form else (rows,)
            given = {"x": normal(*lead, INPUTS)}
            if "state" in self.form:
                given["h0"] = normal(*lead, HIDDEN)
                if "LSTM" in self.kind:
                    given["c0"] = normal(*lead, HIDDEN)
            return given
        if "packed" in self.form or "unsorted" in self.form:
            sizes = sorted(torch.randint(1, steps + 1, (rows,), generator=generator).tolist(), reverse=True)
            sizes = sizes[::-1] if "unsorted" in self.form else sizes
            packed = pack_sequence([rows_of(size) for size in sizes], enforce_sorted="unsorted" not in self.form)
            given = {"x": packed.data, "batch_sizes": packed.batch_sizes}
            if "unsorted" in self.form:
                given |= {"sorted_indices": packed.sorted_indices, "unsorted_indices": packed.unsorted_indices}
            lead = (rows,)
        else:
            shape = (steps,) if "single" in self.form else (rows, steps) if rnn.batch_first else (steps, rows)
            x = rows_of(torch.Size(shape).numel())
            given, lead = {"x": x.view(*shape, *x.shape[1:])}, () if "single" in self.form else (rows,)
            if "lengths" in self.form:
                given["lengths"] = torch.randint(1, steps + 1, lead, generator=generator)
            if "reset" in self.form:
                given["reset"] = torch.rand(shape, generator=generator) < 0.3
        if "state" in self.form:
            slots = rnn.num_layers * (2 if rnn.bidirectional else 1)
            given["h0"] = normal(slots, *lead, rnn.proj_size or HIDDEN)
            if "LSTM" in self.kind:
                given["c0"] = normal(slots, *lead, HIDDEN)
        return given


def cases() -> Iterator[Case]:
    """Every class x option of the module x form of the input x what is said by keyword x state given or not."""
    for name, kind in KINDS.items():
        forms = ("", "single") if "Cell" in name else ("", "single", "packed", "unsorted")
        for option, form, call, state in itertools.product(
            ("", *kind.options), forms, ("", *kind.calls), ("", "state")
        ):
            if form in ("packed", "unsorted") and call in ("lengths", "reset"):
                continue  # an error, traced or not
            if call == "embedding" and option == "recompute":
                continue  # as without
            yield Case(name, option, tuple(word for word in (form, call, state) if word))


def few(every: int, chosen: Callable[[Case], bool] = lambda case: True) -> list[Any]:
    """The chosen cases, of which `make test` has every so manieth, `make test-slow` the others."""
    found = []
    for n, case in enumerate(filter(chosen, cases())):
        name = "-".join(filter(None, (case.kind, case.option, *case.form))).replace(" ", "_")
        found.append(pytest.param(case, id=name, marks=[pytest.mark.slow] if n % every else []))
    return found


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(tree_leaves(found), tree_leaves(expected), rtol=1e-9, atol=1e-10)


OTHERS = [(9, 2, 1), (4, 5, 2), (1, 1, 3)]  # T, B, seed


@pytest.mark.parametrize("case", few(23))
def test_a_trace_gives_what_the_module_gives_or_is_refused(case: Case):
    """At other T, B, lengths and values than those of its example, and its gradients."""
    call = case.module()
    example = case.arguments(call, 6, 3, 0)
    if case.refused:
        with pytest.raises(RuntimeError, match=case.refused):
            torch.jit.trace(call, example_kwarg_inputs=example, check_trace=False)
        return
    with torch.set_grad_enabled("state" in case.form):
        traced = torch.jit.trace(call, example_kwarg_inputs=example, check_trace=False)
    parameters = list(call.rnn.parameters())
    for steps, rows, seed in OTHERS:
        given = case.arguments(call, steps, rows, seed)
        results = traced(**given), call(**given)
        same(*results)
        losses = [sum(part.square().sum() for part in tree_leaves(result)) for result in results]
        same(*(torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses))


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_of_training_draws_the_mask_that_the_module_draws(name: str):
    call = Call(getattr(fastrnn, name)(INPUTS, HIDDEN, num_layers=2, dropout=0.5))
    traced = torch.jit.trace(call, torch.randn(6, 3, INPUTS), check_trace=False)
    x = torch.randn(9, 2, INPUTS)
    results = []
    for run in (traced, call):
        torch.manual_seed(3)
        results.append(run(x))
    torch.testing.assert_close(*results)


def test_a_trace_checks_the_lengths_that_come():
    call = Call(fastrnn.LSTM(INPUTS, HIDDEN))
    traced = torch.jit.trace(
        call, example_kwarg_inputs=dict(x=torch.randn(6, 3, INPUTS), lengths=torch.tensor([6, 4, 2]))
    )
    for wrong in ([6, 4, 7], [6, 0, 2], [6, 4, -1], [6, 4]):
        with pytest.raises(RuntimeError):
            traced(x=torch.randn(6, 3, INPUTS), lengths=torch.tensor(wrong))


@pytest.mark.parametrize("lengths", ["tensors", "numbers", "size"])
def test_lengths_that_a_traced_function_makes_itself(lengths: str):
    gru = fastrnn.GRU(INPUTS, HIDDEN).requires_grad_(False)

    def run(x: Tensor, given: Tensor) -> Tensor:
        made = {"tensors": [given[0], 2, given[1]], "numbers": [1, 3, 2], "size": [x.shape[0], 1, given[0]]}[lengths]
        return gru(x, lengths=made)[0]

    traced = torch.jit.trace(run, (torch.randn(6, 3, INPUTS), torch.tensor([4, 6])), check_trace=False)
    arguments = torch.randn(9, 3, INPUTS), torch.tensor([7, 1])
    torch.testing.assert_close(traced(*arguments), run(*arguments))


def test_the_functions_are_refused_in_a_trace():
    """Their equations are a loop; modules are torch's operators there."""
    lstm, jordan = fastrnn.LSTM(INPUTS, HIDDEN), fastrnn.JordanRNN(INPUTS, HIDDEN, 3)
    for function, module in ((fastrnn.lstm, lstm), (fastrnn.jordan_rnn, jordan)):
        weights = [weight.detach() for weight in module._flat_weights]
        with pytest.raises(NotImplementedError, match="a trace would hold"):
            torch.jit.trace(lambda x, f=function, w=weights: f(x, None, w)[0], torch.randn(6, 3, INPUTS))


@pytest.mark.parametrize("case", few(17))
def test_fx_records_one_call_that_gives_the_same(case: Case):
    call = case.module()
    given = case.arguments(call, 6, 3, 0)
    if "batch_sizes" in given:  # torch makes no PackedSequence of a proxy for these
        call.indices = tuple(given.pop(name, None) for name in ("batch_sizes", "sorted_indices", "unsorted_indices"))
    names = ", ".join(given)
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {names}): return self.call({', '.join(f'{name}={name}' for name in given)})", scope)
    root = type("Root", (nn.Module,), scope)()
    root.call = call
    graph = fx.symbolic_trace(root)
    (node,) = (node for node in graph.graph.nodes if node.op == "call_module")
    words = {"lengths", "reset", "embedding", "return_cell_states"}
    assert node.target == "call.rnn" and set(node.kwargs) == words.intersection(case.form)
    found, expected = tensors(graph(**given)), call(**given)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_fx_says_what_to_do_with_a_module_by_itself(kind: str):
    with pytest.raises(fx.proxy.TraceError, match="needs a module around it"):
        fx.symbolic_trace(KINDS[kind].make())


def test_fx_sees_a_proxy_wherever_it_is():
    """As torch.nn's modules, which are calls by their file, not by what they are given."""
    x, indices = torch.randn(6, 3, INPUTS), torch.tensor([2, 0, 1])

    class Root(nn.Module):
        def __init__(self, gru: nn.Module, lstm: nn.Module, cell: nn.Module) -> None:
            super().__init__()
            self.gru, self.lstm, self.cell = gru, lstm, cell

        def forward(self, h: Tensor, rows: Tensor) -> Any:
            packed = PackedSequence(rows, torch.tensor([3, 2]), indices, indices)
            return (
                self.gru(x, h),
                self.lstm(x, (h, h)),
                self.lstm(x, hx=[h, h]),
                self.cell(x[0], h[0]),
                self.gru(packed),
            )

    results = []
    for library in (nn, fastrnn):
        torch.manual_seed(0)
        own = [getattr(library, name)(INPUTS, HIDDEN) for name in ("GRU", "LSTM", "GRUCell")]
        root = Root(*own)
        graph = fx.symbolic_trace(root)
        assert sum(node.op == "call_module" for node in graph.graph.nodes) == 5
        arguments = torch.randn(1, 3, HIDDEN), torch.randn(5, INPUTS)
        torch.testing.assert_close(tensors(graph(*arguments)), tensors(root(*arguments)), rtol=0, atol=0)
        results.append([(node.op, str(node.args)) for node in graph.graph.nodes if node.op == "call_module"])
    assert len(results[0]) == len(results[1])


@pytest.mark.parametrize("case", few(61, lambda case: "packed" not in case.form and "unsorted" not in case.form))
def test_export_gives_what_the_module_gives_or_is_refused(case: Case):
    call = case.module()
    given = case.arguments(call, 6, 3, 0)
    word = KINDS[case.kind].refused if "Quantized" in case.kind else ""
    word = word or next((name for name in ("reset", "lengths") if name in case.form), "")
    if word:
        with pytest.raises(RuntimeError, match=word):
            torch.export.export(call, (), given)
        return
    module = torch.export.export(call, (), given).module()
    other = case.arguments(call, 6, 3, 1)
    same(module(**other), call(**other))


@pytest.mark.parametrize("option", ["", "learn_initial_state", "recompute", "return_cell_states"])
def test_script_says_what_to_do(option: str):
    """And what it says works."""
    for name, kind in KINDS.items():
        if option and option not in kind.options:
            continue
        call, steps = Case(name, option, ()).module(), 2
        x = torch.randn(*([3] if "Cell" in name else [steps, steps]), INPUTS, dtype=torch.float64)
        caller = nn.Sequential(call.rnn)
        refused = kind.refused or (option if option in ("learn_initial_state", "return_cell_states") else "")
        refused = "revert" if "compilable" in name else refused
        if not refused:
            same(torch.jit.script(caller)(x), call.rnn(x))
            continue
        with pytest.raises(NotImplementedError, match=refused) as error:
            torch.jit.script(caller)
        advice = str(error.value)
        if "torch.jit.trace" in advice:
            same(torch.jit.trace(call, x, check_trace=False)(x[:1]), call(x[:1]))
        elif "torch.export" in advice:
            same(torch.export.export(call, (x,)).module()(x), call(x))
        elif "revert" in advice:
            expected = call.rnn(x)
            same(torch.jit.script(fastrnn.revert(caller))(x), expected)
        else:
            assert "script the float module" in advice


onnx = pytest.importorskip("onnx", reason="the rest exports to ONNX, which needs the package onnx")
runtime = pytest.importorskip("onnxruntime", reason="the rest runs ONNX models with onnxruntime")


def exported(module: nn.Module, given: dict[str, Any], dynamo: bool) -> bytes:
    """The ONNX model of a module by itself, called by keyword."""
    buffer, given = io.BytesIO(), dict(given)
    x = given.pop("x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporters, of themselves and for the older one
        if dynamo:
            pytest.importorskip("onnxscript", reason="this exporter needs the package onnxscript")
            torch.onnx.export(module, (x,), kwargs=given, dynamo=True, verbose=False).save(buffer)
        else:
            arguments = (x, *((given.pop("hx"),) if "hx" in given else ()))
            axes = {"x": {0: "first", 1: "second"}}
            torch.onnx.export(
                module, arguments, buffer, kwargs=given, dynamo=False, input_names=["x"], dynamic_axes=axes
            )
    return buffer.getvalue()


def answers(model: bytes, given: list[Tensor]) -> tuple[Tensor, ...]:
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
    return tuple(torch.from_numpy(array) for array in found)


ROOTS = {name: getattr(fastrnn, name) for name in (*NAMES, "RNNCell", "LSTMCell", "GRUCell")}
ROOTS |= {f"compilable {name}": getattr(compilable, name) for name in NAMES}


@pytest.mark.parametrize("state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("name", ROOTS)
def test_the_older_onnx_exporter_of_a_module_by_itself(name: str, state: bool):
    """torch.nn's nodes: it passes by position all that the signature of forward names."""
    theirs, ours = (make(INPUTS, HIDDEN).eval() for make in (getattr(nn, name.split()[-1]), ROOTS[name]))
    ours.load_state_dict(theirs.state_dict())
    lead = (3,) if "Cell" in name else (6, 3)
    given: dict[str, Any] = {"x": torch.randn(*lead, INPUTS)}
    if state:
        h = torch.randn(*(() if "Cell" in name else (1,)), 3, HIDDEN)
        given["hx"] = (h, h) if "LSTM" in name else h
    models = [exported(module, given, dynamo=False) for module in (theirs, ours)]
    kinds = [[node.op_type for node in onnx.load_from_string(model).graph.node] for model in models]
    assert kinds[0] == kinds[1]
    expected = tensors(theirs(*given.values()))
    found = answers(models[1], tree_leaves(given)[: 1 + state + (state and "LSTM" in name)])
    torch.testing.assert_close(found, tuple(part.detach() for part in expected), rtol=1e-5, atol=1e-6)


WITH_OPTIONS = {
    "learned": lambda: fastrnn.LSTM(INPUTS, HIDDEN, learn_initial_state=True),
    "recompute": lambda: fastrnn.GRU(INPUTS, HIDDEN, bidirectional=True, recompute=True),
    "lengths": lambda: fastrnn.LSTM(INPUTS, HIDDEN, num_layers=2, bidirectional=True),
    "lengths, learned": lambda: fastrnn.GRU(INPUTS, HIDDEN, learn_initial_state=True),
    "tokens": lambda: fastrnn.RNN(INPUTS, HIDDEN),
    "reset": lambda: fastrnn.GRU(INPUTS, HIDDEN),
    "return_cell_states": lambda: fastrnn.LSTM(INPUTS, HIDDEN, return_cell_states=True),
    "JordanRNN": lambda: fastrnn.JordanRNN(INPUTS, HIDDEN, 3),
    "QuantizedGRU": lambda: fastrnn.quantize_dynamic(nn.GRU(INPUTS, HIDDEN)),
}


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_the_older_onnx_exporter_with_options(name: str):
    """Right numbers at any T and B, or a refusal."""
    module: Any = WITH_OPTIONS[name]().eval()
    for key, parameter in module.named_parameters():
        if key.startswith("initial"):
            nn.init.normal_(parameter)

    def inputs(steps: int, rows: int) -> dict[str, Tensor]:
        x = torch.randint(INPUTS, (steps, rows)) if name == "tokens" else torch.randn(steps, rows, INPUTS)
        if "lengths" in name:
            return {"x": x, "lengths": torch.randint(1, steps + 1, (rows,))}
        return {"x": x, "reset": torch.rand(steps, rows) < 0.3} if name == "reset" else {"x": x}

    if name in ("reset", "return_cell_states", "JordanRNN", "QuantizedGRU"):
        with pytest.raises(RuntimeError, match=name):
            exported(module, inputs(6, 3), dynamo=False)
        return
    model = exported(module, inputs(6, 3), dynamo=False)
    given = inputs(6, 3)
    x, *rest = given.values()
    expected = tensors(module(x, **{key: value for key, value in given.items() if key != "x"}))
    found = answers(model, [x, *rest])
    torch.testing.assert_close(found, tuple(part.detach() for part in expected), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_the_newer_onnx_exporter_with_options(name: str):
    module: Any = WITH_OPTIONS[name]().eval()
    x = torch.randint(INPUTS, (6, 3)) if name == "tokens" else torch.randn(6, 3, INPUTS)
    given = {"x": x}
    if "lengths" in name:
        given["lengths"] = torch.tensor([6, 2, 3])
    if name == "reset":
        given["reset"] = torch.rand(6, 3) < 0.3
    if "lengths" in name or name in ("reset", "QuantizedGRU"):
        with pytest.raises(torch.onnx.errors.OnnxExporterError) as error:
            exported(module, given, dynamo=True)
        assert name.split(",")[0] in str(error.value)
        return
    found = answers(exported(module, given, dynamo=True), [x])
    torch.testing.assert_close(found, tuple(part.detach() for part in tensors(module(x))), rtol=1e-5, atol=1e-6)
