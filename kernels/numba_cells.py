"""The pointwise half of each cell, as the scan calls it: one unit of one row, once a step.

``forward(p0, p1, p2, p3, h, c) -> (s0, s1, s2, s3, h, c)`` takes the pre-activations and the state before the step, and
gives the values that backward needs and the state after it (a cell without c gives h for it).
``backward(s0, s1, s2, s3, h0, c0, h, c, dh, dc) -> (d0, d1, d2, d3, dh0, dc0, h)`` takes those values, the state before
(``h0``, ``c0``) and after the step and the gradients of the state after; it gives the gradients of the
pre-activations, what reaches ``dh0`` past them, ``dc0``, and the output again (:class:`Cell` names the slots).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .numba_functions import d_identity, d_relu, d_sigmoid, d_tanh, identity, relu, sigmoid, tanh
from .numba_printed import PRINTED


class Cell(NamedTuple):
    """A cell as the scan sees it.

    A unit owns ``slots`` values a step.  The recurrent product adds to the first ``gates`` of them and the product with
    the input to ``gates`` of them from ``input_slot`` on; only GRU needs them apart, because its b_n = W_hn h + b_hn
    stands behind r: its slots are b_n, r, z, n.  ``shift`` is by how many blocks its rows of W_hh are rotated for that.
    ``output`` and ``d_output`` stand behind a projection: y = output(v) and dv = d_output(dy, y).
    """

    forward: Callable[..., object]
    backward: Callable[..., object]
    gates: int
    slots: int
    input_slot: int = 0
    shift: int = 0
    output: Callable[..., object] = identity
    d_output: Callable[..., object] = d_identity


CELLS = {mode: Cell(*own) for mode, own in PRINTED.items()}
OUTPUTS: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
    "IDENTITY": (identity, d_identity),
    "TANH": (tanh, d_tanh),
    "RELU": (relu, d_relu),
    "SIGMOID": (sigmoid, d_sigmoid),
}
CELLS |= {
    f"JORDAN_{kind}_{name}": CELLS[f"RNN_{kind}"]._replace(output=output, d_output=d_output)
    for kind in ("TANH", "RELU")
    for name, (output, d_output) in OUTPUTS.items()
}
