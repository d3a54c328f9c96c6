"""Atomic writes, digests, and safe reading of untrusted files."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from research.errors import BadInput, StorageError, UnsafeFile

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # Lustre without -o flock, some NFS, FUSE
NESTED = 32  # objects and lists in each other in a JSON document


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` so that a reader, or a crash at any moment, sees the old file or the new one.

    Raises StorageError when the disk refuses.
    """
    path = Path(path)
    # Not the process id: containers that share a disk may all be process 1.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    raw = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def stamp(path: str | os.PathLike[str], what: str) -> tuple:
    """Changes when the file does, so that nothing is remembered of an older content. Raises
    BadInput, naming `what` asked for it, if it is no file or may not be read."""
    try:
        with open_regular_file(path) as file:
            stat = os.fstat(file.fileno())
    except OSError as error:
        raise BadInput(f"{what}: {path}: {error.strerror}") from error
    except UnsafeFile as error:
        raise UnsafeFile(f"{what}: {error}") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def open_regular_file(path: str | os.PathLike[str], follow: bool = True) -> BinaryIO:
    """Open a regular file to read bytes. Raises UnsafeFile for a pipe (reading would block),
    a device (it has no end), and for a symbolic link unless `follow`; OSError if unreadable."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeFile(f"{path}: is a link, which is not followed here") from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnsafeFile(f"{path}: not a regular file")
    return file


def read(path: str | os.PathLike[str], limit: int, follow: bool = True) -> bytes:
    """The content of a file of at most `limit` bytes. Raises UnsafeFile, OSError."""
    with open_regular_file(path, follow) as file:
        raw = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(raw) > limit:
        raise UnsafeFile(f"{path}: larger than {limit} bytes")
    return raw


def text(path: str | os.PathLike[str], limit: int, follow: bool = True) -> str:
    """The content as UTF-8 text. Raises as `read`, and BadInput if it is not UTF-8."""
    try:
        return read(path, limit, follow).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8 ({error.reason})") from error


def walk(folder: str | os.PathLike[str]) -> Iterator[tuple[str, os.stat_result]]:
    """(path below `folder`, stat) of every file there, in no order. Raises UnsafeFile for what is
    neither a regular file nor a directory."""
    waiting = [""]
    if os.path.islink(folder):
        raise UnsafeFile(f"{folder}: is a link, which is not followed here")
    while waiting:
        below = waiting.pop()
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                path = f"{below}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False)
                else:
                    raise UnsafeFile(f"{os.path.join(folder, path)}: not a regular file")


def check_plain(folder: str | os.PathLike[str]) -> None:
    """Raise UnsafeFile if `folder`, or something in it (not below), is a link or a special file:
    who writes there would write elsewhere."""
    if os.path.islink(folder):
        raise UnsafeFile(f"{folder}: is a link; nothing is written through it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
                raise UnsafeFile(f"{entry.path}: not a regular file; nothing is written through it")


def make_directory(path: str | os.PathLike[str]) -> Path:
    """The directory `path`, made with its parents, durably, if it is not there. Raises
    StorageError, UnsafeFile where something else is in its place."""
    path = Path(path)
    try:
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(new):
            with contextlib.suppress(PermissionError):  # one may write where one may not read
                sync(folder.parent)
    except FileExistsError as error:
        raise UnsafeFile(f"{path}: is not a directory, and one is needed there") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror}") from error
    return path


def cache(*parts: str) -> Path:
    """A folder of the user's cache, made for this user alone if it is not there: $ISOFLOP_CACHE,
    else `isoflop` in $XDG_CACHE_HOME or ~/.cache, or where there can be none (containers), in
    `substitute_home()`. All of it can be regenerated."""
    chosen, base = os.environ.get("ISOFLOP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen or base:
            return _private_folder(Path(chosen or f"{base}/isoflop"), parts)
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody knows the home
            return _private_folder(Path.home() / ".cache" / "isoflop", parts)
        from research.io.home import substitute_home  # which few need

        return _private_folder(substitute_home() / ".cache" / "isoflop", parts)
    except OSError as error:
        raise StorageError(f"{error.filename}: cannot be made: {error.strerror}") from error


def _private_folder(root: Path, parts: Sequence[str]) -> Path:
    for folder in (root, *(root.joinpath(*parts[: i + 1]) for i in range(len(parts)))):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root.joinpath(*parts)


def keep_private() -> None:
    """What this process makes is for its user alone, whatever the umask; ISOFLOP_SHARED=1 leaves
    that to the umask."""
    if os.environ.get("ISOFLOP_SHARED", "").lower() not in ("1", "true", "yes", "on"):
        os.umask(os.umask(0o077) | 0o077)


def sync(path: str | os.PathLike[str]) -> None:
    """Make what a file holds, or the names in a directory, survive a power loss; the latter as far
    as the file system can (CIFS and some of FUSE sync no directories)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def lock(file: IO[Any], wait: bool = True) -> None:
    """Lock an open file for this process alone, until it is closed. Where the file system has no
    locks, a warning says so and it stays unlocked. Raises BlockingIOError if another process has it
    and this one is not to `wait`, StorageError when the disk fails."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise StorageError(f"{file.name}: cannot be locked: {error.strerror}") from error
        _report_no_locks(os.path.dirname(file.name), error.strerror)


@functools.cache
def _report_no_locks(folder: str, reason: str) -> None:
    log.warning("%s: the file system has no locks (%s); continuing without", folder, reason)


def sync_tree(folder: Path) -> None:
    """Make all files below `folder`, and their names, survive a power loss."""
    paths = sorted(folder.rglob("*"), reverse=True)  # what is in a directory before it
    for path in [*paths, folder]:
        sync(path)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Atomic, indented, strict JSON: NaN and infinity are refused rather than written."""
    write_atomic(path, indented(value))


def indented(value: object) -> str:
    """Strict JSON for people: NaN and infinity are refused rather than written."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key given twice: {next(n for n in names if names.count(n) > 1)!r}")
    return out


def _depth(value: object) -> int:
    """Nesting depth of objects and lists."""
    depth, level = 0, [value]
    while level := [x for x in level if isinstance(x, dict | list)]:
        depth += 1
        inner = (x.values() if isinstance(x, dict) else x for x in level)
        level = list(itertools.chain.from_iterable(inner))
    return depth


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_number(text)


def parse(raw: bytes, what: object) -> dict:
    """The JSON object that `raw` is. Raises BadInput, beginning with `what`, for anything else:
    numbers that are not finite, keys that come twice, what nests too deep."""
    hooks: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite}
    try:
        value = json.loads(raw, object_pairs_hook=no_repeats, **hooks)
        if _depth(value) > NESTED:
            raise ValueError(f"nested more than {NESTED} deep")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what}: not a JSON document: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{what}: holds a {type(value).__name__}, expected a JSON object")
    return value


def read_json(path: str | os.PathLike[str], limit: int = 16 << 20, follow: bool = True) -> dict:
    """A JSON object from a file of at most `limit` bytes. Raises BadInput naming the file."""
    try:
        return parse(read(path, limit, follow), path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error


def canonical(value: object) -> bytes:
    """One byte string per JSON value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(*parts: bytes) -> str:
    """SHA-256 of the parts, each preceded by its length, in hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def digest_of(value: Mapping[str, object]) -> str:
    return digest(canonical(value))


def digested(value: Mapping[str, object]) -> dict[str, object]:
    """`value` with the digest of all else in it."""
    rest = {k: v for k, v in value.items() if k != "digest"}
    return rest | {"digest": digest_of(rest)}


def as_digested(value: Mapping[str, object]) -> bool:
    """Whether `value` is as `digested` made it."""
    return dict(value) == digested(value)


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
