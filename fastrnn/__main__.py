"""``python -m fastrnn``: which backends are live here and why the others are not, and what they run on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

import fastrnn
from fastrnn import backends


def report() -> str:
    """What ``python -m fastrnn`` prints."""
    reasons = backends.available()
    packages = {name: _version(name) for name in ("numba", "triton")}
    versions = {"fastrnn": fastrnn.__version__, "torch": torch.__version__, **packages}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    isa = "" if reasons["cpp"] else f", instruction set {backends.load('cpp').isa()}"
    lines = ["  ".join(f"{name} {number}" for name, number in versions.items())]
    lines.append(f"CPU: {torch.get_num_threads()} threads{isa}    GPU: {gpu}")
    lines += [f"  {name:10} {reason or 'live'}" for name, reason in reasons.items()]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    lines += [f"{device} float32 runs on: {_chosen(device)}" for device in devices]
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


if __name__ == "__main__":
    print(report())
