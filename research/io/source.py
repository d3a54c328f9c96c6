"""The code that this process runs: digests of the library's files, its commit, and the config file.

A digest of a file, and `code`, is the beginning of a SHA-256. `code` is of the files that training
may load, so an edit of a report, of a test or of the documentation does not change it.

WORKDIR/code/<source>.json   {"files": {path: digest}} of the library
WORKDIR/code/<diff>          how the working tree differed from the commit
"""

import contextlib
import functools
import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from research.errors import UnsafeFile
from research.io import files

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("research", "experiments")
ROOMS = ("models", "data", "training", "parallel")  # these decide a result, with what they import
IMPORT = re.compile(rb"^\s*(?:from\s+(research[\w.]*)\s+)?import\s+(\([^)]*\)|.*)", re.MULTILINE)
LARGEST, DIGITS = 1 << 20, 12  # bytes of a file, characters of a digest

_config_files: dict[str, str] = {}


class Library(NamedTuple):
    """The files of the library by their paths below ROOT: their digests, and those which training
    may load."""

    files: dict[str, str]
    training: frozenset[str]


@functools.cache
def library() -> Library:
    """The files as they are when this is first called: what is edited later is not loaded here."""
    paths = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    raw = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths}
    waiting = [path for path in raw if path.split("/")[1] in ROOMS]
    loaded: set[str] = set()
    while waiting:
        if (path := waiting.pop()) not in loaded:
            loaded.add(path)
            waiting += [other for other in _imports(raw[path]) if other in raw]
    return Library({path: _digest(x) for path, x in raw.items()}, frozenset(loaded))


def _imports(raw: bytes) -> list[str]:
    """Paths below ROOT that the import statements of a file may mean, whether or not there."""
    out = []
    for package, names in IMPORT.findall(raw):
        begin = package.decode() and f"{package.decode()}."
        for word in ("", *re.findall(r"[\w.]+", names.decode(errors="replace"))):
            path = f"{begin}{word}".strip(".").replace(".", "/")
            out += [f"{path}.py", f"{path}/__init__.py"]
    return out


def _digest(raw: bytes) -> str:
    return files.digest(raw)[:DIGITS]


@functools.cache  # sysconfig takes .1 ms to say, and thousands of modules are asked about
def _not_users() -> tuple[str, ...]:
    """Beginnings of the paths of Python's own files and the library's."""
    folders = (sysconfig.get_path("stdlib"), *(ROOT / name for name in PACKAGES))
    return tuple(f"{folder}{os.sep}" for folder in folders)


def is_users(path: str) -> bool:
    """Whether a Python file is neither the library's nor one that is installed."""
    full = os.path.abspath(path)
    installed = "site-packages" in full or "dist-packages" in full or path.startswith("<")
    return not (installed or full.startswith(_not_users()))


def note_config(path: str) -> None:
    """Remember the config file that was run, with the modules of the user's that are loaded."""
    modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    _config_files.clear()
    for name in (path, *(file for file in modules if file and is_users(file))):
        with contextlib.suppress(OSError, UnsafeFile):
            _config_files[os.path.relpath(name)] = _digest(files.read(name, LARGEST))


def config_files() -> dict[str, str]:
    """{path: digest} of the config file and of what it imports of the user's."""
    return dict(_config_files)


def set_config_files(noted: Mapping[str, str]) -> None:
    """Remember what the launcher of this process noted."""
    _config_files.clear()
    _config_files.update(noted)


@functools.cache
def _checkout() -> tuple[str, str]:
    """The commit, and the text of the difference from it; empty for an installed copy."""
    if not (ROOT / ".git").exists():
        return "", ""
    from research.io import git  # which an installed copy does not need

    return git.describe(ROOT, list(library().files), config_files())


def describe() -> dict[str, object]:
    """{"code", "source", "commit", "diff", "config_files"}: digests of the files that training may
    load and of all of the library; the commit, which ends in "+" if files differ from it, is empty
    outside a checkout and says why it is unknown in one that git refuses; the name of the
    difference, empty if there is none."""
    read, (commit, diff) = library(), _checkout()
    training = {path: read.files[path] for path in read.training}
    return {
        "code": files.digest_of(training)[:DIGITS],
        "source": files.digest_of(read.files)[:DIGITS],
        "commit": commit,
        "diff": diff and f"{_digest(diff.encode())}.diff",
        "config_files": config_files(),
    }


def write(workdir: Path) -> None:
    """Keep what `describe` names, once for each digest."""
    described, folder = describe(), files.make_directory(workdir / "code")
    if not (listing := folder / f"{described['source']}.json").exists():
        files.write_json(listing, {"files": library().files})
    if described["diff"] and not (path := folder / str(described["diff"])).exists():
        files.write_atomic(path, _checkout()[1])
