# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent
from fastrnn.cell.functions import Value

class RHN(Cell):
    depth: int
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...
