"""What Triton and Inductor compile with: a C compiler and Python's headers.  Slim images have neither."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

COMPILERS = ("gcc", "clang", "cc")


def c_compiler() -> str | None:
    """Path of the C compiler, the one that CC or CXX names first; None without one."""
    asked = os.environ.get("CC") or os.environ.get("CXX")
    return next(filter(None, map(shutil.which, filter(None, [asked, *COMPILERS]))), None)


def has_python_headers() -> bool:
    """Whether Python.h lies where Triton looks for it."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # Debian's python3 has no headers there
    return (Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h").is_file()


def missing() -> str | None:
    """What is missing, in words; None where Triton can compile its launchers."""
    if sys.platform == "win32":  # its builds of Triton bring a compiler
        return None
    if c_compiler() is None:
        return "there is no C compiler"
    return None if has_python_headers() else "Python.h is missing"
