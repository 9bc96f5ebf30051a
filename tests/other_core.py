"""Import this before fastrnn: with ``FASTRNN_CORE`` in the environment the compiled core is that file, one of a build
under a sanitizer or on other threads.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

if core := os.environ.get("FASTRNN_CORE"):
    specification: Any = importlib.util.spec_from_file_location("fastrnn._core", core)
    sys.modules["fastrnn._core"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(sys.modules["fastrnn._core"])
