"""The Python source of this interpreter's standard library, as text that is everywhere."""

import os
import sys
import sysconfig
from pathlib import Path

from research.errors import BadInput

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def stamp() -> tuple:
    """One interpreter has one."""
    return ()


def documents() -> list[bytes]:
    """The content of every file."""
    return [source for _, source in sources()]


def describe() -> str:
    """The source in words."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"source of the Python {version} standard library, without tests and site-packages"


def sources() -> list[tuple[Path, bytes]]:
    """(relative path, content) of this interpreter's standard library sources."""
    root = Path(sysconfig.get_paths()["stdlib"])
    out = []
    for folder, names, filenames in os.walk(root):
        names[:] = sorted(set(names) - SKIPPED)
        # _sysconfigdata is written by the build and holds the paths of one machine
        out += [
            (Path(folder, name).relative_to(root), Path(folder, name).read_bytes())
            for name in sorted(filenames)
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    if not out:
        raise BadInput(f"data.path: stdlib: no Python source below {root}; give a file instead")
    return out
