"""What else decides the last bits of a run: versions, cores, the commit."""

import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

_IMPORTED = time.monotonic()
SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)  # names of variables
SHORTEST = 8  # characters of a value that is looked for
_LIBRARIES = ("isoflop", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def redacted(text: str) -> str:
    """`text` with the name in place of the value of every variable that is called a secret."""
    found = [(n, v) for n, v in os.environ.items() if SECRET.search(n) and len(v) >= SHORTEST]
    for name, value in sorted(found, key=lambda pair: -len(pair[1])):
        text = text.replace(value, f"[{name}]")
    return text


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Of glibc's malloc.h, and what they are set to here.
_MALLOC = {
    -8: 1,  # M_ARENA_MAX: threads have heaps of their own, which the other two say nothing about
    -4: 0,  # M_MMAP_MAX: a large block is part of the heap, and not a mapping that free() undoes
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap's free end is not given back
}


def keep_memory() -> None:
    """Let this process keep the memory that it frees; call before the first use of jax.

    XLA on CPU frees the temporary memory of a program after every call, and inside one. glibc gives
    large blocks back to the kernel, which then fills them with zeros anew, page by page, in
    every step (tools/bench/what_pays.py counts the faults with this and without). Only glibc
    has these switches; GLIBC_TUNABLES that set malloc are left as they are.
    """
    if platform.libc_ver()[0] == "glibc" and "malloc" not in os.environ.get("GLIBC_TUNABLES", ""):
        libc = ctypes.CDLL(None)
        for option, value in _MALLOC.items():
            libc.mallopt(option, value)


def age() -> float:
    """Seconds since this process was started; where that cannot be seen, since this import."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):  # not Linux
        return time.monotonic() - _IMPORTED


@functools.cache
def describe() -> dict[str, object]:
    """{"versions", "cores", "xla_flags", "commit"}; the commit ends in "+" if files differ from it,
    and is empty outside a checkout."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "cores": cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    out = {}
    for name in _LIBRARIES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # isoflop itself, run from a checkout
    return out


def _commit() -> str:
    here = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str:
        command = ["git", "-C", str(here), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here:
            return ""  # the checkout of something else, around an installed copy
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
