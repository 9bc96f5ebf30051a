"""Fixtures of the suite: the backends as a parameter, and memory that is never accidentally zero."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

torch.set_num_threads(1)  # in cases so small a second thread only waits; those of test_layer.py that want more say so
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's, which the Triton interpreter computes with
# Compiled cells of a run of the suite, for all of its processes, go where no user keeps his own.
user = os.getuid() if hasattr(os, "getuid") else ""
os.environ.setdefault("FASTRNN_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"fastrnn-tests-{user}"))

GPU = torch.cuda.is_available()
if GPU:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.backends.cudnn.allow_tf32 = False  # torch's default for RNNs; the budget of float32 is that of float32
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported; with it the backend serves CPU tensors

from fastrnn import backends, choices  # noqa: E402

if not GPU and importlib.util.find_spec("triton"):
    from interpreted import quicken

    quicken()


class Target(NamedTuple):
    """A backend and the device that a test runs it on."""

    name: str
    module: ModuleType
    device: torch.device

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)


def _targets() -> list:
    on_cpu = [pytest.param((name, "cpu"), id=name) for name in backends.NAMES]
    gpu = pytest.mark.gpu
    return on_cpu + [pytest.param((name, "cuda"), id=f"{name}-cuda", marks=gpu) for name in ("triton", "reference")]


@pytest.fixture(params=_targets())
def target(request: pytest.FixtureRequest) -> Target:
    """Every live backend on every device; skips, with the backend's own reason, what it cannot serve."""
    name, device = request.param[0], torch.device(request.param[1])
    module = backends.load(name)
    params = request.node.callspec.params
    case = params.get("case")
    dtype = torch.float32 if case is None else case.dtype
    mode = getattr(case, "mode", params.get("mode", "LSTM"))
    reason = module.unavailable() or backends.unsupported(module, device, dtype, mode)
    if reason:
        pytest.skip(f"{name}: {reason}")
    return Target(name, module, device)


@pytest.hookimpl(tryfirst=True)  # before those marked slow are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of a GPU where there is none, and under the Triton interpreter, which takes milliseconds
    a step, all but the small cases; of which some, that others resemble, are for the slow suite alone."""

    def params(item: pytest.Item) -> dict[str, Any]:
        return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}

    def interpreted(item: pytest.Item) -> bool:
        return params(item).get("target") == ("triton", "cpu")

    def left_out(item: pytest.Item) -> bool:
        large = interpreted(item) and "case" in params(item) and not params(item)["case"].small
        return large or (not GPU and item.get_closest_marker("gpu") is not None)

    def is_seldom(item: pytest.Item) -> bool:
        if item.path.name == "test_properties.py":
            return params(item)["mode"] != "LSTM"
        return getattr(params(item).get("case"), "seldom", False)

    for item in items:
        if interpreted(item) and is_seldom(item):
            item.add_marker(pytest.mark.slow)
    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]


@pytest.fixture(autouse=True)
def nan_filled_memory() -> Iterator[None]:
    """What torch allocates without initialising holds NaN, so that reading it cannot go unnoticed."""
    if torch.are_deterministic_algorithms_enabled():
        raise RuntimeError("a test left deterministic algorithms switched on")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu"}
    try:
        return importlib.import_module("keras")
    except ImportError as error:
        pytest.skip(f"these tests compare with Keras: {error}")


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where choices of the fastest path are kept: no test reads or leaves some elsewhere."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    choices.table.cache_clear()
    yield tmp_path
    choices.table.cache_clear()
