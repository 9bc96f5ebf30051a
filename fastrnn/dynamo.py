"""Who else is at work, and what Dynamo, the front end of torch.compile, is told of functions.

``torch.compiler`` has decorators of the same meaning; they import all of Dynamo, which takes longer than torch itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.fx.proxy import TraceError

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """`torch.compiler.assume_constant_result`: a graph holds the result that the function has while it is made."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


# Functions in C, and their answers while nobody looks on (`observed`) and nothing is `transformed`; of torch.compile
# Python alone can ask.
UNDISTURBED = (
    (torch._C._get_tracing_state, None),
    (torch._C._len_torch_dispatch_stack, 0),
    (peek_interpreter_stack, None),
    (functools.partial(vars(forward_ad).__getitem__, "_current_level"), -1),
)


def observed() -> bool:
    """Whether somebody looks on who wants to see torch's own operators: torch.compile, tracing, a dispatch mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None  # `traced`, which Dynamo would rather not be asked
        or torch._C._len_torch_dispatch_stack() > 0
    )


@constant
def traced() -> bool:
    """Whether torch.jit.trace, or the older ONNX exporter, records operators: Python's numbers, T among them, and its
    loops stay in the trace as they are now."""
    return torch._C._get_tracing_state() is not None


def exported() -> bool:
    """Whether torch.export is at work, or a compiler that does not tell: tensors have shapes and no values."""
    return getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()


def leaf(module: nn.Module, input: Any, hx: Any, **options: Any) -> fx.Proxy | None:
    """What torch.fx records of a module of torch.nn, into which it does not look: one call, with those ``options`` that
    are not None; None where no argument is one of its proxies.

    Raises:
        TraceError: the module is the very one that is traced.
    """
    if torch.compiler.is_compiling():
        return None
    given = {name: value for name, value in options.items() if value is not None}
    if (proxy := _first_proxy((input, hx, *given.values()))) is None:
        return None
    tracer: Any = proxy.tracer
    if not (path := tracer.path_of_module(module)):
        raise TraceError(
            f"torch.fx records {type(module).__name__} as one call, which needs a module around it: "
            "trace torch.nn.Sequential(module), or the model that holds it"
        )
    for name, value in given.items():
        if isinstance(value, nn.Module):
            given[name] = tracer.create_proxy("get_attr", tracer.path_of_module(value), (), {})
    return tracer.create_proxy("call_module", path, (input,) if hx is None else (input, hx), given)


def _first_proxy(value: Any) -> fx.Proxy | None:
    if isinstance(value, (tuple, list)):  # a PackedSequence is one
        return next((found for part in value if (found := _first_proxy(part)) is not None), None)
    return value if isinstance(value, fx.Proxy) else None


@constant
def transformed() -> bool:
    """Whether torch.func or a forward-mode derivative is at work, which no fused kernel serves."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def called_by_compilers(function: Any) -> None:
    """Dynamo calls a function with its arguments, all of Python's constants, and holds the result for a constant:
    `torch.compiler.assume_constant_result` without an import of Dynamo."""
    function._dynamo_marked_constant = True


def left_to_python(function: Any) -> None:
    """Dynamo runs a function, and all that it calls, as Python: `torch.compiler.disable` without the wrapper.

    The first torch that we serve takes no such order; there Dynamo compiles the pieces that it can.
    """
    frames = getattr(torch._C, "_dynamo").eval_frame  # noqa: B009
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
