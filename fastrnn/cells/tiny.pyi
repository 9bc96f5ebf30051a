# Written by typings/cell_stubs.py.
from fastrnn.cell import Cell, Input, Recurrent, Scalar, Vector
from fastrnn.cell.functions import Value

class FastRNN(Cell):
    nonlinearity: str
    alpha: Scalar
    beta: Scalar
    W: Input
    U: Recurrent
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...

class FastGRNN(Cell):
    nonlinearity: str
    zeta: Scalar
    nu: Scalar
    W: Input
    U: Recurrent
    b: Vector
    def step(self, x: Value, h: Value) -> dict[str, Value]: ...
