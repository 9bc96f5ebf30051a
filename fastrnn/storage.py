"""Whether tensors still have the memory that their shapes speak of.

``tensor.untyped_storage().resize_(0)`` frees a tensor's memory and leaves the tensor, as wrappers that shard parameters
do between calls.  Who reads it then reads nobody's memory: so whatever reads numbers, a kernel of ours or a function of
torch's on the way to one, asks here first.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.nn import Parameter


def _freed(tensors: tuple[Tensor | None, ...]) -> int:
    """The first of these tensors on the CPU whose storage is too small for it; -1 where there is none."""
    for index, tensor in enumerate(tensors):
        if tensor is None or type(tensor) not in (Tensor, Parameter):
            continue
        if not tensor.is_cpu or tensor.layout is not torch.strided:
            continue
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + last + 1) * tensor.element_size() if tensor.numel() else 0
        if tensor.untyped_storage().nbytes() < needed:
            return index
    return -1


try:
    from fastrnn import _core

    if _core.storages_are_at_hand():  # the same in C++, a fortieth of the time
        _freed = _core.freed
except ImportError:  # a pure-Python installation
    _core = None


def has_freed(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether one of these tensors on the CPU has lost its memory; None stands for no tensor."""
    return _freed(tensors) >= 0


def require_memory(*tensors: Tensor | None) -> None:
    """Nothing, where these tensors may be read; None stands for no tensor.

    Raises:
        RuntimeError: the memory of one was freed or cut short.
    """
    if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:  # then they are no memory yet
        return
    if (index := _freed(tensors)) >= 0:
        tensor = tensors[index]
        assert tensor is not None
        expected, found = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        raise RuntimeError(
            f"a tensor of size {list(tensor.shape)} wants {expected} bytes, its storage has {found}: it was freed or "
            "cut short, as untyped_storage().resize_() does"
        )
