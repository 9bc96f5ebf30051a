# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent
from fastrnn.cell.functions import Value

class MUT1(Cell):
    W: Input
    U: Recurrent
    nh: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class MUT2(Cell):
    W: Input
    U: Recurrent
    nh: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class MUT3(Cell):
    W: Input
    U: Recurrent
    rh: Recurrent
    nh: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...
