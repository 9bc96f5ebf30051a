# Written by typings/cell_stubs.py.
from typing import ClassVar

from fastrnn.cell import Cell, Input, Recurrent
from fastrnn.cell.functions import Value

class ATR(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class NBR(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class BR(NBR):
    U: Recurrent

class CFN(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class LightRU(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class STAR(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class SGRN(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class MinimalRNN(Cell):
    W: Input
    U: Recurrent
    mm: Input
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class MiRU1(Cell):
    update: float
    W: Input
    U: Recurrent
    nh: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class MiRU2(Cell):
    update: float
    reset: float
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class SGU(Cell):
    W: Input
    U: Recurrent
    gh: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class DSGU(Cell):
    W: Input
    U: Recurrent
    gh: Recurrent
    ho: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class IntersectionRNN(Cell):
    output: ClassVar[str | None]
    square: ClassVar[bool]
    nonlinearity: str
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...
