"""Standard output and error: in whatever encoding, closed from the start, or no longer read by
anybody (`| head`, a lost terminal). Errors name the secrets of the environment and tell none."""

import io
import os
import sys
from typing import Any, TextIO

from research.io import host


class _Descriptor(io.FileIO):
    """Where it is `needed`, what cannot be written is an error, once; else it is lost."""

    needed = True

    def write(self, data: Any) -> int | None:
        try:
            written = super().write(data)
            return len(data) if written is None and not self.needed else written  # None: it is full
        except OSError:
            if self.needed:
                self.needed = False  # or Python would try again as it ends
                raise
            return len(data)


class _Redacting(io.TextIOWrapper):
    def write(self, text: str) -> int:
        return super().write(host.redact_secrets(text))


def opened(descriptor: int, like: TextIO | None, kind: type = io.TextIOWrapper) -> Any:
    """A stream to an open descriptor, in the encoding of another; what that lacks is escaped."""
    raw, encoding = _Descriptor(descriptor, "w", closefd=False), like.encoding if like else "utf-8"
    if kind is _Redacting:
        raw.needed = False
    return kind(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def prepare() -> None:
    """Make the streams of this process such, unless others are in their place already."""
    while (free := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # or the next file would be what is printed to
    os.close(free)
    if sys.stdout is sys.__stdout__:
        sys.stdout = opened(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = opened(2, sys.stderr, _Redacting)


def outlive_reader() -> None:
    """From now on this process goes on without output that cannot be written."""
    _Descriptor.needed = False
