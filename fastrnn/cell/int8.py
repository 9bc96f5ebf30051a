"""Matrices of 8 bits: what one is, and its product in plain torch.

A weight is ``q * s``: ``q`` an integer from -127 to 127 and ``s`` a float32 scale for each row of a matrix, the largest
of the row over 127.  Just before a product a row of the operand is rounded to such integers by a scale of its own, so
that the sums of products are exact integers::

    W v ~ s_row * s_v * (q_row . q_v)      s_v = max |v| / 127      q_v = round(v / s_v)

A row with a NaN or an infinity makes every result of its product a NaN.  Source: Jacob et al., "Quantization and
training of neural networks for efficient integer-arithmetic-only inference" (2018); what is dynamic is the scale of the
operand, as in ``torch.ao.quantization.quantize_dynamic``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Sums of so many products of such integers are exact in float32, and of any number that memory holds in float64.
EXACT_TERMS = 2**24 // 127**2


class Int8(NamedTuple):
    """A matrix (R, C): ``values`` int8 times ``scales`` (R,) float32, row by row."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape


def numbers(weight: Tensor) -> Tensor:
    """A weight, cut off from its graph.

    Raises:
        ValueError: one of its numbers is NaN or infinite, or there is none.
    """
    weight = weight.detach()
    if not weight.numel():
        raise ValueError(f"weights to be quantized must be some, got a matrix of size {list(weight.shape)}")
    if not bool(weight.isfinite().all()):
        raise ValueError("weights to be quantized must be finite, got NaN or infinity")
    return weight


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scales (R,) float32 and the integers (R, C) int8 of a matrix (R, C): ``weight ~ integers * scales[:, None]``.

    Raises:
        ValueError: a weight is NaN or infinite, or there is none.
    """
    weight = numbers(weight)
    scales = weight.abs().amax(1) / 127
    divisors = torch.where(scales > 0, scales, 1)  # of a row of zeros
    return scales, (weight / divisors[:, None]).round().clamp(-127, 127).to(torch.int8)


def rounded(v: Tensor) -> tuple[Tensor, Tensor]:
    """The scales (..., 1) and the integers (..., K), in float32, of rows (..., K).  A row so small that its scale would
    be no normal number counts as zeros."""
    scales = v.abs().amax(-1, keepdim=True) / 127
    finite = scales.isfinite()
    normal = finite & (scales >= torch.finfo(torch.float32).tiny)
    integers = torch.where(normal, (v / torch.where(normal, scales, 1)).round(), 0)
    return torch.where(normal, scales, torch.where(finite, 0.0, torch.nan)), integers


def multiply(v: Tensor, matrix: Int8, bias: Tensor | None, blocks: int, heads: int) -> Tensor:
    """v (..., K) float32 times a matrix (G*Z, K / heads) of ``blocks`` G gates: (..., G*Z); each head's part of a row
    has a scale of its own.  Of integers (...), which are tokens, columns of the matrix."""
    values, scales = matrix
    if not v.is_floating_point():
        if heads == 1:
            found = F.embedding(v, values.t()).to(scales.dtype) * scales
            return found if bias is None else found + bias
        v = F.one_hot(v, values.shape[1] * heads).to(scales.dtype)
    exact = torch.float32 if values.shape[1] <= EXACT_TERMS else torch.float64
    of_rows, integers = rounded(v.unflatten(-1, (heads, -1)))
    rows = values.to(exact).unflatten(0, (blocks, heads, -1))
    sums = torch.einsum("...hk,ghzk->...ghz", integers.to(exact), rows).to(scales.dtype)
    found = sums * (scales.unflatten(0, (blocks, heads, -1)) * of_rows.unsqueeze(-3))
    found = found.flatten(-3)
    return found if bias is None else found + bias
