"""What every executor is given, and how a worker is started and started again."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from research.errors import HUNG, PREEMPTED
from research.io.host import PARENT

IN_A_ROW = 3  # times that workers are started again without progress


@dataclass(frozen=True)
class Job:
    """Copies of one command. `workers` is how many, None as many as the place has room for, and
    each is `processes` processes that are one run (see gang); `progress()` is a value that changes
    when the work goes on; `show()` is called now and then while workers run; `stop()` turns true
    when they are to save and end; `here()` does a worker's work in this process."""

    command: Sequence[str]
    workers: int | None
    logs: Path
    progress: Callable[[], object]
    show: Callable[[], object]
    stop: Callable[[], bool]
    here: Callable[[], int]
    processes: int = 1


@dataclass
class Restarts:
    """Whether a worker that ended is to be started again: it died, hung or was stopped by someone
    else, and there was progress since the last time, or that was not yet IN_A_ROW times so."""

    job: Job
    before: object = None
    used: dict[int, int] = field(default_factory=dict)

    def __call__(self, slot: int, code: int) -> bool:
        if self.job.stop() or not (code < 0 or code in (HUNG, PREEMPTED)):
            return False
        now = self.job.progress()
        if now != self.before:
            self.before, self.used = now, {}
        self.used[slot] = self.used.get(slot, 0) + 1
        return self.used[slot] <= IN_A_ROW


def start(
    command: Sequence[str], log: Path | None, changes: Mapping[str, str], cwd: str | None = None
) -> subprocess.Popen:
    """The command as a child out of reach of the terminal's signals; its output goes to `log`, or
    where this process's goes."""
    with open(log, "ab") if log else contextlib.nullcontext() as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=cwd,
            env={**os.environ, **changes, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
