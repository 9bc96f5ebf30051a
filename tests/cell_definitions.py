"""Cells made for tests of the language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrnn.cell import Cell, Input, Recurrent


def applying(operation: Callable[[Any], Any]) -> type[Cell]:
    """A cell that applies an operation to a value; the line that a message names is the one that applies it."""

    class Made(Cell):
        W, U = Input(), Recurrent()

        def step(self, x, h):
            return dict(h=self.W(x) + operation(self.U(h)))

    return Made
