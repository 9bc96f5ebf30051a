"""``python -m fastrnn``: which backends are live here and why the others are not, and what they run on.

``python -m fastrnn explain module:Cell``: the phases of a cell, what is saved, what a step costs, and which backends
fuse it; ``--hidden 128``, ``--input 64`` and ``--size name=32`` give sizes.

``python -m fastrnn check model.pt`` or ``check module:build``: what :func:`fastrnn.convert` makes of the model in a
file of ``torch.save``, or of the one that a function returns, what it leaves, and why.

``python -m fastrnn team``: how many threads calls are worth, on machines of this kind with 1 to 128 CPUs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import fastrnn
from fastrnn import backends, choices, fused, teams
from fastrnn.cell import Cell
from fastrnn.compiler.explain import explain
from fastrnn.compiler.program import compile_cell


def report() -> str:
    """What ``python -m fastrnn`` prints."""
    reasons = backends.available()
    packages = {name: _version(name) for name in ("numba", "triton")}
    versions = {"fastrnn": fastrnn.__version__, "torch": torch.__version__, **packages}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    core = backends.load("cpp")
    facts = "" if reasons["cpp"] else f" of {core.thread_source()}, instruction set {core.isa()}"
    lines = ["  ".join(f"{name} {number}" for name, number in versions.items())]
    lines.append(f"CPU: {torch.get_num_threads()} threads{facts}    GPU: {gpu}")
    lines += [f"  {name:10} {reason or 'live'}" for name, reason in reasons.items()]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    lines += [f"{device} float32 runs on: {_chosen(device)}" for device in devices]
    if torch.cuda.is_available():
        known = choices.table(torch.device("cuda", torch.cuda.current_device()))
        lines.append(f"measured on this GPU, all else runs on cuDNN ({known.folder() or 'kept in memory alone'}):")
        lines += choices.report(known) or ["  nothing yet: fastrnn.tune, or FASTRNN_TUNE=1, measures"]
    if reasons["cpp"] and not reasons["numba"]:
        lines.append("Numba serves in place of the missing C++ core: it compiles at first use and is slower.")
        lines.append(f"To have the core: {reasons['cpp']}.")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _chosen(device: str) -> str:
    try:
        return backends.choose(torch.device(device), torch.float32) or "torch.nn's own functions"
    except backends.BackendError as error:
        return f"nothing: {error}"


def account(argv: list[str]) -> str:
    """What ``python -m fastrnn explain`` prints."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn explain")
    parser.add_argument("cell", help="module:Cell, a class or an instance")
    parser.add_argument("--hidden", type=int, default=128, help="hidden_size")
    parser.add_argument("--input", type=int, default=128, help="input_size")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=UNITS", help="any other size")
    args = parser.parse_args(argv)
    found = _named(args.cell)
    cell = found() if isinstance(found, type) and issubclass(found, Cell) else found
    if not isinstance(cell, Cell):
        parser.error(f"{args.cell} is no cell; expected module:Cell")
    compiled = compile_cell(cell)
    names = sorted({str(node.size) for node in compiled.loop.traced.graph.nodes if node.size})
    sizes = {name: int(args.hidden) for name in names} | {"input_size": args.input}
    sizes |= {name: int(units) for name, _, units in (size.partition("=") for size in args.size)}
    lines = [explain(compiled, {name: units for name, units in sizes.items() if name in names})]
    for backend in backends.NAMES:
        device = torch.device("cuda" if backend == "triton" else "cpu")
        reason = fused.unsupported(cell, backend, device, torch.float32)
        lines.append(f"{backend:10} {'fuses it' if reason is None else 'does not: ' + reason}")
    return "\n".join(lines)


def check(argv: list[str]) -> str:
    """What ``python -m fastrnn check`` prints."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn check")
    parser.add_argument(
        "model",
        help="a file of torch.save, which is unpickled and so runs what it says: none of strangers; or module:name",
    )
    args = parser.parse_args(argv)
    found = _named(args.model) if ":" in args.model else torch.load(args.model, "cpu", weights_only=False)
    if not isinstance(found, torch.nn.Module) and callable(found):
        found = found()
    if not isinstance(found, torch.nn.Module):
        kind = type(found).__name__
        parser.error(f"{args.model} is a {kind}; expected a module" + ", not its state_dict" * isinstance(found, dict))
    _, swaps = fastrnn.convert(found, report=True)
    return f"{swaps}\ncpu float32 runs on: {_chosen('cpu')}"


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # as for python -m, the folder it is called in
    return getattr(importlib.import_module(module), attribute, None)


def main(argv: list[str]) -> str:
    """What the command of these arguments prints."""
    commands = {"explain": account, "check": check, "team": lambda _: teams.table()}
    return commands[argv[0]](argv[1:]) if argv and argv[0] in commands else report()


if __name__ == "__main__":
    print(main(sys.argv[1:]))
