# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, Scalar, State
from fastrnn.cell.functions import Value

class Jordan(Cell):
    nonlinearity: str
    output_nonlinearity: str
    h: State
    W: Input
    U: Recurrent
    hr: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class SCRN(Cell):
    alpha: Scalar
    W: Input
    U: Recurrent
    uh: Recurrent
    ch: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...
