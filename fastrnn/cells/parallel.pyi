# Written by typings/cell_stubs.py.
from typing import ClassVar

from fastrnn.cell import Cell, Input, Recurrent, State, Vector
from fastrnn.cell.functions import Value

class SRU(Cell):
    output: ClassVar[str | None]
    W: Input
    v: Vector
    n: Input
    s: Input
    def step(self, x: Value, c: Value) -> dict[str, Value]: ...

class MinGRU(Cell):
    positive: bool
    W: Input
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class MinLSTM(Cell):
    positive: bool
    W: Input
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class TRNN(Cell):
    W: Input
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class TGRU(Cell):
    past: State
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value, past: Value) -> dict[str, Value]: ...

class TLSTM(Cell):
    output: ClassVar[str | None]
    past: State
    W: Input
    U: Recurrent
    def step(self, x: Value, c: Value, past: Value) -> dict[str, Value]: ...
