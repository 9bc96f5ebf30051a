# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, Scalar, State, Vector
from fastrnn.cell.functions import Value

class LSTM(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class ProjectedLSTM(LSTM):
    h: State
    hr: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class PeepholeLSTM(Cell):
    nonlinearity: str
    gate_nonlinearity: str
    W: Input
    U: Recurrent
    p: Vector
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class CoupledLSTM(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class OriginalLSTM(Cell):
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value, c: Value) -> dict[str, Value]: ...

class JANET(Cell):
    beta: Scalar
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...
