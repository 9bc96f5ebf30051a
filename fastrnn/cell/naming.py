"""Cells as text: what a graph, or a file, holds of one."""

from __future__ import annotations

import ast
import importlib
import json
from typing import Any

from fastrnn.cell import kinds
from fastrnn.cell.declare import Cell
from fastrnn.cell.regularise import Regularised

_made: dict[str, Cell] = {}


def key_of(cell: Cell) -> str:
    """A text by which a cell is found again, in another process too if its class can be imported there.  Cells of two
    classes of one name, one that was defined again say, have two."""
    about, number = _about(cell), 0
    while _made.setdefault(key := json.dumps(about), cell) != cell:
        number += 1
        about["number"] = number
    return key


def _about(cell: Cell) -> dict[str, Any]:
    if isinstance(cell, Regularised):
        return dict(
            inner=key_of(cell.inner),
            regularised=[dict(cell.zoneout), cell.training, cell.dropped, list(cell.sizes)],
        )
    constants = {name: repr(value) for name, value in vars(cell).items() if name != "kinds"}
    own = vars(cell).get("kinds", {})
    return dict(
        cell=f"{type(cell).__module__}:{type(cell).__qualname__}",
        constants=constants,
        kinds={matrix: [type(kind).__name__, vars(kind)] for matrix, kind in own.items()},
    )


def cell_of(key: str) -> Cell:
    """The cell that a key names.

    Raises:
        ImportError, AttributeError: its class is not to be had here.
        ValueError: its constants are no literals, so that another process cannot know them.
    """
    if key not in _made:
        about = json.loads(key)
        if "inner" in about:
            zoneout, training, dropped, sizes = about["regularised"]
            _made[key] = Regularised(cell_of(about["inner"]), zoneout, training, dropped, tuple(sizes))
        else:
            module, _, name = about["cell"].partition(":")
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            constants = {n: ast.literal_eval(value) for n, value in about["constants"].items()}
            if about["kinds"]:
                constants["kinds"] = {m: getattr(kinds, kind)(**own) for m, (kind, own) in about["kinds"].items()}
            _made[key] = found(**constants)
    return _made[key]
