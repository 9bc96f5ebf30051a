"""LLVM's assembly to machine code of this process, kept on disk from process to process.

llvmlite, which Numba's extra brings, is all that it takes; no C++ compiler.  What is kept is machine code that
processes will run, so it lies in a folder that belongs to the user alone, under a name made of all that it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

HEADER = b"fastrnn object 1\n"
_lock = threading.Lock()
_kept: list[Any] = []  # engines, whose memory holds the code


def unavailable() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    try:
        import llvmlite.binding  # noqa: F401
    except ImportError as error:
        return f"llvmlite, of the extra fastrnn[numba], is not installed ({error})"
    return None


@functools.cache
def _target() -> tuple[Any, str]:
    """LLVM's target machine, and what its code depends on."""
    import llvmlite
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(cpu=name, features=features, opt=3, reloc="pic", codemodel="default")
    return machine, f"{llvmlite.__version__} {llvm.llvm_version_info} {target.triple} {name} {features}"


@functools.cache
def vector_bytes() -> int:
    """The width of this processor's vectors."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


def folder() -> Path | None:
    """Where machine code is kept: FASTRNN_CACHE_DIR, or ``fastrnn`` in the user's folder of caches; None where no
    folder there belongs to this user alone."""
    asked = os.environ.get("FASTRNN_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(asked) if asked else Path(base) / "fastrnn"
    if not path.is_absolute() and not asked:  # nobody knows where the user's home is
        _warn(f"{path} is in no folder of yours")
        return None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        _warn(f"{path} cannot be made ({error})")
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        _warn(f"{path} belongs to another user, or others may write to it")
        return None
    return path


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"fastrnn keeps nothing on disk, so every process compiles its cells and tunes again: {reason}; set "
        "FASTRNN_CACHE_DIR to a folder of your own",
        RuntimeWarning,
        stacklevel=3,
    )


def object_code(assembly: str) -> bytes:
    """The object file of an assembly, from the disk where it is there."""
    machine, depends = _target()
    key = hashlib.sha256(f"{depends}\n{assembly}".encode()).hexdigest()
    place = folder()
    path = place / f"{key}.o" if place else None
    if path and (found := _read(path)) is not None:
        return found
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(assembly)
    module.verify()
    code = machine.emit_object(module)
    if path:
        write(path, HEADER + hashlib.sha256(code).hexdigest().encode() + code)
    return code


def _read(path: Path) -> bytes | None:
    """The code in a file, if all of it is there and the file is this user's own."""
    try:
        with open(path, "rb") as file:
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            content = file.read()
    except OSError:  # not there, or not ours to read: it is compiled again
        return None
    body = content[len(HEADER) + 64 :]
    whole = content.startswith(HEADER) and hashlib.sha256(body).hexdigest().encode() == content[len(HEADER) :][:64]
    return body if whole else None


def write(path: Path, content: bytes) -> None:
    """All of a file or nothing, whoever else writes it."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent)
    except OSError as error:
        _warn(f"{path.parent} cannot be written to ({error})")
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError as error:
        _warn(f"{path} cannot be written ({error})")
        Path(name).unlink(missing_ok=True)


def addresses(assembly: str, names: list[str]) -> list[int]:
    """The functions of an assembly, as addresses in this process, for as long as it lives."""
    import llvmlite.binding as llvm

    with _lock:
        code = object_code(assembly)
        machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic")
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        found = [engine.get_function_address(name) for name in names]
        _kept.append(engine)
    if not all(found):
        raise RuntimeError(f"compiled code lacks one of {', '.join(names)}")
    return found
