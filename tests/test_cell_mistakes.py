"""What the language of cells refuses: every mistake by name, with the user's line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from cell_definitions import applying

from fastrnn import cell as language
from fastrnn.cell import Cell, CellError, Input, Recurrent, tanh


class Good(Cell):
    dt = 0.1
    W, U = Input(), Recurrent()

    def step(self, x, h):
        return dict(h=h + self.dt * tanh(self.W(x) + self.U(h)))


# Rows of a title, the words of the message, and the code, whose line with the mark it names.
MISTAKES = """
## an unknown gate: no gate 'q' | i, f, g, o
class Bad(Cell):
    W = Input("i f g o")
    def step(self, x, h):
        return dict(h=self.W(x).q)  # here
## an unknown gate of a vector: no gate 'k' | p | i, o
class Bad(Cell):
    W, p = Input(), Vector("i o")
    def step(self, x, h):
        return dict(h=self.W(x) + self.p.k)  # here
## a gate of a matrix without: no gates | 'i'
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        return dict(h=self.W(x).i)  # here
## gates without a name: the gates i, f of W | W(...).i
class Bad(Cell):
    W, U = Input("i f"), Recurrent("i f")
    def step(self, x, h):
        return dict(h=tanh(self.W(x) + self.U(h)))  # here
## a function of gates: tanh of the gates i, f of W
class Bad(Cell):
    W = Input("i f")
    def step(self, x, h):
        return dict(h=tanh(self.W(x)))  # here
## a product in a where: where of a product | W.n
class Bad(Cell):
    W = Input("z n")
    def step(self, x, h):
        a = self.W(x)
        return dict(h=where(a.z > 0, a.n, h))  # here
## a where without a comparison: the condition of where is a comparison
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        return dict(h=where(h, self.W(x) + 0, h))  # here
## arithmetic with a comparison: add of a comparison
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        return dict(h=self.W(x) + (h > 0))  # here
## an if on a value: no truth | where(condition, a, b)
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        if h > 0:  # here
            return dict(h=h)
        return dict(h=self.W(x))
## a state without a next value: expected a dict of h, c, got h | every state has a next value
class Bad(Cell):
    W = Input()
    def step(self, x, h, c):  # here
        return dict(h=self.W(x) + c)
## an unknown key: expected a dict of h, got h, c
class Bad(Cell):
    W = Input()
    def step(self, x, h):  # here
        return dict(h=self.W(x), c=h)
## an output that is not returned: expected a dict of h, y, got h
class Bad(Cell):
    output = "y"
    W = Input()
    def step(self, x, h):  # here
        return dict(h=self.W(x))
## no dict: expected a dict of h, got a tuple
class Bad(Cell):
    W = Input()
    def step(self, x, h):  # here
        return self.W(x), h
## a number for a state: h is a float, not a value of units
class Bad(Cell):
    W = Input()
    def step(self, x, h):  # here
        return dict(h=0.0)
## a learned number for a state: h is a single number
class Bad(Cell):
    alpha = Scalar()
    def step(self, x, h):  # here
        return dict(h=self.alpha * 2)
## a comparison for a state: h is a comparison
class Bad(Cell):
    W = Input()
    def step(self, x, h):  # here
        return dict(h=self.W(x) > h)
## gates for a state: h is the gates a, b of W
class Bad(Cell):
    W = Input("a b")
    def step(self, x, h):  # here
        return dict(h=self.W(x))
## x and a state unit by unit: mul of values of input_size and hidden_size, which are two sizes
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        return dict(h=self.W(x) + x * h)  # here
## a matrix on two sizes: U is applied to values of hidden_size and proj_size, which are two sizes
class Bad(Cell):
    c = State("proj_size")
    W, U, V = Input(), Recurrent(), Recurrent(size="proj_size")
    def step(self, x, h, c):
        h = self.W(x) + self.U(h)
        return dict(h=h + self.U(c), c=self.V(h))  # here
## a state of another size: state c has proj_size and its next value hidden_size, which are two sizes
class Bad(Cell):
    c = State("proj_size")
    W = Input()
    def step(self, x, h, c):  # here
        return dict(h=self.W(x), c=h)
## an input on a state: W is an Input | make it a Recurrent
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        return dict(h=self.W(tanh(h)))  # here
## a matrix on a number: U is applied to a single number
class Bad(Cell):
    U = Recurrent()
    ts = StepInput()
    def step(self, x, h, *, ts):
        return dict(h=h + self.U(ts))  # here
## a matrix on a constant: U is applied to a float
class Bad(Cell):
    U = Recurrent()
    def step(self, x, h):
        return dict(h=self.U(1.0))  # here
## a matrix on a comparison: U is applied to a comparison
class Bad(Cell):
    U = Recurrent()
    def step(self, x, h):
        return dict(h=self.U(h > 0))  # here
## a diagonal on another size: U is Diagonal() | of hidden_size, and applied to a value of proj_size
class Bad(Cell):
    c = State("proj_size")
    W, U = Input(), Recurrent(kind=Diagonal())
    def step(self, x, h, c):
        return dict(h=self.W(x) + self.U(c), c=c)  # here
## an antisymmetric matrix of two gates: U is Antisymmetric | one gate
class Bad(Cell):
    W, U = Input("a b"), Recurrent("a b", kind=Antisymmetric())
    def step(self, x, h):  # here
        a, b = self.W(x), self.U(h)
        return dict(h=a.a * b.b)
## an unknown activation: 'gelu' is no activation | tanh
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        return dict(h=activation("gelu")(self.W(x)))  # here
## a mean of a number: mean of a single number
class Bad(Cell):
    alpha, W = Scalar(), Input()
    def step(self, x, h):
        return dict(h=self.W(x) * mean(self.alpha))  # here
## a mean over no head: at least 1, got 0
class Bad(Cell):
    W = Input()
    def step(self, x, h):
        return dict(h=mean(self.W(x), 0))  # here
## a state that no step has: c is declared as a state, and step has no such argument
class Bad(Cell):
    c = State("proj_size")
    W = Input()
    def step(self, x, h):  # here
        return dict(h=self.W(x))
## an extra that no step has: ts is declared, and step has no such keyword
class Bad(Cell):
    ts = StepInput()
    W = Input()
    def step(self, x, h):  # here
        return dict(h=self.W(x))
## a step without a state: expected (self, x, state, ...), got (self, x)
class Bad(Cell):
    W = Input()
    def step(self, x):  # here
        return dict(h=self.W(x))
## states of no number: *states and states = State(copies=...) go together
class Bad(Cell):
    W = Input()
    def step(self, x, *states):  # here
        return dict(states=states)
## no copies: expected depth to be an integer of at least 1, got 0
class Bad(Cell):
    depth = 0
    W, U = Input(), Recurrent(copies="depth")
    def step(self, x, h):  # here
        return dict(h=self.W(x) + self.U[0](h))
## a gate that is no name: a gate's name is an identifier, got '2'
Input("i 2")  # here
## a gate twice: different names
Input("i f i")  # here
## one declaration twice: p and q are one declaration
class Bad(Cell):
    p = q = Vector()
    def step(self, x, h):  # here
        return dict(h=self.p * h)
## a copy of another's name: a copy of p and another declaration are both p_0
class Bad(Cell):
    depth = 2
    p, p_0 = Vector(copies="depth"), Vector()
    def step(self, x, h):  # here
        return dict(h=self.p[0] * h)
## an unknown constant: Good has no constant 'dT'
Good(dT=0.2)  # here
## a matrix for a constant: Good has no constant 'W'
Good(W=0.2)  # here
## a kind of no matrix: kinds has 'V', and the cell no such matrix
class Bad(Cell):
    kinds = {"V": LowRank(2)}
    W = Input()
    def step(self, x, h):  # here
        return dict(h=self.W(x))
"""
ROWS = {row.partition(":")[0]: row for row in MISTAKES.strip().removeprefix("## ").split("\n## ")}


@pytest.mark.parametrize("title", ROWS)
def test_a_mistake_is_refused_by_name_and_line(title: str):
    heading, _, code = ROWS[title].partition("\n")
    with pytest.raises(CellError) as caught:
        exec(compile(code, "<the user's file>", "exec"), vars(language) | {"Good": Good})
    (line,) = (number for number, line in enumerate(code.splitlines(), 1) if line.endswith("# here"))
    for word in (*heading.partition(": ")[2].split(" | "), f"<the user's file>:{line}: "):
        assert word in str(caught.value)


TORCH = [torch.sin, torch.erf, torch.cumsum, torch.softmax, torch.nn.functional.gelu, torch.clone, torch.zeros_like]
NUMPY = [numpy.sin, numpy.tanh, numpy.clip, numpy.concatenate, numpy.where, numpy.power, numpy.mean]
PYTHON: dict[str, Callable[[Any], Any]] = {
    "**": lambda v: v**2,
    "%": lambda v: v % 2,
    "//": lambda v: v // 2,
    "@": lambda v: v @ v,
    "&": lambda v: v & v,
    "==": lambda v: v == 0,
    "!=": lambda v: v != 0,
    "[...]": lambda v: v[:2],
    "a loop over the units": lambda v: sum(unit for unit in v),
    "len": len,
    "a number": math.exp,
    "in": lambda v: 1 in v,
    "an array of numpy": numpy.asarray,
    "divmod": lambda v: divmod(v, 2),
    "a call": lambda v: v(1),
}


OUTSIDE = {
    **{f"torch's {function.__name__}": function for function in TORCH},
    **{f"numpy's {function.__name__}": function for function in NUMPY},
    **{f"{sign} of a value": function for sign, function in PYTHON.items()},
    "no 'tanh'": lambda v: v.tanh(),
    "add of a str": lambda v: v + "a",
    "sub of a Tensor": lambda v: v - torch.ones(3),
    "mul of a Tensor": lambda v: torch.ones(3) * v,
    "div of a ndarray": lambda v: numpy.ones(3) / v,
}


@pytest.mark.parametrize("named", OUTSIDE)
def test_an_operation_outside_of_the_language_names_itself(named: str):
    operation = OUTSIDE[named]
    arguments = {torch.cumsum: (0,), torch.softmax: (0,), numpy.power: (2,), numpy.clip: (0, 1)}.get(operation, ())
    with pytest.raises(CellError, match=f"{__file__}:[0-9]+: ") as caught:
        applying(lambda v: operation((v, v) if operation is numpy.concatenate else v, *arguments))
    assert named in str(caught.value)
    if named.startswith(("torch", "numpy")) or "of a value" in named:
        assert "sigmoid" in str(caught.value)  # what there is
