"""Triton's interpreter, in less than half the time."""

from __future__ import annotations

import dataclasses
from typing import Any

from triton.runtime import interpreter


def quicken() -> None:
    """Leaves out, of what the interpreter does at every operation and call, what changes no result here.

    It puts its own functions in the place of the language's once a launch for each file, not again at each call of a
    function of the kernel; and asks of no sum or product of 32-bit integers whether it overflows, of which there are
    none in cases so small.
    """
    if not hasattr(interpreter, "_LangPatchScope"):
        return  # of a Triton that is too early for our kernels
    builder, patch = interpreter.interpreter_builder, interpreter._patch_lang
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    launch: list[Any] = [None]  # what the one that runs has changed, and the files for which it has
    files: set[int] = set()

    def patch_once(function: Any) -> Any:
        if launch[0] is None or not launch[0]._changes:  # it has ended, and undone them
            launch[0] = patch(function)
            files.clear()
        elif id(function.__globals__) not in files:
            launch[0]._changes += patch(function)._changes
        files.add(id(function.__globals__))
        return launch[0]

    interpreter._patch_lang = patch_once
