"""Prints the pointwise function of a part as LLVM's assembly: vectors of explicit width, nothing left to an optimiser.

The function is ``void f(i64 rows, i64 units, ptr pointers, ptr strides)``: pointer k is at the first number of operand
k, whose rows are ``strides[k]`` bytes apart.  Operands are those that are read, then those that are written; a sum's
new value is added to what is there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from fastrnn.cell.graph import COMPARISONS, Node
from fastrnn.compiler.schedule import Address, Part


class Operand(NamedTuple):
    """One argument of a part's function: ``single`` where it is one number a row, or one in all; ``write`` where it is
    written, and ``adds`` where that adds to what is there."""

    address: Address
    single: bool = False
    write: bool = False
    adds: bool = False


def operands(part: Part, adds: Sequence[str]) -> list[Operand]:
    """The operands of a part, in order; ``adds`` are the arrays that are sums."""
    found = [Operand(address, single=node.size is None) for node, address in part.loads.items()]
    return found + [Operand(address, write=True, adds=address.array in adds) for _, address in part.stores]


# e^r - 1 = r + r^2 p(r), log(m) = 2 s (1 + s^2 q(s^2)) with s = (m - 1) / (m + 1); highest power first.  Those of
# tanh and of e^r in float32 are minimax, all others the series, up to below the last bit.
_EXP = {
    "float": (
        1.381453989513946e-3, 8.368745126928222e-3, 4.166839078939169e-2, 1.6666520398848653e-1, 4.999999343210027e-1,
    ),
    "double": tuple(1 / f for f in (6227020800, 479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2)),
}  # fmt: skip
_TANH = (
    -5.138661712408066e-3,
    2.0091969519853592e-2,
    -5.355885997414589e-2,
    1.332911103963852e-1,
    -3.333319127559662e-1,
)
_BITS = {"float": (32, 23, 127, 12582912.0), "double": (64, 52, 1023, 6755399441055744.0)}
_LN2 = {"float": (0.693359375, -2.12194440e-4), "double": (6.93145751953125e-1, 1.42860682030941723212e-6)}


def _atanh(count: int) -> tuple[float, ...]:
    return tuple(1 / (2 * k + 1) for k in range(count, 0, -1))


class Printer:
    """Lines of a function over vectors of ``lanes`` numbers of ``real``, "float" or "double"."""

    real: str
    lanes: int
    bits: int
    fraction: int
    bias: int
    rounder: float
    v: str
    i: str

    def __init__(self, real: str, lanes: int) -> None:
        self.real, self.lanes = real, lanes
        self.lines: list[str] = []
        self.bits, self.fraction, self.bias, self.rounder = _BITS[real]
        self.v, self.i = f"<{lanes} x {real}>", f"<{lanes} x i{self.bits}>"
        self.suffix: str = f"v{lanes}f{self.bits}"
        self.declared: set[str] = set()
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"%t{self._count}"

    def line(self, text: str) -> str:
        """A line that gives a value; returns its name."""
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def const(self, value: float) -> str:
        return f"splat ({self.real} {_literal(value, self.real)})"

    def whole(self, value: int) -> str:
        return f"splat (i{self.bits} {value})"

    def op(self, name: str, a: str, b: str) -> str:
        return self.line(f"{name} contract {self.v} {a}, {b}")

    def add(self, a: str, b: str) -> str:
        return self.op("fadd", a, b)

    def sub(self, a: str, b: str) -> str:
        return self.op("fsub", a, b)

    def mul(self, a: str, b: str) -> str:
        return self.op("fmul", a, b)

    def div(self, a: str, b: str) -> str:
        return self.line(f"fdiv {self.v} {a}, {b}")

    def compare(self, how: str, a: str, b: str) -> str:
        return self.line(f"fcmp {how} {self.v} {a}, {b}")

    def choose(self, mask: str, a: str, b: str) -> str:
        return self.line(f"select <{self.lanes} x i1> {mask}, {self.v} {a}, {self.v} {b}")

    def whole_op(self, name: str, a: str, b: str) -> str:
        return self.line(f"{name} {self.i} {a}, {b}")

    def as_bits(self, a: str) -> str:
        return self.line(f"bitcast {self.v} {a} to {self.i}")

    def as_real(self, a: str) -> str:
        return self.line(f"bitcast {self.i} {a} to {self.v}")

    def intrinsic(self, name: str, *args: str) -> str:
        self.declared.add(f"declare {self.v} @llvm.{name}.{self.suffix}({', '.join([self.v] * len(args))})")
        return self.line(f"call {self.v} @llvm.{name}.{self.suffix}({', '.join(f'{self.v} {arg}' for arg in args)})")

    def clamp(self, a: str, low: float, high: float) -> str:
        """Within low and high; a NaN stays."""
        a = self.choose(self.compare("olt", a, self.const(low)), self.const(low), a)
        return self.choose(self.compare("ogt", a, self.const(high)), self.const(high), a)

    def polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        p = self.const(coefficients[0])
        for coefficient in coefficients[1:]:
            p = self.add(self.mul(p, x), self.const(coefficient))
        return p

    def exponent(self, x: str) -> tuple[str, str]:
        """n as the low bits of an integer and e^r - 1, with x = n ln 2 + r: adding 1.5 times 2 to the bits of the
        fraction rounds to n and leaves it there."""
        rounded = self.add(self.mul(x, self.const(1.4426950408889634)), self.const(self.rounder))
        n = self.sub(rounded, self.const(self.rounder))
        high, low = _LN2[self.real]
        r = self.sub(self.sub(x, self.mul(n, self.const(high))), self.mul(n, self.const(low)))
        p = self.polynomial(r, _EXP[self.real])
        return self.as_bits(rounded), self.add(self.mul(p, self.mul(r, r)), r)

    def power(self, n: str, shift: int = 0) -> str:
        """2^(n + shift), a normal number or infinity."""
        n = self.whole_op("add", n, self.whole(self.bias + shift))
        return self.as_real(self.whole_op("shl", n, self.whole(self.fraction)))

    def exp(self, x: str) -> str:
        low, high = (-104.0, 89.0) if self.real == "float" else (-746.0, 710.0)
        x = self.clamp(x, low, high)
        rounded, excess = self.exponent(x)
        # In two factors, since 2^n itself may be too large or too small to be normal.
        zero = self.line(
            f"sub {self.i} {rounded}, {self.line(f'bitcast {self.v} {self.const(self.rounder)} to {self.i}')}"
        )
        half = self.whole_op("ashr", zero, self.whole(1))
        first, second = self.power(half), self.power(self.whole_op("sub", zero, half))
        return self.mul(self.mul(self.add(excess, self.const(1.0)), first), second)

    def sigmoid(self, x: str) -> str:
        """2^s / (2^s + 2^s e^-x), both so small that the denominator is a number as long as the result is one."""
        shift, low, high = (-32, -64.0, 111.0) if self.real == "float" else (-64, -640.0, 754.2)
        x = self.clamp(self.line(f"fneg {self.v} {x}"), low, high)
        rounded, excess = self.exponent(x)
        scale, unit = self.power(rounded, shift), self.const(2.0**shift)
        return self.div(unit, self.add(unit, self.mul(scale, self.add(excess, self.const(1.0)))))

    def tanh(self, x: str) -> str:
        size, one = self.intrinsic("fabs", x), self.const(1.0)
        limit = 10.0 if self.real == "float" else 20.0
        size = self.choose(self.compare("ogt", size, self.const(limit)), self.const(limit), size)
        if self.real == "double":
            rounded, excess = self.exponent(self.mul(size, self.const(-2.0)))
            scale = self.power(rounded)
            minus = self.add(self.mul(scale, excess), self.sub(scale, one))
            t = self.line(f"fneg {self.v} {self.div(minus, self.add(minus, self.const(2.0)))}")
        else:
            square = self.mul(x, x)
            near = self.add(self.mul(self.mul(size, square), self.polynomial(square, _TANH)), size)
            rounded, excess = self.exponent(self.add(size, size))
            scale = self.power(rounded)
            far = self.sub(one, self.div(self.const(2.0), self.add(one, self.add(self.mul(scale, excess), scale))))
            t = self.choose(self.compare("ogt", size, self.const(0.7)), far, near)
        return self.intrinsic("copysign", t, x)

    def log(self, x: str) -> str:
        scaled = self.mul(x, self.const(2.0 ** (self.fraction + 2)))  # denormal numbers become normal
        tiny = 2.0**-126 if self.real == "float" else 2.0**-1022
        small = self.compare("olt", x, self.const(tiny))
        bits = self.as_bits(self.choose(small, scaled, x))
        # Less the square root of a half: what is left of the exponent is n, and the number lies in [sqrt 1/2, sqrt 2).
        root = self.line(f"bitcast {self.v} {self.const(0.7071067811865476)} to {self.i}")
        above = self.whole_op("sub", bits, root)
        n = self.whole_op("ashr", above, self.whole(self.fraction))
        m = self.as_real(self.whole_op("sub", bits, self.whole_op("shl", n, self.whole(self.fraction))))
        power = self.line(f"sitofp {self.i} {n} to {self.v}")
        lower = self.sub(power, self.const(float(self.fraction + 2)))
        power = self.choose(small, lower, power)
        one, (high, low) = self.const(1.0), _LN2[self.real]
        s = self.div(self.sub(m, one), self.add(m, one))
        found = self._log_of(s, 5 if self.real == "float" else 11)
        found = self.add(self.add(found, self.mul(power, self.const(low))), self.mul(power, self.const(high)))
        infinity = float("inf")
        found = self.choose(self.compare("oeq", x, self.const(infinity)), self.const(infinity), found)
        found = self.choose(self.compare("oeq", x, self.const(0.0)), self.const(-infinity), found)
        return self.choose(self.compare("uge", x, self.const(0.0)), self._keep_nan(found, x), self.const(float("nan")))

    def _keep_nan(self, found: str, x: str) -> str:
        return self.choose(self.compare("uno", x, x), x, found)

    def _log_of(self, s: str, terms: int) -> str:
        """2 atanh(s)."""
        square, twice = self.mul(s, s), self.add(s, s)
        return self.add(self.mul(self.mul(twice, square), self.polynomial(square, _atanh(terms))), twice)

    def softplus(self, x: str) -> str:
        """max(x, 0) + log(1 + u) with u = e^-|x| in (0, 1]."""
        u = self.exp(self.line(f"fneg {self.v} {self.intrinsic('fabs', x)}"))
        s = self.div(u, self.add(u, self.const(2.0)))
        return self.add(self.relu(x), self._log_of(s, 8 if self.real == "float" else 17))

    def relu(self, x: str) -> str:
        return self.choose(self.compare("olt", x, self.const(0.0)), self.const(0.0), x)

    def node(self, op: str, args: Sequence[str]) -> str:
        """The value of a pointwise operation."""
        if op in ("exp", "log", "tanh", "sigmoid", "relu", "softplus"):
            return getattr(self, op)(args[0])
        if op == "neg":
            return self.line(f"fneg {self.v} {args[0]}")
        if op in ("abs", "sqrt"):
            return self.intrinsic({"abs": "fabs", "sqrt": "sqrt"}[op], args[0])
        if op in ("add", "sub", "mul", "div"):
            return getattr(self, op)(*args)
        if op in ("maximum", "minimum"):
            return self.intrinsic(op, *args)
        if op in COMPARISONS:
            return self.compare("o" + op, *args)
        if op == "where":
            return self.choose(*args)
        raise NotImplementedError(f"{op} is no pointwise operation")


def _literal(value: float, real: str) -> str:
    """The bits of a number, rounded to ``real``, as LLVM reads them: those of a double in either case."""
    if real == "float":
        value = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def print_llvm(name: str, part: Part, args: Sequence[Operand], real: str, lanes: int) -> tuple[str, set[str]]:
    """The function of a part, and the declarations that it needs."""
    out = Printer(real, lanes)
    width = 4 if real == "float" else 8
    lines = out.lines
    # Else LLVM splits the vectors of processors for which it prefers narrower ones.
    bits = f'"{lanes * out.bits}"'
    attributes = f'"min-legal-vector-width"={bits} "prefer-vector-width"={bits}'
    lines.append(f"define void @{name}(i64 %rows, i64 %units, ptr %pointers, ptr %strides) {attributes} {{\nentry:")
    for k in range(len(args)):
        for what, kind in (("pointers", "ptr"), ("strides", "i64")):
            lines.append(f"  %{what}{k}at = getelementptr {kind}, ptr %{what}, i64 {k}")
            lines.append(f"  %{what}{k} = load {kind}, ptr %{what}{k}at, align 8")
    lines.append(f"  %whole = sub i64 %units, {lanes - 1}")
    lines.append("  %any = icmp sgt i64 %rows, 0\n  br i1 %any, label %row, label %done")
    lines.append("row:\n  %r = phi i64 [0, %entry], [%next, %rowend]")
    singles: dict[int, str] = {}
    for k, arg in enumerate(args):
        lines.append(f"  %off{k} = mul i64 %r, %strides{k}")
        lines.append(f"  %p{k} = getelementptr i8, ptr %pointers{k}, i64 %off{k}")
        if arg.single:
            number = out.line(f"load {real}, ptr %p{k}, align {width}")
            first = out.line(f"insertelement {out.v} poison, {real} {number}, i32 0")
            singles[k] = out.line(f"shufflevector {out.v} {first}, {out.v} poison, <{lanes} x i32> zeroinitializer")
    lines.append("  %some = icmp sgt i64 %whole, 0\n  br i1 %some, label %vector, label %rest")
    lines.append("vector:\n  %j = phi i64 [0, %row], [%jnext, %vector]")
    _body(out, part, args, singles, "%j", None, width)
    lines.append(f"  %jnext = add i64 %j, {lanes}\n  %more = icmp slt i64 %jnext, %whole")
    lines.append("  br i1 %more, label %vector, label %rest")
    lines.append("rest:\n  %k = phi i64 [0, %row], [%jnext, %vector]\n  %left = sub i64 %units, %k")
    lines.append("  %over = icmp sgt i64 %left, 0\n  br i1 %over, label %tail, label %rowend\ntail:")
    left = out.line(f"trunc i64 %left to i{out.bits}") if out.bits < 64 else "%left"
    first = out.line(f"insertelement {out.i} poison, i{out.bits} {left}, i32 0")
    limit = out.line(f"shufflevector {out.i} {first}, {out.i} poison, <{lanes} x i32> zeroinitializer")
    lane = ", ".join(f"i{out.bits} {i}" for i in range(lanes))
    mask = out.line(f"icmp slt {out.i} <{lane}>, {limit}")
    _body(out, part, args, singles, "%k", mask, width)
    lines.append("  br label %rowend\nrowend:\n  %next = add i64 %r, 1\n  %again = icmp slt i64 %next, %rows")
    lines.append("  br i1 %again, label %row, label %done\ndone:\n  ret void\n}")
    return "\n".join(lines), out.declared


def _body(
    out: Printer, part: Part, args: Sequence[Operand], singles: dict[int, str], at: str, mask: str | None, width: int
) -> None:
    """One vector of every operand; of a ``mask``, the first lanes alone."""
    known: dict[Node, str] = {}

    def load(k: int) -> str:
        place = out.line(f"getelementptr {out.real}, ptr %p{k}, i64 {at}")
        if mask is None:
            return out.line(f"load {out.v}, ptr {place}, align {width}")
        out.declared.add(f"declare {out.v} @llvm.masked.load.{out.suffix}.p0(ptr, i32, <{out.lanes} x i1>, {out.v})")
        return out.line(
            f"call {out.v} @llvm.masked.load.{out.suffix}.p0(ptr {place}, i32 {width}, <{out.lanes} x i1> {mask}, "
            f"{out.v} zeroinitializer)"
        )

    for k, node in enumerate(part.loads):
        known[node] = singles[k] if k in singles else load(k)
    sums = {k: load(k) for k, arg in enumerate(args) if arg.adds}

    def value(node: Node) -> str:
        return out.const(node.about) if node.op == "const" else known[node]

    for node in part.body:
        known[node] = out.node(node.op, [value(arg) for arg in node.args])
    for k, (node, _) in enumerate(part.stores, len(part.loads)):
        found = value(node)
        found = out.add(sums[k], found) if k in sums else found
        place = out.line(f"getelementptr {out.real}, ptr %p{k}, i64 {at}")
        if mask is None:
            out.lines.append(f"  store {out.v} {found}, ptr {place}, align {width}")
        else:
            out.declared.add(f"declare void @llvm.masked.store.{out.suffix}.p0({out.v}, ptr, i32, <{out.lanes} x i1>)")
            out.lines.append(
                f"  call void @llvm.masked.store.{out.suffix}.p0({out.v} {found}, ptr {place}, i32 {width}, "
                f"<{out.lanes} x i1> {mask})"
            )
