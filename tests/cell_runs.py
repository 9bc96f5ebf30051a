"""What runs one direction of a layer of a cell, by name: the definition, the compiled loop in torch, engines."""

from __future__ import annotations

import torch

from fastrnn.cell import SequenceInput, equations
from fastrnn.cell.trace import trace
from fastrnn.compiler.program import compile_cell
from fastrnn.fused import cpp, layer, numba, reference


def run_equations(cell, parameters, x, states, extras, batch_sizes, reverse):
    """The definition called with tensors."""
    return equations.direction(cell, trace(cell).parts, parameters, x, batch_sizes, states, extras, reverse)


def compiled_run(scan, within=False):
    """A layer around what runs the compiled loop, which makes the products of x itself if they are ``within`` it."""

    def run(cell, parameters, x, states, extras, batch_sizes, reverse):
        packed = batch_sizes is not None
        sizes = torch.tensor(batch_sizes) if packed else None
        rows = x if packed else x.flatten(0, 1)
        count, batch = (len(batch_sizes), batch_sizes[0]) if packed else x.shape[:2]
        steps = layer.Steps(count, batch, len(rows), sizes, reverse)
        compiled = compile_cell(cell)
        kinds = compiled.loop.traced.parts.extras
        flat = {n: e if packed or isinstance(kinds[n], SequenceInput) else e.flatten(0, 1) for n, e in extras.items()}
        y, ends, _ = layer.direction(scan, compiled, parameters, rows, steps, states, flat, within)
        return y if packed else y.unflatten(0, (count, batch)), ends

    return run


RUNS = {
    "equations": run_equations,
    "torch": compiled_run(reference.scan_by_torch),
    "cpp": compiled_run(cpp.scan),
    "cpp_ahead": compiled_run(cpp.scan, within=True),
    "numba": compiled_run(numba.scan),
}


def unavailable(run) -> str | None:
    """Why a run has no engine here, or None."""
    engines = dict(cpp=cpp, cpp_ahead=cpp, numba=numba)
    engine = next((engine for name, engine in engines.items() if RUNS[name] is run), None)
    return engine and engine.unavailable()
