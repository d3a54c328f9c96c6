"""The directory of a run: what is in it, who may write it, and how it is written.

WORKDIR/runs/<id>/
    config.json      the resolved config; reproduces the run
    metrics.jsonl    see metrics_log.py
    result.json      only once a run is done or has diverged; written atomically
    attempts/<k>.json  why launch k failed
    launch.json      what the first launch knew: the model, sizes and rules, the code and settings,
                     and the devices and mesh, which decide the last bits and are used again
    continued.json   see made_by.py
    best.json        see best.py
    shared_prefix.json  the run that trained the first steps, and how many
    tokenizer.json   of text that is not read as bytes
    lease/           who holds it; see lease.py
    checkpoints/     see checkpoint.py, also for `saved` and `quarantine/`
WORKDIR/code/                which files the library had, see io/source.py
WORKDIR/data/<digest>.json   what a report says of the data
WORKDIR/.table.cache         the rows of the table; may be deleted at any time
There is no shared mutable file: many launches may write below one workdir. (The cache is replaced
atomically, and its rows are used only for runs whose files have not changed.)
"""

import contextlib
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

log = logging.getLogger(__name__)
WRITTEN_BELOW = (  # a workdir, not merely replaced
    *("runs", "sweeps", "code", "data", "figures", "verify"),
    *("wandb", "mlflow.db", "mlflow-artifacts"),
)
CONTINUED = "continued.json"
ENDED = ("done", "diverged")
REMEDY = {
    "result.json": "launch again, and its last checkpoint is evaluated again",
    "launch.json": "remove this file to continue with the devices that are here (and let a sweep "
    "--retry_failed)",
}
RUN = re.compile(r"\w[\w.-]{0,127}")  # the name of a run's directory
NUMBER = re.compile("[0-9]{1,18}")


def check_workdir(workdir: str | os.PathLike[str]) -> None:
    """Raise UnsafeFile if something below `workdir` that is written into is a link: a workdir from
    elsewhere could make this process write outside it."""
    for name in WRITTEN_BELOW:
        if (path := Path(workdir) / name).is_symlink():
            raise UnsafeFile(
                f"{path}: is a link, and nothing is written through one; make the workdir a link"
            )


class RunDirectory:
    """The directory of one run. One process writes it at a time: enter it to hold it.

    A holder on another host is watched for at most `patience` seconds before it is believed alive.
    """

    writes = True
    accept_changes = False  # whether other code may continue the run (see made_by)
    labels: Mapping[str, str] = {}  # the tag and the note of this launch

    def __init__(self, workdir: str | os.PathLike[str], run_id: str, patience: float = 0.0):
        if not RUN.fullmatch(run_id):
            raise UnsafeFile(
                f"{workdir}: {run_id!r:.50} is not the name of a run, which is one word"
            )
        self.workdir = Path(workdir)
        self.path = self.workdir / "runs" / run_id
        self.patience = patience
        self._lock: IO[str] | None = None
        self._lease: lease.Lease | None = None
        self._metrics: io.FileIO | None = None

    def __enter__(self) -> "RunDirectory":
        """Create the directory and hold it. Raises Held if another process holds it, UnsafeFile if
        writing into it would write elsewhere."""
        try:
            check_workdir(self.workdir)
            files.check_plain(files.make_directory(self.path))
            self._lock = open(self.path / ".lock", "w")
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        try:
            files.lock(self._lock, wait=False)  # where there are none, the lease decides alone
            self._lease = lease.acquire(self.path / "lease", self.patience)
            for unfinished in self.path.glob(".*.tmp"):  # by a process that was killed
                unfinished.unlink(missing_ok=True)
        except BlockingIOError as error:
            self.__exit__()
            by = lease.read_holder(self.path / "lease") or "which has just taken it"
            raise lease.held_error(self.path, by) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def beside_others(self) -> bool:
        """Whether it is not there, and other runs of the workdir are."""
        there = [path.name for path in self.path.parent.glob("*")]
        return bool(there) and self.path.name not in there

    def check_not_held(self) -> None:
        """Raise Held if a process of this host is known to hold it; entering checks again."""
        holder = None
        with contextlib.suppress(OSError, Damaged):
            holder = lease.read_holder(self.path / "lease")
        if holder and holder.on_this_host and holder.alive:
            raise lease.held_error(self.path, holder)

    def __exit__(self, *_: object) -> None:
        try:
            if self._lease:
                self._lease.release()
        finally:
            for file in (self._metrics, self._lock):
                if file:
                    file.close()
            self._metrics = self._lock = self._lease = None

    def check_lease(self) -> None:
        """Raise Held if another process has taken the run over; this one must then leave it alone.
        Every method that writes calls it."""
        assert self._lease, f"{self.path} is not held"
        self._lease.check_now()

    def write(self, name: str, value: Mapping[str, object]) -> None:
        """Write `name`, in the place of what is there."""
        self.check_lease()
        files.write_json(self.path / name, value)

    def write_once(self, name: str, value: Mapping[str, object]) -> Mapping[str, object]:
        """Write `name` unless it exists, and return its content."""
        if not (self.path / name).exists():
            self.write(name, value)
        return read_run_file(self.path / name)

    def write_text_once(self, name: str, text: str) -> None:
        """Write `name` unless it exists."""
        if not (self.path / name).exists():
            self.check_lease()
            files.write_atomic(self.path / name, text)

    def append(self, **record: object) -> None:
        """Add one line to metrics.jsonl. Raises StorageError when the disk refuses."""
        assert self._lease, f"{self.path} is not held"
        self._lease.check()
        try:
            if self._metrics is None:
                self._metrics = metrics_log.open_for_append(self.path / "metrics.jsonl")
            metrics_log.append_line(self._metrics, metrics_log.encode_record(record))
        except OSError as error:
            raise StorageError(f"{self.path / 'metrics.jsonl'}: {error.strerror}") from error

    def sync(self) -> None:
        """Make appended records survive a power loss. Raises StorageError."""
        try:
            if self._metrics:
                os.fsync(self._metrics.fileno())
        except OSError as error:
            raise StorageError(f"{self.path / 'metrics.jsonl'}: {error.strerror}") from error

    def write_result(self, result: Mapping[str, object]) -> None:
        """Write result.json; from now on the run has ended."""
        self.write("result.json", result)

    def record_failure(self, reason: str, **details: object) -> None:
        """Record a failed attempt; the run can be launched again."""
        self.check_lease()
        folder = files.make_directory(self.path / "attempts")
        number = 1 + max((int(p.stem) for p in failed_attempts(self.path)), default=0)
        attempt = {"reason": host.redact_secrets(reason), **details}
        files.write_json(folder / f"{number}.json", attempt)

    @property
    def failures(self) -> int:
        """The number of failed attempts."""
        return len(failed_attempts(self.path))

    @property
    def result(self) -> dict | None:
        """The result of a run that has ended, else None. A damaged one is None, with a warning: the
        last checkpoint is then evaluated again."""
        path = self.path / "result.json"
        try:
            if not path.exists():
                return None
            from research.runs.row_checks import row_problem  # which a new run does not need

            result = read_run_file(path)
            if result.get("status") in ENDED and not row_problem(result):
                return result
            log.warning("%s: not the result of a run; its last checkpoint is evaluated again", path)
        except Damaged as error:
            log.warning("%s", error)
        return None


def failed_attempts(path: Path) -> list[Path]:
    """The records of a run's failed attempts, in order."""
    records = (path / "attempts").glob("*.json")
    return sorted((p for p in records if NUMBER.fullmatch(p.stem)), key=lambda p: int(p.stem))


def read_launch(run: Path) -> dict[str, Any] | None:
    """launch.json of the run in a directory, None if there is none. Raises Damaged if it is not as
    it was written."""
    path = run / "launch.json"
    if not path.exists():
        return None
    from research.runs.row_checks import launch_problem  # as above

    launch = read_run_file(path)
    if problem := launch_problem(launch):
        raise Damaged(f"{path}: {problem}; {REMEDY[path.name]}")
    return launch


def read_run_file(path: Path) -> dict[str, Any]:
    """A JSON file that a run wrote. Raises Damaged if it is not as it was written."""
    try:
        return files.read_json(path, follow=False)
    except BadInput as error:
        default = "remove this file, or the run's directory to train it anew"
        raise Damaged(f"{error}; {REMEDY.get(path.name, default)}") from error


class ReadOnlyRunDirectory(RunDirectory):
    """The directory of a run of several processes, in those that do not write: process 0 holds and
    writes it."""

    writes = False

    def __enter__(self) -> "ReadOnlyRunDirectory":
        return self

    def check_lease(self) -> None:
        """Process 0 does."""

    def write(self, name: str, value: Mapping[str, object]) -> None: ...

    def write_once(self, name: str, value: Mapping[str, object]) -> Mapping[str, object]:
        return value

    def write_text_once(self, name: str, text: str) -> None: ...

    def append(self, **record: object) -> None: ...

    def sync(self) -> None: ...

    def record_failure(self, reason: str, **details: object) -> None: ...


def write_data_card(
    workdir: str | os.PathLike[str], digest: str, card: Callable[[], Mapping[str, object]]
) -> None:
    """Describe the data of this workdir, once for each digest; `card()` may take seconds."""
    path = Path(workdir) / "data" / f"{digest[:12]}.json"
    if not path.exists():
        files.make_directory(path.parent)
        files.write_json(path, card())
