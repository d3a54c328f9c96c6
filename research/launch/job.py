"""A job: copies of one command, the workers; and how one is started, and started again."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from research.errors import HUNG, PREEMPTED
from research.io.host import PARENT

MAX_RESTARTS = 3  # of a worker, without progress in between


@dataclass(frozen=True)
class Job:
    """Copies of one command, the workers; None of `workers` is as many as there is room for.

    Each is `num_processes` processes that are one run (see process_group) and logs to
    `logs`/worker-<index>.log. `progress_mark()` changes when the work makes progress; `show()` is
    called now and then while workers run; `stop()` turns true when they are to save and end;
    `run_inline()` does a worker's work in this process and returns its exit code.
    """

    command: Sequence[str]
    workers: int | None
    logs: Path
    progress_mark: Callable[[], object]
    show: Callable[[], object]
    stop: Callable[[], bool]
    run_inline: Callable[[], int]
    num_processes: int = 1


@dataclass
class RestartPolicy:
    """Which workers are started again: those that died, hung or were preempted by someone else than
    the launcher, MAX_RESTARTS times each, reset whenever there was progress."""

    job: Job
    last_mark: object = None
    restarts: dict[int, int] = field(default_factory=dict)

    def allows(self, worker: int, code: int) -> bool:
        """Whether the `worker` that ended with `code` is to be started again; counts it."""
        if self.job.stop() or not (code < 0 or code in (HUNG, PREEMPTED)):
            return False
        mark = self.job.progress_mark()
        if mark != self.last_mark:
            self.last_mark, self.restarts = mark, {}
        self.restarts[worker] = self.restarts.get(worker, 0) + 1
        return self.restarts[worker] <= MAX_RESTARTS


def start_process(
    command: Sequence[str], log: Path | None, changes: Mapping[str, str], cwd: str | None = None
) -> subprocess.Popen:
    """Start the command as a child that the terminal's signals do not reach, with `changes` to the
    environment; its output is appended to `log`, or goes where this process's goes."""
    own = {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") if log else contextlib.nullcontext() as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=cwd,
            env={**os.environ, **changes, **own},
            start_new_session=True,
        )
