"""What a cell is: how many gates, which states, and its equations.

A cell is data (one row of :data:`CELLS`) plus two pointwise functions per kernel language, forward and
backward; a *scan* is the time loop around them.  Every backend reads its cell from here.

Shapes, in all of fastrnn: T steps, B rows (sequences), N = all rows of all steps, I inputs, H hidden units,
P outputs (H, or ``proj_size``), D directions, G gates, S saved pointwise values.

With ``a = W_ih x_t + b_ih`` and ``b = W_hh h_(t-1) + b_hh`` split into the gates named below::

    RNN    h = tanh(a + b)                            or relu
    LSTM   i, f, o = sigmoid(a + b)    g = tanh(a + b)
           c = f * c_(t-1) + i * g     h = o * tanh(c)       with proj_size: h = W_hr (o * tanh(c))
    GRU    r, z = sigmoid(a + b)       n = tanh(a_n + r * b_n)
           h = (1 - z) * n + z * h_(t-1)
    JORDAN u = tanh(a + b)             or relu
           h = g(W_hr u + b_hr)        g: identity, tanh, relu or sigmoid

Source: the equations in the documentation of torch.nn.RNN, LSTM and GRU; Jordan, "Serial order: a parallel distributed
processing approach" (1986), whose fed-back state is the output, here h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """One row of :data:`CELLS`.

    Attributes:
        mode: torch's name for the cell, the value of ``nn.RNNBase.mode``; ``JORDAN_*`` are our own.
        gates: names of the gates, in the order of their blocks of H rows in ``weight_ih`` and ``weight_hh``.
        saved: names of the pointwise values of one unit and step that backward needs, apart from c and h.
        has_cell_state: whether there is a c beside h.
        output: g, where h is an output g(W_hr u + b_hr) of the cell's own u; backward needs u as it does a c.
    """

    mode: str
    gates: tuple[str, ...]
    saved: tuple[str, ...]
    has_cell_state: bool = False
    output: str | None = None

    @property
    def apart(self) -> int:
        """How many gates, the last, read their share of h apart from that of x: each has a slot for either."""
        return sum(name.startswith("b_") for name in self.saved)

    @property
    def keeps_h(self) -> bool:
        """Whether h reaches the step after it past the gates, too."""
        return len(self.saved) > 0 and not self.has_cell_state


CELLS: dict[str, Cell] = {
    "RNN_TANH": Cell("RNN_TANH", ("h",), ()),
    "RNN_RELU": Cell("RNN_RELU", ("h",), ()),
    "LSTM": Cell("LSTM", ("i", "f", "g", "o"), ("i", "f", "g", "o"), has_cell_state=True),
    # b_n = W_hn h + b_hn stands inside tanh behind r, so backward needs it beside the three gates.
    "GRU": Cell("GRU", ("r", "z", "n"), ("b_n", "r", "z", "n")),
}
TORCH_MODES = tuple(CELLS)  # those of torch.nn, which every backend serves

OUTPUTS = ("identity", "tanh", "relu", "sigmoid")
CELLS |= {
    mode: Cell(mode, ("h",), (), output=output)
    for output in OUTPUTS
    for mode in (f"JORDAN_TANH_{output.upper()}", f"JORDAN_RELU_{output.upper()}")
}


class Weights(NamedTuple):
    """The parameters of one direction of one layer.

    ``w_ih`` (G*H, I), ``w_hh`` (G*H, P), ``b_ih`` and ``b_hh`` (G*H,) or None, ``w_hr`` (P, H) or None, ``b_hr``
    (P,) or None.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None
    b_hr: Tensor | None


def split_weights(weights: Sequence[Tensor], directions: int) -> list[Weights]:
    """Cut torch's flat list of one layer's parameters into one :class:`Weights` a direction.

    The number of tensors a direction tells the form: 2 (no bias), 3 (no bias, projection), 4, 5 (projection), 6 (a
    projection with a bias).
    """
    count = len(weights) // directions
    if count * directions != len(weights) or not 2 <= count <= 6:
        raise ValueError(f"expected 2 to 6 parameters for each of {directions} directions, got {len(weights)}")
    out = []
    for d in range(directions):
        own = list(weights[d * count : (d + 1) * count])
        b_ih, b_hh = (own[2], own[3]) if count >= 4 else (None, None)
        w_hr = own[2 if count == 3 else 4] if count in (3, 5, 6) else None
        out.append(Weights(own[0], own[1], b_ih, b_hh, w_hr, own[5] if count == 6 else None))
    return out
