"""Candidates for one call, run on its tensors: first whether each is right, then how long each takes.

Right is what errs, in outputs and gradients, at most twice as much as torch's own function does, plus one rounding;
what is exact is known from the equations in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastrnn.choices import TORCH, Choice, Kind

# (x, h0, c0 or None, *weights) -> y, hn and, of a cell that has it, cn
Network = Callable[..., Sequence[Tensor]]
# Milliseconds of each call.
Clock = Callable[[Sequence[Callable[[], object]]], Sequence[float]]
# Ours is taken where it is faster by more than what two measurements of one thing differ by.
MARGIN = 0.97
EPSILON_TF32 = 2.0**-11


def events(calls: Sequence[Callable[[], object]], seconds: float = 0.1, most: int = 100) -> list[float]:
    """Medians by CUDA events of calls made in turn, forth and back, for some ``seconds`` each."""
    for call in [*calls, *calls]:
        call()
    torch.cuda.synchronize()
    samples: list[list[float]] = [[] for _ in calls]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spent, order = 0.0, list(range(len(calls)))
    while len(samples[0]) < 4 or spent < seconds * 1e3 * len(calls) and len(samples[0]) < most:
        for k in order:
            begin.record()
            calls[k]()
            end.record()
            end.synchronize()
            samples[k].append(begin.elapsed_time(end))
            spent += samples[k][-1]
        order.reverse()
    return [sorted(own)[len(own) // 2] for own in samples]


def once(network: Network, tensors: Sequence[Tensor | None], training: bool) -> list[Tensor]:
    """Outputs of one run and, in training, the gradients of all that require one, for seeds that are always the same.

    The tensors are shared, not copied, and their own gradients and graph are left alone.
    """
    leaves = [t if t is None else t.detach().requires_grad_(training and t.requires_grad) for t in tensors]
    with torch.set_grad_enabled(training):
        outputs = [out for out in network(*leaves) if out.numel() or out.dim() > 1]
        if not training:
            return outputs
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        seeds = [_seed(out, k) for k, out in enumerate(outputs)]
        grads = torch.autograd.grad(outputs, wanted, seeds)
    return [*(out.detach() for out in outputs), *grads]


def _seed(like: Tensor, number: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(number)  # leaves the user's own random numbers alone
    values = torch.randn(like.shape, generator=generator, dtype=torch.float32, device="cpu")
    return values.to(like.device, like.dtype)


def fault(found: Sequence[Tensor], base: Sequence[Tensor], truth: Sequence[Tensor], epsilon: float) -> str | None:
    """What is wrong with results, beside those of torch's function and the exact ones; None where nothing is."""
    for k, (ours, theirs, exact) in enumerate(zip(found, base, truth, strict=True)):
        if not exact.numel():
            continue
        allowed = 2 * (float((theirs - exact).abs().max()) + epsilon * float(exact.abs().max()))
        error = float((ours - exact).abs().max())
        if not error <= allowed:  # NaN, too
            return f"result {k} of {len(truth)} is off by {error:.3g}, expected at most {allowed:.3g}"
    return None


def measure(
    kind: Kind,
    candidates: Mapping[str, Network],
    exact: Network,
    tensors: Sequence[Tensor | None],
    clock: Clock = events,
) -> Choice | None:
    """The fastest of the candidates that are right; TORCH is one of them, and the measure of the others.

    None where the device has no memory for the comparison: then nothing is known.
    """

    def run(network: Network, own: Sequence[Tensor | None] = tensors) -> list[Tensor]:
        return once(network, own, kind.training)

    def wide(tensor: Tensor | None) -> Tensor | None:
        return tensor.detach().double().requires_grad_(tensor.requires_grad) if tensor is not None else None

    epsilon = EPSILON_TF32 if kind.tf32 else torch.finfo(getattr(torch, kind.dtype)).eps
    refused: dict[str, str] = {}
    try:
        truth = run(exact, [wide(tensor) for tensor in tensors])
        base = run(candidates[TORCH])
    except torch.OutOfMemoryError:
        return None
    right = [TORCH]
    for name, network in candidates.items():
        if name == TORCH:
            continue
        try:
            problem = fault(run(network), base, truth, epsilon)
        except Exception as error:  # whatever a compiler or a driver says: torch's own function serves instead
            problem = f"{type(error).__name__}: {error}"
        if problem:
            refused[name] = problem
            warnings.warn(f"fastrnn does not use {name} for {kind}: {problem}", RuntimeWarning, stacklevel=2)
        else:
            right.append(name)
    del truth, base
    times = dict(zip(right, clock([lambda n=candidates[name]: run(n) for name in right]), strict=True))
    best = min(times, key=lambda name: times[name])
    winner = best if times[best] < MARGIN * times[TORCH] else TORCH
    return Choice(kind, winner, times, refused)
