# Written by typings/cell_stubs.py.
from typing import ClassVar

from fastrnn.cell import Cell, Input, Recurrent, Vector
from fastrnn.cell.functions import Value

class MultiplicativeLSTM(Cell):
    W: Input
    U: Recurrent
    mh: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class ResLSTM(Cell):
    W: Input
    U: Recurrent
    p: Vector
    proj: Recurrent
    res: Input
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class WMCLSTM(Cell):
    W: Input
    U: Recurrent
    mh: Recurrent
    oh: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class MCLSTM(Cell):
    output: ClassVar[str | None]
    W: Input
    U: Recurrent
    def step(self, x: Value, v: Value, c: Value) -> dict[str, Value]: ...

class NAS(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class RAN(Cell):
    nonlinearity: str
    W: Input
    U: Recurrent
    ic: Input
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...
