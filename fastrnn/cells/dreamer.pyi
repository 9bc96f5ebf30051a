# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, StepInput, Vector
from fastrnn.cell.functions import Value

class BlockGRU(Cell):
    action: StepInput
    in0: Recurrent
    in1: Input
    in2: Input
    gain0: Vector
    gain1: Vector
    gain2: Vector
    hid: Recurrent
    hid0: Recurrent
    hid1: Input
    hid2: Input
    gain: Vector
    gru: Recurrent
    def step(self, x: Value, h: Value, *, action: Value) -> dict[str, Value]: ...
