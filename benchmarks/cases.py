"""What is timed: every case as data, with one line on what it isolates.

Letters as in fastrnn: T steps, B rows, I inputs, H hidden units.  A shape becomes one case for each of its cells and
each kind of work: ``infer`` is the forward pass without gradients, ``train`` the forward and the backward pass with
the gradients of the input and of every parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CELLS = ("LSTM", "GRU", "RNN_TANH")
WORKS = ("train", "infer")
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


@dataclass(frozen=True)
class Shape:
    """One row of :data:`GROUPS`; ``inputs`` is H where it is not given."""

    isolates: str
    steps: int
    rows: int
    hidden: int
    inputs: int = 0
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    proj_size: int = 0
    dtype: str = "float32"
    cells: tuple[str, ...] = CELLS
    works: tuple[str, ...] = WORKS


@dataclass(frozen=True)
class Case:
    """One shape, one cell (a value of ``nn.RNNBase.mode``), one kind of work."""

    shape: Shape
    mode: str
    work: str

    @property
    def inputs(self) -> int:
        return self.shape.inputs or self.shape.hidden

    @property
    def directions(self) -> int:
        return 2 if self.shape.bidirectional else 1

    @property
    def lengths(self) -> list[int]:
        """Length of each row, longest first; packed rows fall linearly to a quarter of the longest."""
        steps, rows = self.shape.steps, self.shape.rows
        if not self.shape.packed:
            return [steps] * rows
        return [max(1, round(steps * (1 - 0.75 * row / max(rows - 1, 1)))) for row in range(rows)]

    @property
    def flops(self) -> float:
        """Floating point operations in matrix products: 2 N G H (I + P) a layer and direction, three times that with
        the backward pass; the pointwise math is not counted."""
        shape = self.shape
        outputs = shape.proj_size or shape.hidden
        total = 0
        for layer in range(shape.layers):
            inputs = self.inputs if layer == 0 else outputs * self.directions
            per_row = GATES[self.mode] * shape.hidden * (inputs + outputs) + shape.proj_size * shape.hidden
            total += 2 * sum(self.lengths) * self.directions * per_row
        return float(total * (3 if self.work == "train" else 1))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that a step of one layer and direction reads: the recurrent ones, and the input's
        where there is one step only (the input's product of many steps reads them once in all)."""
        shape = self.shape
        outputs = shape.proj_size or shape.hidden
        width = outputs + (self.inputs if shape.steps == 1 else 0)
        size = {"float64": 8, "float32": 4}.get(shape.dtype, 2)
        return size * shape.hidden * (GATES[self.mode] * width + shape.proj_size)

    @property
    def bytes_read(self) -> int:
        """Bytes of parameters that all steps read, twice in training: what bounds a case of few rows."""
        passes = 2 if self.work == "train" else 1
        return self.weight_bytes * self.shape.steps * self.shape.layers * self.directions * passes

    def __str__(self) -> str:
        shape = self.shape
        words = [self.mode, f"T{shape.steps}", f"B{shape.rows}"]
        words += [f"I{self.inputs}"] * (self.inputs != shape.hidden) + [f"H{shape.hidden}"]
        words += [f"P{shape.proj_size}"] * bool(shape.proj_size) + [f"x{shape.layers}"] * (shape.layers > 1)
        words += ["both-ways"] * shape.bidirectional + ["packed"] * shape.packed
        words += [shape.dtype] * (shape.dtype != "float32")
        return "-".join([*words, self.work])


_LSTM, _GRU, _RNN = ("LSTM",), ("GRU",), ("RNN_TANH",)
_INFER, _TRAIN = ("infer",), ("train",)

GROUPS: dict[str, tuple[Shape, ...]] = {
    "measured": (
        Shape("one row: reading the weights of 128 units, which stay in L1 and L2", 100, 1, 128),
        Shape("one row: reading the weights of 512 units, larger than L2", 100, 1, 512),
        Shape("small matrix products, many steps", 100, 32, 128),
        Shape("the language model's size: products and gates in balance", 100, 32, 256),
        Shape("products that dominate the gates", 50, 64, 512),
        Shape("weights of 1024 units, larger than L2 by far", 25, 64, 1024),
        Shape("few rows on large weights: reading weights against computing", 20, 16, 1536),
    ),
    "odd": (
        Shape("H that is no multiple of a vector", 100, 32, 100),
        Shape("odd H, narrow input", 60, 32, 333, inputs=40),
        Shape("all sizes small and odd: overhead of a call", 7, 5, 100, inputs=40),
        Shape("wide input into a small cell: the input product", 50, 32, 64, inputs=1024),
        Shape("reinforcement learning, one step of many environments", 1, 256, 64),
        Shape("reinforcement learning, a short window of many environments", 20, 256, 64),
        Shape("thousands of steps of a tiny cell: the cost of a step", 2000, 4, 32),
    ),
    "stream": (
        Shape("one step of one stream: overhead of a call", 1, 1, 64, works=_INFER),
        Shape("one step of one stream, weights in L2", 1, 1, 128, works=_INFER),
        Shape("one step of one stream, weights in L3", 1, 1, 512, works=_INFER),
        Shape("one step of one stream, weights at the edge of L3", 1, 1, 1024, works=_INFER),
    ),
    "packed": (
        Shape("lengths falling to a quarter: work that padding would waste, small cell", 100, 32, 128, packed=True),
        Shape("lengths falling to a quarter: work that padding would waste", 100, 32, 256, packed=True),
        Shape("lengths falling to a quarter, wide", 50, 64, 512, packed=True),
        Shape("packed, both directions", 100, 32, 128, packed=True, bidirectional=True),
    ),
    "forms": (
        Shape("both directions", 100, 32, 256, bidirectional=True),
        Shape("both directions, one row: two chains that could run side by side", 100, 1, 256, bidirectional=True),
        Shape("two layers", 100, 32, 256, layers=2),
        Shape("projected output", 100, 32, 256, proj_size=64, cells=_LSTM),
        Shape("double precision", 100, 32, 128, dtype="float64"),
    ),
    # DeepBench's recurrent shapes.  The GRU's 187 steps are shortened to 20 and the vanilla cell's 50 to 20, for a
    # step costs the same wherever it stands and the full lengths take minutes on two cores.
    "long": (
        *(
            Shape("DeepBench LSTM", 25, rows, hidden, cells=_LSTM, works=_TRAIN)
            for hidden in (512, 1024, 2048)
            for rows in (16, 32, 64, 128)
        ),
        *(Shape("DeepBench LSTM", 150, rows, 256, cells=_LSTM, works=_TRAIN) for rows in (16, 32, 64)),
        *(Shape("DeepBench LSTM", 50, rows, 1536, cells=_LSTM, works=_TRAIN) for rows in (8, 16, 32)),
        *(
            Shape("DeepBench GRU, 187 steps shortened to 20", 20, 32, hidden, cells=_GRU, works=_TRAIN)
            for hidden in (512, 1024, 1536, 2048, 2560, 2816)
        ),
        *(
            Shape("DeepBench vanilla cell, 50 steps shortened to 20", 20, rows, hidden, cells=_RNN, works=_TRAIN)
            for hidden in (1760, 2048, 2560)
            for rows in (16, 32, 64, 128)
        ),
        *(
            Shape("DeepBench inference", 25, rows, hidden, cells=_LSTM, works=_INFER)
            for hidden in (512, 1024, 1536, 2048)
            for rows in (1, 2, 4)
        ),
        *(
            Shape("DeepBench inference, shortened to 20", 20, rows, hidden, cells=cells, works=_INFER)
            for cells, sizes in ((_GRU, (512, 1536, 2560)), (_RNN, (1760, 2560)))
            for hidden in sizes
            for rows in (1, 2, 4)
        ),
    ),
    # For a machine with other work, or with more threads than CPUs: `report.py --busy 2`, `--threads 8`.
    "company": (
        Shape("one row, steps as short as a meeting of threads", 100, 1, 128),
        Shape("one row on large weights", 100, 1, 512),
        Shape("many rows, short steps", 60, 32, 128),
        Shape("many rows, longer steps", 40, 32, 256),
        Shape("one step", 1, 1, 256),
        Shape("all sizes odd", 30, 5, 200),
    ),
    # Narrow products: torch.nn's bfloat16 is what they are compared with, float32 of the same shapes stands above.
    "bfloat16": (
        Shape("one step of one stream, bytes halved", 1, 1, 512, dtype="bfloat16", works=_INFER),
        Shape("one row", 100, 1, 512, dtype="bfloat16"),
        Shape("small matrix products", 100, 32, 128, dtype="bfloat16"),
        Shape("the language model's size", 100, 32, 256, dtype="bfloat16"),
        Shape("the same, more rows", 50, 64, 256, dtype="bfloat16"),
        Shape("products that dominate the gates, fewer rows", 50, 32, 512, dtype="bfloat16"),
        Shape("products that dominate the gates", 50, 64, 512, dtype="bfloat16"),
        Shape("lengths falling to a quarter", 100, 32, 256, dtype="bfloat16", packed=True),
    ),
    "memory": (
        Shape("the language model's size", 100, 32, 256, works=_TRAIN),
        Shape("many rows", 50, 64, 512, works=_TRAIN),
        Shape("a long sequence", 1000, 8, 128, works=_TRAIN),
        Shape("narrow input", 100, 32, 256, inputs=16, works=_TRAIN),
        Shape("both directions", 100, 32, 256, bidirectional=True, works=_TRAIN),
        Shape("two layers", 100, 32, 256, layers=2, works=_TRAIN),
        Shape("lengths falling to a quarter", 100, 32, 256, packed=True, works=_TRAIN),
        Shape("packed, both directions", 100, 32, 256, packed=True, bidirectional=True, works=_TRAIN),
        Shape("projected output", 100, 32, 256, proj_size=64, cells=_LSTM, works=_TRAIN),
    ),
    "tiny": (
        Shape("runs in a moment: the suite as a test of itself", 7, 5, 33, inputs=20),
        Shape("the same, packed and in both directions", 7, 5, 33, inputs=20, packed=True, bidirectional=True),
    ),
}
STANDARD = ("measured", "odd", "stream", "packed", "forms")


def cases(
    groups: Iterable[str] = STANDARD, cells: Iterable[str] = CELLS, works: Iterable[str] = WORKS
) -> Iterator[Case]:
    """The cases of these groups, limited to these cells and kinds of work."""
    cells, works = tuple(cells), tuple(works)
    for group in groups:
        for shape in GROUPS[group]:
            for mode in shape.cells:
                for work in shape.works:
                    if mode in cells and work in works:
                        yield Case(shape, mode, work)
