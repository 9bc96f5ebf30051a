"""The bytes of a chain of layers, as `csrc/stream_file.h` lays them out: what a stream is made of and what it saves."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends import cpp
from fastrnn.chains import Chain, Layer
from fastrnn.modes import TORCH_MODES
from fastrnn.storage import require_memory

MAGIC, VERSION = b"FRNNSTRM", 1
_HEADER, _LAYER, _ALIGN = struct.Struct("<8sIIQIIQQQII"), struct.Struct("<IIQQQ"), 64
_INT8, _BIASES, _PROJECTION, _INITIAL, _FLOAT_INPUT = 1, 2, 4, 8, 16


def _of_layer(layer: Layer, dtype: torch.dtype) -> Iterator[tuple[Tensor, torch.dtype]]:
    """A layer's arrays in their order, each with the dtype that it should have."""
    matrices: list[Any] = [[(matrix, dtype)] for matrix in layer.matrices]
    if layer.scales:
        both = zip(layer.scales, layer.matrices, strict=True)
        matrices = [[(scale, torch.float32), (matrix, torch.int8)] for scale, matrix in both]
        if layer.float_input:
            matrices[0] = [(layer.matrices[0], torch.float32)]
    for pair in matrices[:2]:
        yield from pair
    for bias in layer.biases:
        yield bias, dtype
    for pair in matrices[2:]:
        yield from pair
    for state in layer.initial:
        yield state.to(torch.float32), torch.float32


def dtype_of(first: Layer) -> torch.dtype:
    """float32 or bfloat16, whatever the first layer's matrices have; float32 with weights of 8 bits."""
    return torch.float32 if first.scales else first.matrices[0].dtype


def arrays(chain: Chain) -> tuple[torch.dtype, list[Tensor]]:
    """The dtype of a chain, and all its arrays in their order, dense, as their modules have them now.

    Raises:
        ValueError: one is not on the CPU, or not of the dtype that it should have.
        RuntimeError: the memory of one has been freed.
    """
    layers = chain.layers()
    dtype = dtype_of(layers[0])
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"expected weights of float32, bfloat16 or, by quantize_dynamic, of 8 bits, got {dtype}: "
            "convert the model first, as by float()"
        )
    found: list[tuple[Tensor, torch.dtype]] = []
    if chain.embedding is not None:
        found.append((chain.embedding.weight, dtype))
    for layer in layers:
        found += _of_layer(layer, dtype)
    if chain.linear is not None:
        found += [(each, dtype) for each in (chain.linear.weight, chain.linear.bias) if each is not None]
    for tensor, wanted in found:
        if not tensor.is_cpu or tensor.dtype is not wanted:
            raise ValueError(f"expected a weight of {wanted} on the CPU, got {tensor.dtype} on {tensor.device}")
    require_memory(*(tensor for tensor, _ in found))
    ordinary = (each.is_contiguous() and not each.is_neg() for each, _ in found)
    return dtype, [
        each if dense else each.detach().resolve_neg().contiguous()
        for (each, _), dense in zip(found, ordinary, strict=True)
    ]


def fingerprints(tensors: list[Tensor]) -> list[int]:
    """64 bits of each array's numbers, by which a change is seen however it was made: one reading of the weights."""
    return [cpp.weights_fingerprint(each, each.numel(), each.element_size()) for each in tensors]


def written(chain: Chain, tensors: list[Tensor]) -> bytearray:
    """The bytes of a chain with these arrays."""
    layers = chain.layers()
    dtype = dtype_of(layers[0])
    records = bytearray()
    for layer in layers:
        flags = _INT8 * bool(layer.scales) + _BIASES * bool(layer.biases)
        flags += _FLOAT_INPUT * layer.float_input
        flags += _PROJECTION * (len(layer.matrices) == 3) + _INITIAL * bool(layer.initial)
        records += _LAYER.pack(TORCH_MODES.index(layer.mode), flags, *layer.sizes[1:], 0)
    places, end = [], _aligned(_HEADER.size + len(records))
    for tensor in tensors:
        places.append(end)
        end = _aligned(end + tensor.numel() * tensor.element_size())
    image = bytearray(end)
    image[_HEADER.size : _HEADER.size + len(records)] = records
    whole = torch.frombuffer(image, dtype=torch.uint8)
    for place, tensor in zip(places, tensors, strict=True):
        numbers: Any = tensor.detach().reshape(-1).view(torch.uint8)
        whole[place : place + numbers.numel()].copy_(numbers)
    vocabulary = 0 if chain.embedding is None else chain.embedding.num_embeddings
    outputs = 0 if chain.linear is None else chain.linear.out_features
    biased = int(chain.linear is not None and chain.linear.bias is not None)
    head = (VERSION, 0, end, int(dtype is torch.bfloat16), len(layers), vocabulary, layers[0].sizes[0], outputs)
    image[: _HEADER.size] = _HEADER.pack(MAGIC, *head, biased, 0)
    image[12:16] = struct.pack("<I", zlib.crc32(memoryview(image)[16:]))
    return image


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
