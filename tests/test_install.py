"""What a user installs: the source distribution, and from it the package without its compiled core."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCES = {path.relative_to(ROOT) for pattern in ("fastrnn/**/*.py*", "kernels/*.py") for path in ROOT.glob(pattern)}
SOURCES |= {Path("fastrnn/py.typed")}
SOURCES = {path for path in SOURCES if "__pycache__" not in path.parts}
NATIVE = {path.relative_to(ROOT) for pattern in ("csrc/*", "include/*") for path in ROOT.glob(pattern)}
NATIVE |= {Path("CMakeLists.txt"), Path("pyproject.toml")}

# Runs on every backend that is live, against torch.nn, and prints where the package lies.
USE = """
import torch, fastrnn
from fastrnn import backends

reasons = backends.available()
assert "compiled core" in reasons["cpp"], reasons
assert reasons["reference"] is None, reasons
theirs = torch.nn.LSTM(3, 4)
ours = fastrnn.LSTM(3, 4)
ours.load_state_dict(theirs.state_dict())
x = torch.randn(5, 2, 3)
for name in ("reference", "numba"):
    if reasons[name] is None:
        with fastrnn.use_backend(name), torch.set_grad_enabled(name == "reference"):  # Numba compiles what is called
            y, _ = ours(x)
        torch.testing.assert_close(y, theirs(x)[0])
        if y.requires_grad:
            y.sum().backward()
print(fastrnn.__file__)
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What the command prints; fails where it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    build = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=ROOT)
    (archive,) = folder.glob("fastrnn-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_source_distribution_holds_every_source(source: Path):
    assert {Path("csrc/scan.h"), Path("fastrnn/__init__.py"), Path("kernels/__init__.py")} <= SOURCES | NATIVE
    missing = [path for path in SOURCES | NATIVE if not (source / path).is_file()]
    assert not missing
    assert not [path.name for path in source.iterdir() if path.name.startswith((".venv", "build"))]


def test_without_a_compiler_the_python_backends_are_installed(source: Path, tmp_path: Path):
    """``pip install . --config-settings=wheel.cmake=false``, with no compiler and no CMake to be found."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--config-settings=wheel.cmake=false"]
    run(*pip, "wheel", *options, "--wheel-dir", tmp_path, ".", cwd=source, PATH=str(empty))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    run(*pip, "install", "--no-deps", "--target", site, wheel, cwd=empty)
    installed = {path.relative_to(site) for path in site.glob("fastrnn/**/*") if path.is_file()}
    installed = {path for path in installed if "__pycache__" not in path.parts}
    assert installed == {Path("fastrnn") / path if path.parts[0] == "kernels" else path for path in SOURCES}

    # -S: without the development environment's own installation, which a .pth file there announces
    search = os.pathsep.join([str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    place = run(sys.executable, "-S", "-c", USE, cwd=empty, PYTHONPATH=search)
    assert Path(place.strip()).is_relative_to(site)


shared = Path(torch.__file__).parent / "lib" / "libgomp.so.1"


@pytest.mark.skipif(not shared.is_file(), reason="this torch has no libgomp.so.1 that others could share")
@pytest.mark.skipif(importlib.util.find_spec("fastrnn._core") is None, reason="the compiled core is missing")
def test_the_core_runs_on_the_threads_of_torch():
    """One OpenMP runtime in the process: two would put two teams on the same cores."""
    maps = run(sys.executable, "-c", "import fastrnn._core; print(open('/proc/self/maps').read())", cwd=ROOT / "tests")
    runtimes = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libomp" in line}
    assert runtimes == {str(shared.resolve())}


def test_the_version_stands_in_one_place():
    """In ``fastrnn/__init__.py``; the change log has an entry for a version that is no development's."""
    from importlib.metadata import version

    import fastrnn

    assert version("fastrnn") == fastrnn.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changes or f"## [{fastrnn.__version__}]" in changes
    for name in ("pyproject.toml", "CITATION.cff", "README.md", "CMakeLists.txt"):
        assert fastrnn.__version__ not in (ROOT / name).read_text(), name
