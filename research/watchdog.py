"""Ends a process that hangs: what takes far longer than it ever did is given up, so that a launcher
can start it again from the last checkpoint.

Entry points enter `watching()`; the loop says what it is `doing`. In a process that has not entered
it (a notebook, a debugger) nothing is watched.
"""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator

from research.errors import HUNG

LEAST, TIMES = 60.0, 10  # seconds; or so many times the median of what is done, if that is more
FIRST = 3600.0  # seconds of what is done for the first time, and perhaps compiles
POLL = 1.0
KEPT = 64  # durations of each kind

_active: "Watchdog | None" = None


class Watchdog:
    """Measures how long each kind of work takes. A process that was stopped (a laptop asleep,
    SIGSTOP) did not hang, so only the time counts in which this one ran too."""

    def __init__(self) -> None:
        self.past: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.kind, self.spent = "", 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def limit(self, kind: str) -> float:
        """Seconds after which work of a kind counts as hung."""
        past = self.past.get(kind)
        return max(LEAST, TIMES * statistics.median(past)) if past else FIRST

    @contextlib.contextmanager
    def doing(self, kind: str) -> Iterator[None]:
        before = self.kind, self.spent
        self.kind, self.spent, began = kind, 0.0, time.monotonic()
        try:
            yield
        finally:
            self.kind, self.spent = before
        self.past[kind].append(time.monotonic() - began)

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self.ended.wait(POLL):
            now = time.monotonic()
            self.spent += min(now - seen, 2 * POLL)
            seen, kind = now, self.kind
            if kind and self.spent > self.limit(kind):
                _bark(kind, self.spent)


def _bark(kind: str, spent: float) -> None:
    print(f"error: no end of a {kind} for {spent:.0f} s; launch again to go on", file=sys.stderr)
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


def doing(kind: str) -> contextlib.AbstractContextManager[None]:
    """The context of one piece of work, of a kind that is done again and again."""
    return _active.doing(kind) if _active else contextlib.nullcontext()
