"""Runs a program as its contract (csrc/phases.h) reads: step by step, row by row, in float64, sharing nothing with the
engine.  Functions are called as expressions of tests/program_functions.py."""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = np.ndarray


def evaluate(expression: Any, loaded: list[Numbers]) -> Numbers:
    op, *args = expression
    if op == "load":
        return loaded[args[0]]
    if op == "const":
        return np.float64(args[0])
    left, right = (evaluate(arg, loaded) for arg in args)
    return {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[op](left, right)


class Oracle:
    """One run of ``spec``, whose parts carry their ``writes``; arrays are numpy's, changed in place.

    A neighbour is a dict of history and initial, a state of initial and final, as the engine's."""

    def __init__(self, spec: dict, sizes: list[int], arrays: list, batch_sizes: list[int], reverse: bool) -> None:
        self.spec, self.sizes, self.arrays = spec, sizes, arrays
        times = range(len(batch_sizes))
        self.times = list(reversed(times)) if reverse else list(times)
        self.batch_sizes = batch_sizes
        self.offsets = np.concatenate([[0], np.cumsum(batch_sizes)])

    def run(self) -> None:
        forms = self.spec["arrays"]
        batch = max(self.batch_sizes)
        self.states: dict[int, list] = {}
        for i, form in enumerate(forms):
            if form["kind"] == "state":
                initial = self.arrays[i]["initial"]
                width = form.get("blocks", 1) * self.sizes[form["size"]]
                self.states[i] = [np.zeros(width) if initial is None else np.array(initial[r]) for r in range(batch)]
            if form["kind"] == "total":
                self.arrays[i][:] = 0
        for step in range(len(self.times)):
            self.step(step)
        for each in self.spec.get("sums", ()):
            self.outer(each)
        for each in self.spec.get("products", ()):
            self.back(each)

    def rows(self, step: int) -> int:
        return self.batch_sizes[self.times[step]] if 0 <= step < len(self.times) else 0

    def step(self, step: int) -> None:
        rows = self.rows(step)
        after = {i: [None] * (form.get("blocks", 1)) for i, form in enumerate(self.spec["arrays"])}
        for row in range(rows):
            held: dict[tuple[int, int], Numbers] = {}  # blocks of rows and of states after the step
            for phase in self.spec["phases"]:
                for part in phase["parts"]:
                    self.part(part, step, row, held)
            for i, before in self.states.items():
                blocks = [held[i, block] for block in range(len(after[i]))]
                before[row] = np.concatenate(blocks)
                final = self.arrays[i]["final"]
                if row >= self.rows(step + 1) and final is not None:
                    final[row] = before[row]

    def place(self, i: int, step: int, row: int) -> Numbers:
        """The row of an array of the caller's, as a view."""
        kind, given = self.spec["arrays"][i]["kind"], self.arrays[i]
        if kind == "step":
            return given[self.offsets[self.times[step]] + row]
        if kind == "neighbour":
            other = step + self.spec["arrays"][i]["offset"]
            if row < self.rows(other):
                return given["history"][self.offsets[self.times[other]] + row]
            return given["initial"][row]
        return given[row] if kind == "sequence" else given

    def read(self, i: int, block: int, step: int, row: int, held: dict) -> Numbers:
        form = self.spec["arrays"][i]
        if form["kind"] == "row":
            return held[i, block]
        whole = self.states[i][row] if form["kind"] == "state" else self.place(i, step, row)
        if form.get("single") or form["kind"] == "number":
            return whole
        size = self.sizes[form["size"]]
        return whole[block * size : (block + 1) * size]

    def all_rows(self, at: dict) -> Numbers:
        """Blocks of an array of all steps, (N, columns), in the order of time."""
        found = np.full(
            (self.offsets[-1], at.get("blocks", 1) * self.sizes[self.spec["arrays"][at["array"]]["size"]]), np.nan
        )
        for step, time in enumerate(self.times):
            for row in range(self.batch_sizes[time]):
                blocks = range(at.get("block", 0), at.get("block", 0) + at.get("blocks", 1))
                found[self.offsets[time] + row] = np.concatenate(
                    [self.read(at["array"], block, step, row, {}) for block in blocks]
                )
        return found

    def heads_behind(self, each: dict) -> Any:
        """Its gradients as (N, gates, heads, units), and the rows of its matrix, as a view of that shape."""
        grad = each["grad"]
        size = self.sizes[self.spec["arrays"][grad["array"]]["size"]]
        shape = grad.get("blocks", 1), each["heads"], size // each["heads"]
        first = each["row_block"] * size

        def rows(array: int) -> Numbers:
            given = self.arrays[array]
            return given[first : first + shape[0] * size].reshape(*shape, *given.shape[1:])

        return self.all_rows(grad).reshape(-1, *shape), rows

    def outer(self, each: dict) -> None:
        grad, rows = self.heads_behind(each)
        values = self.all_rows(each["values"])
        values = values.reshape(len(values), each["heads"], -1)
        for array, found in ((each["to"], np.einsum("nghz,nhk->ghzk", grad, values)), (each["bias"], grad.sum(0))):
            if array is not None:
                to = rows(array)
                to[:] = to * each["add"] + found

    def back(self, each: dict) -> None:
        grad, rows = self.heads_behind(each)
        to = self.arrays[each["to"]]
        found = np.einsum("nghz,ghzk->nhk", grad, rows(each["matrix"])).reshape(to.shape)
        to[:] = to * each["add"] + found

    def part(self, part: dict, step: int, row: int, held: dict) -> None:
        def read(at: dict) -> Numbers:
            return self.read(at["array"], at.get("block", 0), step, row, held)

        results = []
        for result in part.get("results", ()):
            if "mean" in result:
                v, heads = read(result["mean"]), result["mean"].get("heads", 1)
                results.append(np.repeat(v.reshape(heads, -1).mean(1), len(v) // heads))
                continue
            total = np.zeros(self.sizes[part["size"]])
            if result.get("bias"):
                total = total + read(result["bias"])
            for term in result["terms"]:
                total = total + self.term(term, part, step, row, held)
            results.append(total)
        loaded = []
        for operand in part["operands"]:
            if "result" in operand:
                loaded.append(results[operand["result"]])
                continue
            unread = operand.get("write") and self.spec["arrays"][operand["array"]]["kind"] in ("state", "row")
            loaded.append(np.full(self.sizes[part["size"]], np.nan) if unread else np.array(read(operand)))
        for k, expression in part["writes"].items():
            found = np.broadcast_to(evaluate(expression, loaded), self.sizes[part["size"]])
            operand = part["operands"][k]
            i, block = operand["array"], operand.get("block", 0)
            if self.spec["arrays"][i]["kind"] in ("state", "row"):
                held[i, block] = np.array(found)
            else:
                read(operand)[:] = found

    def term(self, term: dict, part: dict, step: int, row: int, held: dict) -> Numbers:
        heads, form = term.get("heads", 1), self.spec["arrays"][term["matrix"]]
        blocks = [
            self.read(term["array"], term.get("block", 0) + i, step, row, held) for i in range(term.get("blocks", 1))
        ]
        v, units = np.concatenate(blocks), self.sizes[part["size"]]
        first = term.get("row_block", 0) * self.sizes[form["size"]]
        matrix = self.arrays[term["matrix"]]
        int8 = isinstance(matrix, dict)
        if int8:
            matrix = matrix["values"] * matrix["scales"][:, None]
        found = []
        of_units, of_depth = units // heads, len(v) // heads
        for head in range(heads):
            own = v[head * of_depth : (head + 1) * of_depth]
            if int8:
                scale = np.float64(np.float32(np.abs(own).max()) / np.float32(127)) or 1.0
                own = np.rint(own / scale) * scale
            if term.get("transposed"):
                found.append(own @ matrix[first + head * of_depth : first + (head + 1) * of_depth])
            else:
                found.append(matrix[first + head * of_units : first + (head + 1) * of_units] @ own)
        return np.concatenate(found)
