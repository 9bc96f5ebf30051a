"""The gradients of the inputs of a loop, where its backward program writes them: views, and sums of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastrnn.compiler.program import Compiled
from fastrnn.fused.layout import layout


def of_group(
    compiled: Compiled, number: int, block: Any, results: dict[str, Tensor], sizes: dict[str, int], tensor: Tensor
) -> Tensor | None:
    """The gradient of a group's tensor."""
    group = compiled.groups[number]
    node = next(iter(group.nodes.values()))
    whole = layout(compiled).gradients[number]
    if whole is not None:
        array, first = whole
        units = sizes[str(node.size)]
        return results[array].narrow(-1, first * units, group.blocks * units)
    found = [compiled.input_gradients.get((number, k), []) for k in range(group.blocks)]
    if not any(found):
        return None
    blocks = []
    for own in found:
        terms = [block(address) if node.size else block(address).sum(-1, keepdim=True) for address in own]
        blocks.append(
            functools.reduce(torch.add, terms) if terms else torch.zeros_like(tensor.chunk(group.blocks, -1)[0])
        )
    whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)
    return whole.sum_to_size(tensor.shape) if whole.dim() >= tensor.dim() and whole.shape != tensor.shape else whole
