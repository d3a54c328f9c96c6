"""What a run leaves behind, and the table of runs, derived by reading it.

WORKDIR/runs/<id>/
    config.json      the resolved config; repeats the run
    metrics.jsonl    see journal.py
    result.json      only of a run that is done, or has diverged; written whole or not at all
    attempts/<k>.json  why launch k failed
    launch.json      what the first launch knew: the model, sizes and rules, and the devices and
                     mesh, which decide the last bits and are used again on resume
    trunk.json       whose steps, up to which one, this run did not take itself (see trunk.py)
    tokenizer.json   of text that is not read as bytes
    lease/           who holds it; see lease.py
    checkpoints/     see checkpoint.py, also for `saved` and `quarantine/`
WORKDIR/data/<digest>.json   what a report says of the data
WORKDIR/.table.cache         the rows of the table; may be deleted at any time
There is no shared mutable file: many launches may write below one workdir. (The cache is replaced
whole, and a row of it counts only while the run's files are as they were.)
"""

import contextlib
import csv
import fcntl
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from research.errors import BadInput, Damaged, StorageError, UnsafeFile
from research.io import files, host
from research.runs import lease, metrics_log
from research.runs import schema as rows

log = logging.getLogger(__name__)

SOURCES = ("launch.json", "result.json", "attempts", "lease")  # what a row is made from
ROWS = 4  # counted up when `row` makes another row of the same files
WRITTEN = (  # below a workdir, and not only replaced
    *("runs", "sweeps", "data", "figures", "verify", "wandb", "mlflow.db", "mlflow-artifacts"),
)
LARGEST_CACHE = 1 << 28
ENDED = ("done", "diverged")
REMEDY = {
    "result.json": "launch again, and its last checkpoint is evaluated anew",
    "launch.json": "remove this file to go on with the devices that are here (and let a sweep "
    "--retry_failed)",
}
RUN = re.compile(r"\w[\w.-]{0,127}")  # the name of a run's directory
NUMBER = re.compile("[0-9]{1,18}")
WORTH_KEEPING = 64  # runs read anew, before the table is kept for the next time


def check_workdir(workdir: str | os.PathLike[str]) -> None:
    """Raise UnsafeFile where something below `workdir` that is written into is a link: it may have
    come from elsewhere, with a name in it that leads elsewhere."""
    for name in WRITTEN:
        if (path := Path(workdir) / name).is_symlink():
            raise UnsafeFile(
                f"{path}: is a link, and nothing is written through one; make the workdir a link"
            )


class RunDirectory:
    """The directory of one run. One process writes it at a time: enter it to hold it.

    A holder on another host is watched for at most `patience` seconds before it is believed alive.
    """

    writes = True

    def __init__(self, workdir: str | os.PathLike[str], run_id: str, patience: float = 0.0):
        if not RUN.fullmatch(run_id):
            raise UnsafeFile(f"{workdir}: {run_id!r:.50} is no name of a run, which is one word")
        self.workdir = Path(workdir)
        self.path = self.workdir / "runs" / run_id
        self.patience = patience
        self._lock: IO[str] | None = None
        self._lease: lease.Lease | None = None
        self._metrics: io.FileIO | None = None

    def __enter__(self) -> "RunDirectory":
        """Make the directory and hold it. Raises Held if another process does, UnsafeFile where
        writing into it would write elsewhere."""
        try:
            check_workdir(self.workdir)
            files.check_plain(files.make_directory(self.path))
            self._lock = open(self.path / ".lock", "w")
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
            raise lease.held(self.path, by) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def check_free(self) -> None:
        """Raise Held if a process of this host is known to hold it; who enters asks again."""
        by = None
        with contextlib.suppress(OSError, Damaged):
            by = lease.holder(self.path / "lease")
        if by and by.here and by.alive:
            raise lease.held(self.path, by)

    def __exit__(self, *_: object) -> None:
        try:
            if self._lease:
                self._lease.release()
        finally:
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
                self._metrics = metrics_log.open_for_append(self.path / "metrics.jsonl")
            metrics_log.write_whole(self._metrics, metrics_log.line(record))
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
        number = 1 + max((int(p.stem) for p in _attempts(self.path)), default=0)
        noted = {"reason": host.redacted(reason), **details}
        files.write_json(folder / f"{number}.json", noted)

    @property
    def failures(self) -> int:
        """How many attempts failed."""
        return len(_attempts(self.path))

    @property
    def result(self) -> dict | None:
        """That of a run that has ended. One that is not as it was written is none, with a warning:
        the last checkpoint is evaluated again."""
        path = self.path / "result.json"
        try:
            found = own(path) if path.exists() else None
            if found is None or (found.get("status") in ENDED and not rows.problem(found)):
                return found
            log.warning("%s: no result of a run; its last checkpoint is evaluated anew", path)
        except Damaged as error:
            log.warning("%s", error)
        return None


def _attempts(path: Path) -> list[Path]:
    """The notes of a run's failed attempts, in their order."""
    found = (path / "attempts").glob("*.json")
    return sorted((p for p in found if NUMBER.fullmatch(p.stem)), key=lambda p: int(p.stem))


def launch(run: Path) -> dict[str, Any] | None:
    """launch.json of the run in a directory, None if it has none. Raises Damaged if it is not as it
    was written."""
    path = run / "launch.json"
    if not path.exists():
        return None
    found = own(path)
    if wrong := rows.launch_problem(found):
        raise Damaged(f"{path}: {wrong}; {REMEDY[path.name]}")
    return found


def own(path: Path) -> dict[str, Any]:
    """A JSON file that a run wrote. Raises Damaged if it is not as it was written."""
    try:
        return files.read_json(path, follow=False)
    except BadInput as error:
        other = "remove this file, or the run's directory to train it anew"
        raise Damaged(f"{error}; {REMEDY.get(path.name, other)}") from error


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
    every = [found[1] for found in new.values()]
    return sorted(every, key=lambda r: [r.get(k) or 0 for k in ("params", "tokens", "seed")])


def row(path: Path) -> dict[str, Any]:
    """The row of one run directory, from the files named in SOURCES. A damaged one has failed."""
    try:
        return _row(path)
    except Damaged as error:
        return {"run": path.name, "status": "failed", "reason": f"Damaged: {error}"}


def _row(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"run": path.name, "status": "unfinished", "reason": ""}
    facts = _read(path / "launch.json").get("facts", {})
    out |= facts if isinstance(facts, dict) else {}
    out |= _read(path / "result.json")
    out["run"] = path.name
    if wrong := rows.problem(out):
        raise Damaged(f"{path}: launch.json or result.json: {wrong}")
    if out["status"] == "done" and "flops" in out:  # nothing was shared if it does not say so
        out.setdefault("flops_spent", out["flops"])
    if out["status"] == "unfinished":
        if attempts := _attempts(path):
            out |= {"status": "failed", "reason": str(own(attempts[-1]).get("reason"))}
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
        for found in metrics_log.read(Path(workdir) / "runs" / last["run"]):
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

    every = [
        {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in r.items()}
        for r in table(workdir)
    ]
    columns = list(dict.fromkeys(k for r in every for k in r))
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({c: [r.get(c) for r in every] for c in columns}), parquet
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(files.cell, columns))
    writer.writerows([[files.cell(r.get(c)) for c in columns] for r in every])
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
        head, body = files.read(path, LARGEST_CACHE, follow=False).split(b"\n", 1)
        known = json.loads(body) if head == _head(body) else {}
        known = {name: [stamps, dict(row)] for name, (stamps, row) in known.items()}
        return {} if any(rows.problem(row) for _, row in known.values()) else known
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, UnsafeFile):
        return {}


def _keep(path: Path, found: Mapping[str, list]) -> None:
    body = json.dumps(found).encode()
    # Whoever may only read a workdir reads it without.
    with contextlib.suppress(StorageError):
        files.write_atomic(path, _head(body) + b"\n" + body)


def _head(body: bytes) -> bytes:
    return f"isoflop rows {ROWS} {zlib.crc32(body)}".encode()
