# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, Vector
from fastrnn.cell.functions import Value

class CoRNN(Cell):
    dt: float
    gamma: float
    epsilon: float
    W: Input
    U: Recurrent
    ch: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class UnICORNN(Cell):
    dt: float
    alpha: float
    W: Input
    U: Recurrent
    a: Vector
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class LEM(Cell):
    dt: float
    ahead: bool
    W: Input
    U: Recurrent
    ch: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...
