"""Every class and option, called in every form, in the hands of those that make graphs of modules.

What comes out runs at other T, B, lengths and states and gives what the module itself gives, or the maker of the graph
is told, by the name of the class or of the option, that it cannot be.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves
from traced import HIDDEN, INPUTS, KINDS, NAMES, Call, Case, few, same, tensors

import fastrnn

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's, of itself
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights"),  # of torch.nn's modules as well
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]
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
