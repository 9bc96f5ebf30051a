"""`RNN`, `LSTM` and `GRU` for torch.compile and torch.export: one graph, which holds one ``fastrnn::layer`` a layer.

Dynamo breaks the graph at every instance of torch.nn's classes, so these derive from :class:`torch.nn.RNNBase` alone:
``isinstance(module, nn.LSTM)`` is False, for Dynamo asks just that; libraries that ask it want the default classes.
All else is as with :mod:`fastrnn.modules`: arguments, attributes, names in ``state_dict``, results in eager mode.
``fastrnn.convert(model, compilable=True)`` makes them of torch.nn's and of :mod:`fastrnn.modules`', ``fastrnn.revert``
takes them back; TorchScript wants them taken back.

In a graph T and B are symbols.  The backend is chosen when the graph is made: what :func:`fastrnn.use_backend` asks for
afterwards is not heard before the next one; where none serves the tensors, it holds torch's own operators.  Under
autocast, what the default classes would not cast runs in its parameters' dtype; results have the dtypes of torch.nn's.
Packed input that was packed with ``enforce_sorted=True`` and comes without ``hx`` tells B by a value alone: early torch
wants ``torch._dynamo.config.capture_scalar_outputs`` for it, and the earliest makes no graph of packed input.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import modules, running
from fastrnn.backends import choose, reference
from fastrnn.checks import Sizes, is_tokens, shapes_misfit, weight_shapes
from fastrnn.dynamo import constant, left_to_python, transformed
from fastrnn.options import NoOptions
from fastrnn.walk import Path

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
State = Tensor | tuple[Tensor, Tensor]


@constant
def _chosen(device: torch.device, dtype: torch.dtype, mode: str, tokens: bool) -> str | None:
    return choose(device, dtype, mode, tokens)


def _plan(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    sizes: Sizes,
    cells: bool = False,
) -> Path | Exception | None:
    """:func:`fastrnn.paths.plan` in Python that Dynamo traces.  What it asks of a shape becomes a guard of the graph,
    what it asks of ``batch_sizes`` an assertion in it."""
    if transformed():
        return reference.layer
    autocast, wide, device = torch.is_autocast_enabled(x.device.type), weights[0].dtype, x.device

    def widened(tensor: Tensor) -> Tensor:
        return tensor.to(wide) if autocast and tensor.dtype in _FLOATS else tensor

    rows = x.shape[1] if batch_sizes is None else h0.shape[1]
    states = widened(h0), None if c0 is None else widened(c0)
    expected = weight_shapes.__wrapped__(mode, sizes, len(weights))  # Dynamo warns of caches
    if problem := shapes_misfit(mode, widened(x), rows, *states, weights, sizes, expected):
        return problem
    name = _chosen(device, wide, mode, is_tokens(x))
    if name is None:
        return None
    if batch_sizes is not None:
        fits = (batch_sizes[0] == rows) & (batch_sizes[-1] > 0) & (batch_sizes.sum() == x.shape[0])
        fits = fits & (batch_sizes[1:] <= batch_sizes[:-1]).all()
        torch._assert_async(fits, "batch_sizes must be positive, non-increasing and sum up to the rows of the input")
    # The dtype of torch.nn's results.
    narrow = autocast and not (mode == "GRU" and device.type == "cpu")
    return functools.partial(_layer, name, cells, wide, torch.get_autocast_dtype(device.type) if narrow else wide)


def _layer(
    backend: str,
    cells: bool,
    dtype: torch.dtype,
    result: torch.dtype,
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:
    x = x if is_tokens(x) else x.to(dtype)
    c0 = None if c0 is None else c0.to(dtype)
    # Where a derivative is wanted the operator saves what it needs, whatever its last argument says.
    found = torch.ops.fastrnn.layer(x, batch_sizes, h0.to(dtype), c0, weights, mode, backend, cells)
    y, hn, cn, _, all_cells, _ = found
    return y.to(result), hn.to(result), cn.to(result), all_cells


# The default classes, at which Dynamo breaks the graph as at torch.nn's; of what they call it would trace the pieces.
for _module in (modules.RNN, modules.LSTM, modules.GRU):
    left_to_python(_module.forward)


class Compilable(NoOptions, nn.RNNBase):
    """What the three share: the forward, and the construction of torch.nn's class ``_base``."""

    _base: type[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self).update(vars(self._base(*args, **kwargs)))  # torch.nn's checks, defaults and random draws

    def forward(
        self, input: Tensor | PackedSequence, hx: State | None = None, **others: Any
    ) -> tuple[Tensor | PackedSequence, State]:
        """Runs the network on (T, B, I), batch-first (B, T, I), unbatched (T, I) or packed input, from state ``hx``.

        Returns the last layer's output and the last states, for an LSTM a pair of them.

        Raises:
            TypeError: there is another argument, as of libraries that take what is no torch.nn.LSTM for their own.
        """
        if isinstance(others, dict) and others:  # a proxy where torch.fx traces the module itself
            default = f"fastrnn.{type(self).__name__}, an instance of torch.nn's class with the options of fastrnn's"
            raise running.unexpected(self, others, f"fastrnn.convert(fastrnn.revert(model)) makes it a {default}")
        return running.run(self, self._base, input, hx, _plan if torch.compiler.is_compiling() else None)

    def __prepare_scriptable__(self) -> Any:
        own = f"{type(self).__module__}.{type(self).__name__}"
        raise NotImplementedError(f"torch.jit.script knows no {own}: fastrnn.revert(model) first")


class RNN(Compilable):
    """:class:`fastrnn.RNN` for torch.compile and torch.export; no instance of :class:`torch.nn.RNN`, at which Dynamo
    would break the graph."""

    _base = nn.RNN


class LSTM(Compilable):
    """:class:`fastrnn.LSTM` for torch.compile and torch.export; no instance of :class:`torch.nn.LSTM`, at which Dynamo
    would break the graph."""

    _base = nn.LSTM
    # nn.LSTM's forward, which runs where no backend serves, calls its own of these.
    check_forward_args: Any = nn.LSTM.check_forward_args
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    permute_hidden: Any = nn.LSTM.permute_hidden


class GRU(Compilable):
    """:class:`fastrnn.GRU` for torch.compile and torch.export; no instance of :class:`torch.nn.GRU`, at which Dynamo
    would break the graph."""

    _base = nn.GRU
