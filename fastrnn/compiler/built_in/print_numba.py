"""Prints the cells as functions of kernels/numba_printed.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastrnn.compiler.built_in.expressions import Expressions, Language
from fastrnn.compiler.built_in.pointwise import Pointwise

HEAD = '''\
"""Printed by ``python -m fastrnn.compiler.built_in`` from the definitions in ``fastrnn/cells``: change those.

The pointwise half of each cell, one unit of one row, once a step: :mod:`fastrnn.kernels.numba_cells` says what the
arguments and results are.
"""

from typing import Any

from .numba_functions import inlined, like, relu, sigmoid, tanh
'''
LANGUAGE: Language = Language(
    const=lambda value: f"like({value!r}, h)",
    call=lambda function, x: f"{function}({x})",
    where=lambda condition, a, b: (f"{a} if {condition} else {b}", 0),
    assign=lambda name, text: f"{name} = {text}",
)
SLOTS = 4  # of every cell's functions, used or not


def print_file(cells: Mapping[str, Pointwise]) -> str:
    found = [HEAD, *(text for mode, cell in cells.items() for text in _functions(mode, cell)), _table(cells)]
    return "\n\n".join(found)


def _functions(mode: str, cell: Pointwise) -> Iterable[str]:
    name, count = f"_{mode.lower()}", len(cell.slots)
    places, saved = [f"p{k}" for k in range(SLOTS)], [f"s{k}" for k in range(SLOTS)]
    states = {node: state for state, node in cell.states.items()}
    after = {node: f"{state}_next" for state, node in cell.next.items()}
    forward = Expressions(LANGUAGE, dict(zip(cell.places, places, strict=False)) | states, after)
    for slot, value in zip(cell.slots, cell.saved, strict=False):
        forward.give_name(value, slot.name)
    forward.share(cell.next.values())
    values = [forward.names[value] for value in cell.saved] or places[:count]
    if "c" not in cell.states:  # in the place of c stands the cell's own h, behind which a projection may stand
        forward.give_name(cell.next["h"], "h_next")
    ends = [forward.text(cell.next[state if state in cell.next else "h"]) for state in "hc"]
    head = f"{name}_forward({', '.join(places)}, h, c)"
    yield _function(head, forward.statements, [*values, *places[count:], *ends])

    back = Expressions(LANGUAGE, cell.backward_names({"h": "h0", "c": "c0"}, {"h": "dh", "c": "dc"}))
    back.share([*cell.gradients, *cell.carries])
    grads = [back.text(node) for node in cell.gradients] + ["zero"] * (SLOTS - count)
    direct = {state: "zero" if node is None else back.text(node) for state, node in cell.direct.items()}
    again = "h"
    if "c" in cell.states:  # h may be that behind a projection, and the cell's own is wanted
        own = {node: slot.name for slot, node in zip(cell.slots, cell.saved, strict=False)}
        again = Expressions(LANGUAGE, own | {cell.next["c"]: "c"}).text(cell.next["h"])
    results = [*grads, direct["h"], direct.get("c", "dc"), again]
    lines = [f"{', '.join(slot.name for slot in cell.slots)} = {', '.join(saved[:count])}"] if cell.saved else []
    lines += ["zero = like(0.0, h)"] if "zero" in results else []
    yield _function(f"{name}_backward({', '.join(saved)}, h0, c0, h, c, dh, dc)", [*lines, *back.statements], results)


def _function(head: str, lines: Iterable[str], results: Iterable[str]) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    values = "".join(f"        {text},\n" for text in results)
    return f"@inlined\ndef {head}:\n{body}    return (\n{values}    )\n"


def _table(cells: Mapping[str, Pointwise]) -> str:
    """What else the engine knows of each cell: gates, slots, the first slot of x, by how many gates W_hh is turned."""
    lines = []
    for mode, cell in cells.items():
        first = next(k for k, slot in enumerate(cell.slots) if slot.of_x)
        numbers = f"{len(cell.gates)}, {len(cell.slots)}, {first}, {cell.rows_of_h[0]}"
        lines.append(f'    "{mode}": (_{mode.lower()}_forward, _{mode.lower()}_backward, {numbers}),\n')
    return f"PRINTED: dict[str, tuple[Any, Any, int, int, int, int]] = {{\n{''.join(lines)}}}\n"
