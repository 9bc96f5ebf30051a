"""Pointers in Numba: out of addresses, to what lies behind, and called as functions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def pointer(context: Any, address: Any, real: Any) -> Any:
    """The address, an integer, as a pointer to ``real``, a type of numbers or of records."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    kind = real.dtype if isinstance(real, types.DType) else real.instance_type  # a record, or a number
    return types.CPointer(kind)(address, real), code


@intrinsic
def at(context: Any, start: Any, distance: Any) -> Any:
    """The pointer ``distance`` elements behind ``start``."""

    def code(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, types.intp), code


@intrinsic
def call(context: Any, address: Any) -> Any:
    """Calls the C function int(void) at the address."""

    def code(context, builder, signature, arguments):
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])

    return types.int32(address), code


@intrinsic
def call_with(context: Any, address: Any, argument: Any) -> Any:
    """Calls the C function int(void*) at the address."""

    def code(context, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.IntType(32), [pointer])
        callee, given = builder.inttoptr(arguments[0], function.as_pointer()), builder.inttoptr(arguments[1], pointer)
        return builder.call(callee, [given])

    return types.int32(address, argument), code
