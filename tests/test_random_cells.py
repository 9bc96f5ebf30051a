"""Cells that nobody has written: random equations, on every engine, against the definition called with tensors."""

from __future__ import annotations

import random

import pytest
import torch
from cell_oracles import Case, Row, measured, verify
from cell_runs import RUNS, run_equations, unavailable

from fastrnn import cell as language
from fastrnn.cell import Cell, Heads, Input, Recurrent, Scalar, SequenceInput, State, StepInput, Vector

UNARY = ("neg", "tanh", "sigmoid", "relu", "softplus", "abs", "silu", "softsign", "hard_sigmoid")
CASES = [
    Case("whole vectors and rows for several tiles", steps=4, rows=9, hidden=32),
    Case("a unit more than a panel of many, packed", lengths=(6, 5, 5, 2, 1), hidden=66),
    Case("odd sizes, backwards", lengths=(3, 3, 1), hidden=10, reverse=True),
    Case("one step", steps=1, rows=2, hidden=6, bias=False),
]


def random_cell(seed: int) -> type[Cell]:
    """A cell of one to three states, of two sizes, with products of what is computed on the way, means, own vectors and
    numbers, inputs a step and a sequence; every value is kept within bounds, so that errors do not grow."""
    rng = random.Random(seed)
    states = [f"s{k}" for k in range(rng.randint(1, 3))]
    sizes = {name: rng.choice(["hidden_size", "hidden_size", "other_size"]) for name in states}
    sizes[states[0]] = "hidden_size"
    members: dict[str, object] = {
        "W": Input("a b"),
        "W_other": Input("a", size="other_size"),
        "v": Vector(init=0.5),
        "w": Vector("a b", size="other_size"),
        "k": Scalar(0.7),
        "t": StepInput(rng.choice([None, "hidden_size"])),
        "m": SequenceInput(rng.choice([None, "hidden_size"])),
        **{name: State(size) for name, size in sizes.items()},
    }
    matrices = {}
    for k in range(rng.randint(0, 4)):
        size = rng.choice(["hidden_size", "other_size"])
        gates = rng.choice(["", "p q"])
        heads = rng.choice([None, None, Heads(2)])
        matrices[f"U{k}"] = size, gates, heads
        members[f"U{k}"] = Recurrent(gates, size=size, bias=rng.random() < 0.7, kind=heads)
    plan = [rng.random() for _ in range(400)]

    def step(self, x, *given, t, m):
        draw = iter(plan)

        def pick(options):
            return options[int(next(draw) * len(options))]

        a = self.W(x)
        pools = {
            "hidden_size": [a.a, a.b, self.v],
            "other_size": [self.W_other(x).a, self.w.a, self.w.b],
        }
        for name, size in (("t", members["t"].size), ("m", members["m"].size)):
            value = t if name == "t" else m
            pools["hidden_size"].append(value if size else value * a.a)
        for name, state in zip(states, given, strict=True):
            pools[sizes[name]].append(state)
        for name, (size, gates, _) in matrices.items():
            source = pick(list(pools))
            operand = pick(pools[source])
            product = getattr(self, name)(language.tanh(operand) if next(draw) < 0.3 else operand)
            pools[size] += [product.p, product.q] if gates else [product]
            for other in pools.values():
                for _ in range(3):
                    one, two = pick(other), pick(other)
                    kind = int(next(draw) * 7)
                    if kind == 0:
                        value = one + two
                    elif kind == 1:
                        value = one * language.sigmoid(two)
                    elif kind == 2:
                        value = one - self.k * two
                    elif kind == 3:
                        value = language.where(one > two, language.tanh(two), one * 0.5) if two is not product else one
                    elif kind == 4:
                        value = language.maximum(one, two)
                    elif kind == 5:
                        value = one - language.mean(two, 2)
                    else:
                        value = getattr(language, pick(UNARY))(one)
                    other.append(language.tanh(value))
        found = {}
        for name in states:
            one, two = pick(pools[sizes[name]]), pick(pools[sizes[name]])
            found[name] = language.tanh(one) * 0.7 + 0.3 * two
        return found

    given = ", ".join(states)
    signature = f"def step(self, x, {given}, *, t, m):\n    return body(self, x, {given}, t=t, m=m)"
    scope: dict[str, object] = {"body": step}
    exec(signature, scope)
    return type(f"Random{seed}", (Cell,), {**members, "step": scope["step"]})


def safe(seed: int) -> Cell:
    """The next seed's cell whose definition the language takes: some apply ``where`` to a product, or a matrix to
    values of two sizes."""
    while True:
        try:
            return random_cell(seed)()
        except language.CellError:
            seed += 10_000


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("name", ["torch", "cpp", "cpp_ahead", "numba"])
def test_engines_run_cells_that_nobody_has_written(name: str, seed: int):
    if reason := unavailable(RUNS[name]):
        pytest.skip(reason)
    row = Row(safe(seed), f"seed{seed}", step=lambda *_: None, sizes={"other_size": 8}, multiple=2)  # type: ignore[arg-type, return-value]
    case = CASES[seed % len(CASES)]
    verify(measured(RUNS[name], row, case), measured(run_equations, row, case))


def test_threads_and_float32_give_the_same_to_their_digits():
    row = Row(safe(3), "float32", step=lambda *_: None, sizes={"other_size": 8}, multiple=2)  # type: ignore[arg-type, return-value]
    wanted = measured(run_equations, row, CASES[0])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for name in ("cpp", "cpp_ahead", "numba"):
                if not unavailable(RUNS[name]):
                    # a chain of some 10^3 roundings of 6e-8, as in float64
                    verify(measured(RUNS[name], row, CASES[0], torch.float32), wanted, 1e-4)
    finally:
        torch.set_num_threads(before)


class TwoAndThree(Cell):
    """Products of different heads, and a dense one, in one phase, forward and backward."""

    W, U, V, D = Input(), Recurrent(kind=Heads(2)), Recurrent(kind=Heads(3)), Recurrent()

    def step(self, x, h):
        return dict(h=language.tanh(self.W(x) + self.U(h) + self.V(h) * language.sigmoid(self.D(h))))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["torch", "cpp", "cpp_ahead", "numba"])
def test_products_of_different_heads_in_one_phase(name: str, case: Case):
    if reason := unavailable(RUNS[name]):
        pytest.skip(reason)
    row = Row(TwoAndThree(), "heads", step=lambda *_: None, multiple=6)  # type: ignore[arg-type, return-value]
    verify(measured(RUNS[name], row, case), measured(run_equations, row, case))
