"""A graph called with tensors: what of a step runs outside of the loop, and the loop itself where no kernel does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastrnn.cell import functions
from fastrnn.cell.graph import Node, ancestors

FUNCTIONS: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "where": lambda c, a, b: functions.choose(c, a, b),
    **{
        name: getattr(functions, name)
        for name in (
            "neg", "exp", "log", "tanh", "sigmoid", "relu", "softplus", "abs", "sqrt", "maximum", "minimum",
        )
    },
}  # fmt: skip


def evaluate(roots: Iterable[Node], known: Mapping[Node, Any], product: Any) -> dict[Node, Any]:
    """The values of ``roots``, and of all that they need, from those that are known.

    Args:
        roots: nodes of one graph.
        known: tensors, or numbers, of nodes; every leaf that is reached but constants is among them.
        product: the value of a product, called with (matrix, gate) and its operand's.
    """
    found: dict[Node, Any] = dict(known)
    for node in ancestors(roots, found):
        if node in found:
            continue
        args = [found[arg] for arg in node.args]
        if node.op == "const":
            found[node] = node.about
        elif node.op == "product":
            found[node] = product(*node.about, args[0])
        elif node.op == "mean":
            found[node] = functions.mean(args[0], node.about)
        else:
            found[node] = FUNCTIONS[node.op](*args)
    return found
