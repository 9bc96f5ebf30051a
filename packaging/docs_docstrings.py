"""An extension of griffe, which reads our docstrings for the site: their reStructuredText becomes Markdown.

A role becomes a link where the site has the object, and code where not; a literal block its indented block; a
definition list one of Markdown's.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([^`]+)`")


def as_markdown(text: str) -> str:
    """The same docstring for a reader of Markdown."""
    text = re.sub(r"::$", ":", ROLE.sub(_linked, text), flags=re.MULTILINE)
    lines = text.split("\n")
    made: list[str] = []
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if _is_term(before, line):
            made[-1:] = ["", before]  # Markdown wants a blank line before a term
            line = f"{_indent(before)}:   {line.lstrip()}"
        made.append(line)
    return "\n".join(made)


def _linked(role: re.Match[str]) -> str:
    short, name = role.groups()
    return f'<autoref identifier="{name}" optional><code>{name.rpartition(".")[2] if short else name}</code></autoref>'


def _is_term(line: str, following: str) -> bool:
    """Whether a line is a term of which the following one begins the definition."""
    return line.lstrip().startswith("``") and following.startswith(f"{_indent(line)}    ") and not line.endswith(":")


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


class Docstrings(griffe.Extension):
    """Changes every docstring once all are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
