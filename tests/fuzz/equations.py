"""The equations of every network and every option, a step of all rows at a time, for autograd: in float64, the oracle.

It shares no code with fastrnn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fuzz.cases import PACKED, Case, packing
from torch import Tensor
from torch.nn import functional as F

FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda value: value}


def results(
    case: Case, x: Tensor, state: Sequence[Tensor] | None, weights: dict[str, Tensor], reset: Tensor | None
) -> tuple[Tensor | None, list[Tensor], Tensor | None]:
    """y (None of a cell), the last states and c of all steps of the last layer, as the call of a case gives them;
    ``x`` are vectors."""
    if case.is_cell:
        own = [each if (case.form != "single") else each.unsqueeze(0) for each in (x, *(state or ()))]
        start = own[1:] or [x.new_zeros(own[0].shape[0], case.hidden) for _ in range(1 + (case.name == "LSTM"))]
        found = _step(case, own[0], start, weights, "")
        return None, [each if (case.form != "single") else each.squeeze(0) for each in found], None
    single, rows = case.form == "single", len(case.ragged)
    if case.form in PACKED:
        places = packing(case).data
        steps = max(case.lengths)
        x = x.new_zeros(steps * rows, x.shape[-1]).index_copy(0, places, x).view(steps, rows, -1)
    elif single:
        x = x.unsqueeze(1)
    elif case.batch_first:
        x = x.transpose(0, 1)
    steps = x.shape[0]
    if reset is not None:
        reset = reset.unsqueeze(1) if single else reset.t() if case.batch_first else reset
    ends = torch.tensor(case.ragged) if case.lengths else torch.full((rows,), steps)
    inside = torch.arange(steps).unsqueeze(1) < ends  # (T, B)
    whole = bool(inside.all()) and reset is None
    x = torch.where(inside.unsqueeze(2), x, 0.0)
    # cut[t]: whether a piece begins at t that goes on from nothing
    cut = None if reset is None else torch.cat([reset & inside, torch.zeros(1, rows, dtype=torch.bool)])

    slots, sizes = case.layers * case.directions, [case.units] + [case.hidden] * (case.name == "LSTM")
    firsts = [x.new_zeros(slots, rows, size) for size in sizes]
    begins = [each[:, :1] for each in firsts]  # where a piece goes on from nothing
    if case.learned:
        begins = [weights[name].unsqueeze(1) for name in ("initial_h", "initial_c")[: len(sizes)]]
        firsts = [begin.expand(first.shape) for begin, first in zip(begins, firsts, strict=False)]
    if state is not None:
        firsts = [each.unsqueeze(1) for each in state] if single else list(state)

    lasts: list[list[Tensor]] = [[] for _ in sizes]
    cells = None
    for layer in range(case.layers):
        outputs, states_of_steps = [], []
        for d in range(case.directions):
            slot, suffix = layer * case.directions + d, f"_l{layer}" + "_reverse" * d
            now = [first[slot] for first in firsts]
            found: list[list[Tensor]] = [[] for _ in range(steps)]
            for t in reversed(range(steps)) if d else range(steps):
                if cut is not None:
                    anew = cut[t + d]
                    now = [
                        torch.where(anew.unsqueeze(1), begin[slot], each)
                        for begin, each in zip(begins, now, strict=False)
                    ]
                new = _step(case, x[t], now, weights, suffix)
                now = (
                    new
                    if whole
                    else [torch.where(inside[t].unsqueeze(1), a, b) for a, b in zip(new, now, strict=False)]
                )
                found[t] = now
            for each, last in zip(now, lasts, strict=False):
                last.append(each)
            outputs.append(torch.stack([each[0] for each in found]))
            states_of_steps.append(torch.stack([each[-1] for each in found]))
        x = torch.cat(outputs, 2)
        x = x if whole else torch.where(inside.unsqueeze(2), x, 0.0)
        cells = torch.where(inside.unsqueeze(2), torch.cat(states_of_steps, 2), 0.0)
    finals = [torch.stack(last) for last in lasts]

    def back(rows_of_steps: Tensor) -> Tensor:
        if case.form in PACKED:
            return rows_of_steps.flatten(0, 1)[packing(case).data]
        return (
            rows_of_steps.squeeze(1) if single else rows_of_steps.transpose(0, 1) if case.batch_first else rows_of_steps
        )

    return back(x), [final.squeeze(1) if single else final for final in finals], back(cells) if case.cells else None


def _step(case: Case, x: Tensor, state: Sequence[Tensor], weights: dict[str, Tensor], suffix: str) -> list[Tensor]:
    """(h_t,), of an LSTM (h_t, c_t), from x_t (B, I) and the state before."""
    h = state[0]
    own = {name: weights.get(f"{name}{suffix}") for name in ("bias_ih", "bias_hh", "weight_hr", "bias_hr")}
    linear = _linear_of_8_bits if case.narrow else F.linear
    # By default a first product that is small beside the others stays as it is.
    stays = suffix in ("", "_l0", "_l0_reverse") and 4 * x.shape[1] <= case.hidden
    a = (F.linear if stays else linear)(x, weights[f"weight_ih{suffix}"], own["bias_ih"])
    b = linear(h, weights[f"weight_hh{suffix}"], own["bias_hh"])
    if case.name == "LSTM":
        i, f, g, o = (a + b).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return [h if own["weight_hr"] is None else linear(h, own["weight_hr"], None), c]
    if case.name == "GRU":
        (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
        r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
        n = torch.tanh(an + r * bn)
        return [(h - n) * z + n]
    u = FUNCTIONS[case.nonlinearity](a + b)
    if case.kind == "JordanRNN":
        return [FUNCTIONS[case.output](F.linear(u, own["weight_hr"], own["bias_hr"]))]
    return [u]


def _linear_of_8_bits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Both rounded to integers from -127 to 127 by the largest of each row, a unit's or a sequence's."""

    def integers(rows: Tensor) -> tuple[Tensor, Tensor]:
        scales = rows.abs().amax(1, keepdim=True) / 127
        return (rows / torch.where(scales == 0, 1.0, scales)).round(), scales

    (q, s), (p, r) = integers(weight), integers(x)
    product = p @ q.t() * (r * s.t())
    return product if bias is None else product + bias
