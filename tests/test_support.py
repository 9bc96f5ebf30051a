"""The judge judged: the oracle by torch.nn, the comparison by wrong tensors, the suite by wrong backends."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from support import CASES, RAGGED, Case, Expected, Inputs, Results, assert_close, expect, run, verify
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn.backends import reference
from fastrnn.cell import equations, steps
from fastrnn.cells import gru, lstm, rnn
from fastrnn.compiler import built_in
from fastrnn.modes import TORCH_MODES

FORMS = [Case("", directions=2), Case("", lengths=RAGGED, directions=2, bias=False), Case("", steps=1, rows=1)]
PROJECTED = [replace(form, proj_size=4) for form in FORMS]
FORMS = [replace(form, mode=mode, dtype=torch.float64) for mode in TORCH_MODES for form in FORMS]
FORMS += [replace(form, dtype=torch.float64) for form in PROJECTED]


def torch_nn(case: Case, inputs: Inputs) -> Results:
    """torch.nn's own module on the same inputs."""
    kinds = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}
    options = {"nonlinearity": case.mode[4:].lower()} if case.mode.startswith("RNN") else {}
    options |= {"proj_size": case.proj_size} if case.proj_size else {}
    bidirectional = case.directions == 2
    module = kinds[case.mode](
        case.inputs, case.hidden, bias=case.bias, bidirectional=bidirectional, dtype=case.dtype, **options
    )
    for parameter, weight in zip(module.parameters(), inputs.weights, strict=True):
        parameter.data.copy_(weight)
    x, h0 = inputs.x.clone().requires_grad_(), inputs.h0.clone().requires_grad_()
    c0 = None if inputs.c0 is None else inputs.c0.clone().requires_grad_()
    packed = x if inputs.batch_sizes is None else PackedSequence(x, inputs.batch_sizes)
    y, states = module(packed, h0 if c0 is None else (h0, c0))
    y = y.data if isinstance(y, PackedSequence) else y
    hn, cn = (states, x.new_empty(0)) if c0 is None else states
    torch.autograd.backward((y, hn, cn)[: 2 + (c0 is not None)], inputs[6 : 8 + (c0 is not None)])
    leaves = {"grad x": x, "grad h0": h0} | ({} if c0 is None else {"grad c0": c0})
    leaves |= {f"grad weights[{k}]": parameter for k, parameter in enumerate(module.parameters())}
    return {"y": y, "hn": hn, "cn": cn} | {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("case", FORMS, ids=str)
def test_the_oracle_agrees_with_torch_nn(case: Case):
    inputs, exact, budgets = expect(case)
    shown = {name: value for name, value in exact.items() if name != "cells"}  # torch.nn does not return them
    verify(torch_nn(case, inputs), Expected(inputs, shown, budgets))


def nudged(tensor: Tensor, by: float) -> Tensor:
    """One element in the middle is off."""
    wrong = tensor.clone()
    wrong.view(-1)[wrong.numel() // 2] += by
    return wrong


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_comparison_catches_what_is_wrong(dtype: torch.dtype):
    inputs, exact, budgets = expect(Case("", dtype=dtype))
    for name, right in exact.items():
        budget, actual = budgets[name], right.to(dtype)
        assert_close(actual, right, budget, dtype)
        assert budget < right.abs().max() * 256 * torch.finfo(dtype).eps, "so wide a budget would judge nothing"
        other = torch.float16 if dtype == torch.float32 else torch.float32
        wrong = [
            ("1 of .* elements off by more", nudged(actual, 3 * budget)),
            ("elements off by more", actual.flip(0) if len(actual) > 1 else actual.flip(1)),
            ("should be inf or NaN", nudged(actual, float("nan"))),
            ("should be inf or NaN", nudged(actual, float("inf"))),
            ("shape", actual[:, None]),
            ("dtype", actual.to(other)),
        ]
        for message, tensor in wrong:
            with pytest.raises(AssertionError, match=message):
                assert_close(tensor, right, budget, dtype)


def test_the_comparison_wants_inf_and_nan_where_they_belong():
    nan, inf = float("nan"), float("inf")
    exact = torch.tensor([1.0, nan, inf, -inf])
    assert_close(exact.clone(), exact, 0.0, torch.float32)
    for wrong in ([1.0, nan, inf, inf], [1.0, 0.0, inf, -inf], [nan, nan, inf, -inf], [1.0, nan, 3e38, -inf]):
        with pytest.raises(AssertionError, match="should be inf or NaN"):
            assert_close(torch.tensor(wrong), exact, 1e9, torch.float32)


def test_a_missing_result_is_caught():
    expected = expect(Case(""))
    results = run(reference, expected.inputs)
    del results["grad h0"]
    with pytest.raises(KeyError, match="grad h0"):
        verify(results, expected)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product as a plain loop sums it: one long chain of multiply-adds an element."""
    total = x.new_zeros(len(x), len(weight))
    for column, row in zip(x.unbind(1), weight.unbind(1), strict=True):
        total = torch.addcmul(total, column[:, None], row)
    return total if bias is None else total + bias


# What the reference backend is made of, itself last.
SOURCES = [rnn, lstm, gru, built_in, steps, equations, reference]


def variant(old: str = "", new: str = "", **others: Any) -> ModuleType:
    """The reference backend, with the definitions that it calls, in which one piece of source is replaced; ``others``
    are put in the place of globals of these names."""
    sources = {each.__name__: inspect.getsource(each) for each in SOURCES}
    assert not old or sum(source.count(old) for source in sources.values()) == 1
    modules = {name: ModuleType(name) for name in sources}
    with mock.patch.dict(sys.modules, modules):
        for name, module in modules.items():
            source = sources[name].replace(old, new) if old else sources[name]
            exec(compile(source, "variant", "exec"), module.__dict__)
            module.__dict__.update({each: value for each, value in others.items() if each in vars(module)})
    return modules[reference.__name__]


HONEST = [Case("", mode, steps=5, rows=17, inputs=40, hidden=256) for mode in TORCH_MODES]
HONEST += [case for case in CASES if case.small and case.rows and case.dtype == torch.float32]


@pytest.mark.parametrize("case", HONEST, ids=str)
def test_an_honest_program_passes_whatever_its_order_of_summation(case: Case):
    expected = expect(case)
    verify(run(variant(F=SimpleNamespace(linear=plain_linear)), expected.inputs), expected)


LSTM_GATES = 'W, U = Input("i f g o"), Recurrent("i f g o")'
LSTM_STEP = """* c + sigmoid(a.i + b.i) * tanh(a.g + b.g)
        return dict(h=sigmoid(a.o + b.o) * tanh(c), c=c)"""
RNN_STEP = """W, U = Input(), Recurrent()

    def step(self, x, h):
        return dict(h=activation(self.nonlinearity)(self.W(x) + self.U(h)))"""
LEAKY = '(lambda v: __import__("fastrnn").cell.leaky_relu(v, 1e-4))'
DETACHED = '({0} if type({0}).__name__ == "Value" else {0}.detach())'  # a symbol while the definition is traced
SEEDS = "(grad_y, grad_hn, grad_cn, None if"
MUTANTS = {
    "gates swapped": ("LSTM", LSTM_GATES, LSTM_GATES.replace("i f", "f i")),
    "candidate before output gate": ("LSTM", LSTM_GATES, LSTM_GATES.replace("g o", "o g")),
    "no gradient through the carried c": ("LSTM", LSTM_STEP, LSTM_STEP.replace("* c +", f"* {DETACHED.format('c')} +")),
    "no gradient of c from h": ("LSTM", LSTM_STEP, LSTM_STEP.replace("tanh(c)", f"tanh({DETACHED.format('c')})")),
    "grad_cn left out": ("LSTM", SEEDS, "(grad_y, grad_hn, None, None if"),
    "grad_hn left out": ("GRU", SEEDS, "(grad_y, None, grad_cn, None if"),
    "update gate turned round": (
        "GRU", "(1 - z) * tanh(a.n + r * b.n) + z * h", "z * tanh(a.n + r * b.n) + (1 - z) * h",
    ),
    "no gradient through z * h": ("GRU", "* b.n) + z * h", f"* b.n) + z * {DETACHED.format('h')}"),
    "reset before the product's bias": ("GRU", "tanh(a.n + r * b.n)", "tanh(a.n + r * (b.n - 0.01))"),
    "no gradient through the product": (
        "RNN_TANH", RNN_STEP, RNN_STEP.replace("self.U(h)", f"self.U({DETACHED.format('h')})"),
    ),
    "no recurrent bias": ("RNN_TANH", '"U", weights.w_hh, weights.b_hh', '"U", weights.w_hh, None'),
    "a leaky relu": ("RNN_RELU", RNN_STEP, RNN_STEP.replace("activation(self.nonlinearity)", LEAKY)),
    "gradient of the projection lost": (
        "LSTM", '"hr", weights.w_hr,', '"hr", weights.w_hr.detach(),',
    ),
    "reverse runs forward": ("GRU", "reverse=d == 1", "reverse=False"),
    "rows begin with another's state": ("GRU", "first[len(state) : count]", "first[: count - len(state)]"),
    "rows that end swap their states": ("LSTM", "cat([state[count:], end])", "cat([state[count:].flip(0), end])"),
    "inputs of lower precision": ("LSTM", "multiply(x, weights.w_ih,", "multiply(x.bfloat16().to(x), weights.w_ih,"),
    "a slightly wrong tanh": ("RNN_TANH", RNN_STEP, RNN_STEP.replace("self.U(h)))", "self.U(h)) * (1 + 2e-6))")),
}  # fmt: skip


@pytest.mark.parametrize(("mode", "old", "new"), MUTANTS.values(), ids=MUTANTS.keys())
def test_the_suite_fails_on_a_wrong_backend(mode: str, old: str, new: str):
    mutant = variant(old, new)
    with pytest.raises(AssertionError, match="off by more"):
        for case in CASES:
            if case.mode == mode and case.small and case.dtype == torch.float32 and case.magnitude == 1:
                expected = expect(case)
                verify(run(mutant, expected.inputs), expected)


def test_memory_that_nobody_wrote_holds_nan():
    zeros = torch.zeros(3, 5)
    for fresh in (torch.empty(3, 5), torch.empty_like(zeros), zeros.new_empty(7), torch.empty(4, dtype=torch.bfloat16)):
        assert fresh.isnan().all()
