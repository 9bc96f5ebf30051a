"""Writes the stubs of the cells' definitions: what type checkers cannot infer of a declaration is there in full.

A cell is written as equations, ``W, U = Input("f h"), Recurrent()`` and ``def step(self, x, h)``; beside each file of
them stands a stub, ``.pyi``, with the type of every attribute and argument.  ``make stubs`` writes them anew; a test
compares them.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from fastrnn.cell import Cell

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = [path for path in sorted(ROOT.glob("fastrnn/cells/*.py")) if path.name != "__init__.py"]
HEAD = "# Written by typings/cell_stubs.py."
SOURCES = {
    **dict.fromkeys(
        ("Cell", "Input", "Recurrent", "Scalar", "SequenceInput", "State", "StepInput", "Vector"), "fastrnn.cell"
    ),
    "Kind": "fastrnn.cell.kinds",
    "Value": "fastrnn.cell.functions",
    "Mapping": "collections.abc",
    "ClassVar": "typing",
}


def type_of(value: Any) -> str:
    """How the type of an attribute is written; that of a declaration is its class."""
    if isinstance(value, tuple):
        return f"tuple[{', '.join(map(type_of, value))}]"
    return type(value).__name__


def attributes(cls: type[Cell]) -> dict[str, str]:
    known = dict(output="ClassVar[str | None]", square="ClassVar[bool]", kinds="Mapping[str, Kind]")
    own = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    return {name: known.get(name) or type_of(value) for name, value in own.items() if not inspect.isroutine(value)}


def is_public_method(name: str, value: Any) -> bool:
    return inspect.isroutine(value) and not name.startswith("_")


def method(name: str, function: Any) -> str:
    """Its signature: every argument is a value of the step, and keywords alone are what comes with it."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        parts.append(f"{star}{parameter.name}" + ("" if parameter.name == "self" else ": Value"))
    return f"    def {name}({', '.join(parts)}) -> {'dict[str, Value]' if name == 'step' else 'Value'}: ..."


def stub(path: Path) -> str:
    """The text of the stub beside the file."""
    module = importlib.import_module(f"fastrnn.cells.{path.stem}")
    own = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
    written = []
    for cls in own:
        body = [f"    {name}: {typed}" for name, typed in attributes(cls).items()]
        body += [method(name, function) for name, function in vars(cls).items() if is_public_method(name, function)]
        bases = ", ".join(base.__name__ for base in cls.__bases__)
        written.append(
            "\n".join([f"class {cls.__name__}({bases}):", *body]) if body else f"class {cls.__name__}({bases}): ..."
        )
    text = "\n\n".join(written) + "\n"
    others = {base.__name__: base.__module__ for cls in own for base in cls.__bases__ if base not in own}
    imports: dict[str, list[str]] = {}
    for name, source in sorted((others | SOURCES).items(), key=lambda item: item[0]):
        if re.search(rf"\b{name}\b", text):
            imports.setdefault(source, []).append(name)
    outside = [line(source, imports[source]) for source in ("collections.abc", "typing") if source in imports]
    inside = [line(source, names) for source, names in sorted(imports.items()) if source.startswith("fastrnn")]
    return "\n".join([HEAD, *outside, *[""] * bool(outside), *inside, "", text])


def line(source: str, names: list[str]) -> str:
    return f"from {source} import {', '.join(names)}"


def main() -> None:
    for path in WRITTEN:
        path.with_suffix(".pyi").write_text(stub(path))


if __name__ == "__main__":
    main()
