"""Signals that ask a process to save and stop, and a limit of time that does."""

import argparse
import contextlib
import math
import os
import signal
import time

from research.errors import HUNG, PREEMPTED, BadInput, Preempted
from research.io import terminal

# Of schedulers, a terminal that is lost, limits of time; `timeout -s` may send any of them.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM")
ECHO = 2.0  # seconds within which a repeated signal counts as the same one


def add_flag(parser: argparse.ArgumentParser) -> None:
    """The flag of the limit, which is the time at which it is over."""
    help_ = "save and exit with code 75 after M minutes, compilation included"
    how = {"type": _from_now, "default": math.inf, "dest": "end", "metavar": "M"}
    parser.add_argument("--max_minutes", help=help_, **how)


def _from_now(minutes: str) -> float:
    if not float(minutes) > 0:
        raise BadInput(f"--max_minutes={minutes}: expected a number above 0")
    return time.monotonic() + 60 * float(minutes)


class StopSignal:
    """Calling it returns whether one of the signals NAMES was received, or the time `end` is over.
    Ctrl-C after a signal ends the process: immediately, or if `orderly` by KeyboardInterrupt, so
    that contexts are closed. So does any of the signals ECHO seconds or more after the first;
    within ECHO seconds it counts as the same one, because a scheduler signals every process, and
    those signal their children; so does SIGXCPU at any time, which is repeated. Output that nobody
    reads is done without.

    As a context it turns Preempted into KeyboardInterrupt where Ctrl-C was the cause.
    """

    def __init__(self, orderly: bool = False, end: float = math.inf):
        self.number, self.orderly, self.came, self.end = 0, orderly, 0.0, end
        terminal.outlive_reader()
        for number in (signal.Signals[name] for name in NAMES):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # by nohup
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        late = time.monotonic() - self.came > ECHO and number != signal.SIGXCPU
        if self.number and (number == signal.SIGINT or late):
            if self.orderly:
                raise KeyboardInterrupt
            if number == signal.SIGINT:
                os._exit(128 + number)
            signal.signal(number, signal.SIG_DFL)  # so that a launcher sees by what it ended
            os.kill(os.getpid(), number)
        if not self.number:
            self.number, self.came = number, time.monotonic()
            if number == signal.SIGINT:  # by what a handler of signals may call at any moment
                with contextlib.suppress(OSError):
                    os.write(
                        2, b"\nsaving after this step, then stopping; Ctrl-C again ends at once\n"
                    )

    def __call__(self) -> bool:
        return self.number != 0 or time.monotonic() > self.end

    def passed(self, code: int) -> int:
        """`code`, the exit code of processes that this one asked to stop. Raises KeyboardInterrupt
        if they stopped because of Ctrl-C."""
        if code in (PREEMPTED, HUNG) and self.number == signal.SIGINT:  # HUNG: before they could
            raise KeyboardInterrupt
        return code

    def __enter__(self) -> "StopSignal":
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is Preempted and self.number == signal.SIGINT:
            raise KeyboardInterrupt from None
