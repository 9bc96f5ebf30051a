"""Rows of a padded batch cut into pieces: at their lengths, and where a mask restarts their state.

A piece is a sequence of its own, so all pieces together are a PackedSequence: one gather of rows packs them, the module
runs them as it runs any packed batch, and one gather puts what comes out back in its place, with zeros in the padding.
What it costs beside the run is those two gathers and, on the CPU, a time proportional to the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastrnn.checks import is_tokens
from fastrnn.dynamo import traced

Lengths = Tensor | Sequence[int] | int


class _Take(Function):
    """The derivative of a gather is a sum into zeros, which for a permutation is the gather by its inverse: several
    times faster than the ``index_add`` that autograd would choose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        rows = rows.flatten(0, -2)
        if index.numel() > rows.shape[0]:
            rows = F.pad(rows, (0, 0, 0, 1))
        return F.embedding(index, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return take(grad, inverse, index), None, None

    @staticmethod
    def jvp(ctx: Any, rows: Tensor, index: None, inverse: None) -> Tensor:
        return take(rows, *ctx.saved_tensors)


def take(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """The rows (..., F) that ``index`` names, (*index.shape, F), or zeros where it is the number of rows.

    No row is named twice.  ``inverse``, of the shape of the rows, says the same of the way back: each row's place in
    the result, or the number of places where it has none.  Differentiable as often as you like.
    """
    return _Take.apply(rows, index, inverse)


class Pieces(NamedTuple):
    """How the rows of all steps of a padded batch are packed, longest piece first.

    ``batch_sizes`` (steps of the longest piece,); ``index`` (N,), where a packed row stands in the padded batch;
    ``inverse``, of the shape of the padded batch, where its rows stand in the packed one, N for padding; ``first`` and
    ``last`` (B,), the piece with which a sequence begins and the one with which it ends; ``kept``, the sequences whose
    first piece goes on from the state given.
    """

    batch_sizes: Tensor
    index: Tensor
    inverse: Tensor
    first: Tensor
    last: Tensor
    kept: Tensor

    def states(self, given: Tensor, initial: Tensor | None, directions: int) -> Tensor:
        """The first states of all pieces (layers * D, pieces, P): those ``given`` (layers * D, B, P) where a sequence
        begins, in the reverse direction where it ends, and elsewhere ``initial`` (layers * D, P), or zeros."""
        shape = given.shape[0], int(self.batch_sizes[0]), given.shape[2]
        start = given.new_zeros(shape) if initial is None else initial.unsqueeze(1).expand(shape)
        begin = given[::directions].index_select(1, self.kept)
        found = [start[::directions].index_copy(1, self.first[self.kept], begin)]
        if directions == 2:
            found.append(start[1::2].index_copy(1, self.last, given[1::2]))
        return torch.stack(found, 1).flatten(0, 1)

    def finals(self, last: Tensor, directions: int) -> Tensor:
        """The last states of all sequences (layers * D, B, P), from those of all pieces."""
        if directions == 1:
            return last.index_select(1, self.last)
        found = last[::2].index_select(1, self.last), last[1::2].index_select(1, self.first)
        return torch.cat([part[k : k + 1] for k in range(len(found[0])) for part in found])


def cut(x: Tensor, lengths: Tensor | None, reset: Tensor | None, batch_first: bool) -> Pieces:
    """The pieces of ``x`` (T, B, ...), or batch-first (B, T, ...); ``lengths`` (B,) and ``reset`` (B, T) on the CPU."""
    steps, rows = x.shape[:2] if not batch_first else (x.shape[1], x.shape[0])
    ends = torch.full((rows,), steps, device="cpu") if lengths is None else lengths
    if reset is None:
        row = torch.arange(rows, device="cpu")
        start = torch.zeros_like(row)
        kept = row
    else:
        kept = (~reset[:, 0]).nonzero().squeeze(1)
        begins = reset & (torch.arange(steps, device="cpu") < ends.unsqueeze(1))
        begins[:, 0] = True
        row, start = begins.nonzero(as_tuple=True)
    is_last = torch.ones_like(row, dtype=torch.bool)
    is_last[:-1] = row[1:] != row[:-1]
    sizes = torch.where(is_last, ends[row], start.roll(-1)) - start
    order = sizes.argsort(descending=True, stable=True)
    place = order.argsort()
    batch_sizes = len(order) - sizes.bincount().cumsum(0)[:-1]
    step, column = steps_and_columns(batch_sizes)
    stride, row_stride = (1, steps) if batch_first else (rows, 1)
    index = (start * stride + row * row_stride)[order][column] + step * stride
    inverse = index.new_full((steps * rows,), len(index)).scatter_(0, index, torch.arange(len(index), device="cpu"))
    inverse = inverse.view(x.shape[:2])
    parts = (index, inverse, place[start == 0], place[is_last], kept)
    return Pieces(batch_sizes, *(part.to(x.device) for part in parts))


def steps_and_columns(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The step of every packed row, and its place among the rows of that step."""
    step = torch.arange(len(batch_sizes), device="cpu").repeat_interleave(batch_sizes)
    starts = batch_sizes.cumsum(0) - batch_sizes
    return step, torch.arange(len(step), device="cpu") - starts.repeat_interleave(batch_sizes)


def run_pieces(
    run: Callable[[Any, Any], Any],
    module: Any,
    x: Tensor | PackedSequence,
    hx: Any,
    initial: Sequence[Tensor | None],
    lengths: Lengths | None,
    reset: Tensor | None,
) -> Any:
    """What ``run(input, hx)``, the forward of ``module``, gives for every piece alone, put together again.

    ``x`` is the padded batch, or one sequence; ``initial`` the state (layers * D, P), for an LSTM also (layers * D, H),
    with which a piece begins that goes on from none, None for zeros.

    Raises:
        ValueError, RuntimeError: as :mod:`fastrnn.options` says.
    """
    if not isinstance(x, Tensor):
        raise ValueError("lengths and reset are for padded input; a PackedSequence has lengths of its own")
    rank = x.dim() + is_tokens(x)
    if rank not in (2, 3) or x.numel() == 0:
        return run(x, hx)  # an error, or nothing to cut
    single, batch_first = rank == 2, module.batch_first and rank == 3
    directions = 2 if module.bidirectional else 1
    padded = x.unsqueeze(1) if single else x
    steps, rows = padded.shape[:2] if not batch_first else (padded.shape[1], padded.shape[0])
    units = getattr(module, "state_sizes", None) or (module.proj_size or module.hidden_size, module.hidden_size)
    given = () if hx is None else hx if isinstance(hx, (tuple, list)) else (hx,)
    shapes = [(module.num_layers * directions, *(() if single else (rows,)), size) for size in units]
    if [getattr(state, "shape", None) for state in given] != shapes[: len(given)]:
        return run(x, hx)  # raises

    lengths = _checked_lengths(lengths, padded, steps, rows, batch_first)
    reset = _checked_reset(reset, x.shape[:1] if single else x.shape[:2], single, batch_first)
    if traced() and lengths is not None:
        return _run_in_trace(run, padded, hx, lengths, batch_first, single)
    given = [state.unsqueeze(1) if single else state for state in given]
    if (lengths is None or bool((lengths == steps).all())) and (reset is None or not reset[:, 1:].any()):
        # Every row is one piece, as in each step of a stream: there is nothing to pack.
        if given and reset is not None:
            begun = [
                _restarted(state, start, reset[:, 0], directions) for state, start in zip(given, initial, strict=False)
            ]
            begun = [state.squeeze(1) if single else state for state in begun]
            hx = begun[0] if isinstance(hx, Tensor) else tuple(begun)
        return run(x, hx)
    pieces = cut(padded, lengths, reset, batch_first)
    if given:
        begun = [pieces.states(state, start, directions) for state, start in zip(given, initial, strict=False)]
        hx = begun[0] if isinstance(hx, Tensor) else tuple(begun)
    inverse = pieces.inverse.squeeze(1) if single else pieces.inverse
    packed = x.flatten()[pieces.index] if is_tokens(x) else take(x, pieces.index, inverse)
    y, last, *cells = run(PackedSequence(packed, pieces.batch_sizes), hx)

    def back(data: Tensor) -> Tensor:
        return take(data, inverse, pieces.index)

    def end(state: Tensor) -> Tensor:
        found = pieces.finals(state, directions)
        return found.squeeze(1) if single else found

    last = end(last) if isinstance(last, Tensor) else tuple(end(state) for state in last)
    return back(y.data), last, *(back(each.data) for each in cells)


def _restarted(given: Tensor, initial: Tensor | None, reset: Tensor, directions: int) -> Tensor:
    """The state ``given`` (layers * D, B, P), but ``initial`` (layers * D, P), or zeros, in the rows (B,) of ``reset``;
    not in the reverse direction, which begins at the other end."""
    fresh = given.new_zeros(()) if initial is None else initial.unsqueeze(1)
    rows = reset.to(given.device).unsqueeze(1)
    if directions == 2:
        rows = torch.stack((rows, torch.zeros_like(rows))).repeat(len(given) // 2, 1, 1)
    return torch.where(rows, fresh, given)


def _run_in_trace(
    run: Callable[[Any, Any], Any], x: Tensor, hx: Any, lengths: Tensor, batch_first: bool, single: bool
) -> Any:
    """:func:`run_pieces` in operators of torch that take whatever T, B and lengths come."""

    def each(function: Callable[[Tensor], Tensor], state: Any) -> Any:
        if state is None or not single:
            return state
        return function(state) if isinstance(state, Tensor) else tuple(function(part) for part in state)

    rows, steps = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    lengths = lengths.view(rows)  # checks, in the trace, that there are so many
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    y, last = run(packed, each(lambda state: state.unsqueeze(1), hx))
    y, _ = pad_packed_sequence(y, batch_first, total_length=steps)
    return (y.squeeze(1) if single else y), each(lambda state: state.squeeze(1), last)


def _checked_lengths(lengths: Lengths | None, x: Tensor, steps: int, rows: int, batch_first: bool) -> Tensor | None:
    if lengths is None:
        return None
    if isinstance(lengths, (list, tuple)) and any(isinstance(length, Tensor) for length in lengths):
        lengths = torch.stack([torch.as_tensor(one, device="cpu") for one in lengths])
    # A trace takes what `as_tensor` gives for a constant.
    found = lengths.cpu() if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
    if found.dim() == 0 and rows == 1:
        found = found.unsqueeze(0)
    if found.is_floating_point() or found.dtype == torch.bool or found.shape != (rows,):
        raise ValueError(f"lengths must be {rows} integers, got {found.dtype} of size {list(found.shape)}")
    found = found.long()
    if found.min() < 1:
        pack_padded_sequence(x, found, batch_first, enforce_sorted=False)  # raises
    if found.max() > steps:
        raise RuntimeError(f"lengths must be at most the {steps} steps of the input, got {found.tolist()}")
    return found


def _checked_reset(reset: Tensor | None, shape: Sequence[int], single: bool, batch_first: bool) -> Tensor | None:
    if reset is None:
        return None
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool or reset.shape != tuple(shape):
        given = f"{reset.dtype} of size {list(reset.shape)}" if isinstance(reset, Tensor) else type(reset).__name__
        raise ValueError(f"reset must be a bool tensor of size {list(shape)}, got {given}")
    reset = reset.detach().cpu()
    return reset.unsqueeze(0) if single else reset if batch_first else reset.t()
