"""Jobs side by side, in processes of their own where there are cores for them.

Not those of multiprocessing, which import the user's script again: it may have no guard, be a
notebook, or come from standard input.
"""

import collections
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from research.io import host

T = TypeVar("T")
MOST = 3  # processes beside this one


def run_jobs(jobs: Sequence[Callable[[], T]], most: int | None = None) -> list[T]:
    """The results of the jobs, in their order; each job is a call that can be pickled, and so is
    its result. Up to `most` processes (by default as many as there are other cores, at most MOST)
    share them with this one. A job that raises there, or whose process dies, is run again here, so
    that errors are those of a job alone.
    """
    beside = min(MOST, host.cores() - 1) if most is None else most
    left, done = collections.deque(enumerate(jobs)), dict[int, T]()
    with contextlib.ExitStack() as stack:
        threads = []
        for _ in range(min(beside, len(jobs) - 1)):
            worker = _Worker()
            stack.callback(worker.end)
            threads.append(threading.Thread(target=_share, args=(worker, left, done)))
        for thread in threads:
            thread.start()
        while (taken := _take(left)) is not None:
            at, job = taken
            done[at] = job()
        for thread in threads:
            thread.join()
    return [done[at] if at in done else job() for at, job in enumerate(jobs)]


def _share(worker: "_Worker", left: collections.deque, done: dict[int, Any]) -> None:
    """Let the worker do what is left, until it fails."""
    with contextlib.suppress(OSError, EOFError):
        while (taken := _take(left)) is not None:
            at, job = taken
            succeeded, result = worker.run(job)
            if succeeded:
                done[at] = result


def _take(left: collections.deque) -> tuple[int, Callable[[], Any]] | None:
    try:
        return left.popleft()
    except IndexError:
        return None


class _Worker:
    """Another process, which runs one job after the other."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        paths = [path or os.getcwd() for path in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    def run(self, job: Callable[[], T]) -> tuple[bool, T]:
        """Whether the job succeeded, and its result. Raises OSError and EOFError where the process
        ended before that."""
        self.pipe.send(job)
        return self.pipe.recv()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def serve(fileno: int) -> None:
    """The other process. Ctrl-C is left to the first, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(50_000, 20, 50)  # as a command does
    pipe = Connection(fileno)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            try:
                answer = True, job()
            except Exception:
                answer = False, None
            pipe.send(answer)
