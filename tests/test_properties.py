"""What must hold between two runs of one backend, whatever the right values are.

Each side of an equation is off by at most its own noise; the budget of the whole run grants that twice.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from support import RAGGED, Case, Inputs, Results, assert_close, expect, gradients, run
from torch import Tensor

from fastrnn.modes import TORCH_MODES

MODES = pytest.mark.parametrize("mode", TORCH_MODES)


def assert_same(found: Results, whole: Results, budgets: dict[str, float], dtype: torch.dtype = torch.float32) -> None:
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert_close(found[name], tensor, budgets[name], dtype, name)


def results(module: ModuleType, inputs: Inputs) -> Results:
    """All but the cell states of the steps: a layout of its own, and each is seen in y."""
    return {name: tensor for name, tensor in run(module, inputs).items() if name != "cells"}


def rows_of(inputs: Inputs, case: Case) -> list[Inputs]:
    """Each sequence of a batch, padded or packed, as a batch of one row."""
    pieces = []
    for b in range(len(case.lengths) or case.rows):
        one = slice(b, b + 1)
        x, grad_y = (tensor[where(case, b)].unsqueeze(1) for tensor in (inputs.x, inputs.grad_y))
        states = (None if t is None else t[:, one] for t in (inputs.h0, inputs.c0, inputs.grad_hn, inputs.grad_cn))
        h0, c0, grad_hn, grad_cn = states
        pieces.append(Inputs(inputs.mode, x, None, h0, c0, inputs.weights, grad_y, grad_hn, grad_cn))
    return pieces


def where(case: Case, row: int) -> tuple | Tensor:
    """Where the steps of one row stand in x: an index."""
    if not case.lengths:
        return (slice(None), row)
    starts = [0]
    for t in range(case.lengths[row] - 1):
        starts.append(starts[-1] + sum(length > t for length in case.lengths))
    return torch.tensor(starts) + row


def assemble(pieces: list[Results], whole: Results, case: Case) -> Results:
    """The results of single rows put together as the results of their batch."""
    found = {name: torch.full_like(tensor, float("nan")) for name, tensor in whole.items()}
    for b, piece in enumerate(pieces):
        for name, tensor in piece.items():
            if name in ("y", "grad x"):
                found[name][where(case, b)] = tensor[:, 0]
            elif "weights" not in name and tensor.numel():
                found[name][:, b : b + 1] = tensor
    for name in whole:
        if "weights" in name:
            found[name] = torch.stack([piece[name] for piece in pieces]).sum(0)
    return found


@MODES
@pytest.mark.parametrize("lengths", [(), RAGGED], ids=["padded", "packed"])
def test_a_row_alone_equals_the_row_in_its_batch(target, mode: str, lengths: tuple[int, ...]):
    case = Case("", mode, lengths=lengths, directions=2)
    expected = expect(case)
    inputs = expected.inputs.map(target.move)
    whole = results(target.module, inputs)
    alone = [results(target.module, row) for row in rows_of(inputs, case)]
    assert_same(assemble(alone, whole, case), whole, expected.budgets)


@MODES
def test_a_sequence_in_two_pieces_with_carried_state_equals_the_whole(target, mode: str):
    case = Case("", mode, steps=7, proj_size=4 if mode == "LSTM" else 0)
    expected = expect(case)
    inputs = expected.inputs.map(target.move)
    whole = results(target.module, inputs)

    module, cut, has_c = target.module, 3, inputs.c0 is not None
    head = inputs._replace(x=inputs.x[:cut], grad_y=inputs.grad_y[:cut])
    y_head, h, c, saved_head = module.forward(*head[:6], save=True)
    tail = inputs._replace(x=inputs.x[cut:], grad_y=inputs.grad_y[cut:], h0=h, c0=c if has_c else None)
    y_tail, hn, cn, saved_tail = module.forward(*tail[:6], save=True)
    late = gradients(module, tail, saved_tail)
    early = gradients(module, head._replace(grad_hn=late["grad h0"], grad_cn=late.get("grad c0")), saved_head)

    found = {"y": torch.cat([y_head, y_tail]), "hn": hn, "cn": cn} | early
    found["grad x"] = torch.cat([early["grad x"], late["grad x"]])
    found |= {name: early[name] + late[name] for name in early if "weights" in name}
    assert_same(found, whole, expected.budgets)


@MODES
def test_the_reverse_direction_equals_the_forward_one_on_flipped_input(target, mode: str):
    case = Case("", mode, steps=6, directions=2)
    expected = expect(case)
    inputs = expected.inputs.map(target.move)
    both = results(target.module, inputs)

    def one(d: int) -> Inputs:
        def along(tensor: Tensor) -> Tensor:
            return tensor.flip(0) if d else tensor

        half = len(inputs.weights) // 2
        states = (None if t is None else t[d : d + 1] for t in (inputs.h0, inputs.c0, inputs.grad_hn, inputs.grad_cn))
        h0, c0, grad_hn, grad_cn = states
        weights, grad_y = inputs.weights[d * half : (d + 1) * half], inputs.grad_y.chunk(2, -1)[d]
        return Inputs(mode, along(inputs.x), None, h0, c0, weights, along(grad_y), grad_hn, grad_cn)

    ahead, back = results(target.module, one(0)), results(target.module, one(1))
    found = {name: torch.cat([ahead[name], back[name]]) for name in both.keys() & ahead.keys() if "weights" not in name}
    found["y"] = torch.cat([ahead["y"], back["y"].flip(0)], -1)
    found["grad x"] = ahead["grad x"] + back["grad x"].flip(0)
    grads = [run_[name] for run_ in (ahead, back) for name in run_ if "weights" in name]
    found |= {f"grad weights[{k}]": grad for k, grad in enumerate(grads)}
    assert_same(found, both, expected.budgets)
