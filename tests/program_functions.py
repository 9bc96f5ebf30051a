"""Pointwise functions of the tests, compiled by LLVM at run time: small expressions, one for each operand written.

An expression is ("load", operand), ("const", number) or (op, left, right) with op of add, sub, mul, div.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

Expression = tuple[Any, ...]
LONG, POINTER = ir.IntType(64), ir.IntType(8).as_pointer()


class Compiled:
    """The function that writes each operand's expression, at ``address`` while this lives."""

    def __init__(self, dtype: str, dense: list[bool], writes: dict[int, Expression]) -> None:
        module = ir.Module("phase")
        module.triple = llvm.get_default_triple()
        _define(module, ir.FloatType() if dtype == "float32" else ir.DoubleType(), dense, writes)
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        machine = llvm.Target.from_default_triple().create_target_machine()
        self._engine = llvm.create_mcjit_compiler(parsed, machine)
        self._engine.finalize_object()
        self.address = self._engine.get_function_address("phase")


def _define(module: ir.Module, number: ir.Type, dense: list[bool], writes: dict[int, Expression]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [LONG, LONG, POINTER.as_pointer(), LONG.as_pointer()])
    function = ir.Function(module, kind, "phase")
    rows, units, pointers, strides = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    operands = range(len(dense))
    item = 4 if isinstance(number, ir.FloatType) else 8

    def element(array: ir.Value, k: int) -> ir.Value:
        return builder.load(builder.gep(array, [LONG(k)]))

    starts, steps = [element(pointers, k) for k in operands], [element(strides, k) for k in operands]

    def loop(count: ir.Value, body: Any) -> None:
        before = builder.block
        head, after = function.append_basic_block(), function.append_basic_block()
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(LONG)
        index.add_incoming(LONG(0), before)
        body(index)
        following = builder.add(index, LONG(1))
        index.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), head, after)
        builder.position_at_end(after)

    def each_unit(row: ir.Value, unit: ir.Value) -> None:
        places = []
        for k in operands:
            offset = builder.mul(row, steps[k])
            if dense[k]:
                offset = builder.add(offset, builder.mul(unit, LONG(item)))
            places.append(builder.bitcast(builder.gep(starts[k], [offset]), number.as_pointer()))
        loaded = [builder.load(place) for place in places]

        def value(expression: Expression) -> ir.Value:
            op, *args = expression
            if op == "load":
                return loaded[args[0]]
            if op == "const":
                return number(args[0])
            return getattr(builder, "f" + op)(*map(value, args))

        for place, found in [(places[k], value(expression)) for k, expression in writes.items()]:
            builder.store(found, place)

    loop(rows, lambda row: loop(units, lambda unit: each_unit(row, unit)))
    builder.ret_void()
