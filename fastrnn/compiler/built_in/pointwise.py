"""A cell of one recurrent product as two pointwise functions of a unit, forward and backward: what the engines of the
built-in cells are printed.

Those engines hold the gates of a unit side by side, in *slots*.  A gate of which only the sum of W x and U h is read
has one slot.  One that the step reads apart (GRU's n, whose U h stands behind r) has two, that of h before all others
and that of x behind them, so that the slots of h are contiguous, and those of x, too: b_n, r, z, n for the GRU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastrnn.cell.declare import Cell
from fastrnn.cell.functions import CellError
from fastrnn.cell.graph import Node, ancestors
from fastrnn.cell.trace import trace
from fastrnn.compiler.derivative import differentiate
from fastrnn.compiler.normal import Loop, normal_form
from fastrnn.compiler.saved import Rebuilt, needed, values_to_save


class Slot(NamedTuple):
    """A place of a unit's gates: ``gate`` of W x where ``of_x``, of U h where ``of_h``, or of their sum."""

    gate: str | None
    of_x: bool
    of_h: bool

    @property
    def name(self) -> str:
        return ("" if self.of_x else "b_") + (self.gate or "sum")


class Pointwise(NamedTuple):
    """A cell between two products.

    Attributes:
        gates: in the order of their blocks of rows in ``weight_ih`` and ``weight_hh``.
        slots: in the order in which they are stored.
        places: the node of each slot forward: a product, or the sum of two.
        next: the node of each state after the step; and
        states: that before it.
        saved: of the slots of which backward reads something that is not at hand, that node; every slot or none.
        gradients: backward, the node of the gradient of each slot; and
        direct: of each state before the step, what reaches it past the products, None for nothing.
    """

    gates: tuple[str | None, ...]
    slots: tuple[Slot, ...]
    places: tuple[Node, ...]
    next: dict[str, Node]
    states: dict[str, Node]
    saved: tuple[Node, ...]
    gradients: tuple[Node, ...]
    direct: dict[str, Node | None]

    @property
    def rows_of_h(self) -> tuple[int, ...]:
        """Of each slot of h, which gate's rows of ``weight_hh`` it belongs to."""
        return tuple(self.gates.index(slot.gate) for slot in self.slots if slot.of_h)

    @property
    def reads_state(self) -> bool:
        """Whether the step reads h beside its product."""
        return self.states["h"] in ancestors(self.next.values(), self.places)

    @property
    def carries(self) -> list[Node]:
        """The gradients that flow to the step before past the products."""
        return [node for node in self.direct.values() if node is not None]

    def backward_names(self, before: dict[str, str], grads: dict[str, str]) -> dict[Node, str]:
        """Names for what backward reads: slots by theirs, states after the step by theirs, those before it and the
        gradients of states as these say."""
        values = {node: slot.name for slot, node in zip(self.slots, self.saved, strict=False)}
        values |= {node: before[name] for name, node in self.states.items()}
        values |= {node: name for name, node in self.next.items()}
        found = {}
        for node in ancestors([*self.gradients, *self.carries]):
            if node.op in ("value", "carry"):
                found[node] = values[node.about] if node.op == "value" else grads[node.about]
        return found


def pointwise(cell: Cell) -> Pointwise:
    """The two functions of a cell whose step multiplies x by one matrix and h by another, of the same gates.

    Raises:
        CellError: a cell of another form.
    """
    loop = normal_form(trace(cell))
    of_x = {node.about[1]: node for node in loop.inputs if node.op == "product"}
    of_h = {node.about[1]: node for node in loop.nodes if node.op == "product" and node.args[0] in loop.states.values()}
    products = [node for node in loop.nodes if node.op == "product"]
    if len(loop.inputs) != len(of_x) or len(products) != len(of_h) or of_x.keys() != of_h.keys():
        raise CellError(f"{cell!r}: expected a step of two products, of x and of h, with the same gates")
    inside = tuple(node for node in loop.nodes if node.op != "product")
    loop = loop._replace(inputs=loop.inputs | dict.fromkeys(products, "step"), nodes=inside, emitted=())
    sums = {gate: _sum_of(loop, of_x[gate], of_h[gate]) for gate in of_x}
    apart = [gate for gate in of_x if sums[gate] is None]
    whole = {gate: node for gate, node in sums.items() if node is not None}
    if tuple(of_x) != (*whole, *apart):
        raise CellError(f"{cell!r}: expected gates whose two shares are read apart behind all others")
    slots = [Slot(gate, False, True) for gate in apart] + [Slot(gate, True, True) for gate in whole]
    slots += [Slot(gate, True, False) for gate in apart]
    places = [*(of_h[gate] for gate in apart), *whole.values(), *(of_x[gate] for gate in apart)]

    gradients = differentiate(loop)
    at_hand = {*loop.states.values(), *loop.next.values()}
    saved = _by_slot(values_to_save(needed(gradients), at_hand), places)
    rebuilt = Rebuilt(at_hand | set(saved))
    found = [gradients.inputs[of_x[s.gate] if s.of_x else of_h[s.gate]] for s in slots]
    direct = {name: node and rebuilt.of(node) for name, node in gradients.states.items()}
    return Pointwise(
        tuple(of_x), tuple(slots), tuple(places), loop.next, loop.states, saved,
        tuple(rebuilt.of(nodes[0]) for nodes in found), direct,
    )  # fmt: skip


def _sum_of(loop: Loop, a: Node, b: Node) -> Node | None:
    """The sum of two products that are read nowhere else; None if there is another reader."""
    readers = {node for node in loop.nodes if a in node.args or b in node.args}
    (first, *others) = readers
    return first if not others and first.op == "add" and {a, b} == set(first.args) else None


def _by_slot(values: Iterable[Node], places: list[Node]) -> tuple[Node, ...]:
    """The values to save in the order of slots: each takes the last place of those that it is computed from which is
    still free."""
    free = dict.fromkeys(places)
    found: dict[Node, Node] = {}
    for value in sorted(values, key=lambda node: len(ancestors([node]))):
        own = [place for place in free if place in ancestors([value], places)]
        if not own:
            raise CellError(f"a value to save is of no gate of its own: {value!r}")
        found[own[-1]] = value
        del free[own[-1]]
    if found and free:
        raise CellError("expected that every slot or none is saved")
    return tuple(found[place] for place in places if place in found)
