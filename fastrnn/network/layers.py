"""All layers and directions of a network, with what is dropped in them, and in segments of time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastrnn import fused
from fastrnn.cell.declare import Cell, Recurrent, StepInput
from fastrnn.cell.regularise import Regularised, operand_sizes
from fastrnn.cell.steps import over_steps
from fastrnn.dynamo import transformed
from fastrnn.fused.engines import ENGINES
from fastrnn.fused.layer import Steps, direction
from fastrnn.network.arguments import Arguments

# A direction of a layer: see fastrnn.fused.layer.direction, of parameters, x, steps, states and extras.
Direction = Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]]

# Rows of a segment on an engine that reads products of x made before the loop: what does not fit a cache anyway, and
# repays that each segment packs the weights.
SEGMENT_ROWS = 2048


def run_layers(net: Any, given: Arguments, every_state: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The output of the last layer, (N, D * size), the last states, (num_layers * D, B, size) each, and, where they are
    asked for, the last layer's states behind every step, (N, D * size) each."""
    directions = 2 if net.bidirectional else 1
    plain = not (net.zoneout or net.recurrent_dropout or net.weight_dropout)
    if plain and not every_state:
        cell, compiled = net.cell, net._compiled
    else:
        dropped = net.recurrent_dropout_per if net.drops and net.recurrent_dropout else None
        key = tuple(net.zoneout.items()), net.drops, dropped, every_state
        net.prepare(*key)
        cell, compiled = net._variants[key]
    states, steps, x = given.states, given.steps, given.x
    scan = fused.choose(compiled, x.device, states[0].dtype, net.int8)
    within = scan is ENGINES["cpp"].scan  # which makes products of x for some steps at a time

    def run(parameters: Mapping[str, Any], *rest: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        y, last, every = direction(scan, compiled, parameters, *rest, within=within)
        return y, last, every if every_state else []

    again = net.recompute and _recomputes()
    # Products of x for all steps would be larger than input and output.
    apart = scan is ENGINES["numba"].scan and not torch.is_grad_enabled() and steps.rows > SEGMENT_ROWS
    if plain and net.num_layers == directions == 1 and not net.recompute and not apart:
        firsts = [state[0] for state in states]
        y, last, every = direction(scan, compiled, net.of_direction("_l0"), x, steps, firsts, given.extras, within)
        return y, [end.unsqueeze(0) for end in last], every
    if again or apart:
        extras = compiled.loop.traced.parts.extras
        of_step = [name for name, each in extras.items() if isinstance(each, StepInput)]
        length = math.isqrt(max(steps.count, 1) - 1) + 1 if again else max(1, SEGMENT_ROWS // steps.batch)
        run = in_segments(run, of_step, length, again)
    ends: list[list[Tensor]] = [[] for _ in states]
    for layer in range(net.num_layers):
        if layer and net.dropout and net.drops:
            x = F.dropout(x, net.dropout, True)
        outputs, every = [], []
        for d in range(directions):
            parameters = net.of_direction(f"_l{layer}" + "_reverse" * d)
            if net.drops and net.weight_dropout:
                parameters = {name: _drop_weight(net, name, each) for name, each in parameters.items()}
            own = [state[layer * directions + d] for state in states]
            extras = given.extras | _masks(net, cell, steps, own[0])
            y, last, states_of_steps = run(parameters, x, steps._replace(reverse=d == 1), own, extras)
            outputs.append(y)
            every.append(states_of_steps)
            for all_ends, end in zip(ends, last, strict=True):
                all_ends.append(end)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
    all_states = [torch.cat(each, -1) for each in zip(*every, strict=True)]
    return x, [torch.stack(each) for each in ends], all_states


def _recomputes() -> bool:
    """Whether segments are computed again here and now: neither in a graph, nor under torch.func, which knows no such
    thing, nor where somebody is given every state and keeps it."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return not transformed() and fused.watching.get() is None


def regularised(cell: Cell, zoneout: dict[str, float], training: bool, dropped: str | None) -> Cell:
    """A cell with what is dropped in it, in training or in evaluation; ``dropped``: how often masks are drawn."""
    if not zoneout and dropped is None:
        return cell
    sizes = tuple(dict.fromkeys(operand_sizes(cell).values()))
    return Regularised(cell, zoneout, training, dropped, sizes)


def _masks(net: Any, cell: Cell, steps: Steps, like: Tensor) -> dict[str, Tensor]:
    """The masks of one direction of one layer, from torch's generator: those of zoneout, then what is kept."""
    if not isinstance(cell, Regularised) or not net.drops:
        return {}
    found = {}
    for name, rate in net.zoneout.items():
        size = dict(zip(net.state_names, net.state_sizes, strict=True))[name]
        found[f"zoneout_{name}"] = like.new_empty(steps.rows, size).bernoulli_(rate)
    for size in cell.sizes:
        rows, kept = steps.batch if cell.dropped == "sequence" else steps.rows, 1 - net.recurrent_dropout
        found[f"keep_{size}"] = like.new_empty(rows, net.sizes[size]).bernoulli_(kept) / kept
    return found


def _drop_weight(net: Any, name: str, parameter: Tensor) -> Tensor:
    parts = net.parts
    endings = {parts.names[own] for own, matrix in parts.matrices.items() if isinstance(matrix, Recurrent)}
    own = name.removeprefix("weight_")
    drops = name.startswith("weight_") and (own in endings or own.removesuffix("_u").removesuffix("_v") in endings)
    return F.dropout(parameter, net.weight_dropout) if drops else parameter


def in_segments(run: Direction, of_step: Sequence[str], length: int, again: bool) -> Direction:
    """A direction in segments of ``length`` steps, ``of_step`` the extras that come with every step.

    Either only the states between them are kept, and backward computes a segment ``again``, and then its gradients; or
    there is no backward, and what a segment takes is free for the next.
    """

    def segmented(
        parameters: Mapping[str, Tensor],
        x: Tensor,
        steps: Steps,
        states: Sequence[Tensor],
        extras: Mapping[str, Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        sizes, begins = steps.lengths, range(0, steps.count, length)
        starts = [0, *itertools.accumulate(sizes)]
        outputs: list[tuple[Tensor, ...]] = [()] * len(begins)
        whole: list[Tensor] = []

        def segment(k: int, now: list[Tensor]) -> list[Tensor]:
            begin, end = begins[k], min(begins[k] + length, steps.count)
            first, last, batch = starts[begin], starts[end], sizes[begin]
            part = None if steps.sizes is None else steps.sizes[begin:end]
            own_steps = Steps(end - begin, batch, last - first, part, steps.reverse)
            own_extras = {n: e[first:last] if n in of_step else e[:batch] for n, e in extras.items()}
            own = parameters, x[first:last], own_steps, now, own_extras
            if again:
                y, now, every = checkpoint(run, *own, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
                outputs[k] = y, *every
                return now
            y, now, every = run(*own)
            if not whole:
                whole.extend(each.new_empty(steps.rows, *each.shape[1:]) for each in (y, *every))
            for to, each in zip(whole, (y, *every), strict=True):
                to[first:last] = each
            return now

        ends = over_steps([sizes[begin] for begin in begins], states, steps.reverse, segment)
        y, *every = (torch.cat(parts) for parts in zip(*outputs, strict=True)) if again else whole
        return y, ends, every

    return segmented
