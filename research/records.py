"""What a run leaves behind, and the table of runs, derived by reading it.

WORKDIR/runs/<id>/
    config.json      the resolved config; repeats the run
    metrics.jsonl    append-only, one line per record, each with the crc32 of itself
    result.json      only of a run that is done, or has diverged; written whole or not at all
    attempts/<k>.json  why launch k failed
    launch.json      what the first launch knew: the model, sizes and rules, and the devices and
                     mesh, which decide the last bits and are used again on resume
    trunk.json       whose steps, up to which one, this run did not take itself (see trunk.py)
    tokenizer.json   of text that is not read as bytes
    lease/           who holds it; see lease.py
    checkpoints/     see checkpoint.py
WORKDIR/data/<digest>.json   what a report says of the data
WORKDIR/.table.cache         the rows of the table; may be deleted at any time
There is no shared mutable file: many launches may write below one workdir. (The cache is replaced
whole, and a row of it counts only while the run's files are as they were.)
"""

import contextlib
import csv
import errno
import fcntl
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from research import files, lease
from research.errors import BadInput, Damaged, Held, StorageError

log = logging.getLogger(__name__)

SOURCES = ("launch.json", "result.json", "attempts", "lease")  # what a row is made from
ROWS = 3  # counted up when `row` makes another row of the same files
WORTH_KEEPING = 64  # runs read anew, before the table is kept for the next time


class RunDirectory:
    """The directory of one run. One process writes it at a time: enter it to hold it.

    A holder on another host is watched for at most `patience` seconds before it is believed alive.
    """

    writes = True

    def __init__(self, workdir: str | os.PathLike[str], run_id: str, patience: float = 0.0):
        self.workdir = Path(workdir)
        self.path = self.workdir / "runs" / run_id
        self.patience = patience
        self._lock: IO[str] | None = None
        self._lease: lease.Lease | None = None
        self._metrics: io.FileIO | None = None

    def __enter__(self) -> "RunDirectory":
        """Make the directory and hold it. Raises Held if another process does."""
        try:
            self._lock = open(files.make_directory(self.path) / ".lock", "w")
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lease = lease.take(self.path / "lease", self.patience)
            for begun in self.path.glob(".*.tmp"):  # by a process that was killed
                begun.unlink(missing_ok=True)
        except BlockingIOError as error:
            self.__exit__()
            by = lease.holder(self.path / "lease") or "which has just taken it"
            raise Held(f"{self.path}: another process is training this run: {by}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lease:
            self._lease.release()
        for file in (self._metrics, self._lock):
            if file:
                file.close()
        self._metrics = self._lock = self._lease = None

    def check(self) -> None:
        """Raises Held if another process took the run over, which this one must leave alone then.
        Every method that writes calls it."""
        assert self._lease, f"{self.path} is not held"
        self._lease.check_now()

    def once(self, name: str, value: Mapping[str, object]) -> Mapping[str, object]:
        """Write `name` unless it is there, and return what is there."""
        path = self.path / name
        if not path.exists():
            self.check()
            files.write_json(path, value)
        return own(path)

    def once_text(self, name: str, text: str) -> None:
        """Write `name` unless it is there."""
        if not (self.path / name).exists():
            self.check()
            files.write_atomic(self.path / name, text)

    def append(self, **record: object) -> None:
        """Add one line to metrics.jsonl. Raises StorageError when the disk refuses."""
        assert self._lease, f"{self.path} is not held"
        self._lease.check()
        try:
            if self._metrics is None:
                self._metrics = _open_for_append(self.path / "metrics.jsonl")
            _write_whole(self._metrics, line(record))
        except OSError as error:
            raise StorageError(f"{self.path / 'metrics.jsonl'}: {error.strerror}") from error

    def sync(self) -> None:
        """Make what was appended survive a power loss. Raises StorageError."""
        try:
            if self._metrics:
                os.fsync(self._metrics.fileno())
        except OSError as error:
            raise StorageError(f"{self.path / 'metrics.jsonl'}: {error.strerror}") from error

    def finish(self, result: Mapping[str, object]) -> None:
        """Write result.json; from now on the run is done."""
        self.check()
        files.write_json(self.path / "result.json", result)

    def fail(self, reason: str, **details: object) -> None:
        """Note a failed attempt; the run can be launched again."""
        self.check()
        folder = files.make_directory(self.path / "attempts")
        number = 1 + max((int(p.stem) for p in folder.glob("*.json")), default=0)
        files.write_json(folder / f"{number}.json", {"reason": reason, **details})

    @property
    def failures(self) -> int:
        """How many attempts failed."""
        return len(list((self.path / "attempts").glob("*.json")))

    @property
    def result(self) -> dict | None:
        """Raises Damaged if it is there and cannot be read."""
        path = self.path / "result.json"
        return own(path) if path.exists() else None


def own(path: Path) -> dict[str, Any]:
    """A JSON file that a run wrote. Raises Damaged if it is not as it was written."""
    try:
        return files.read_json(path)
    except BadInput as error:
        remedy = {
            "result.json": "launch again, and its last checkpoint is evaluated anew",
            "launch.json": "remove this file to go on with the devices that are here",
        }.get(path.name, "remove this file, or the run's directory to train it anew")
        raise Damaged(f"{error}; {remedy}") from error


class Follower(RunDirectory):
    """The directory of a run that another process of it holds and writes: this one only reads."""

    writes = False

    def __enter__(self) -> "Follower":
        return self

    def check(self) -> None:
        """The holder does."""

    def once(self, name: str, value: Mapping[str, object]) -> Mapping[str, object]:
        return value

    def once_text(self, name: str, text: str) -> None: ...

    def append(self, **record: object) -> None: ...

    def sync(self) -> None: ...

    def finish(self, result: Mapping[str, object]) -> None: ...

    def fail(self, reason: str, **details: object) -> None: ...


def line(record: Mapping[str, object]) -> bytes:
    """A record as one line of JSON that carries its own checksum."""
    body = {**record, "crc": zlib.crc32(files.canonical(record))}
    return json.dumps(body, allow_nan=False).encode() + b"\n"


def _open_for_append(path: Path) -> io.FileIO:
    """Open for appending; end a torn last line first, or the next record would be glued to it."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return open(path, "ab", buffering=0)


def _write_whole(file: io.FileIO, raw: bytes) -> None:
    """Write a line, or, where the disk takes only a part of it, nothing."""
    end = os.fstat(file.fileno()).st_size
    try:
        if file.write(raw) < len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run, each step once: what a later launch did again replaces what it redid,
    also where the line is damaged by which it said so.

    Torn or altered lines are left out with a warning in the log.
    """
    path = Path(run) / "metrics.jsonl"
    out: list[dict[str, Any]] = []
    reached: tuple = ()
    for number, record in enumerate(_records(path), 1):
        if record is None:
            log.warning("%s: line %d is torn or damaged, left out", path, number)
            continue
        # At a step the state is evaluated before it is trained on.
        at = (record["step"], "loss" not in record) if "step" in record else (record["resume"],)
        if at <= reached:
            out = [r for r in out if r["step"] < at[0]]
        reached = at
        if "resume" not in record:
            out.append(record)
    return out


def last_metrics(run: str | os.PathLike[str], size: int = 1 << 14) -> list[dict[str, Any]]:
    """The newest records of a run, from the last `size` bytes: those of its last launch if it has
    begun there. Nothing is said about damage."""
    try:
        with open(Path(run) / "metrics.jsonl", "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            lines = file.read().splitlines()[bool(start) :]
    except FileNotFoundError:
        return []
    out: list[dict[str, Any]] = []
    for record in filter(None, map(_record, lines)):
        out = [] if "resume" in record else [*out, record]
    return out


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        yield from map(_record, file)


def _record(raw: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(raw)
        crc = record.pop("crc")
        return record if crc == zlib.crc32(files.canonical(record)) else None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def write_card(
    workdir: str | os.PathLike[str], digest: str, card: Callable[[], Mapping[str, object]]
) -> None:
    """Describe the data of this workdir, once for each content; `card()` may take seconds."""
    path = Path(workdir) / "data" / f"{digest[:12]}.json"
    if not path.exists():
        files.make_directory(path.parent)
        files.write_json(path, card())


def table(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per run directory, by size, tokens and seed. Status: done, diverged, failed, or
    unfinished; `reason` where there is one.

    `flops` are those of what a run means, `flops_spent` what it cost: without the steps that it has
    from another run, and of one that diverged those up to there. Rows whose files are as they were
    come from WORKDIR/.table.cache, if it is there and whole. Raises BadInput if there is no sweep
    at `workdir`.
    """
    root = Path(workdir) / "runs"
    if not root.is_dir():
        raise BadInput(f"--runs={workdir}: no directory {root}; expected the workdir of a sweep")
    cache = Path(workdir) / ".table.cache"
    known, new, fresh = _cached(cache), {}, 0
    for name in os.listdir(root):
        path = f"{root}{os.sep}{name}"
        if not os.path.exists(f"{path}{os.sep}config.json"):
            continue
        stamps, found = _stamps(path), known.get(name)
        if found is None or found[0] != stamps:
            found, fresh = [stamps, row(Path(path))], fresh + 1
        new[name] = found
    if fresh >= WORTH_KEEPING and fresh > len(new) / 20:
        _keep(cache, new)
    rows = [found[1] for found in new.values()]
    return sorted(rows, key=lambda r: (r.get("params", 0), r.get("tokens", 0), r.get("seed", 0)))


def row(path: Path) -> dict[str, Any]:
    """The row of one run directory, from the files named in SOURCES. A damaged one has failed."""
    try:
        return _row(path)
    except Damaged as error:
        return {"run": path.name, "status": "failed", "reason": f"Damaged: {error}"}


def _row(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"run": path.name, "status": "unfinished", "reason": ""}
    out |= _read(path / "launch.json").get("facts", {})
    out |= _read(path / "result.json")
    if out["status"] == "done" and "flops" in out:  # nothing was shared if it does not say so
        out.setdefault("flops_spent", out["flops"])
    if out["status"] == "unfinished":
        attempts = sorted((path / "attempts").glob("*.json"), key=lambda p: int(p.stem))
        if attempts:
            out |= {"status": "failed", "reason": own(attempts[-1])["reason"]}
        elif (last := lease.holder(path / "lease")) and last.deaths:
            out["reason"] = f"its process died, {last.deaths} times in a row"
    return out


def _read(path: Path) -> dict[str, Any]:
    return own(path) if os.path.exists(path) else {}


def evaluations(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per evaluation of every run, for an analysis of whole training curves: the run's row
    with the loss, tokens, steps and FLOPs of that moment, and "part_of_run", the share of it that
    was over (1 at its end). One of a shared trunk is a row of the run that took those steps alone.
    """
    out = []
    for last in table(workdir):
        for found in read_metrics(Path(workdir) / "runs" / last["run"]):
            if "loss" not in found or not last.get("tokens"):
                continue
            if found["tokens"] <= last.get("shared_tokens", 0):
                continue
            part = found["tokens"] / last["tokens"]
            scaled = {k: v * part for k, v in last.items() if k.startswith("flops") and part < 1
                      and isinstance(v, int | float)}  # fmt: skip
            unique = min(last.get("unique_tokens", found["tokens"]), found["tokens"])
            then = {k: found[k] for k in ("loss", "tokens")} | {"steps": found["step"]}
            then |= {"unique_tokens": unique, "part_of_run": part, "status": "done"}
            if "shared_flops" in last:
                then["flops_spent"] = last["flops"] * part - last["shared_flops"]
            out.append({**last, **scaled, **then})
    return out


def write_table(workdir: str | os.PathLike[str]) -> list[Path]:
    """Write table.parquet and table.csv, one row per run; nested values as JSON text."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in r.items()}
        for r in table(workdir)
    ]
    columns = list(dict.fromkeys(k for r in rows for k in r))
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({c: [r.get(c) for r in rows] for c in columns}), parquet
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[files.cell(r.get(c)) for c in columns] for r in rows])
    paths = [Path(workdir) / "table.parquet", Path(workdir) / "table.csv"]
    files.write_atomic(paths[0], parquet.getvalue())
    files.write_atomic(paths[1], text.getvalue())
    return paths


def _stamps(path: str) -> list[list[int] | None]:
    """Changes when the row does: files are replaced whole, and an attempt is a new name."""
    out: list[list[int] | None] = []
    for name in SOURCES:
        try:
            stat = os.stat(f"{path}{os.sep}{name}")
            out.append([stat.st_size, stat.st_mtime_ns, stat.st_ino])
        except OSError:
            out.append(None)
    return out


def _cached(path: Path) -> dict[str, list]:
    """Run -> [stamps, row], as kept; nothing where the file is missing, damaged or of another
    form."""
    try:
        head, body = path.read_bytes().split(b"\n", 1)
        return json.loads(body) if head == _head(body) else {}
    except (OSError, ValueError):
        return {}


def _keep(path: Path, rows: Mapping[str, list]) -> None:
    body = json.dumps(rows).encode()
    # Whoever may only read a workdir reads it without.
    with contextlib.suppress(StorageError):
        files.write_atomic(path, _head(body) + b"\n" + body)


def _head(body: bytes) -> bytes:
    return f"isoflop rows {ROWS} {zlib.crc32(body)}".encode()
