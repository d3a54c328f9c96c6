"""The host: cores, memory, versions; and redaction of secrets from messages."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from research.io import files

PARENT = "ISOFLOP_PARENT"  # a worker whose parent has not this process id any more ends
SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)  # names of variables
SHORTEST = 8  # characters of a value that is looked for
_LIBRARIES = ("isoflop", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@functools.cache
def instructions() -> str:
    """The instruction sets of this CPU as Linux lists them; on other systems its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    listed = (line for line in lines if line.startswith(("flags", "Features")))
    return " ".join(sorted(next(listed, "").partition(":")[2].split()))


def command(name: str) -> list[str]:
    """The command `isoflop <name>` of this very copy, for a child process. Not by `-m`, which would
    look for `experiments` in the working directory first."""
    entry = Path(__file__).resolve().parents[2] / "experiments" / "__main__.py"
    return [sys.executable, "-P", str(entry), name]


def redact_secrets(text: str) -> str:
    """`text` with the value of every environment variable named like a secret replaced by its
    name."""
    secrets = [(n, v) for n, v in os.environ.items() if SECRET.search(n) and len(v) >= SHORTEST]
    for name, value in sorted(secrets, key=lambda pair: -len(pair[1])):
        text = text.replace(value, f"[{name}]")
    return text


def memory() -> int:
    """Bytes of this machine's memory; in a container, or a job of a scheduler, those that it may
    use."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list:
    """Bytes that the control groups of this process allow: its own and those around it, of either
    version of Linux's."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for _, kinds, path in (line for line in lines if len(line) == 3):
        if kinds and "memory" not in kinds.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            with contextlib.suppress(OSError, ValueError):  # ValueError: "max" is no number
                limits.append(int((top / folder / name).read_text()))
    return limits


def describe() -> dict[str, object]:
    """{"versions", "cores", "instructions", "xla_flags"}; the instruction sets as a digest."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "cores": cores(),
        "instructions": f"{platform.machine()} {files.digest(instructions().encode())[:12]}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@functools.cache
def _versions() -> dict[str, str]:
    out = {}
    for name in _LIBRARIES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # isoflop itself, run from a checkout
    return out


def orphaned(parent: int | None = None) -> Callable[[], bool]:
    """A function that returns whether the launcher of this process, or `parent` if no launcher
    started it, has ended."""
    launcher = os.environ.get(PARENT, parent)
    return lambda: launcher is not None and os.getppid() != int(launcher)
