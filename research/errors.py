"""Typed errors. Each carries the exit code that a launcher may act on without reading logs."""

import unicodedata
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
DONE, UNFINISHED, BAD_INPUT, IO_ERROR, PREEMPTED, DIVERGED, HUNG = 0, 1, 2, 74, 75, 76, 77


def first_line(error: BaseException) -> str:
    """What an error of some library says, as one line for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: object, keep: str = "") -> str:
    """Untrusted text with control characters, newlines and bidirectional overrides replaced by
    spaces, except for those in `keep`."""
    return "".join(" " if _is_control(c) and c not in keep else c for c in str(text))


def _is_control(character: str) -> bool:
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


class IsoflopError(Exception):
    """An error that is reported as a message, never as a traceback."""

    exit_code = UNFINISHED


class BadInput(IsoflopError):
    """What the user gave cannot be run: a config, a flag, a file. Lists every problem found."""

    exit_code = BAD_INPUT

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class UnsafeFile(BadInput):
    """A file that is not only data: it is a link, a pipe or a device, leads out of its folder, or
    would take far more memory than it has bytes."""


class ErrorCollector:
    """Calls functions and collects their errors, so that all that do not depend on each other are
    reported together: `value = collect(f, x)` is None where f raised BadInput, and
    `collect.raise_errors()` raises BadInput with the problems of all."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, function: Callable[..., T], *args: Any) -> T | None:
        try:
            return function(*args)
        except BadInput as error:
            self.problems += error.problems
            return None

    def raise_errors(self) -> None:
        if self.problems:
            raise BadInput(*self.problems)


class StorageError(IsoflopError):
    """The disk failed."""

    exit_code = IO_ERROR


class Held(StorageError):
    """Another process is training this run."""


class Damaged(IsoflopError):
    """The files of a run are not as they were written. Other runs are not concerned."""

    exit_code = IO_ERROR


class Preempted(IsoflopError):
    """Asked to stop; the state is saved and the run can be launched again."""

    exit_code = PREEMPTED


class Diverged(IsoflopError):
    """The loss is no longer finite."""

    exit_code = DIVERGED


class Lost(IsoflopError):
    """Of the processes of one run another is gone, or does not answer; the run can be launched
    again."""

    exit_code = HUNG
