# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent
from fastrnn.cell.functions import Value

class SLSTM(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value, c: Value, n: Value, m: Value) -> dict[str, Value]: ...
