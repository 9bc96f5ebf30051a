"""The compiler of cells: each pass by itself."""

from __future__ import annotations

import pytest

from fastrnn.cell import (
    Cell,
    Heads,
    Input,
    Recurrent,
    Scalar,
    State,
    StepInput,
    Vector,
    layer_norm,
    relu,
    sigmoid,
    tanh,
)
from fastrnn.cell.graph import Graph, ancestors
from fastrnn.cell.trace import trace
from fastrnn.compiler.arrays import is_product_of_x
from fastrnn.compiler.derivative import differentiate
from fastrnn.compiler.normal import normal_form
from fastrnn.compiler.program import compile_cell
from fastrnn.compiler.saved import choose_saved


class Lstm(Cell):
    W, U = Input("i f g o"), Recurrent("i f g o")

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        i, f, o = sigmoid(a.i + b.i), sigmoid(a.f + b.f), sigmoid(a.o + b.o)
        c = f * c + i * tanh(a.g + b.g)
        return dict(h=o * tanh(c), c=c)


class Projected(Cell):
    W, U, hr = Input("i f g o"), Recurrent("i f g o"), Recurrent(size="proj_size", bias=False)
    h = State("proj_size")

    def step(self, x, h, c):
        a, b = self.W(x), self.U(h)
        c = sigmoid(a.f + b.f) * c + sigmoid(a.i + b.i) * tanh(a.g + b.g)
        return dict(h=self.hr(sigmoid(a.o + b.o) * tanh(c)), c=c)


class Gru(Cell):
    W, U = Input("r z n"), Recurrent("r z n")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        r, z = sigmoid(a.r + b.r), sigmoid(a.z + b.z)
        n = tanh(a.n + r * b.n)
        return dict(h=(1 - z) * n + z * h)


class ResetBefore(Cell):
    W, U, U_n = Input("r z n"), Recurrent("r z"), Recurrent("n")

    def step(self, x, h):
        a, b = self.W(x), self.U(h)
        z = sigmoid(a.z + b.z)
        n = tanh(a.n + self.U_n(sigmoid(a.r + b.r) * h).n)
        return dict(h=(1 - z) * n + z * h)


class Elementwise(Cell):
    W, u = Input(), Vector()

    def step(self, x, h):
        return dict(h=relu(self.W(x) + self.u * h))


class Headed(Cell):
    W, U, scale = Input("a b"), Recurrent("a b", kind=Heads(2)), Scalar(0.5)

    def step(self, x, h, *, t):
        a, b = self.W(x), self.U(relu(h))
        n = layer_norm(a.a + b.a, heads=2)
        return dict(h=tanh(n * self.scale + t * sigmoid(a.b + b.b)) + 0.5 * h)


class ReadOut(Cell):
    """Its output feeds no state, so that its product is sunk behind the loop."""

    W, U, V = Input(), Recurrent(), Recurrent(size="out_size")
    output = "y"

    def step(self, x, h):
        h = tanh(self.W(x) + self.U(h))
        return dict(h=h, y=relu(self.V(h)))


CELLS = (Lstm, Projected, Gru, ResetBefore, Elementwise, Headed, ReadOut)


@pytest.mark.parametrize(
    ("cell", "depth"),
    [(Lstm, 1), (Projected, 2), (Gru, 1), (ResetBefore, 2), (Elementwise, 0), (Headed, 3), (ReadOut, 1)],
)
def test_depth_counts_the_products_and_means_that_wait_for_one_another(cell, depth):
    assert normal_form(trace(cell())).depth == depth


@pytest.mark.parametrize("cell", CELLS)
def test_products_of_x_alone_are_hoisted(cell):
    loop = normal_form(trace(cell()))
    for node in loop.nodes:
        if node.op == "product":
            assert any(each.op == "state" for each in ancestors(node.args))


def test_a_product_that_feeds_no_state_is_sunk():
    loop = normal_form(trace(ReadOut()))
    assert loop.emitted == (loop.next["h"],)
    assert [node.about[0] for node in loop.nodes if node.op == "product"] == ["U"]


def test_the_gates_of_an_lstm_are_saved_and_tanh_of_c_is_not():
    loop = normal_form(trace(Lstm()))
    saving = choose_saved(loop, differentiate(loop))
    assert saving.histories == ("h", "c")
    assert [node.op for node in saving.values] == ["sigmoid", "sigmoid", "sigmoid", "tanh"]
    assert all(loop.next["c"] not in node.args for node in saving.values)


@pytest.mark.parametrize("cell", CELLS)
def test_what_backward_reads_is_an_input_or_kept(cell):
    compiled = compile_cell(cell())
    kept = {name for name in compiled.keeping.arrays if name.startswith(("history:", "saved:", "out:"))}
    read = {name for name in compiled.backward.arrays if name.startswith(("history:", "saved:", "out:"))}
    assert read <= kept


@pytest.mark.parametrize("cell", CELLS)
def test_where_products_of_x_are_made_in_the_loop_those_that_backward_reads_are_stored_once(cell):
    compiled = compile_cell(cell())
    made = {group.array for group in compiled.groups if is_product_of_x(group)}
    loads = [each for phase in compiled.backward.phases for part in phase for each in part.loads.values()]
    stores = [each for phase in compiled.keeping_ahead.phases for part in phase for _, each in part.stores]
    assert sorted(each for each in stores if each.array in made) == sorted({e for e in loads if e.array in made})


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("which", ["forward", "keeping", "keeping_ahead", "backward"])
def test_a_part_computes_each_value_behind_those_that_it_reads(cell, which):
    for phase in getattr(compile_cell(cell()), which).phases:
        for part in phase:
            known = set(part.loads)
            for node in part.body:
                assert all(arg.op == "const" or arg in known for arg in node.args)
                known.add(node)
            assert all(node.op == "const" or node in known for node, _ in part.stores)
            assert all(node.size in (part.size, None) for node in known)


def test_gates_whose_gradients_are_one_share_them():
    compiled = compile_cell(Lstm())
    assert compiled.backward.arrays["stream:hidden_size"].blocks == 4
    assert compile_cell(Gru()).backward.arrays["stream:hidden_size"].blocks == 4  # r and z are shared, n is not


def test_equal_nodes_are_made_once():
    graph = Graph()
    one, other = (graph.node("const", about=value) for value in (1.0, 2.0))
    assert graph.node("add", [one, other]) is graph.node("add", [one, other])
    assert graph.node("add", [one, other]) is not graph.node("add", [other, one])


def test_a_step_input_without_a_size_is_one_number_a_row():
    assert isinstance(trace(Headed()).parts.extras["t"], StepInput)
