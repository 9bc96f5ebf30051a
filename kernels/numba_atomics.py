"""What threads that wait for each other need of LLVM and of the system: atomic words, the time, sleep."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WAIT, WAKE = 128, 129  # FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE
_WORD, _INT = ir.IntType(64), ir.IntType(32)


def _load(order: str) -> Any:
    @intrinsic
    def load(context, place):
        def code(context, builder, signature, arguments):
            return builder.load_atomic(arguments[0], order, 8)

        return types.int64(place), code

    return load


def _store(order: str) -> Any:
    @intrinsic
    def store(context, place, value):
        def code(context, builder, signature, arguments):
            builder.store_atomic(arguments[1], arguments[0], order, 8)
            return context.get_dummy_value()

        return types.void(place, types.int64), code

    return store


def _add(order: str) -> Any:
    @intrinsic
    def add(context, place, value):
        def code(context, builder, signature, arguments):
            return builder.atomic_rmw("add", *arguments, order)

        return types.int64(place, types.int64), code

    return add


# Of words of 64 bits.  What is added to a word comes back as it was before.
load_relaxed: Any = _load("monotonic")
load_acquire: Any = _load("acquire")
load_consistent: Any = _load("seq_cst")
store_relaxed: Any = _store("monotonic")
store_consistent: Any = _store("seq_cst")
add_relaxed: Any = _add("monotonic")
add_ordered: Any = _add("acq_rel")
add_consistent: Any = _add("seq_cst")


@intrinsic
def exchange_if(context: Any, place: Any, expected: Any, value: Any) -> Any:
    """Writes the value where the word is as expected; the word as it was before.  Relaxed."""

    def code(context, builder, signature, arguments):
        return builder.extract_value(builder.cmpxchg(*arguments, "monotonic", "monotonic"), 0)

    return types.int64(place, types.int64, types.int64), code


@intrinsic
def pause(context: Any) -> Any:
    """Tells the processor that a thread spins."""

    def code(context, builder, signature, arguments):
        machine = builder.module.triple.split("-")[0]
        name, given = "", []
        if machine == "x86_64":
            name = "llvm.x86.sse2.pause"
        elif machine in ("aarch64", "arm64"):
            name, given = "llvm.aarch64.hint", [ir.Constant(_INT, 1)]  # yield
        if name:
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def time_by(context: Any, clock_gettime: Any, clock: Any) -> Any:
    """Nanoseconds of a clock, by the C function at the address."""

    def code(context, builder, signature, arguments):
        time = cgutils.alloca_once(builder, ir.ArrayType(_WORD, 2))  # a timespec
        kind = ir.FunctionType(_INT, [_INT, time.type])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(function, [builder.trunc(arguments[1], _INT), time])
        seconds, rest = (builder.extract_value(builder.load(time), k) for k in range(2))
        return builder.add(builder.mul(seconds, ir.Constant(_WORD, 10**9)), rest)

    return types.int64(types.int64, types.int64), code


@intrinsic
def futex(context: Any, syscall: Any, number: Any, word: Any, operation: Any, value: Any) -> Any:
    """Sleeps while the lower half of the word, which is the first, holds the value; or wakes so many that do.

    ``syscall`` is the address of the C function, ``number`` that of the call."""

    def code(context, builder, signature, arguments):
        kind = ir.FunctionType(_WORD, [_WORD], var_arg=True)
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.call(function, [*arguments[1:], *[ir.Constant(_WORD, 0)] * 3])

    return types.int64(types.int64, types.int64, word, types.int64, types.int64), code
