"""Prints a program as a Triton kernel: one launch for all steps, in which a program of Triton's has a tile of rows.

Rows of a batch concern each other nowhere, so these programs never wait for one another; between phases the threads of
one meet.  There are two forms.  Of few units the kernel is *whole*: a part is computed for all its units at once, and
states, sums and what phases hand on unit by unit are in registers.  Of more it is computed for a block of units at a
time, and these lie in memory.  What a product or a mean reads, whole rows, always lies there.

Prefixes: ``p_`` an array's first number, ``a_`` those of the program's rows at this step, ``o_`` and ``m_`` offsets and
mask of the units of a size, ``m_r`` mask of the step's rows, ``m_b`` of the batch's, ``s_`` a state or sum in
registers, ``v`` a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastrnn.cell.graph import Node
from fastrnn.compiler.arrays import Array, Program
from fastrnn.compiler.schedule import Address, Part, Result, Term

_HEAD = '''"""One step of a recurrence, over all steps; fastrnn.compiler.print_triton says how to read it."""

import triton
import triton.language as tl
from fastrnn.kernels.triton_functions import exp, maximum, minimum, relu, sigmoid, softplus, tanh
from fastrnn.kernels.triton_phases import (
    beside,
    copy_rows,
    load_rows,
    mean,
    multiply,
    store_rows,
    zeros_each,
)
from fastrnn.kernels.triton_steps import step_rows


@triton.jit(do_not_specialize=["T", "B"])
def run(
'''
_WAYS = {1: "ahead", -1: "back"}  # a neighbour's offset
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">="}
_CALLS = dict(abs="tl.abs", sqrt="tl.sqrt", log="tl.log", where="tl.where") | {
    name: name for name in ("exp", "tanh", "sigmoid", "relu", "softplus", "maximum", "minimum")
}


def identifier(array: str) -> str:
    """The name that an array has in a kernel."""
    return re.sub(r"\W", "_", array)


def sizes_of(program: Program) -> list[str]:
    """The names of the sizes that a kernel is told: ``Z_`` and ``UNITS_`` with each."""
    arrays = program.arrays.values()
    parts = [part.size for phase in program.phases for part in phase]
    return list(dict.fromkeys([*parts, *(s for a in arrays for s in (a.size, a.columns) if s)]))


def workspaces(program: Program, whole: bool) -> list[str]:
    """The arrays of the kernel's own that lie in memory: rows (B, columns), and states (2, B, columns), before a step
    and after it in turn."""
    own = [name for name, array in program.arrays.items() if array.kind in ("state", "row")]
    if not whole:
        return own
    results = [result for phase in program.phases for part in phase for result in part.results]
    read = {result.mean.array for result in results if result.mean}
    read |= {term.operand.array for result in results for term in result.terms}
    return [name for name in own if name in read]


def pointers(program: Program, whole: bool) -> list[str]:
    """The names of a kernel's pointers: ``p_`` and an array, of a state ``_initial`` and ``_final``, of a neighbour
    ``_initial``, beside those of :func:`workspaces`.  A "total" is (programs, columns), to be summed up."""
    found, in_memory = [], workspaces(program, whole)
    for name, array in program.arrays.items():
        own = f"p_{identifier(name)}"
        if array.kind not in ("state", "row") or name in in_memory:
            found.append(own)
        if array.kind in ("state", "neighbour"):
            found.append(f"{own}_initial")
        if array.kind == "state":
            found.append(f"{own}_final")
    return found


def print_triton(program: Program, whole: bool) -> str:
    """The text of a file with the kernel ``run``.

    Its arguments are :func:`pointers`; ``p_offsets``, the first row of every step and of none (T + 1,), or None where
    every step has B rows; T and B; and as constants the number of units ``Z_`` of each of :func:`sizes_of` and
    ``UNITS_``, a power of two, how many are computed at once, which is all of them if the kernel is whole; the ROWS of
    a program, the DEPTH of products, the type REAL of all numbers, and whether steps are PACKED and taken in REVERSE.
    """
    printer = _Printer(program, whole)
    constants = [f"{kind}_{size}" for size in sizes_of(program) for kind in ("Z", "UNITS")]
    names = [*pointers(program, whole), "p_offsets", "T", "B"]
    names += [f"{name}: tl.constexpr" for name in (*constants, "ROWS", "DEPTH", "REAL", "PACKED", "REVERSE")]
    arguments = "".join(f"    {name},\n" for name in names)
    return f"{_HEAD}{arguments}):\n" + "\n".join(printer.kernel()) + "\n"


class _Printer:
    def __init__(self, program: Program, whole: bool) -> None:
        self.program, self.arrays, self.whole = program, program.arrays, whole
        self.workspaces = workspaces(program, whole)
        self.known: set[Node] = set()  # values of this step that are in registers
        self.lines: list[str] = []
        self.indent = "    "

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    def of_kind(self, *kinds: str) -> list[tuple[str, str, Array]]:
        """Arrays of these kinds: name, identifier and array."""
        return [(name, identifier(name), array) for name, array in self.arrays.items() if array.kind in kinds]

    def sums(self) -> list[tuple[str, str, Array]]:
        """The arrays that a step adds to."""
        stored = {address.array for phase in self.program.phases for part in phase for _, address in part.stores}
        return [each for each in self.of_kind("total", "sequence") if each[0] in stored]

    def columns(self, array: Array) -> str:
        if array.size is None:
            return "1"
        return f"Z_{array.size}" if array.blocks == 1 else f"({array.blocks} * Z_{array.size})"

    def units(self, size: str, begin: str) -> None:
        self.line(f"o_{size} = {begin}tl.arange(0, UNITS_{size})[None, :]")
        self.line(f"m_{size} = o_{size} < Z_{size}")

    def kernel(self) -> list[str]:
        self.line("r_b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]")
        self.line("m_b = r_b < B")
        self.before()
        self.line("step = 0")
        # Not a for loop: Triton would load ahead, in one step, what the step before it has yet to write.
        self.line("while step < T:")
        self.indent = " " * 8
        self.line("t = T - 1 - step if REVERSE else step")
        self.line("first, count = step_rows(p_offsets, t, T, B, PACKED)")
        self.line("r_t, m_r = first + r_b, r_b < count")
        self.rows()
        for number, phase in enumerate(self.program.phases):
            self.line("tl.debug_barrier()")
            for part in phase:
                self.lines.append("")
                self.line(f"# phase {number}, {part.size}")
                self.part(part)
        self.lines.append("")
        if self.whole:
            for _, name, _ in self.of_kind("state"):
                self.line(f"s_{name} = n_{name}")
        self.line("step += 1")
        self.indent = " " * 4
        self.behind()
        return self.lines

    def before(self) -> None:
        """States and sums as they are before the first step."""
        states, sums = self.of_kind("state"), self.sums()
        for name, own, array in self.of_kind("sequence", "row"):
            if array.kind == "sequence" or name in self.workspaces:
                self.line(f"a_{own} = p_{own} + r_b * {self.columns(array)}")
        for _, own, array in self.of_kind("total"):
            self.line(f"a_{own} = p_{own} + tl.program_id(0) * {self.columns(array)}")
        if not self.whole:
            for _, own, array in states:
                z = f"Z_{array.size}"
                self.line(
                    f"copy_rows(p_{own}_initial, r_b * {z}, p_{own}, r_b * {z}, m_b, {z}, UNITS_{array.size}, REAL)"
                )
            return
        for size in sizes_of(self.program):
            self.units(size, "")
        for name, own, array in states:
            place = f"r_b * Z_{array.size} + o_{array.size}"
            self.line(f"s_{own} = load_rows(p_{own}_initial, {place}, m_b & m_{array.size}, REAL)")
            if name in self.workspaces:
                self.line(f"tl.store(p_{own} + {place}, s_{own}, mask=m_b & m_{array.size})")
        for _, own, array in sums:
            rows = "ROWS" if array.kind == "sequence" else "1"
            self.line(f"s_{own} = tl.zeros(({rows}, UNITS_{array.size}), REAL)")

    def behind(self) -> None:
        """States as they are behind the last step, and sums, to where they are wanted."""
        if not self.whole:
            self.line("tl.debug_barrier()")
        for _, own, array in self.of_kind("state"):
            z = f"Z_{array.size}"
            if self.whole:
                place = f"r_b * {z} + o_{array.size}"
                self.line(f"store_rows(p_{own}_final, {place}, s_{own}, m_b & m_{array.size})")
            else:
                last = f"(T % 2 * B + r_b) * {z}"
                self.line(f"copy_rows(p_{own}, {last}, p_{own}_final, r_b * {z}, m_b, {z}, UNITS_{array.size}, REAL)")
        for _, own, array in self.sums() if self.whole else ():
            mask = f"m_b & m_{array.size}" if array.kind == "sequence" else f"m_{array.size}"
            self.line(f"tl.store(a_{own} + o_{array.size}, s_{own}, mask={mask})")

    def rows(self) -> None:
        """Where this step's rows are."""
        for _, own, array in self.of_kind("step"):
            self.line(f"a_{own} = p_{own} + r_t * {self.columns(array)}")
        for offset in dict.fromkeys(array.offset for _, _, array in self.of_kind("neighbour")):
            other = f"t - ({offset}) if REVERSE else t + ({offset})"
            way = _WAYS[offset]
            self.line(f"first_{way}, count_{way} = step_rows(p_offsets, {other}, T, B, PACKED)")
            self.line(f"m_{way} = r_b < count_{way}")
        for _, own, array in self.of_kind("neighbour"):
            self.line(f"a_{own} = p_{own} + (first_{_WAYS[array.offset]} + r_b) * {self.columns(array)}")
            self.line(f"b_{own} = p_{own}_initial + r_b * {self.columns(array)}")
        for name, own, array in self.of_kind("state"):
            if name in self.workspaces:
                self.line(f"a_{own} = p_{own} + (step % 2 * B + r_b) * Z_{array.size}")
                self.line(f"next_{own} = p_{own} + ((step + 1) % 2 * B + r_b) * Z_{array.size}")

    def part(self, part: Part) -> None:
        outer = self.indent
        if not self.whole:
            self.line(f"for i_u in range(0, Z_{part.size}, UNITS_{part.size}):")
            self.indent += "    "
            self.units(part.size, "i_u + ")
            self.known = set()
        self.line(f"m = m_r & m_{part.size}")
        for group in _side_by_side(part.results):
            self.results(group, part.size)
        for node, address in part.loads.items():
            if address.array is not None and node not in self.known:
                self.line(f"v{node.index} = {self.load(address, part.size)}")
        for node in part.body:
            self.line(f"v{node.index} = {self.operation(node)}")
        for node, address in part.stores:
            self.store(self.value(node), address, part.size)
        self.known |= {*part.loads, *part.body} if self.whole else set()
        self.indent = outer

    def results(self, group: list[Result], size: str) -> None:
        """Results of one operand, of blocks that follow one another in one matrix."""
        first, count, begin = group[0], len(group), "0" if self.whole else "i_u"
        tile = f"ROWS, UNITS_{size}, REAL"
        if first.mean:
            operand = self.operand(first.mean)
            self.line(f"v{first.node.index} = mean({operand}, m_r, {begin}, Z_{size}, {first.heads}, {tile})")
            return
        self.line(f"products = zeros_each({count}, {tile})")
        for term in first.terms:
            array = self.arrays[str(term.operand.array)]
            k = self.columns(Array("", array.size, term.blocks))
            width = f"Z_{size}" if term.transposed else f"Z_{array.size}"
            z = f"Z_{array.size}" if term.transposed else f"Z_{size}"
            matrix = f"p_{identifier(term.matrix)}"
            if term.row:
                matrix += f" + {term.row} * {z} * ({width} // {first.heads})"
            self.line("products = multiply(")
            for text in (
                f"products, {self.operand(term.operand)}, m_r, {matrix}, {begin},",
                f"{k}, Z_{size}, {term.transposed}, {first.heads}, {count}, UNITS_{size}, DEPTH,",
            ):
                self.line(f"    {text}")
            self.line(")")
        for number, result in enumerate(group):
            bias = f" + {self.load(result.bias, size)}" if result.bias else ""
            self.line(f"v{result.node.index} = products[{number}]{bias}")

    def operand(self, address: Address) -> str:
        """The first numbers of whole rows."""
        array = self.arrays[str(address.array)]
        if array.kind not in ("step", "state", "row", "sequence"):
            raise NotImplementedError(f"a product or mean of {address.array}, which is a {array.kind}")
        return self.at(address)

    def at(self, address: Address, prefix: str = "a") -> str:
        array = self.arrays[str(address.array)]
        block = {0: "", 1: f" + Z_{array.size}"}.get(address.block, f" + {address.block} * Z_{array.size}")
        return f"{prefix}_{identifier(str(address.array))}{block}"

    def load(self, address: Address, size: str) -> str:
        array, own = self.arrays[str(address.array)], identifier(str(address.array))
        if array.kind == "number":
            return f"tl.load(p_{own})"
        if array.size is None:
            return f"tl.load(a_{own}, mask=m_r, other=0.0)"
        if array.kind == "unit":
            return f"tl.load({self.at(address, 'p')} + o_{size}, mask=m_{size}, other=0.0)"
        if array.kind == "neighbour":
            near, far = self.at(address), self.at(address, "b")
            return f"beside({near}, m_{_WAYS[array.offset]}, {far}, o_{size}, m)"
        if array.kind == "state" and self.whole:
            return f"s_{own}"
        return f"tl.load({self.at(address)} + o_{size}, mask=m, other=0.0)"

    def store(self, value: str, address: Address, size: str) -> None:
        name = str(address.array)
        array, own, place = self.arrays[name], identifier(name), f"{self.at(address)} + o_{size}"
        batch = f"m_b & m_{size}"
        if array.kind == "state":  # rows that this step has not keep theirs
            before = f"s_{own}" if self.whole else f"tl.load({place}, mask={batch}, other=0.0)"
            self.line(f"n_{own} = tl.where(m, {value}, {before})")
            if name in self.workspaces:
                self.line(f"tl.store(next_{own} + o_{size}, n_{own}, mask={batch})")
            return
        mask = "m"
        if array.kind in ("sequence", "total"):
            value = f"tl.where(m, {value}, 0.0)"
            if array.kind == "total":
                value, mask = f"tl.sum({value}, 0, keep_dims=True)", f"m_{size}"
            if self.whole:
                self.line(f"s_{own} += {value}")
                return
            value = f"tl.load({place}, mask={mask}, other=0.0) + {value}"
        if array.kind != "row" or name in self.workspaces:
            self.line(f"tl.store({place}, {value}, mask={mask})")

    def value(self, node: Node, exact: bool = False) -> str:
        """A value; of a constant, ``exact``, a tensor of it, where Triton would make a float32."""
        if node.op != "const":
            return f"v{node.index}"
        number = repr(node.about) if abs(node.about) < float("inf") else f'float("{node.about}")'
        return f"tl.full((1, 1), {number}, REAL)" if exact else number

    def operation(self, node: Node) -> str:
        if node.op == "neg":
            return f"-{self.value(node.args[0])}"
        if node.op in _SIGNS:
            a, b = (self.value(arg) for arg in node.args)
            return f"{a} {_SIGNS[node.op]} {b}"
        return f"{_CALLS[node.op]}({', '.join(self.value(arg, True) for arg in node.args)})"


def _side_by_side(results: Sequence[Result]) -> list[list[Result]]:
    """Results in groups of one operand whose blocks follow one another in one matrix; others by themselves."""
    found: list[list[Result]] = []
    for result in results:
        last = found[-1] if found else None
        if last and _follows(last, result):
            last.append(result)
        else:
            found.append([result])
    return found


def _follows(group: list[Result], result: Result) -> bool:
    if len(group[0].terms) != 1 or len(result.terms) != 1:
        return False
    first: Term = group[0].terms[0]
    return not first.transposed and result.terms[0] == first._replace(row=first.row + len(group))
