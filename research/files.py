"""Files that are either whole or absent, and their digests."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from research.errors import BadInput, StorageError


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` so that a reader, or a crash at any moment, sees the old file or the new one.

    Raises StorageError when the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    raw = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def stamp(path: str | os.PathLike[str], what: str) -> tuple:
    """Changes when the file does, so that nothing is remembered of an older content. Raises
    BadInput, naming `what` asked for it, if it is no file or may not be read."""
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
    except OSError as error:
        raise BadInput(f"{what}: {path}: {error.strerror}") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def make_directory(path: str | os.PathLike[str]) -> Path:
    """The directory `path`, made with its parents if it is not there. Raises StorageError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror}") from error
    return Path(path)


def cache(*parts: str) -> Path:
    """A folder of the user's cache, made if it is not there: $ISOFLOP_CACHE, else `isoflop` in
    $XDG_CACHE_HOME or ~/.cache. All in it can be made anew."""
    chosen, base = os.environ.get("ISOFLOP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(chosen) if chosen else Path(base or Path.home() / ".cache") / "isoflop"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{root}: cannot be made: {error.strerror}") from error
    return make_directory(root.joinpath(*parts))


def sync(path: str | os.PathLike[str]) -> None:
    """Make what a file holds, or the names in a directory, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make all files below `folder`, and their names, survive a power loss."""
    paths = sorted(folder.rglob("*"), reverse=True)  # what is in a directory before it
    for path in [*paths, folder]:
        sync(path)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Atomic, indented, strict JSON: NaN and infinity are refused rather than written."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key given twice: {next(n for n in names if names.count(n) > 1)!r}")
    return out


def read_json(path: str | os.PathLike[str], limit: int = 16 << 20) -> dict:
    """A JSON object from a file of at most `limit` bytes. Raises BadInput naming the file."""
    try:
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise ValueError(f"larger than {limit} bytes")
        value = json.loads(raw, object_pairs_hook=_no_repeats)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not a JSON document: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def canonical(value: object) -> bytes:
    """One byte string per JSON value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def cell(value: object) -> object:
    """A spreadsheet runs a text that begins like a formula; a quote in front makes it text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def delimiter(header: str) -> str:
    """Of , ; tab and |, the one that the header of a CSV has most of."""
    return max(",;\t|", key=header.count)


def digest(*parts: bytes) -> str:
    """SHA-256 of the parts, each preceded by its length, in hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def digest_of(value: Mapping[str, object]) -> str:
    return digest(canonical(value))


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
