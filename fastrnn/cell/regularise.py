"""Regularisation as equations: zoneout and recurrent dropout of any cell, which is a cell again.

With m a mask of zeros and ones, drawn outside, and p the probability that it is a one::

    zoneout            s = m s_(t-1) + (1 - m) s_new in training, p s_(t-1) + (1 - p) s_new in evaluation
    recurrent dropout  U(v) becomes U(v k), k the mask of what is kept over its probability, one a step or a sequence

Sources: Krueger et al., "Zoneout" (2017); Gal and Ghahramani, "A theoretically grounded application of dropout in
recurrent neural networks" (2016), whose mask is one a sequence; Semeniuta et al., "Recurrent dropout without memory
loss" (2016), whose masks change with the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrnn.cell.declare import Cell, Parts, Recurrent, SequenceInput, StepInput
from fastrnn.cell.functions import choose
from fastrnn.cell.graph import ancestors
from fastrnn.cell.trace import attribute, trace


class Regularised(Cell, abstract=True):
    """A cell around another.

    Args:
        inner: the cell.
        zoneout: the probability p of each state that has one, in evaluation; in training any number, since the mask
            ``zoneout_<state>`` is an input of every step.
        training: whether zoneout is by masks.
        dropped: "step" or "sequence", where ``keep_<size>`` is an input that products of the recurrent matrices have on
            their operands of that size; None for none.
        sizes: the sizes of those operands.
    """

    inner: Cell
    zoneout: tuple[tuple[str, float], ...]
    training: bool
    dropped: str | None
    sizes: tuple[str, ...]

    def __init__(
        self, inner: Cell, zoneout: Mapping[str, float], training: bool, dropped: str | None, sizes: tuple[str, ...]
    ) -> None:
        self.inner, self.zoneout, self.training = inner, tuple(zoneout.items()), training
        self.dropped, self.sizes = dropped, sizes if dropped else ()

    def parts(self) -> Parts:
        found = self.inner.parts()
        kind = SequenceInput if self.dropped == "sequence" else StepInput
        found.extras |= {f"keep_{size}": kind(size) for size in self.sizes}
        if self.training:
            found.extras |= {f"zoneout_{name}": StepInput(found.states[name]) for name, _ in self.zoneout}
        return found

    def _defined(self) -> Cell:
        return self.inner

    def step(self, x: Any, *states: Any, **extras: Any) -> dict[str, Any]:
        # Called as any step is, with what is bound in the place of ``self``; see Cell.
        binding: Any = self
        cell: Regularised = binding.cell
        own = {name: value for name, value in extras.items() if name in cell.inner.parts().extras}
        found = dict(type(cell.inner).step(_Dropping(binding, cell, extras), x, *states, **own))  # type: ignore[arg-type]
        parts = cell.inner.parts()
        found, before = parts.one_by_one(found), dict(zip(parts.states, states, strict=True))
        for name, p in cell.zoneout:
            state = before[name]
            if cell.training:
                found[name] = choose(extras[f"zoneout_{name}"] > 0, state, found[name])
            else:
                found[name] = p * state + (1 - p) * found[name]
        return found

    def __hash__(self) -> int:
        return hash((self.inner, self.zoneout, self.training, self.dropped, self.sizes))

    def __repr__(self) -> str:
        return repr(self.inner)


class _Dropping:
    """What a step sees as ``self`` while its recurrent products drop parts of their operands."""

    def __init__(self, binding: Any, cell: Regularised, extras: Mapping[str, Any]) -> None:
        self._binding, self._regularised, self._extras = binding, cell, extras

    @property
    def __class__(self) -> Any:
        return type(self._regularised.inner)

    def __getattr__(self, name: str) -> Any:
        inner = self._regularised.inner
        if callable(getattr(type(inner), name, None)):
            return attribute(self, inner, name)
        found, copies = getattr(self._binding, name), inner.parts().copies.get(name)
        if copies is None:
            return self._dropping(name, found)
        return tuple(self._dropping(own, each) for own, each in zip(copies, found, strict=True))

    def _dropping(self, name: str, found: Any) -> Any:
        size = operand_sizes(self._regularised.inner).get(name)
        if self._regularised.dropped is None or size not in self._regularised.sizes:
            return found
        return lambda v: found(v * self._extras[f"keep_{size}"])


def operand_sizes(cell: Cell) -> dict[str, str]:
    """The size of what each recurrent matrix of a cell is applied to, of those that meet a state."""
    traced = trace(cell)
    products = [node for node in traced.graph.nodes if node.op == "product"]
    met = {node.about[0] for node in products if any(each.op == "state" for each in ancestors(node.args))}
    left = {node.about[0] for node in products} - met  # a diagonal matrix has no product, and meets one
    return {
        name: size
        for name, size in traced.columns.items()
        if isinstance(traced.parts.matrices[name], Recurrent) and name not in left
    }
