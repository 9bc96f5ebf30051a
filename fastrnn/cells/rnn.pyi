# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent
from fastrnn.cell.functions import Value

class RNN(Cell):
    nonlinearity: str
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class IndRNN(Cell):
    nonlinearity: str
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class AntisymmetricRNN(Cell):
    epsilon: float
    nonlinearity: str
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class GatedAntisymmetricRNN(Cell):
    epsilon: float
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...
