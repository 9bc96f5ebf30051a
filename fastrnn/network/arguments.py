"""What a network is called with, as its layers take it: rows in the order of their steps, checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn.cell.declare import SequenceInput
from fastrnn.checks import is_tokens, packed_rows
from fastrnn.fused.layer import Steps
from fastrnn.network.definition import Definition
from fastrnn.storage import require_memory


class Arguments(NamedTuple):
    """A call of a network.

    Attributes:
        x: (N, I), or tokens (N,).
        steps: how many rows each step has.
        states: (num_layers * D, B, size) each, in the order of the rows of x.
        extras: (N, size) or (N,) of a step, (B, size) or (B,) of a sequence.
        packed: the PackedSequence that x came from, or None.
        single: whether it was one sequence without a dimension for B.
        turn: whether B came first.
    """

    x: Tensor
    steps: Steps
    states: list[Tensor]
    extras: dict[str, Tensor]
    packed: PackedSequence | None
    single: bool
    turn: bool

    def rows(self, y: Tensor) -> Tensor | PackedSequence:
        """Rows (N, size) in the form that the input had."""
        if self.packed is not None:
            own = self.packed
            return PackedSequence(y, own.batch_sizes, own.sorted_indices, own.unsorted_indices)
        y = y.view(self.steps.count, self.steps.batch, y.shape[-1])
        return y.transpose(0, 1) if self.turn else y.squeeze(1) if self.single else y

    def ends(self, states: list[Tensor]) -> Any:
        """Last states (num_layers * D, B, size) in the form and the order of those given."""
        if self.packed is not None and self.packed.unsorted_indices is not None:
            states = [state.index_select(1, self.packed.unsorted_indices) for state in states]
        if self.single:
            states = [state.squeeze(1) for state in states]
        return states[0] if len(states) == 1 else tuple(states)


def read(net: Any, input: Any, hx: Any, extras: dict[str, Any]) -> Arguments:
    """The arguments of a call of a :class:`fastrnn.Network`.

    Raises:
        TypeError, ValueError, RuntimeError: see there.
    """
    packed = input if isinstance(input, PackedSequence) else None
    x = input.data if packed is not None else input
    if not isinstance(x, Tensor):
        raise TypeError(f"expected input to be a tensor or a PackedSequence, got {type(x).__name__}")
    tokens = is_tokens(x)
    x = x.long() if tokens else x
    rank = x.dim() + tokens
    if rank not in ((2,) if packed is not None else (2, 3)):
        raise ValueError(f"{type(net.cell).__name__}: Expected input to be 2D or 3D, got {rank}D instead")
    single, turn = rank == 2 and packed is None, net.batch_first and rank == 3
    x = x.transpose(0, 1) if turn else x.unsqueeze(1) if single else x
    weight = net.first_parameter()
    if not tokens and x.shape[-1] != net.input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {net.input_size}, got {x.shape[-1]}")
    if not tokens and x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"input must have the type {weight.dtype}, got type {x.dtype}")
    if x.device != weight.device:
        raise RuntimeError(f"Expected input on {weight.device}, as the parameters are, got {x.device}")
    order = packed.sorted_indices if packed is not None else None
    if packed is not None:
        rows = packed_rows(packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        steps = Steps(len(packed.batch_sizes), rows, x.shape[0], packed.batch_sizes)
    else:
        steps = Steps(x.shape[0], x.shape[1], x.shape[0] * x.shape[1])
        if 0 in x.shape[:1]:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    states = _states(net, hx, steps.batch, single, order)
    own = {name: _extra(net, name, given, steps, single, turn, order) for name, given in extras.items()}
    require_memory(x, *states, *own.values())
    if packed is None:
        x = x.reshape(steps.rows) if tokens else x.reshape(steps.rows, net.input_size)
    return Arguments(x, steps, states, own, packed, single, turn)


def given_states(net: Definition, hx: Any) -> tuple[Any, ...]:
    """The states of ``hx``, one tensor or a tuple of as many as there are.

    Raises:
        RuntimeError: there are fewer or more.
    """
    found = (hx,) if isinstance(hx, Tensor) else hx
    if not isinstance(found, (tuple, list)) or len(found) != len(net.state_names):
        got = len(found) if isinstance(found, (tuple, list)) else type(hx).__name__
        raise RuntimeError(f"expected {len(net.state_names)} states, {', '.join(net.state_names)}, got {got}")
    return tuple(found)


def check_state(name: str, state: Any, wanted: tuple[int, ...], weight: Tensor) -> None:
    """Raises RuntimeError or ValueError where a state is not of this size, and of the dtype and device of weights."""
    if not isinstance(state, Tensor) or tuple(state.shape) != wanted:
        got = list(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise RuntimeError(f"Expected state {name} size {wanted}, got {got}")
    if state.dtype != weight.dtype:
        raise ValueError(f"state {name} must have the type {weight.dtype}, got type {state.dtype}")
    if state.device != weight.device:
        raise RuntimeError(f"Expected state {name} on {weight.device}, got {state.device}")


def _states(net: Any, hx: Any, rows: int, single: bool, order: Tensor | None) -> list[Tensor]:
    slots, weight = net.num_layers * (2 if net.bidirectional else 1), net.first_parameter()
    if hx is None and not net.learn_initial_state:
        return [weight.new_zeros(slots, rows, size) for size in net.state_sizes]
    if hx is None:
        learned = [getattr(net, f"initial_{name}", None) for name in net.state_names]
        return [
            weight.new_zeros(slots, rows, size) if own is None else own.unsqueeze(1).expand(-1, rows, -1)
            for own, size in zip(learned, net.state_sizes, strict=True)
        ]
    found = []
    for name, state, size in zip(net.state_names, given_states(net, hx), net.state_sizes, strict=True):
        check_state(name, state, (slots, size) if single else (slots, rows, size), weight)
        state = state.unsqueeze(1) if single else state
        found.append(state if order is None else state.index_select(1, order))
    return found


def _extra(net: Any, name: str, given: Any, steps: Steps, single: bool, turn: bool, order: Tensor | None) -> Tensor:
    """An extra as a layer takes it."""
    declared = net.extras[name]
    tail = () if declared.size is None else (net.sizes[declared.size],)
    if isinstance(declared, SequenceInput):
        wanted: tuple[int, ...] = tail if single else (steps.batch, *tail)
        tensor = given
    elif steps.sizes is not None:
        wanted, tensor = (steps.rows, *tail), given.data if isinstance(given, PackedSequence) else given
    else:
        lead = (steps.count,) if single else (steps.batch, steps.count) if turn else (steps.count, steps.batch)
        wanted, tensor = (*lead, *tail), given
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != wanted:
        got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise RuntimeError(f"Expected {name} of size {list(wanted)}, got {got}")
    tensor = tensor.to(net.first_parameter().dtype)
    if isinstance(declared, SequenceInput):
        tensor = tensor.unsqueeze(0) if single else tensor
        return tensor if order is None else tensor.index_select(0, order)
    if steps.sizes is not None:
        return tensor
    tensor = tensor.unsqueeze(1) if single else tensor.transpose(0, 1) if turn else tensor
    return tensor.flatten(0, 1)
