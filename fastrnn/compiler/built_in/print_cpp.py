"""Prints the cells as structs of csrc/cells-inl.h, and what callers ask of them as rows of csrc/cell_table.h."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastrnn.cell.graph import Node
from fastrnn.compiler.built_in.expressions import Expressions, Language
from fastrnn.compiler.built_in.pointwise import Pointwise

HEAD = """\
// Printed by `python -m fastrnn.compiler.built_in` from the definitions in fastrnn/cells: change those.
//
// The cells, each as data and pointwise functions over vectors.
//
// forward: `a` is the input's share of the gates and `b` the state's, each with its bias. In two halves, since the
// whole is a chain of some 200 cycles and a processor sees too few instructions ahead to work on the next vector
// meanwhile: `open` puts the gates that are ready into `b`, `close` does the rest. backward: from the gradient of h and
// the gradient that flows along the time axis outside the product (`carry`: of c if there is one, else of h), the
// gradients of the slots and the carry of the step before. A slot is a gate, or one share of it where the two are read
// apart; those of `b` are the first kGates of them, those of `a` the last. row_hh: the row of weight_hh that column k
// of the slots of `b` belongs to; those of `a` stand in weight_ih's order.
#pragma once

#include "math-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {
"""
TABLE = """\
// Printed by `python -m fastrnn.compiler.built_in` from the definitions in fastrnn/cells: change those.
//
// What is to be known of a cell before its kernels run.
#pragma once

namespace fastrnn {

enum class Mode : int { %s };

struct CellFacts {
  const char* name;  // torch's for the mode
  int gates;         // G, blocks of rows of w_ih and w_hh
  int saved;         // values a unit and step that backward reads, beside the states
  bool has_cell;     // whether there is a c beside h
  bool projects;     // whether h may be a projection: no gate meets h unit by unit
};

constexpr CellFacts kCells[] = {
%s};

inline const CellFacts& facts(Mode mode) { return kCells[static_cast<int>(mode)]; }

}  // namespace fastrnn
"""
CHOICE = """
// Calls f with an object of the cell's struct, over numbers of S.
template <class S, class F>
void with_cell(Mode mode, const F& f) {
  switch (mode) {
%s  }
}
"""
COLUMNS = 120
FOOT = "\n}  // namespace fastrnn::FASTRNN_NAMESPACE\n"


def _vector(text: str) -> str:
    """A choice is between two vectors."""
    return "V{}" if text == "S(0)" else text


LANGUAGE: Language = Language(
    const=lambda value: f"S({value:g})",
    call=lambda function, x: f"{function}<S>({x})",
    where=lambda condition, a, b: (f"{condition} ? {_vector(a)} : {_vector(b)}", 0),
    assign=lambda name, text: f"const V {name} = {text};",
)


def print_file(cells: Mapping[str, Pointwise]) -> str:
    structs = "".join(f"\n{_struct(mode, cell)}\n" for mode, cell in cells.items())
    cases = "".join(f"    case Mode::{mode.lower()}: return f({_name(mode)}<S>{{}});\n" for mode in cells)
    return HEAD + structs + CHOICE % cases + FOOT


def print_table(cells: Mapping[str, Pointwise]) -> str:
    rows = ""
    for mode, cell in cells.items():
        facts = f"{len(cell.gates)}, {len(cell.saved)}, {_bool('c' in cell.states)}, {_bool(not cell.reads_state)}"
        rows += f'    {{"{mode}", {facts}}},\n'
    return TABLE % (", ".join(mode.lower() for mode in cells), rows)


def _name(mode: str) -> str:
    return "".join(part.capitalize() for part in mode.split("_"))


def _struct(mode: str, cell: Pointwise) -> str:
    gates, slots, has_c = len(cell.gates), len(cell.slots), "c" in cell.states
    names = cell.backward_names({"h": "h_before", "c": "c_before"}, {"h": "grad_h", "c": "carry"})
    reads_h = cell.reads_state or "h_before" in names.values()
    lines = [
        f"static constexpr int kGates = {gates}, kSaved = {len(cell.saved)}, kSlots = {slots}, "
        f"kVectors = {gates * max(1, 4 // gates)};",  # side by side in a panel: whole units, up to four
        f"static constexpr bool kHasCell = {_bool(has_c)}, kReadsState = {_bool(reads_h)}, "
        f"kHasCarry = {_bool(bool(cell.carries))};",
        "using V = Vec<S>;",
        "",
        *_forward(cell),
        *_backward(cell, names),
        *_rows(cell),
    ]
    body = "\n".join(f"  {line}".rstrip() for line in lines)
    return f"template <class S>\nstruct {_name(mode)} {{\n{body}\n}};"


def _forward(cell: Pointwise) -> Iterator[str]:
    places = {}
    for slot, node in zip(cell.slots, cell.places, strict=True):
        k = cell.gates.index(slot.gate)
        places[node] = " + ".join([f"a[{k}]"] * slot.of_x + [f"b[{k}]"] * slot.of_h)
    first, close = Expressions(LANGUAGE, places), Expressions(LANGUAGE, places | {n: k for k, n in cell.states.items()})
    opened = []
    for slot, place, saved in zip(cell.slots, cell.places, cell.saved, strict=False):
        at = f"b[{cell.gates.index(slot.gate)}]"
        if slot.of_x and slot.of_h and saved.args == (place,):  # a function of a whole sum, ready before all others
            opened.append(f"{at} = {first.text(saved)};")
            close.rename(saved, at, slot.name)
        elif saved is place:
            close.rename(saved, at, slot.name)
    for slot, saved in zip(cell.slots, cell.saved, strict=False):
        close.give_name(saved, slot.name)
    body = close.statements
    if "c" in cell.states:
        body.append(f"c = {close.text(cell.next['c'])};")
        close.names[cell.next["c"]] = "c"
    if cell.saved:
        body.append(", ".join(f"saved[{k}] = {slot.name}" for k, slot in enumerate(cell.slots)) + ";")
    body.append(f"return {close.text(cell.next['h'])};")
    yield from _function("void", "open", ["const V* a", "V* b"] if opened else ["const V*", "V*"], opened)
    text = " ".join(body)
    arguments = [
        f"const V* {'a' if 'a[' in text else ''}", "const V* b",
        f"V {'h' if cell.reads_state else ''}",
        f"V& {'c' if 'c' in cell.states else ''}", f"V* {'saved' if cell.saved else ''}",
    ]  # fmt: skip
    yield from _function("V", "close", arguments, body)


def _backward(cell: Pointwise, names: dict[Node, str]) -> Iterator[str]:
    body = []
    if cell.saved:
        body.append(f"const V {', '.join(f'{slot.name} = saved[{k}]' for k, slot in enumerate(cell.slots))};")
    if cell.carries and "c" not in cell.states:
        body.append("grad_h += carry;")
    found = Expressions(LANGUAGE, names)
    found.share([*cell.gradients, *cell.carries])
    body += found.statements
    body += [f"grad[{k}] = {found.text(node)};" for k, node in enumerate(cell.gradients)]
    body += [f"carry = {found.text(node)};" for node in cell.carries]
    read = set(names.values())
    arguments = [f"const V* {'saved' if cell.saved else ''}"]
    arguments += [f"V {name if name in read else ''}" for name in ("h", "h_before", "c", "c_before")]
    arguments += ["V grad_h", f"V& {'carry' if cell.carries else ''}", "V* grad"]
    yield from _function("void", "backward", arguments, body)


def _rows(cell: Pointwise) -> list[str]:
    """Of a column of slot s, a row of gate ``rows_of_h[s]``: runs of slots that move alike."""
    moves = [row - slot for slot, row in enumerate(cell.rows_of_h)]
    text = ""
    for slot, (move, following) in enumerate(zip(moves, moves[1:], strict=False), 1):
        if move != following:
            text += f"k < {_times(slot)} ? {_moved(move)} : "
    hidden = "hidden" if any(moves) else ""
    text = f"return {text}{_moved(moves[-1])};"
    return [f"static FASTRNN_INLINE int64_t row_hh(int64_t k, {f'int64_t {hidden}'.rstrip()}) {{ {text} }}"]


def _times(count: int) -> str:
    return "hidden" if count == 1 else f"{count} * hidden"


def _moved(gates: int) -> str:
    return "k" if gates == 0 else f"k {'+' if gates > 0 else '-'} {_times(abs(gates))}"


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _function(kind: str, name: str, arguments: list[str], body: list[str]) -> Iterator[str]:
    head = f"static FASTRNN_INLINE {kind} {name}({', '.join(argument.rstrip() for argument in arguments)})"
    if len(body) == 1 and len(f"  {head} {{ {body[0]} }}") <= COLUMNS:
        yield f"{head} {{ {body[0]} }}"
    else:
        yield from [f"{head} {{", *(f"  {line}" for line in body), "}"] if body else [f"{head} {{}}"]
    yield ""
