"""Prints the cells as branches of the two functions of kernels/triton_cells.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastrnn.compiler.built_in.expressions import Expressions, Language
from fastrnn.compiler.built_in.pointwise import Pointwise

FILE = '''\
"""Printed by ``python -m fastrnn.compiler.built_in`` from the definitions in ``fastrnn/cells``: change those.

The cells as pointwise device functions: one forward and one backward, for every path and both languages of Triton.
Values are float32 tiles of one shape, gates come as tuples of tiles in the cell's gate order, and ``CELL`` is a key of
``fastrnn.modes.CELLS``.
"""

import triton
import triton.language as tl
from fastrnn.kernels.triton_functions import relu, sigmoid, tanh


@triton.jit
def cell_forward(CELL: tl.constexpr, a, b, h, c):
    """One step: gates of the input ``a`` and of the state ``b``, each with its bias, the last h and c -> h, c, and the
    tuple of values saved for backward.  A cell without c hands it through.

    ``a`` and ``h`` may be in a narrower type: Triton's arithmetic with a float32 beside is in float32.
    """
%s    return h, c, saved


@triton.jit
def cell_backward(CELL: tl.constexpr, dh, carry, values):
    """One step back: the gradient of h, and ``carry``, what the step after this one in time hands back beside it (LSTM:
    the gradient of c; GRU: that of h past the gates) ->
    the tuple of gradients of the slots in the order they are stored, and the new carry.

    ``values`` are the cell's saved values, in float32 or narrower, and then for LSTM c and the last c, for GRU the
    last h, for RNN h.  GRU stores b_n, r, z, n: the first three belong to ``b`` and the last three to ``a``, each as
    one block.
    """
%s    return grads, carry
'''
LANGUAGE: Language = Language(
    const=repr,
    call=lambda function, x: f"{function}({x})",
    where=lambda condition, a, b: (f"tl.where({condition}, {a}, {b})", 4),
    assign=lambda name, text: f"{name} = {text}",
)


def print_file(cells: Mapping[str, Pointwise]) -> str:
    return FILE % (_branches(cells, _forward), _branches(cells, _backward))


def _branches(cells: Mapping[str, Pointwise], body: Callable[[Pointwise], list[str]]) -> str:
    lines = []
    for k, (mode, cell) in enumerate(cells.items()):
        last = k == len(cells) - 1
        lines.append("    else:" if last else f'    {"elif" if k else "if"} CELL == "{mode}":')
        lines += [f'        tl.static_assert(CELL == "{mode}")'] if last else []
        lines += [f"        {line}" for line in body(cell)]
    return "".join(f"{line}\n" for line in lines)


def _forward(cell: Pointwise) -> list[str]:
    after = {node: f"{state}_next" for state, node in cell.next.items()}
    found = Expressions(LANGUAGE, {node: state for state, node in cell.states.items()}, after)
    for slot, node in zip(cell.slots, cell.places, strict=True):
        k = cell.gates.index(slot.gate)
        shares = [f"a[{k}]"] * slot.of_x + [f"b[{k}]"] * slot.of_h
        if slot.of_x:
            found.names[node] = " + ".join(shares)
        else:
            found.rename(node, f"b[{k}]", slot.name)
    for slot, value in zip(cell.slots, cell.saved, strict=False):
        found.give_name(value, slot.name)
    found.share(cell.next.values())
    lines = found.statements
    for state in sorted(cell.next):  # c before h, which reads it
        lines.append(f"{state} = {found.text(cell.next[state])}")
        found.names[cell.next[state]] = state
    return [*lines, f"saved = ({', '.join(_saved(cell))})"]


def _backward(cell: Pointwise) -> list[str]:
    names = cell.backward_names({"h": "h_before", "c": "c_before"}, {"h": "dh", "c": "carry"})
    read = _saved(cell)
    read += [name for name in ("h", "h_before", "c", "c_before") if name in names.values()]
    lines = [f"{name} = values[{k}].to(tl.float32)" for k, name in enumerate(read)]
    if cell.carries and "c" not in cell.states:
        lines.append("dh += carry")
    found = Expressions(LANGUAGE, names)
    found.share([*cell.gradients, *cell.carries])
    texts = [found.text(node) for node in cell.gradients]
    grads = ["grads = (", *(f"    {text}," for text in texts), ")"] if len(texts) > 1 else [f"grads = ({texts[0]},)"]
    carry = [f"carry = {found.text(node)}" for node in cell.carries]
    return [*lines, *found.statements, *grads, *carry]


def _saved(cell: Pointwise) -> list[str]:
    return [slot.name for slot in cell.slots if cell.saved]
