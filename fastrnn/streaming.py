"""One step at a time, with nothing to do but the step: see :class:`Stream` and docs/streaming.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import stream_file
from fastrnn.backends import BackendError, cpp, requested
from fastrnn.chains import Chain, chain_of, is_cell, mode_of
from fastrnn.dynamo import UNDISTURBED, observed, transformed
from fastrnn.modes import CELLS
from fastrnn.storage import require_memory

# What each step asks: whether a trace or a dispatch mode records operators.  Tensors of torch.func tell themselves.
_ORDINARY = UNDISTURBED[:2]


class Stream:
    """A model that is fed step by step, on a CPU, without gradients: one call into C++ a step.

    Made by :func:`fastrnn.stream`.  Weights are packed once; state and result belong to the handle, and a step takes no
    memory.  One thread at a time; threads with handles of their own do not wait for each other.

    Attributes:
        step: ``step(x)`` runs one step of all rows and returns the last layer's output, (B, O).  x is (B, I) in the
            model's dtype; with an embedding, (B) tokens, int64 or int32.  With ``batch=1`` x may lack the batch, (I) or
            a token, also as a Python ``int``; then so does the result, (O).  The result is the handle's own tensor,
            which the next step overwrites: ``clone()`` keeps it.  It carries no gradient, whatever x and the grad mode
            say.  Raises, as torch.nn does, a RuntimeError where a size does not fit, a ValueError where the number of
            dimensions, the dtype or the device does not, a TypeError where x is no tensor, an IndexError where a token
            is out of range; then nothing has been done.  A RuntimeError, too, where another thread is in a step, where
            the shape of the result has been changed in place, or under a trace or a transform of torch.func.
        batch: B, rows that run side by side.
        dtype: of x and the result, float32 or bfloat16.
    """

    step: Callable[[Tensor | int], Tensor]
    batch: int
    dtype: torch.dtype

    def __init__(self, chain: Chain, batch: int) -> None:
        self._chain, self.batch = chain, batch
        self.dtype, tensors = stream_file.arrays(chain)
        self._prints = stream_file.fingerprints(tensors)
        self._core = cpp.Stream(stream_file.written(chain, tensors), batch)
        outputs = self._core.outputs
        memory = bytearray(batch * outputs * self.dtype.itemsize)
        rows = torch.frombuffer(memory, dtype=self.dtype).view(batch, outputs)
        row = torch.frombuffer(memory, dtype=self.dtype) if batch == 1 else None
        inputs = None if chain.embedding is not None else chain.recurrent[0].input_size
        prepare = _Prepare(batch, inputs, self.dtype, type(chain.recurrent[0]).__name__)
        self.step = self._core.step_function(memory, rows, row, prepare, _ORDINARY)

    def __repr__(self) -> str:
        parts = [each for each in (self._chain.embedding, *self._chain.recurrent, self._chain.linear) if each]
        return f"Stream({' -> '.join(type(each).__name__ for each in parts)}, batch={self.batch}, dtype={self.dtype})"

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Sets rows back to the initial states: zeros, or what ``learn_initial_state`` has learned.

        Args:
            rows: which, by numbers from 0 to B - 1 or as (B) bool; None for all.

        Raises:
            IndexError: there is no such row.
            ValueError: a mask is not of shape (B).
            TypeError: they are neither numbers nor bool.
        """
        if rows is None:
            return self._core.reset(None)
        chosen = torch.as_tensor(rows, device="cpu")
        if chosen.dtype is torch.bool:
            if chosen.shape != (self.batch,):
                raise ValueError(f"rows: expected a mask of shape ({self.batch},), got {tuple(chosen.shape)}")
            chosen = chosen.nonzero()
        elif chosen.is_floating_point() and chosen.numel() or chosen.is_complex():
            raise TypeError(f"rows: expected integers or bool, got {chosen.dtype}")
        self._core.reset([int(row) for row in chosen.reshape(-1).tolist()])

    @property
    def state(self) -> Any:
        """The states, copied: of one recurrent module as it returns them, h (num_layers, B, P), for an LSTM ``(h, c)``
        with c (num_layers, B, H), without the first dimension for a cell; of several a tuple of these.

        h is of the model's dtype and c float32, as they are kept, so that what is set later goes on bit for bit.  To
        set it: the same, of any of both dtypes; or None for the initial states.

        Raises:
            RuntimeError: what is set has another shape.
            TypeError: it is of another structure or no tensor.
        """
        numbers = torch.empty(self._core.state_size, dtype=torch.float32, device="cpu")
        self._core.get_state(numbers)
        found: list[Any] = []
        at = 0
        for module in self._chain.recurrent:
            layers: list[list[Tensor]] = []  # h, and c if there is one, of each
            for _ in range(_layer_count(module)):
                pair = []
                for width, dtype in zip(_widths(module), (self.dtype, torch.float32), strict=False):
                    pair.append(numbers[at : at + self.batch * width].view(self.batch, width).to(dtype))
                    at += self.batch * width
                layers.append(pair)
            kinds = zip(*layers, strict=True)
            states = tuple(each[0].clone() if is_cell(module) else torch.stack(each) for each in kinds)
            found.append(states if len(states) == 2 else states[0])
        return found[0] if len(found) == 1 else tuple(found)

    @state.setter
    def state(self, value: Any) -> None:
        if value is None:
            return self._core.reset(None)
        modules = self._chain.recurrent
        values = [value] if len(modules) == 1 else value
        if not isinstance(values, (tuple, list)) or len(values) != len(modules):
            raise TypeError(f"state: expected a tuple of {len(modules)} states, one of each recurrent module")
        parts: list[Tensor] = []
        for module, own in zip(modules, values, strict=True):
            widths = _widths(module)
            given = own if len(widths) == 2 else (own,)
            if not isinstance(given, (tuple, list)) or len(given) != len(widths):
                raise TypeError(f"state: expected a tuple (h, c) for {type(module).__name__}, got {type(own).__name__}")
            states = [self._checked(module, each, width) for each, width in zip(given, widths, strict=True)]
            for layer in zip(*states, strict=True):
                parts += layer
        self._core.set_state(torch.cat([part.reshape(-1) for part in parts]))

    def _checked(self, module: Any, state: Any, width: int) -> Tensor:
        if not isinstance(state, Tensor):
            raise TypeError(f"state: expected tensors, got {type(state).__name__}")
        wanted = (*(() if is_cell(module) else (module.num_layers,)), self.batch, width)
        if state.shape != wanted:
            raise RuntimeError(f"state: expected a shape of {wanted}, got {tuple(state.shape)}")
        if state.dtype not in (torch.float32, self.dtype):
            raise RuntimeError(f"state: expected {self.dtype} or float32, got {state.dtype}")
        return state.detach().to("cpu", torch.float32).reshape(-1, self.batch, width)

    @property
    def stale(self) -> bool:
        """Whether a weight of the model has changed, however that was done, since the stream was made or updated.

        It takes one reading of the weights, about as long as a step, and some microseconds of Python.
        """
        return stream_file.fingerprints(stream_file.arrays(self._chain)[1]) != self._prints

    def update(self) -> bool:
        """Takes over the model's weights as they are now; the state goes on.  Nobody else looks for changes: until then
        steps run with the old ones.

        Returns:
            Whether there was a change.

        Raises:
            ValueError: weights have another dtype, device or size; then the stream goes on as it was.
        """
        dtype, tensors = stream_file.arrays(self._chain)
        if (prints := stream_file.fingerprints(tensors)) == self._prints:
            return False
        if dtype is not self.dtype:
            raise ValueError(f"expected weights of {self.dtype}, as the stream was made for: make another stream")
        self._core.read(stream_file.written(self._chain, tensors))
        self._prints = prints
        return True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, without the state, as a file for the C library; see docs/streaming.md.

        Raises:
            RuntimeError: the stream is :attr:`stale`, so that it and the file would not give the same numbers.
            OSError: the file cannot be written.
        """
        _, tensors = stream_file.arrays(self._chain)
        if stream_file.fingerprints(tensors) != self._prints:
            raise RuntimeError("the model's weights have changed since the stream took them over: call update() first")
        Path(path).write_bytes(stream_file.written(self._chain, tensors))


def stream(model: nn.Module, batch: int = 1) -> Stream:
    """A handle that feeds a model step by step: see :class:`Stream`.

    Args:
        model: an RNN, LSTM or GRU, torch.nn's or ours, of float32, bfloat16 or 8 bits, or one of their cells; an
            ``nn.Sequential`` of perhaps an ``nn.Embedding``, such modules, and perhaps an ``nn.Linear``; or a model
            whose forward does just that (:mod:`fastrnn.chains`).
        batch: B, rows that run side by side.

    Raises:
        TypeError: ``model`` is no module, or ``batch`` no integer.
        ValueError: the model is no such chain, is bidirectional, drops in training, has hooks or an option that a step
            does not serve, or weights of another dtype or device; ``batch`` is not from 1 to 2^20.
        BackendError: the compiled core is missing, or another backend was asked for by name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(batch, int) or isinstance(batch, bool):
        raise TypeError(f"batch: expected an int, got {type(batch).__name__}")
    if batch < 1:
        raise ValueError(f"batch: expected 1 to 2^20, got {batch}")
    if reason := cpp.unavailable():
        raise BackendError(f"streams run on the C++ kernels alone, and {reason}")
    if (name := requested()) not in (None, "cpp"):
        raise BackendError(f"fastrnn backend {name!r} was asked for by name but has no streams")
    return Stream(chain_of(model), batch)


def c_library() -> tuple[Path, Path]:
    """The folder of the header ``fastrnn_stream.h``, and the shared library, that run what :meth:`Stream.save` writes.

    Raises:
        BackendError: the compiled core is missing.
    """
    if reason := cpp.unavailable():
        raise BackendError(f"the C library comes with the C++ kernels, and {reason}")
    root = Path(cpp.core_file()).parent
    ends = ".so", ".dylib", ".dll"
    return root / "include", next(path for path in (root / "lib").glob("*fastrnn_stream.*") if path.suffix in ends)


def _layer_count(module: Any) -> int:
    return 1 if is_cell(module) else module.num_layers


def _widths(module: Any) -> list[int]:
    """Numbers in a row of h, and of c."""
    outputs = getattr(module, "proj_size", 0) or module.hidden_size
    return [outputs, module.hidden_size] if CELLS[mode_of(module)].has_cell_state else [outputs]


class _Prepare:
    """What a step calls for an x that is out of the ordinary: its address, whether it is one row without a batch, and
    who owns the memory; or the error that torch.nn raises."""

    def __init__(self, batch: int, inputs: int | None, dtype: torch.dtype, name: str) -> None:
        self.batch, self.inputs, self.dtype, self.name = batch, inputs, dtype, name

    def __call__(self, x: Any) -> tuple[int, bool, Tensor]:
        if observed() or transformed():
            raise RuntimeError(
                "a stream has no operator that a trace or a transform of torch.func could hold: call the module"
            )
        if not isinstance(x, Tensor):
            if self.inputs is None and isinstance(x, int) and self.batch == 1:
                x = torch.tensor(x, device="cpu")
            else:
                raise TypeError(f"{self.name}: Expected input to be a Tensor, got {type(x).__name__}")
        own: Any = type(x)
        plain: Any = Tensor
        special = own.__torch_dispatch__ is not plain.__torch_dispatch__  # what its class calls memory, if anything
        if special or x.layout is not torch.strided or x.is_nested:
            raise TypeError(f"{self.name}: Expected input to be a dense Tensor, got {type(x).__name__} of {x.layout}")
        if self.inputs is None and x.dtype is torch.int32:
            x = x.long()
        wanted = torch.int64 if self.inputs is None else self.dtype
        if x.dtype is not wanted or not x.is_cpu:
            raise ValueError(f"{self.name}: Expected input to be {wanted} on the CPU, got {x.dtype} on {x.device}")
        rank = 1 if self.inputs is None else 2
        flat = x.dim() == rank - 1 and self.batch == 1
        if x.dim() != rank and not flat:
            allowed = f"{rank - 1}D or {rank}D" if self.batch == 1 else f"{rank}D"
            raise ValueError(f"{self.name}: Expected input to be {allowed}, one step, got {x.dim()}D instead")
        if self.inputs is not None and x.shape[-1] != self.inputs:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.inputs}, got {x.shape[-1]}")
        if not flat and x.shape[0] != self.batch:
            raise RuntimeError(f"Expected input batch size {self.batch}, got {x.shape[0]}")
        own = x.detach().resolve_neg().contiguous()
        require_memory(own)
        return own.data_ptr(), flat, own
