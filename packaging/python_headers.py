"""Python's headers for another system, of this Python's: ``python python_headers.py TARGET FOLDER``.

Only ``pyconfig.h`` differs from system to system.  macOS has the sizes of Linux, for which this one's own is written;
Windows has another one, of which this is what the headers ask for.  To compile by, not to link.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

SIZES = {
    "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "VOID_P": 8, "SIZE_T": 8, "TIME_T": 8, "OFF_T": 4, "FPOS_T": 8,
    "PID_T": 8, "WCHAR_T": 2, "DOUBLE": 8, "FLOAT": 4,
}  # fmt: skip
FACTS = (
    "MS_WINDOWS", "MS_WIN32", "MS_WIN64", "MS_COREDLL", "NT_THREADS", "HAVE_DECLSPEC_DLL", "HAVE_PY_SSIZE_T",
    "HAVE_ERRNO_H", "HAVE_STDDEF_H", "HAVE_SYS_TYPES_H", "HAVE_SYS_STAT_H", "HAVE_UINTPTR_T", "HAVE_WCHAR_H",
    "HAVE_THREAD_LOCAL", "DOUBLE_IS_LITTLE_ENDIAN_IEEE754", "WITH_THREAD",
)  # fmt: skip


def windows() -> str:
    """Source: PC/pyconfig.h of CPython."""
    lines = ["#pragma once", "#include <limits.h>", "#include <stdint.h>"]
    lines += [f"#define {fact} 1" for fact in FACTS] + [f"#define SIZEOF_{name} {size}" for name, size in SIZES.items()]
    lines += ["#define ALIGNOF_SIZE_T 8", "#define ALIGNOF_MAX_ALIGN_T 16", "#define PY_SSIZE_T_MAX LLONG_MAX"]
    lines.append("typedef int64_t Py_ssize_t;")
    return "\n".join(lines) + "\n"


def main(target: str, folder: str) -> None:
    to = Path(folder)
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), to)
    own = Path(sysconfig.get_config_h_filename()).read_text()
    (to / "pyconfig.h").write_text(windows() if "windows" in target else own)


if __name__ == "__main__":
    main(*sys.argv[1:])
