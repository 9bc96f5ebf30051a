# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, StepInput
from fastrnn.cell.functions import Value

class CfC(Cell):
    mode: str
    ts: StepInput
    W: Input
    U: Recurrent
    ff: Recurrent
    def step(self, x: Value, h: Value, *, ts: Value) -> dict[str, Value]: ...
