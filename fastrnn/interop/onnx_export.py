"""What ``torch.onnx.export(..., dynamo=True)`` is told of ``fastrnn::layer``: a layer is one LSTM, GRU or RNN node.

torch's own operators have T fixed in a graph that torch.export makes, and an RNN comes out as one product a step; with
modules of :mod:`fastrnn.compilable` T and B are symbols and every network has its node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastrnn.interop.onnx_node import GATES
from fastrnn.modes import CELLS, TORCH_MODES


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` of ``torch.onnx.export`` for models with modules of :mod:`fastrnn.compilable`::

        fastrnn.convert(model, compilable=True).eval()
        shapes = ({0: torch.export.Dim("T"), 1: torch.export.Dim("B")},)
        torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=shapes,
                          custom_translation_table=fastrnn.interop.onnx_translations())

    Needs the package ``onnxscript``.  The export fails with ValueError as its cause where ONNX has no such node: a
    projection, packed input or tokens.
    """
    return {torch.ops.fastrnn.layer.default: _node}


def _node(
    x: Any,
    batch_sizes: Any,
    h0: Any,
    c0: Any,
    weights: Sequence[Any],
    mode: str,
    backend: str,
    save: bool,
) -> tuple[Any, ...]:
    from onnxscript import opset18

    op: Any = opset18
    directions = h0.shape[0]
    each = len(weights) // directions
    if mode not in TORCH_MODES or each not in (2, 4):
        raise ValueError(f"ONNX has no node for {mode} with a projection")
    if batch_sizes is not None or len(x.shape) != 3:
        raise ValueError("ONNX has no node for packed input or tokens")
    have, want = CELLS[mode].gates, GATES[mode.split("_")[0]]
    hidden = weights[1].shape[0] // len(have)
    rows = [have.index(gate) * hidden + k for gate in want for k in range(hidden)]

    def stacked(k: int) -> Any:
        """One kind of parameter of all directions, (D, G*H, ...), its gates in ONNX's order."""
        own = [op.Gather(weights[d * each + k], op.Constant(value_ints=rows), axis=0) for d in range(directions)]
        return op.Concat(*(op.Unsqueeze(w, op.Constant(value_ints=[0])) for w in own), axis=0)

    w, r = stacked(0), stacked(1)
    b = op.Concat(stacked(2), stacked(3), axis=1) if each == 4 else None
    options = dict(hidden_size=hidden, direction=("forward", "bidirectional")[directions - 1])
    if mode == "LSTM":
        y, hn, cn = op.LSTM(x, w, r, b, None, h0, c0, **options)
    elif mode == "GRU":
        y, hn = op.GRU(x, w, r, b, None, h0, linear_before_reset=1, **options)
        cn = None
    else:
        y, hn = op.RNN(x, w, r, b, None, h0, activations=[mode[4:].capitalize()] * directions, **options)
        cn = None
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
    unused = [op.Identity(hn) for _ in range(4)]  # values of their own: the exporter writes shapes onto them
    return y, hn, unused[0] if cn is None else cn, *unused[1:]
