"""Who else is at work, and what Dynamo, the front end of torch.compile, is told of functions.

``torch.compiler`` has decorators of the same meaning; they import all of Dynamo, which takes longer than torch itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """`torch.compiler.assume_constant_result`: a graph holds the result that the function has while it is made."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


# Functions in C, and their answers while nobody looks on (`watched`) and nothing is `transformed`; of torch.compile
# Python alone can ask.
UNDISTURBED = (
    (torch._C._get_tracing_state, None),
    (torch._C._len_torch_dispatch_stack, 0),
    (peek_interpreter_stack, None),
    (functools.partial(vars(forward_ad).__getitem__, "_current_level"), -1),
)


def watched() -> bool:
    """Whether somebody looks on who wants to see torch's own operators: torch.compile, tracing, a dispatch mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


@constant
def transformed() -> bool:
    """Whether torch.func or a forward-mode derivative is at work, which no fused kernel serves."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def left_to_python(function: Any) -> None:
    """Dynamo runs a function, and all that it calls, as Python: `torch.compiler.disable` without the wrapper.

    The first torch that we serve takes no such order; there Dynamo compiles the pieces that it can.
    """
    frames = getattr(torch._C, "_dynamo").eval_frame  # noqa: B009
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
