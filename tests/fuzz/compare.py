"""The budget of an error, and whether results keep to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fuzz.cases import DTYPES, Case
from torch import Tensor
from torch.nn import functional as F

Results = dict[str, Tensor]


def _torch_spreads_nans() -> bool:
    """Whether torch's own product of bfloat16 mixes rows, as on AMX: where a row is an odd number of values long, the
    last pair of a row holds the first value of the next one, times zero, which is NaN if that value is no number."""
    x, weight = torch.ones(33, 7, dtype=torch.bfloat16), torch.ones(28, 7, dtype=torch.bfloat16)
    x[1, 0] = float("nan")
    return int(F.linear(x, weight).isnan().any(1).sum()) > 1


TORCH_SPREADS_NANS = _torch_spreads_nans()


class TooFar(AssertionError):
    """A number is further from the right one than the budget allows."""


def compare(
    case: Case, ours: Results, exact: Results, rough: Results, reach: float, others: Sequence[Results] = ()
) -> None:
    """Each result has the right dtype and shape, is inf or NaN where it should be, and is elsewhere within::

        8 * noise + 8 * eps * max |exact| * (of a weight's gradient: sqrt(rows of x))

    (twice that with a gain that makes errors grow from step to step), where ``noise`` is the largest error of torch.nn,
    or of the equations, in the same dtype, and of ``others`` (:func:`nudged`).  In float64 ``max |exact|`` is at least
    ``reach``, what a gate's argument may come to: the largest sum of sizes of a row of weights.  With weights of 8
    bits, a value near the middle of two integers may go to either, and moves a gate by a weight's share of a 127th: a
    twentieth of the largest result is allowed, which a wrong row, unit, step or state exceeds.
    """
    assert ours.keys() == exact.keys(), f"results {sorted(ours)}, expected {sorted(exact)}"
    dtype = DTYPES[case.dtype]
    eps = torch.finfo(torch.bfloat16 if case.autocast else dtype).eps
    share = 2 * eps / torch.finfo(torch.float32).eps if case.dtype == "f64" else 1.0
    least = torch.finfo(dtype).smallest_normal * (eps if dtype == torch.float16 else 1.0)
    chain = max(1.0, (max(case.steps, 1) * max(case.rows, 1)) ** 0.5)
    for name, right in exact.items():
        found, near = ours[name], rough[name]
        assert found.shape == right.shape, f"{name}: shape {tuple(found.shape)}, expected {tuple(right.shape)}"
        if not right.is_floating_point():
            assert torch.equal(found, right), f"{name}: {found.tolist()[:8]}, expected {right.tolist()[:8]}"
            continue
        wanted = near.dtype if case.autocast else dtype
        assert found.dtype == wanted, f"{name}: {found.dtype}, expected {wanted}"
        value, right, near = found.double(), right.double(), near.double()
        finite = right.isfinite() & near.isfinite()
        odd = ~finite & (right.isfinite() == near.isfinite()) & (right.isnan() == near.isnan())
        same = value.isclose(right, rtol=0, atol=0, equal_nan=True)
        if name.startswith("grad"):
            same = ~value.isfinite()  # inf or NaN there depends on the order of factors
            no_h = set(case.seeds) <= {"c", "y" * case.is_cell}  # a cell has no y
            if case.odd and no_h:  # h of the last step has no gradient, which we take for 0: times NaN
                finite &= value.isfinite() | (right != 0) & exact["cn"].isfinite().all()
        if case.odd:  # a first term alone may be past the largest number, whose sum with the others is not
            finite &= value.isfinite() | (right.abs() < torch.finfo(dtype).max / 8)
        if case.odd and case.backend == "reference" and (case.dtype == "bf16" or case.autocast):
            finite &= value.isfinite() | (not TORCH_SPREADS_NANS)  # which is torch's product
        wrong = finite & ~value.isfinite() | odd & ~same
        assert not wrong.any(), f"{name}: {value[wrong][:4].tolist()} where {right[wrong][:4].tolist()} is right"
        noise, scale = largest(near - right, finite), largest(right, finite)
        noise = max(noise, *(largest(other[name].double() - right, finite) for other in others), 0.0)
        if case.dtype == "f64":  # whose noise nobody measures, of terms that cancel least of all
            scale = max(scale, reach)
        if case.odd == "1e4" and name.startswith(("grad weight_ih", "grad twice")):
            scale = max(scale, 1e4)  # of x, times a slope that is hardly more than nothing
        if name.startswith("grad twice"):  # whose terms cancel in one and not in another
            pairs = [(rough[n].double(), exact[n].double()) for n in exact if n.startswith("grad twice")]
            noise = max(largest(a - b, a.isfinite() & b.isfinite()) for a, b in pairs)
            scale = max(scale, 1.0)
        if "relu" in (case.nonlinearity, case.output):
            scale = max(scale, 1.0)  # of arguments, where all results are zeros
        summed = "grad weight", "grad bias", "grad initial", "grad table", "grad twice"
        width = chain if name.startswith(summed) else 1.0
        factor = 16 if case.gain > 1 else 8
        budget = factor * (share * noise + eps * scale * width) + 16 * least + (0.05 * scale if case.narrow else 0.0)
        error = torch.where(finite, value - right, 0.0).abs()
        if largest(error, finite) > budget:
            raise TooFar(
                f"{name}: off by {largest(error, finite):.3g} of {scale:.3g}, expected at most {budget:.3g} "
                f"(the noise is {noise:.3g})"
            )


def largest(tensor: Tensor, where: Tensor) -> float:
    chosen = torch.where(where, tensor, 0.0).abs()
    return chosen.max().item() if chosen.numel() else 0.0
