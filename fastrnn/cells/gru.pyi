# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, State
from fastrnn.cell.functions import Value

class GRU(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class ResetBeforeGRU(Cell):
    nonlinearity: str
    gate_nonlinearity: str
    W: Input
    U: Recurrent
    nh: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class LiGRU(Cell):
    nonlinearity: str
    gate_nonlinearity: str
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class UGRNN(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class MGU(Cell):
    nonlinearity: str
    gate_nonlinearity: str
    W: Input
    U: Recurrent
    nh: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class TauGRU(Cell):
    delay: int
    past: State
    W: Input
    U: Recurrent
    dh: Recurrent
    def step(self, x: Value, h: Value, *past: Value) -> dict[str, Value]: ...
