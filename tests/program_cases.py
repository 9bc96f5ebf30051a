"""Random programs of phases, with arrays for a run: for tests of the engine against tests/program_oracle.py."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

SIZES = 1, 2, 3, 5, 8, 13, 16, 17, 24, 31, 33, 48, 63, 64, 65, 80, 97, 128
BIG = 130, 192, 257, 320


class Case:
    """A program and all that a run of it is given; ``arrays`` are of float64, as the oracle takes them.

    Attributes:
        spec: without dtype and functions; each part has the expressions that it writes as ``writes``.
    """

    def __init__(self, seed: int, rows: tuple[int, int] | None = None) -> None:
        self.random = random = Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.heads = random.choice((1, 1, 1, 2, 3, 4))
        self.sizes = [random.choice(SIZES) * self.heads for _ in range(random.randint(1, 3))]
        if random.random() < 0.3:
            self.sizes[0] = random.choice(BIG) * self.heads
        self._choose_rows(rows)
        self.reverse = random.random() < 0.5
        self.forms: list[dict] = []
        self.arrays: list[Any] = []
        self.spaced: set[int] = set()
        self.written: list[tuple[int, int]] = []  # (array, block) of rows
        self._declare()
        phases = [self._phase(last=False) for _ in range(random.randint(0, 2))] + [self._phase(last=True)]
        self.spec = {"sizes": len(self.sizes), "arrays": self.forms, "phases": phases, "sums": [], "products": []}
        for _ in range(random.randint(0, 3)):
            self._behind()

    def _choose_rows(self, rows: tuple[int, int] | None) -> None:
        random = self.random
        shapes = ((1, 1), (3, 1), (20, 1), (2, 2), (7, 3), (4, 12), (6, 25), (2, 70), (19, 5))
        steps, batch = rows or random.choice(shapes)
        self.batch_sizes = [batch] * steps
        self.packed = random.random() < 0.4
        if self.packed:
            rest = sorted((random.randint(1, batch) for _ in range(steps - 1)), reverse=True)
            self.batch_sizes = [batch, *rest]
        self.batch, self.rows = batch, sum(self.batch_sizes)

    def _normal(self, *shape: int) -> np.ndarray:
        return self.numbers.standard_normal(shape)

    def _add(self, kind: str, given: Any, **form: Any) -> int:
        self.forms.append({"kind": kind, **form})
        self.arrays.append(given)
        return len(self.forms) - 1

    def _declare(self) -> None:
        random = self.random
        for size in range(len(self.sizes)):
            blocks = random.randint(1, 2)
            width = blocks * self.sizes[size]
            initial = None if random.random() < 0.3 else self._normal(self.batch, width)
            final = None if random.random() < 0.2 else np.full((self.batch, width), np.nan)
            self._add("state", {"initial": initial, "final": final}, size=size, blocks=blocks)
            for kind, rows in (("step", self.rows), ("sequence", self.batch), ("unit", 0)):
                blocks = random.randint(1, 3)
                shape = (*((rows,) if rows else ()), blocks * self.sizes[size])
                i = self._add(kind, self._normal(*shape), size=size, blocks=blocks)
                if rows and random.random() < 0.5:
                    self.spaced.add(i)
            if random.random() < 0.5:
                given = {"history": self._normal(self.rows, self.sizes[size])}
                given["initial"] = self._normal(self.batch, self.sizes[size])
                self._add("neighbour", given, size=size, offset=random.choice((-1, 1)))
        self._add("number", self._normal(1))
        if random.random() < 0.5:
            self._add("step", self._normal(self.rows, 1), size=0, single=True)
            self._add("sequence", self._normal(self.batch, 1), size=0, single=True)

    def _of(self, size: int, *kinds: str) -> list[dict]:
        """Blocks of arrays of these kinds and of this size."""
        return [
            {"array": i, "block": block}
            for i, form in enumerate(self.forms)
            for block in range(form.get("blocks", 1))
            if form["kind"] in kinds
            and (form["kind"] == "number" or form.get("single") or form["size"] == size)
            and (form["kind"] != "row" or (i, block) in self.written)
            and not form.get("output")
        ]

    def _whole(self, size: int) -> list[dict]:
        return [
            at
            for at in self._of(size, "state", "step", "sequence", "row", "neighbour")
            if not self.forms[at["array"]].get("single") and not self.forms[at["array"]].get("updated")
        ]

    def _term(self, size: int) -> dict:
        random = self.random
        of = random.randrange(len(self.sizes))
        at = random.choice(self._whole(of))
        transposed, heads = random.random() < 0.5, random.choice((1, self.heads))
        blocks = 1
        if transposed and heads == 1:
            while random.random() < 0.5 and {**at, "block": at["block"] + blocks} in self._whole(of):
                blocks += 1
        rows, columns = (of, size) if transposed else (size, of)
        row_block = random.randint(0, 2)
        row_blocks = row_block + blocks + random.randint(0, 1)
        shape = row_blocks * self.sizes[rows], self.sizes[columns] // heads
        depth = blocks * self.sizes[of] // heads
        matrix = self._add(
            "matrix",
            self._normal(*shape) / np.sqrt(depth),
            size=rows,
            blocks=row_blocks,
            columns_size=columns,
            columns_parts=heads,
        )
        return {
            **at,
            "blocks": blocks,
            "matrix": matrix,
            "row_block": row_block,
            "transposed": transposed,
            "heads": heads,
        }

    def _same_operand(self, term: dict, size: int) -> dict | None:
        """Another term of the same operand, as the gates of a cell are."""
        form = self.forms[term["matrix"]]
        if term["transposed"] or form["size"] != size:
            return None
        return {**term, "row_block": self.random.randrange(form["blocks"])}

    def _results(self, size: int) -> list[dict]:
        random, results = self.random, []
        for _ in range(random.choice((0, 1, 1, 2, 4))):
            if random.random() < 0.2:
                results.append({"mean": {**random.choice(self._whole(size)), "heads": random.choice((1, self.heads))}})
                continue
            terms = [self._term(size) for _ in range(random.choice((1, 1, 1, 2, 3)))]
            if results and "terms" in results[-1] and random.random() < 0.7:
                terms[0] = self._same_operand(results[-1]["terms"][0], size) or terms[0]
            result: dict[str, Any] = {"terms": terms}
            if random.random() < 0.6:
                result["bias"] = random.choice(self._of(size, "unit"))
            results.append(result)
        return results

    def _part(self, size: int, states: bool) -> dict:
        random = self.random
        results = self._results(size)
        read = [{"result": j} for j in range(len(results))]
        readable = self._of(size, "state", "step", "sequence", "unit", "row", "neighbour", "number")
        read += random.sample(readable, min(len(readable), random.randint(1, 5)))
        written = [{**at, "write": True} for at in self._outputs(size, states)]
        operands = read + written
        writes = {k: self._expression(len(read)) for k in range(len(read), len(operands))}
        for k in writes:
            if self.forms[operands[k]["array"]]["kind"] in ("total", "sequence"):
                writes[k] = ("add", ("load", k), writes[k])
        return {"size": size, "results": results, "operands": operands, "writes": writes}

    def _outputs(self, size: int, states: bool) -> list[dict]:
        """New blocks for a part to write."""
        random, found = self.random, []
        blocks = random.randint(1, 2)
        width = blocks * self.sizes[size]
        kind = random.choice(("step", "row", "total", "sequence"))
        given = {
            "step": lambda: np.full((self.rows, width), np.nan),
            "row": lambda: None,
            "total": lambda: np.full(width, np.nan),
            "sequence": lambda: self._normal(self.batch, width),
        }[kind]()
        i = self._add(kind, given, size=size, blocks=blocks, output=kind != "row", updated=kind == "sequence")
        if kind in ("step", "sequence") and random.random() < 0.5:
            self.spaced.add(i)
        found += [{"array": i, "block": block} for block in range(blocks)]
        if kind == "row":
            self.fresh += [(i, block) for block in range(blocks)]
        if states:
            found += self._of(size, "state")
        return found

    def _expression(self, readable: int) -> Any:
        """Some of the operands times each other, bounded."""
        random = self.random
        total: Any = ("const", random.uniform(-1, 1))
        for k in random.sample(range(readable), min(readable, random.randint(1, 4))):
            factor = (
                ("load", k) if random.random() < 0.7 else ("mul", ("load", k), ("load", random.randrange(readable)))
            )
            total = (random.choice(("add", "sub")), total, ("mul", ("const", random.uniform(-1, 1)), factor))
        return "div", total, ("add", ("const", 1.0), ("mul", total, total))

    def round_matrices(self) -> None:
        """Gives 8 bits to the matrices that are not transposed; what is summed up over rows would spread roundings."""
        self.spec |= {"sums": [], "products": []}
        terms = [
            term
            for phase in self.spec["phases"]
            for part in phase["parts"]
            for result in part["results"]
            for term in result.get("terms", ())
        ]
        transposed = {term["matrix"] for term in terms if term["transposed"]}
        for i in {term["matrix"] for term in terms} - transposed:
            weight = self.arrays[i].astype(np.float32)
            scales = np.abs(weight).max(1) / np.float32(127)
            values = np.rint(weight / scales[:, None]).astype(np.int8)
            self.forms[i]["int8"] = True
            self.arrays[i] = {"values": values, "scales": scales}

    def _phase(self, last: bool) -> dict:
        self.fresh: list[tuple[int, int]] = []
        sizes = range(len(self.sizes)) if last else [self.random.randrange(len(self.sizes))]
        parts = [self._part(size, last) for size in sizes]
        self.written += self.fresh
        return {"meets": any(part["results"] for part in parts), "parts": parts}

    def _behind(self) -> None:
        """A sum or a product behind the loop, of an array of all steps that may have been written in it; perhaps added
        to what the one before it has made."""
        random = self.random
        size, heads = random.randrange(len(self.sizes)), random.choice((1, self.heads))
        of = [i for i, form in enumerate(self.forms) if form["kind"] == "step" and not form.get("single")]
        grad = random.choice([i for i in of if self.forms[i]["size"] == size])
        block = random.randrange(self.forms[grad]["blocks"])
        blocks, row_block = random.randint(1, self.forms[grad]["blocks"] - block), random.randint(0, 2)
        own = {"grad": {"array": grad, "block": block, "blocks": blocks}, "row_block": row_block, "heads": heads}
        columns = random.randrange(len(self.sizes))
        rows, width = (row_block + blocks) * self.sizes[size], self.sizes[columns] // heads
        form = dict(size=size, blocks=row_block + blocks)
        matrix = self._add("matrix", self._normal(rows, width), **form, columns_size=columns, columns_parts=heads)
        again = random.random() < 0.5
        if random.random() < 0.5:
            values = random.choice(self._whole_of_all_steps(columns))
            bias = self._add("unit", self._normal(rows), **form) if random.random() < 0.5 else None
            self.spec["sums"].append({**own, "values": values, "to": matrix, "bias": bias, "add": again})
            if random.random() < 0.3:
                values = random.choice(self._whole_of_all_steps(columns))
                self.spec["sums"].append({**own, "values": values, "to": matrix, "bias": bias, "add": True})
            return
        to = self._add("step", self._normal(self.rows, self.sizes[columns]), size=columns, blocks=1, output=True)
        if random.random() < 0.5:
            self.spaced.add(to)
        self.spec["products"].append({**own, "matrix": matrix, "to": to, "add": again})
        if random.random() < 0.3:
            self.spec["products"].append({**own, "matrix": matrix, "to": to, "add": True})

    def _whole_of_all_steps(self, size: int) -> list[dict]:
        found = self._of(size, "step", "neighbour")
        return [at for at in found if not self.forms[at["array"]].get("single")]
