"""Ends a process that hangs: what takes far longer than it ever did is given up, so that a launcher
can start it again from the last checkpoint.

Entry points enter `watching()`; the loop says what it is `doing`. In a process that has not entered
it (a notebook, a debugger) nothing is watched.
"""

import contextlib
import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from research.errors import HUNG

TIMES = 10  # the median of what was done, if that is more than the least limit
POLL = 1.0
KEPT = 64  # durations of each kind

_active: "Watchdog | None" = None


@dataclass
class _Work:
    """A piece of work, and the seconds for which it was watched: written by the watching thread
    alone."""

    kind: str
    spent: float = 0.0


class Watchdog:
    """Measures how long each kind of work takes. A process that was stopped (a laptop asleep,
    SIGSTOP) did not hang, so only the time counts in which this one ran too."""

    def __init__(self) -> None:
        self.past: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.least = self.first = math.inf
        self.work: _Work | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def limit(self, kind: str) -> float:
        """Seconds after which work of a kind counts as hung."""
        past = self.past.get(kind)
        return max(self.least, TIMES * statistics.median(list(past))) if past else self.first

    @contextlib.contextmanager
    def doing(self, kind: str, began: float | None = None) -> Iterator[None]:
        before, began = self.work, began or time.monotonic()
        self.work = _Work(kind)
        try:
            yield
        finally:
            self.work = before
        self.past[kind].append(time.monotonic() - began)

    def _watch(self) -> None:
        checked = time.monotonic()
        while not self.ended.wait(POLL):
            now, work = time.monotonic(), self.work
            if work:
                work.spent += min(now - checked, 2 * POLL)
                if work.spent > self.limit(work.kind):
                    _exit_hung(work.kind, work.spent)
            checked = now


def _exit_hung(kind: str, spent: float) -> None:
    print(f"error: no end of a {kind} for {spent:.0f} s; launch again to resume", file=sys.stderr)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(HUNG)


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Inside, a hang ends this process with exit code 77 and the stacks of all its threads."""
    global _active
    _active = Watchdog()
    _active.thread.start()
    try:
        yield
    finally:
        _active.ended.set()
        _active = None


def start_run(limits: tuple[float, float]) -> None:
    """Another run begins: what is done for the first time may compile again, and how long the last
    run took says nothing. `limits` are the least seconds after which it hangs, and those for what
    is done for the first time."""
    if _active:
        _active.past.clear()
        _active.least, _active.first = limits


def doing(kind: str, began: float | None = None) -> contextlib.AbstractContextManager[None]:
    """The context of one piece of work, of a kind that is done again and again; it may have begun
    before."""
    return _active.doing(kind, began) if _active else contextlib.nullcontext()
