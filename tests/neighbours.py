"""What meets a module: every function of ours and of torch's that takes one, as columns of `test_neighbours.py`.

A column takes a row and its module, has its function do to them what users do, and returns what is to be compared with
the module's own results: results of its own, or pairs of what was found and what is right.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations

import fastrnn
from fastrnn.kinds import record

KINDS = (fastrnn.Network, record())[1]  # with the networks of any cell, which this imports
INPUTS, HIDDEN, OUTPUTS, STEPS, ROWS, VOCABULARY = 4, 5, 3, 6, 2, 3


# Options of a network of any cell that drop something: all in training, zoneout in evaluation, too.
DROPS: dict[str, Any] = {"zoneout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.4}
seed = torch.default_generator.manual_seed  # torch.manual_seed, for a GPU to come, writes down who called: 5 ms


@dataclass(frozen=True)
class Row:
    """A module of ours: a class, the arguments of its construction, the options that are on, those of its calls."""

    kind: str
    variant: str = "ours"
    form: dict[str, Any] = field(default_factory=dict, hash=False)
    options: tuple[str, ...] = ()
    call: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join(
            [self.kind, *map(str, self.form.values()), self.variant, *self.options, *(f"{name}=" for name in self.call)]
        )

    @property
    def traits(self) -> set[str]:
        found = {self.kind, self.variant, *self.form, *map(str, self.form.values()), *self.options, *self.call}
        if self.is_cell:
            return found | {"cell"}
        return found | {"default"} if self.variant == "ours" and KINDS[self.kind].theirs else found

    @property
    def is_of_any_cell(self) -> bool:
        return self.kind.startswith("Network")

    @property
    def drops(self) -> dict[str, Any]:
        """The options on that drop something."""
        return {name: DROPS[name] for name in self.options if name in DROPS}

    @property
    def is_cell(self) -> bool:
        return self.kind.endswith("Cell")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.variant == "int8" else torch.float64

    def theirs(self) -> Any:
        """torch.nn's module; of a network that torch.nn has not, ours without options but those that drop."""
        cls = KINDS[self.kind].theirs
        if self.is_of_any_cell:
            made: Any = KINDS[self.kind].ours
            return made(fastrnn.cells.LSTM, INPUTS, HIDDEN, **self.drops, dtype=self.dtype).eval()
        if cls is None:
            return fastrnn.JordanRNN(INPUTS, HIDDEN, OUTPUTS, **self.form, dtype=self.dtype)
        return cls(INPUTS, HIDDEN, **self.form, dtype=self.dtype)

    def build(self) -> Any:
        """The module; a learned initial state is none of zeros."""
        seed(0)
        theirs = self.theirs()
        if self.variant != "ours":
            return BUILT[self.variant](theirs)
        sizes: Any = (INPUTS, HIDDEN, OUTPUTS)[: 3 if self.kind == "JordanRNN" else 2]
        sizes = (fastrnn.cells.LSTM, *sizes) if self.is_of_any_cell else sizes
        ours: Any = KINDS[self.kind].ours
        options = dict.fromkeys(self.options, True) | self.drops
        made = ours(*sizes, **self.form, **options, dtype=self.dtype)
        made.train(not self.is_of_any_cell)  # without what is random
        made.load_state_dict(theirs.state_dict(), strict=False)
        for name in ("initial_h", "initial_c"):
            if hasattr(made, name):
                nn.init.normal_(getattr(made, name))
        return made

    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if "embedding" in self.call:
            return torch.randint(VOCABULARY, (STEPS, ROWS), generator=generator)
        shape = (ROWS, INPUTS) if self.is_cell else (STEPS, ROWS, INPUTS)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(self.dtype)

    def arguments(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Those of a call that are on."""
        values = {
            "lengths": [STEPS, 2],
            "reset": torch.arange(STEPS * ROWS).view(STEPS, ROWS) % 5 == 3,
            "embedding": table(dtype or self.dtype),
            "return_cell_states": True,
            "return_states": True,
        }
        return {name: values[name] for name in self.call}

    def run(self, module: Any, x: Tensor, hx: Any = None) -> list[Tensor]:
        """All results of a call with these arguments; x is of the module's dtype, or of none where it is tokens."""
        biases = module.bias_hh if self.is_cell else module.bias_hh_l0
        x = x.to(biases.dtype) if x.is_floating_point() else x
        return flat(module(x, *(() if hx is None else (hx,)), **self.arguments(biases.dtype)))

    def hx(self, module: Any) -> Any:
        """The state with which torch.nn's module does what this one does without."""
        if not getattr(module, "learn_initial_state", False):
            return None
        states = [s.detach().unsqueeze(1).expand(-1, ROWS, -1).contiguous() for s in learned(module)]
        return tuple(states) if len(states) == 2 else states[0]


@functools.cache
def table(dtype: torch.dtype) -> nn.Embedding:
    seed(4)
    return nn.Embedding(VOCABULARY, INPUTS, dtype=dtype)


BUILT: dict[str, Callable[[Any], Any]] = {
    "compilable": lambda module: fastrnn.convert(module, compilable=True),
    "int8": fastrnn.quantize_dynamic,
}


def learned(module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in ("initial_h", "initial_c") if hasattr(module, name)]


def flat(result: Any) -> list[Tensor]:
    """All tensors of a call's results: output, states, and cell states where there are."""
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]


def called(row: Row, module: Any) -> list[Tensor]:
    return row.run(module, row.x())


def copied(row: Row, module: Any, other: Any) -> list[Tensor]:
    """The results of a copy, which has the options of its module."""
    assert all(getattr(other, name) == getattr(module, name) for name in row.options)
    return called(row, other)


def of_torch_nn(row: Row) -> Any:
    """torch.nn's module that a row's weights are for, or are not."""
    if row.is_of_any_cell:
        return (nn.LSTMCell if row.is_cell else nn.LSTM)(INPUTS, HIDDEN, dtype=row.dtype)
    return nn.RNN(INPUTS, HIDDEN).double() if row.kind == "JordanRNN" else row.theirs()


def twin(row: Row, module: Any) -> Any:
    """torch.nn's module of the same weights and dtype; of a module of 8 bits, which all who ask refuse, any."""
    theirs, state = row.theirs(), dict(module.state_dict())
    if row.variant == "int8":
        return theirs
    theirs.load_state_dict({key: value for key, value in state.items() if not key.startswith("initial_")})
    return theirs.to(next(iter(state.values())).dtype)


Pairs = list[tuple[Any, Any]]
COLUMNS: dict[str, Callable[[Row, Any], Any]] = {}


def column(name: str) -> Callable[[Any], Any]:
    def added(function: Callable[[Row, Any], Any]) -> Callable[[Row, Any], Any]:
        COLUMNS[name] = function
        return function

    return added


# Of ours.


@column("the equations")
def _(row: Row, module: Any) -> Any:
    if row.variant == "int8":
        seed(0)
        return flat(type(module).from_float(row.theirs())(row.x()))
    theirs = twin(row, module)
    if row.is_of_any_cell and not row.drops:
        theirs = of_torch_nn(row)
        theirs.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("initial_")})
    with fastrnn.use_backend("reference"):
        expected = flat(theirs(row.x(), row.hx(module)))
    found = called(row, module)
    return list(zip(found, expected, strict="return_cell_states" not in row.options))


@column("fastrnn.convert")
def _(row: Row, module: Any) -> Any:
    assert fastrnn.convert(module) is module
    return called(row, module)


@column("fastrnn.convert(compilable=True)")
def _(row: Row, module: Any) -> Any:
    assert fastrnn.convert(module, compilable=True) is module
    if row.variant == "ours":
        assert type(module) is (KINDS[row.kind].compilable or KINDS[row.kind].ours)
    return called(row, module)


@column("fastrnn.revert")
def _(row: Row, module: Any) -> Any:
    own = type(module)
    assert fastrnn.revert(module) is module
    assert type(module) is (own if row.variant == "int8" else KINDS[row.kind].theirs or own)
    return called(row, module)


@column("fastrnn.quantize_dynamic")
def _(row: Row, module: Any) -> Any:
    narrow = fastrnn.quantize_dynamic(module.float())
    wanted = KINDS[row.kind].int8
    if wanted is None:
        assert type(narrow) is type(module)
        return list(zip(called(row, narrow), called(row, module), strict=True))
    assert type(narrow) is wanted
    expected = narrow if row.variant == "int8" else wanted.from_float(twin(row, module))
    hx = None if row.variant == "int8" else row.hx(narrow)
    return list(zip(called(row, narrow), row.run(expected, row.x(), hx), strict=True))


@column("fastrnn.stream")
def _(row: Row, module: Any) -> Any:
    module.float().eval()
    x = row.x().float()
    handle, expected = fastrnn.stream(module, ROWS), row.run(module, x)
    steps = [handle.step(step).clone() for step in (x.unsqueeze(0) if row.is_cell else x)]
    last = flat(handle.state)
    return list(zip([*([] if row.is_cell else [torch.stack(steps)]), *last], expected, strict=True))


@column("from_float")
def _(row: Row, module: Any) -> Any:
    cls = KINDS[row.kind].int8 or fastrnn.QuantizedRNN
    narrow = cls.from_float(module.float())
    right = cls.from_float(twin(row, module))
    return list(zip(called(row, narrow), row.run(right, row.x(), row.hx(narrow)), strict=True))


@column("fastrnn.interop.keras_weights")
def _(row: Row, module: Any) -> Any:
    weights = fastrnn.interop.keras_weights(module)
    return called(row, fastrnn.interop.load_keras_weights(row.theirs(), weights))


@column("fastrnn.interop.keras_options")
def _(row: Row, module: Any) -> Any:
    name, options = fastrnn.interop.keras_options(module)
    assert name == {"RNN": "SimpleRNN", "Network": "LSTM"}.get(row.kind, row.kind) and options["units"] == HIDDEN
    return called(row, module)


@column("fastrnn.interop.load_keras_weights")
def _(row: Row, module: Any) -> Any:
    other = nn.GRU(INPUTS, HIDDEN).double() if row.kind == "JordanRNN" or row.is_cell else row.theirs()
    weights = fastrnn.interop.keras_weights(other) if not getattr(other, "proj_size", 0) else []
    fastrnn.interop.load_keras_weights(module, weights)
    return list(zip(called(row, module), flat(other(row.x())), strict=True))


@column("fastrnn.interop.to_onnx")
def _(row: Row, module: Any) -> Any:
    onnx = pytest.importorskip("onnx", reason="to_onnx needs the package onnx")
    runtime = pytest.importorskip("onnxruntime", reason="what it makes is run by ONNX Runtime")
    graph = fastrnn.interop.to_onnx(module.float())
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": row.x().float().numpy()})
    return list(zip(map(torch.from_numpy, found), called(row, module), strict=True))


@column("fastrnn.interop.Reversed")
def _(row: Row, module: Any) -> Any:
    y, state = fastrnn.interop.Reversed(module)(row.x().flip(0))
    return [y.flip(0), *flat(state)]


def initialised(name: str, *arguments: Any) -> None:
    @column(f"fastrnn.init.{name}")
    def _(row: Row, module: Any) -> Any:
        function = getattr(fastrnn.init, name)
        theirs, kept = twin(row, module), [each.clone() for each in learned(module)]
        seed(2)
        assert function(module, *arguments) is module
        seed(2)
        function(theirs, *arguments)
        before, after, right = row.build().state_dict(), module.state_dict(), theirs.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in right), "it does nothing"
        return [*((after[key], right[key]) for key in right), *zip(learned(module), kept, strict=True)]


for _name, *_arguments in (
    ("orthogonal_",), ("xavier_uniform_",), ("forget_bias_", 2.0), ("chrono_", 9.0), ("identity_", 0.5),
):  # fmt: skip
    initialised(_name, *_arguments)


@column("fastrnn.diagnostics.gradient_norms")
def _(row: Row, module: Any) -> Any:
    curves = []
    for each, hx in ((module, None), (twin(row, module), row.hx(module))):
        with fastrnn.diagnostics.gradient_norms(each) as norms:
            sum(tensor.square().sum() for tensor in flat(each(row.x(), hx))[:2]).backward()
        curves.append(norms)
    assert curves[0].keys() == curves[1].keys()
    return [(curves[0][key], curves[1][key]) for key in curves[0]]


# Of Python's and torch's.


@column("deepcopy")
def _(row: Row, module: Any) -> Any:
    return copied(row, module, copy.deepcopy(module))


@column("pickle")
def _(row: Row, module: Any) -> Any:
    return copied(row, module, pickle.loads(pickle.dumps(module)))


@column("torch.save")
def _(row: Row, module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return copied(row, module, torch.load(buffer, weights_only=False))


@column("state_dict to torch.nn")
def _(row: Row, module: Any) -> Any:
    theirs = of_torch_nn(row)
    theirs.load_state_dict(module.state_dict())
    if row.drops:  # which are no weights
        return list(zip(theirs.state_dict().values(), module.state_dict().values(), strict=True))
    return list(zip(flat(theirs(row.x())), called(row, module), strict=False))


@column("state_dict from torch.nn")
def _(row: Row, module: Any) -> Any:
    theirs = of_torch_nn(row)
    module.load_state_dict(theirs.state_dict())
    if row.drops:
        return list(zip(theirs.state_dict().values(), module.state_dict().values(), strict=True))
    return list(zip(flat(theirs(row.x())), called(row, module), strict=False))


@column("meta, to_empty")
def _(row: Row, module: Any) -> Any:
    empty = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    return called(row, empty)


@column("forward hooks")
def _(row: Row, module: Any) -> Any:
    seen: list[Any] = []
    module.register_forward_pre_hook(lambda module, args, kwargs: ((row.x(),), kwargs), with_kwargs=True)
    module.register_forward_hook(lambda module, args, kwargs, result: seen.extend(flat(result)), with_kwargs=True)
    result = row.run(module, torch.zeros_like(row.x()))
    assert all(a is b for a, b in zip(seen, result, strict=True))
    return result


@column("backward hooks")
def _(row: Row, module: Any) -> Any:
    seen: list[Any] = []
    module.register_full_backward_hook(lambda module, left, came: seen.extend(came))
    given = module(row.x(), **row.arguments())
    results = flat(given)
    if row.variant == "int8":
        assert not results[0].requires_grad
        return results
    sum(tensor.square().sum() for tensor in results).backward()
    tensors = given if isinstance(given, tuple) else (given,)
    pairs = [(came, 2 * out) for came, out in zip(seen, tensors, strict=True) if came is not None]  # as of (h, c)
    assert pairs
    return [*pairs, *zip(results, called(row, module), strict=True)]


@column("weight_norm")
def _(row: Row, module: Any) -> Any:
    parametrizations.weight_norm(module, "weight_hh" if row.is_cell else "weight_hh_l0")
    return called(row, module)


@column("spectral_norm")
def _(row: Row, module: Any) -> Any:
    found = []
    hx = row.hx(module)
    for each, state in ((module, None), (twin(row, module), hx)):
        seed(3)
        parametrizations.spectral_norm(each, "weight_hh" if row.is_cell else "weight_hh_l0").eval()
        found.append(flat(each(row.x(), state)))
    return list(zip(*found, strict="return_cell_states" not in row.options))


@column("autocast")
def _(row: Row, module: Any) -> Any:
    module.float()
    exact = called(row, module)
    with torch.autocast("cpu", torch.bfloat16):
        found = called(row, module)
    for ours, right in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.float(), right, rtol=0, atol=0.05)
    return list(zip(called(row, module), exact, strict=True))  # that it is over


def leaves(row: Row, module: Any) -> dict[str, Tensor]:
    """What a call may be differentiated by: its input, and its parameters but biases, which are too like each other."""
    x = {"x": row.x()} if row.x().is_floating_point() else {}
    return x | {name: value.detach() for name, value in module.named_parameters() if not name.startswith("bias")}


def as_function(row: Row, module: Any) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    def function(given: dict[str, Tensor]) -> list[Tensor]:
        x = given.get("x", row.x())
        own = {name: value for name, value in given.items() if name != "x"}
        return flat(functional_call(module, own, (x,), row.arguments()))

    return function


@column("functional_call")
def _(row: Row, module: Any) -> Any:
    state = {key: value.clone() for key, value in module.state_dict().items()}
    for value in module.state_dict().values():
        value.zero_()
    return flat(functional_call(module, state, (row.x(),), row.arguments()))


@column("vmap")
def _(row: Row, module: Any) -> Any:
    several = [row.x(), row.x().flip(0), row.x().flip(1)]
    found = vmap(lambda x: row.run(module, x))(torch.stack(several))
    return [(found[k][v], right) for v, x in enumerate(several) for k, right in enumerate(row.run(module, x))]


@column("grad")
def _(row: Row, module: Any) -> Any:
    given, function = leaves(row, module), as_function(row, module)

    def loss(given: dict[str, Tensor]) -> Tensor:
        return sum(tensor.square().sum() for tensor in function(given))

    found = grad(loss)(given)
    own = {name: value.clone().requires_grad_() for name, value in given.items()}
    loss(own).backward()
    return [(found[name], leaf.grad) for name, leaf in own.items()]


@column("jvp")
def _(row: Row, module: Any) -> Any:
    given, function = leaves(row, module), as_function(row, module)
    found = jvp(function, (given,), (given,))[1]
    one, other = (function({name: value * (1 + step) for name, value in given.items()}) for step in (1e-6, -1e-6))
    return [(f, (a - b) / 2e-6) for f, a, b in zip(found, one, other, strict=True)]


@column("forward-mode AD")
def _(row: Row, module: Any) -> Any:
    given, function = leaves(row, module), as_function(row, module)
    right = jvp(function, (given,), (given,))[1] if row.variant != "int8" else []
    with forward_ad.dual_level():
        duals = function({name: forward_ad.make_dual(value, value) for name, value in given.items()})
        return [(forward_ad.unpack_dual(dual).tangent, r) for dual, r in zip(duals, right, strict=True)]


# Slow ones, or those that record a call.


class Caller(nn.Module):
    """TorchScript enters an overloaded forward from a caller alone."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor):
        return self.module(x)


@column("torch.jit.script")
def _(row: Row, module: Any) -> Any:
    return flat(torch.jit.script(Caller(module))(row.x()))


@column("torch.jit.trace")
def _(row: Row, module: Any) -> Any:
    return flat(torch.jit.trace(module, (row.x() + 1,))(row.x()))


@column("torch.fx")
def _(row: Row, module: Any) -> Any:
    graph = torch.fx.symbolic_trace(Caller(module))
    assert any(node.op == "call_module" for node in graph.graph.nodes)
    return flat(graph(row.x()))


@column("torch.export")
def _(row: Row, module: Any) -> Any:
    return flat(torch.export.export(module, (row.x() + 1,)).module()(row.x()))


def onnx_exported(dynamo: bool) -> Callable[[Row, Any], Any]:
    def exported(row: Row, module: Any) -> Any:
        pytest.importorskip("onnx", reason="exporters to ONNX need the package onnx")
        if dynamo:
            pytest.importorskip("onnxscript", reason="this exporter needs the package onnxscript")
        runtime = pytest.importorskip("onnxruntime", reason="what they make is run by ONNX Runtime")
        module = module.float().eval()
        x, buffer = row.x().float(), io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporters, of themselves and for the older one
            if dynamo:
                table = fastrnn.interop.onnx_translations() if row.variant == "compilable" else None
                program = torch.onnx.export(
                    module, (x + 1,), dynamo=True, verbose=False, custom_translation_table=table
                )
                program.save(buffer)
            else:
                torch.onnx.export(module, (x + 1,), buffer, dynamo=False)
        session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        return list(zip(map(torch.from_numpy, found), flat(module(x)), strict=True))

    return exported


column("torch.onnx.export(dynamo=False)")(onnx_exported(False))
column("torch.onnx.export(dynamo=True)")(onnx_exported(True))


@column("torch.compile")
def _(row: Row, module: Any) -> Any:
    torch._dynamo.reset()
    return row.run(torch.compile(module, backend="eager"), row.x())


@column("torch.compile(fullgraph=True)")
def _(row: Row, module: Any) -> Any:
    torch._dynamo.reset()
    return flat(torch.compile(Caller(module), backend="eager", fullgraph=True)(row.x()))


def public(*namespaces: Any) -> set[str]:
    """What of ours takes a model or a module, by the name of its first argument."""
    found = set()
    for namespace in namespaces:
        for name, value in vars(namespace).items():
            ours = getattr(value, "__module__", "").startswith(namespace.__name__)
            if not ours or name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, type)):
                continue
            own = value.__init__ if isinstance(value, type) else value
            if {"model", "module"} & set(list(inspect.signature(own).parameters)[:2]):
                found.add(f"{namespace.__name__}.{name}")
    return found
