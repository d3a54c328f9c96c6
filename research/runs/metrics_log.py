"""metrics.jsonl: append-only, one line of JSON per record, each with the crc32 of itself.

A record is of a step, or says at which step a launch resumed. A torn or altered line is detected
and costs only itself.
"""

import contextlib
import errno
import io
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import UnsafeFile
from research.io import files

log = logging.getLogger(__name__)

LONGEST_LINE = 1 << 24  # bytes


def encode_record(record: Mapping[str, object]) -> bytes:
    """A record as one line of JSON that carries its own checksum."""
    body = {**record, "crc": zlib.crc32(files.canonical(record))}
    return json.dumps(body, allow_nan=False).encode() + b"\n"


def open_for_append(path: Path) -> io.FileIO:
    """Open for appending; a torn last line is ended first, so that the next record is not joined to
    it."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    if not path.exists():
        path.touch()
        files.sync(path.parent)
    return open(path, "ab", buffering=0)


def append_line(file: io.FileIO, raw: bytes) -> None:
    """Write a line; if the disk takes only a part of it, nothing stays."""
    end = os.fstat(file.fileno()).st_size
    try:
        if file.write(raw) < len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise


def read_records(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run, each step once: steps that a later launch repeated replace the earlier
    ones, also if the line that says where it resumed is damaged.

    Torn or altered lines are skipped with a warning.
    """
    path = Path(run) / "metrics.jsonl"
    out: list[dict[str, Any]] = []
    reached: tuple = ()
    for number, record in enumerate(_records(path), 1):
        if record is None:
            log.warning("%s: line %d is torn or damaged, skipped", path, number)
            continue
        # At a step the state is evaluated before it is trained on.
        at = (record["step"], "loss" not in record) if "step" in record else (record["resume"],)
        if at <= reached:
            out = [r for r in out if r["step"] < at[0]]
        reached = at
        if "resume" not in record:
            out.append(record)
    return out


def read_tail(run: str | os.PathLike[str], size: int = 1 << 14) -> list[dict[str, Any]]:
    """The latest records of a run, from the last `size` bytes; only those of its last launch if it
    began within them. Damaged lines are skipped silently."""
    out: list[dict[str, Any]] = []
    for record in _last_records(run, size)[0]:
        out = [] if "resume" in record else [*out, record]
    return out


def read_seconds(run: str | os.PathLike[str]) -> float:
    """The seconds of the latest record that has them, 0 if none has. They only grow, so the file is
    read from its end, as far as it takes."""
    size, whole = 1 << 14, False
    while not whole:
        records, whole = _last_records(run, size)
        if seconds := [record["seconds"] for record in records if "seconds" in record]:
            return max(seconds)
        size *= 8
    return 0.0


def _last_records(run: str | os.PathLike[str], size: int) -> tuple[list[dict[str, Any]], bool]:
    """The intact records in the last `size` bytes, and whether that is all of the file."""
    try:
        with files.open_regular_file(Path(run) / "metrics.jsonl", follow=False) as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            lines = file.read().splitlines()[bool(start) :]
    except (FileNotFoundError, UnsafeFile):
        return [], True
    return [record for record in map(_record, lines) if record], start == 0


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    if not path.exists():
        return
    with files.open_regular_file(path, follow=False) as file:
        while raw := file.readline(LONGEST_LINE):
            yield _record(raw)


def _record(raw: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(raw)
        crc = record.pop("crc")
        at = record.get("step", record.get("resume"))
        numbers = [record.get(k, 0.0) for k in ("tokens", "seconds", "loss", "train_loss")]
        known = isinstance(at, int) and all(isinstance(x, int | float) for x in numbers)
        return record if known and crc == zlib.crc32(files.canonical(record)) else None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
