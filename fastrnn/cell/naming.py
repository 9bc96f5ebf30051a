"""Cells as text: what a graph, or a file, holds of one."""

from __future__ import annotations

import ast
import importlib
import json
from typing import Any

from fastrnn.cell.declare import Cell
from fastrnn.cell.regularise import Regularised

_made: dict[str, Cell] = {}


def key_of(cell: Cell) -> str:
    """A text by which a cell is found again, in another process too if its class can be imported there."""
    if isinstance(cell, Regularised):
        about = [dict(cell.zoneout), cell.training, cell.dropped, list(cell.sizes)]
        key = json.dumps(dict(inner=key_of(cell.inner), regularised=about))
    else:
        constants = {name: repr(value) for name, value in vars(cell).items()}
        key = json.dumps(dict(cell=f"{type(cell).__module__}:{type(cell).__qualname__}", constants=constants))
    _made.setdefault(key, cell)
    return key


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
            _made[key] = found(**{n: ast.literal_eval(value) for n, value in about["constants"].items()})
    return _made[key]
