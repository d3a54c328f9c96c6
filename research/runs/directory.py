"""What a run leaves behind, and the table of runs, derived by reading it.

WORKDIR/runs/<id>/
    config.json      the resolved config; repeats the run
    metrics.jsonl    see journal.py
    result.json      only of a run that is done, or has diverged; written whole or not at all
    attempts/<k>.json  why launch k failed
    launch.json      what the first launch knew: the model, sizes and rules, and the devices and
                     mesh, which decide the last bits and are used again on resume
    shared_prefix.json  whose steps, up to which one, this run did not take itself
    tokenizer.json   of text that is not read as bytes
    lease/           who holds it; see lease.py
    checkpoints/     see checkpoint.py, also for `saved` and `quarantine/`
WORKDIR/data/<digest>.json   what a report says of the data
WORKDIR/.table.cache         the rows of the table; may be deleted at any time
There is no shared mutable file: many launches may write below one workdir. (The cache is replaced
whole, and a row of it counts only while the run's files are as they were.)
"""

import contextlib
import fcntl
import io
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from research.errors import BadInput, Damaged, StorageError, UnsafeFile
from research.io import files, host
from research.runs import lease, metrics_log
from research.runs.schema import launch_problem, row_problem

log = logging.getLogger(__name__)
WRITTEN = (  # below a workdir, and not only replaced
    *("runs", "sweeps", "data", "figures", "verify", "wandb", "mlflow.db", "mlflow-artifacts"),
)
ENDED = ("done", "diverged")
REMEDY = {
    "result.json": "launch again, and its last checkpoint is evaluated anew",
    "launch.json": "remove this file to go on with the devices that are here (and let a sweep "
    "--retry_failed)",
}
RUN = re.compile(r"\w[\w.-]{0,127}")  # the name of a run's directory
NUMBER = re.compile("[0-9]{1,18}")


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
        return read_run_file(path)

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
        number = 1 + max((int(p.stem) for p in failed_attempts(self.path)), default=0)
        noted = {"reason": host.redacted(reason), **details}
        files.write_json(folder / f"{number}.json", noted)

    @property
    def failures(self) -> int:
        """How many attempts failed."""
        return len(failed_attempts(self.path))

    @property
    def result(self) -> dict | None:
        """That of a run that has ended. One that is not as it was written is none, with a warning:
        the last checkpoint is evaluated again."""
        path = self.path / "result.json"
        try:
            found = read_run_file(path) if path.exists() else None
            if found is None or (found.get("status") in ENDED and not row_problem(found)):
                return found
            log.warning("%s: no result of a run; its last checkpoint is evaluated anew", path)
        except Damaged as error:
            log.warning("%s", error)
        return None


def failed_attempts(path: Path) -> list[Path]:
    """The notes of a run's failed attempts, in their order."""
    found = (path / "attempts").glob("*.json")
    return sorted((p for p in found if NUMBER.fullmatch(p.stem)), key=lambda p: int(p.stem))


def read_launch(run: Path) -> dict[str, Any] | None:
    """launch.json of the run in a directory, None if it has none. Raises Damaged if it is not as it
    was written."""
    path = run / "launch.json"
    if not path.exists():
        return None
    found = read_run_file(path)
    if wrong := launch_problem(found):
        raise Damaged(f"{path}: {wrong}; {REMEDY[path.name]}")
    return found


def read_run_file(path: Path) -> dict[str, Any]:
    """A JSON file that a run wrote. Raises Damaged if it is not as it was written."""
    try:
        return files.read_json(path, follow=False)
    except BadInput as error:
        other = "remove this file, or the run's directory to train it anew"
        raise Damaged(f"{error}; {REMEDY.get(path.name, other)}") from error


class ReadOnlyRunDirectory(RunDirectory):
    """The directory of a run that another process of it holds and writes: this one only reads."""

    writes = False

    def __enter__(self) -> "ReadOnlyRunDirectory":
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


def write_data_card(
    workdir: str | os.PathLike[str], digest: str, card: Callable[[], Mapping[str, object]]
) -> None:
    """Describe the data of this workdir, once for each content; `card()` may take seconds."""
    path = Path(workdir) / "data" / f"{digest[:12]}.json"
    if not path.exists():
        files.make_directory(path.parent)
        files.write_json(path, card())
