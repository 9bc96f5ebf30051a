# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, Vector
from fastrnn.cell.functions import Value

class LayerNormLSTM(Cell):
    W: Input
    U: Recurrent
    w: Vector
    u: Vector
    b: Vector
    k: Vector
    d: Vector
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class LayerNormGRU(Cell):
    W: Input
    U: Recurrent
    w: Vector
    u: Vector
    b: Vector
    e: Vector
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...
