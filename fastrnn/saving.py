"""What a derivative keeps from forward to backward: the tensors that are there, and that they are unchanged."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor


@functools.lru_cache(maxsize=1024)
def unread(count: int, each: int, need_x: bool, carried: bool) -> tuple[int, ...]:
    """Places, from the last, of those of ``count`` parameters that a kernel's backward does not read: biases, W_ih but
    for the gradient of x, W_hh where no gradient is ``carried`` from a step to the one before.  A direction has
    ``each``, as :func:`fastrnn.modes.split_weights` knows them.

    They may be changed in place between forward and backward, as with torch.nn; where no parameter has a gradient, so
    may x.
    """
    biases = {4: (2, 3), 5: (2, 3), 6: (2, 3, 5)}.get(each, ())
    kinds = *((0,) * (not need_x)), *((1,) * (not carried)), *biases
    return tuple(k - count for k in range(count) if k % each in kinds)


def save(ctx: Any, tensors: Sequence[Tensor | None], unread: Sequence[int] = ()) -> None:
    """Keeps for :func:`saved_by` what there is of ``tensors``.  Autograd saves them, and sees to it that they are
    unchanged then, but for those at places, from the last, that are ``unread``: of them backward asks the shape alone.
    """
    rest: list[Any] = [*tensors]
    held = [rest[k] for k in unread]
    for k in unread:
        rest[k] = None
    ctx.kept = [tensor is not None for tensor in rest], unread, held, versions(held)
    ctx.save_for_backward(*[tensor for tensor in rest if tensor is not None])


def saved_by(ctx: Any) -> list[Any]:
    """The tensors that :func:`save` was given."""
    (there, unread, held, _), each = ctx.kept, iter(ctx.saved_tensors)
    found: list[Any] = [next(each) if saved else None for saved in there]
    for k, tensor in zip(unread, held, strict=True):
        found[k] = tensor
    return found


def check_unread(ctx: Any) -> None:
    """For a backward that reads all that was given to :func:`save`.

    Raises:
        RuntimeError: see :func:`check_unchanged`.
    """
    check_unchanged(*ctx.kept[2:])


def versions(tensors: Sequence[Any]) -> list[int]:
    """What changes with every change in place; of tensors of inference mode nothing does."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def check_unchanged(tensors: Sequence[Tensor], before: Sequence[int]) -> None:
    """For a backward that reads what autograd has not saved.

    Raises:
        RuntimeError: as autograd does, a tensor has been changed in place since it had the version ``before``.
    """
    for tensor, now, then in zip(tensors, versions(tensors), before, strict=True):
        if now != then:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"{tensor.dtype} tensor of size {list(tensor.shape)} is at version {now}; expected version {then}"
            )
