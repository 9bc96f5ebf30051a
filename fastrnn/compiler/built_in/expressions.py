"""Prints the nodes of a graph as the statements of a language: one name for what is read twice, the rest in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from fastrnn.cell.graph import Node, ancestors

_SIGNS = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_COMPARISONS = {"gt": ">", "ge": ">="}
_ATOM = 4


class Language(NamedTuple):
    """How a language says what an expression is made of.

    Attributes:
        const: a number.
        call: a function of one value, by the operation's name.
        where: a choice of a condition and two values, as text and level.
        assign: a statement that gives a value a name.
    """

    const: Callable[[float], str]
    call: Callable[[str, str], str]
    where: Callable[[str, str, str], tuple[str, int]]
    assign: Callable[[str, str], str]


class Expressions:
    """Nodes as text, with ``names`` for those that have one.

    ``statements`` grow as nodes are asked for: a value that is read more than once is computed once, named as ``hints``
    say, else v1, v2 and so on.
    """

    def __init__(self, language: Language, names: Mapping[Node, str], hints: Mapping[Node, str] | None = None) -> None:
        self.language: Language = language
        self.names: dict[Node, str] = dict(names)
        self.hints: Mapping[Node, str] = hints or {}
        self.statements: list[str] = []

    def share(self, roots: Iterable[Node]) -> None:
        """Makes a statement of each value that these nodes read more than once, roots included."""
        roots = [root for root in roots if root not in self.names]
        nodes = [node for node in ancestors(roots, self.names) if node not in self.names]
        reads = Counter(arg for node in nodes for arg in node.args) + Counter(roots)
        for node in nodes:
            if reads[node] > 1 and node.op != "const":
                self.give_name(node, self.hints.get(node, f"v{len(self.statements) + 1}"))

    def give_name(self, node: Node, name: str) -> None:
        """A statement that computes a node."""
        if node not in self.names:
            self.statements.append(self.language.assign(name, self.text(node)))
            self.names[node] = name

    def rename(self, node: Node, place: str, name: str) -> None:
        """A statement that gives the name to a node that lies in a place."""
        self.statements.append(self.language.assign(name, place))
        self.names[node] = name

    def text(self, node: Node) -> str:
        return self._text(node)[0]

    def _text(self, node: Node) -> tuple[str, int]:
        """A node as text, and how tightly it binds."""
        if node in self.names:
            return self.names[node], _ATOM
        if node.op == "const":
            return self.language.const(node.about), _ATOM
        if node.op in _SIGNS:
            sign, level = _SIGNS[node.op]
            a, b = node.args
            return f"{self._within(a, level)} {sign} {self._within(b, level + 1)}", level
        if node.op == "neg":
            return f"-{self._within(node.args[0], 3)}", 3
        if node.op == "where":
            condition, a, b = node.args
            return self.language.where(self.text(condition), self._within(a, 1), self._within(b, 1))
        if node.op in _COMPARISONS:
            a, b = node.args
            return f"{self._within(a, 1)} {_COMPARISONS[node.op]} {self._within(b, 1)}", 0
        if node.op in ("tanh", "sigmoid", "relu"):
            return self.language.call(node.op, self.text(node.args[0])), _ATOM
        raise NotImplementedError(f"the built-in engines have no {node.op}")

    def _within(self, node: Node, level: int) -> str:
        text, own = self._text(node)
        return text if own >= level else f"({text})"
