"""Tokens and an embedding in the place of vectors: the embedding goes into the first product once, not into every row.

With a table E (V, I) and a token v, ``W_ih E[v]`` is column v of ``W_ih E^T``: one product of V rows and a gather,
where embedding and input product are a gather and a product of as many rows as there are tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook as _any_global_hook
from torch.nn.utils.rnn import PackedSequence

from fastrnn.backends import choose, load
from fastrnn.checks import is_tokens
from fastrnn.dynamo import observed


def looked_up(tokens: Tensor, embedding: nn.Embedding | Tensor) -> Tensor:
    """The vectors of tokens, the plain way."""
    return F.embedding(tokens, embedding) if isinstance(embedding, Tensor) else embedding(tokens)


def table(tokens: Tensor, embedding: nn.Embedding | Tensor, weight: Tensor, mode: str) -> Tensor | None:
    """The vectors of all tokens that there are, (V, I), where a path takes tokens and far fewer rows are multiplied
    that way; else None.  ``weight`` is the ``weight_ih`` that they are for."""
    if isinstance(embedding, nn.Embedding) and (
        embedding.max_norm is not None  # its weight, as its gradient below, depends on which tokens come
        or embedding.sparse
        or embedding.scale_grad_by_freq
    ):
        return None
    vectors = embedding if isinstance(embedding, Tensor) else embedding.weight
    if (
        vectors.dim() != 2
        or 2 * vectors.shape[0] >= tokens.numel()  # measured: a gather from a large table costs what the rest saves
        or vectors.shape[1] != weight.shape[1]
        or vectors.dtype != weight.dtype
        or not is_tokens(tokens)
        or observed()
        or torch._C._is_any_autocast_enabled()
    ):
        return None
    name = choose(tokens.device, weight.dtype, mode)
    if name is None or not load(name).TOKENS:
        return None
    return looked_up(torch.arange(vectors.shape[0], device=tokens.device), embedding)


def does_more(embedding: Any) -> bool:
    """Whether a call of this embedding is more than torch.nn's gather from its weight: hooks, a class or a forward of
    others' and parametrizations see how often it is called, and with what, so it is called once with the tokens as they
    come, not with all that there are or with packed ones."""
    if type(embedding) is nn.Embedding:
        hooks = (name for name in vars(embedding) if name.startswith(("_forward", "_backward")))
        return "forward" in vars(embedding) or any(vars(embedding)[name] for name in hooks) or bool(_any_global_hook())
    return isinstance(embedding, nn.Embedding)


def folded(weights: Sequence[Tensor], vectors: Tensor, num_layers: int, directions: int) -> list[Tensor]:
    """The flat list of parameters with ``W_ih E^T`` (G*H, V) in the place of the first layer's ``weight_ih``."""
    weights, each = list(weights), len(weights) // (num_layers * directions)
    for d in range(directions):
        weights[d * each] = weights[d * each] @ vectors.t()
    return weights


def embed(
    input: Tensor | PackedSequence, embedding: nn.Embedding | Tensor, weight: Tensor, mode: str
) -> tuple[Tensor | PackedSequence, Tensor | None]:
    """Tokens with the vectors of all of them, for a network with those :func:`folded` in; or the vectors of each, with
    None.
    """
    tokens = input.data if isinstance(input, PackedSequence) else input
    if (vectors := table(tokens, embedding, weight, mode)) is not None:
        return input, vectors
    return each_looked_up(input, embedding), None


def each_looked_up(input: Tensor | PackedSequence, embedding: nn.Embedding | Tensor) -> Tensor | PackedSequence:
    """The input with the vectors of its tokens in their place."""
    if isinstance(input, PackedSequence):
        data = looked_up(input.data, embedding)
        # Not _replace, of which Dynamo makes one without parts.
        return PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
    return looked_up(input, embedding)


def takes(embedding: nn.Embedding | Tensor, input: Tensor | PackedSequence) -> bool:
    """Whether the input is tokens.  What else it may be, the embedding says: it raises, as torch.nn's does, or gives
    vectors.

    Raises:
        TypeError: ``embedding`` is neither an ``nn.Embedding`` nor its weight.
    """
    if not isinstance(embedding, (Tensor, nn.Embedding)):
        raise TypeError(f"embedding must be an nn.Embedding or its weight, got {type(embedding).__name__}")
    tokens = input.data if isinstance(input, PackedSequence) else input
    return isinstance(tokens, Tensor) and is_tokens(tokens)
