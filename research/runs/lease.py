"""Who holds a run. Each taking of it is a numbered file with a heartbeat; the highest number holds.

lease/<n>.json  {"token", "host", "boot", "pid", "born", "beat", "deaths", "released"}

A file lock (see records) keeps the processes of one host apart and falls the moment its holder
dies, but on many file systems other hosts do not see it. Between hosts these files decide. A number
is made by one exclusive link, so of several takers exactly one wins; and no number comes twice, so
a holder that was thought dead and comes back finds a higher one and writes nothing more. What is
exclusive cannot be a rename of one file: the loser of a race would move the winner's lease away.

A lease is stale at once if its process ran on this host and is gone, and elsewhere when its beat
has not changed for SILENCE seconds of the observer's own clock. No two clocks are compared.
"""

import contextlib
import functools
import json
import logging
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import Damaged, Held, StorageError, UnsafeFile
from research.io import files

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between heartbeats
SILENCE = 60.0  # seconds without one after which a holder on another host counts as dead
TRUST = 1.0  # seconds for which a look at the files is believed; far below SILENCE
POLL = 0.5  # seconds between looks at a holder that is waited for
NAME = re.compile(r"([1-9][0-9]{0,17})\.json")
LARGEST = 1 << 16  # bytes of a lease

# What this process saw last of each lease, and when it first looked so.
_seen: dict[Path, tuple[bytes, float]] = {}


def clock() -> float:
    """Seconds that never jump."""
    return time.monotonic()


@dataclass(frozen=True)
class Holder:
    """The last taker of a run. `silent` is for how long this process saw no new beat of it;
    `deaths` counts the takers in a row that died without a word."""

    number: int
    content: Mapping[str, Any]
    silent: float

    @property
    def deaths(self) -> int:
        """With this one, if it is dead; 0 once one has let go of the run."""
        if self.content.get("released"):
            return 0
        deaths = self.content.get("deaths", 0)
        return (deaths if isinstance(deaths, int) else 0) + (not self.alive)

    @property
    def here(self) -> bool:
        """Whether it is a process whose life this one can see."""
        return all(self.content.get(k) == v for k, v in _place().items())

    @property
    def alive(self) -> bool:
        if self.content.get("released"):
            return False
        if self.here:
            pid = self.content.get("pid")
            return isinstance(pid, int) and _born(pid) == self.content.get("born")
        return self.silent < SILENCE

    def __str__(self) -> str:
        host, pid = self.content.get("host", "an unknown host"), self.content.get("pid", "?")
        return f"process {pid} on {host}, last new heartbeat seen {self.silent:.0f} s ago"


def holder(folder: Path) -> Holder | None:
    """The last taker of the run whose leases are in `folder`; None if there never was one. Raises
    Damaged where it is no file."""
    numbers = _numbers(folder)
    if not numbers:
        return None
    path = folder / f"{max(numbers)}.json"
    try:
        raw = files.read(path, LARGEST, follow=False)
    except FileNotFoundError:  # a still higher one was made, and this one cleared away
        return holder(folder)
    except UnsafeFile as error:
        raise Damaged(str(error)) from error
    before = _seen.get(path)
    if before is None or before[0] != raw:
        before = _seen[path] = (raw, clock())
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        content = None
    known = content if isinstance(content, dict) else {}
    return Holder(max(numbers), known, clock() - before[1])


class Lease:
    """A run that this process holds; made by `take`."""

    def __init__(self, folder: Path, number: int, deaths: int):
        self.folder, self.number = folder, number
        self.path = folder / f"{number}.json"
        me = {"pid": os.getpid(), "born": _born(os.getpid())}
        self.content = {"token": secrets.token_hex(8), **_place(), **me, "deaths": deaths}
        self.content |= {"beat": 0, "released": False}
        self._seen_at = _awake()
        self._lost = ""
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"lease {folder}", daemon=True)

    def check(self) -> None:
        """Raises Held if another process took the run over, StorageError if that cannot be seen."""
        if self._lost:
            raise Held(self._lost)
        if _awake() - self._seen_at > TRUST:
            self.check_now()

    def check_now(self) -> None:
        """The same, from the files; for what cannot be taken back."""
        if self._lost:
            raise Held(self._lost)
        try:
            now = _awake()
            if max(_numbers(self.folder), default=0) == self.number and self._mine():
                self._seen_at = now
                return
            new = holder(self.folder) if self.folder.is_dir() else None
        except OSError as error:
            raise StorageError(f"{self.folder}: {error.strerror}") from error
        except Damaged as error:
            raise StorageError(str(error)) from error
        self._lost = f"{self.folder.parent}: taken over by {new}" if new else f"{self.path}: gone"
        raise Held(self._lost)

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._heart.join()
        with contextlib.suppress(Held, StorageError, OSError):
            self.check_now()
            self._write(released=True)

    def _mine(self) -> bool:
        try:
            return json.loads(self.path.read_bytes()).get("token") == self.content["token"]
        except (FileNotFoundError, ValueError):
            return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self.check_now()
                self._write(beat=self.content["beat"] + 1)
            except Held:
                return
            except (StorageError, OSError):
                continue  # a disk that refuses is met by whoever writes; the next beat may pass

    def _write(self, **changes: object) -> None:
        self.content |= changes
        temporary = self._temporary()
        os.replace(temporary, self.path)

    def _temporary(self) -> Path:
        path = self.folder / f".{self.content['token']}"
        path.write_text(json.dumps(self.content))
        return path

    def _made(self) -> bool:
        """Make the numbered file, unless another process was faster."""
        temporary = self._temporary()
        try:
            os.link(temporary, self.path)
            won = True
        except OSError:
            # Another made it; or this link was made and the answer of the server lost on its way;
            # or the file system knows no links.
            won = temporary.stat().st_nlink > 1 or (not self.path.exists() and self._opened())
        temporary.unlink()
        if won and max(_numbers(self.folder)) > self.number:
            self.path.unlink()  # while this one looked, its number was made, surpassed and cleared
            won = False
        if won:
            self._clear()
            self._heart.start()
        return won

    def _opened(self) -> bool:
        try:
            with open(self.path, "x") as file:
                file.write(json.dumps(self.content))
        except FileExistsError:
            return False
        return True

    def _clear(self) -> None:
        for number in _numbers(self.folder):
            if number < self.number:
                old = self.folder / f"{number}.json"
                _seen.pop(old, None)
                old.unlink(missing_ok=True)


def held(run: Path, by: object) -> Held:
    """The error that names who holds a run."""
    return Held(f"{run}: another process is training this run: {by}")


def take(folder: Path, patience: float = 0.0) -> Lease:
    """Take the run whose leases are in `folder`. Raises Held, naming the holder, if one is alive.

    A holder on another host is watched for at most `patience` seconds, in which it may prove dead.
    """
    until, watched = clock() + patience, False
    try:
        files.make_directory(folder)
        while True:
            before = holder(folder)
            if before is None or not before.alive:
                number, deaths = (before.number + 1, before.deaths) if before else (1, 0)
                lease = Lease(folder, number, deaths)
                if lease._made():
                    return lease
            elif before.here or clock() >= until:
                raise held(folder.parent, before)
            else:
                if not watched:
                    log.info(
                        "%s: waiting to see whether its holder lives: %s", folder.parent, before
                    )
                watched = True
                time.sleep(POLL)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(found[1]) for name in os.listdir(folder) if (found := NAME.fullmatch(name))]
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise Damaged(f"{folder}: is no directory") from error


def _awake() -> float:
    """Seconds, those that this machine slept included: what was seen before is no longer known."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@functools.cache
def _place() -> dict[str, str]:
    """Where a process id means something: the host as it runs since its start, and in it the
    container. One name alone may stand for several machines that share a disk."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        boot += f"/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        boot = ""
    return {"host": platform.node(), "boot": boot}


def _born(pid: int) -> str | None:
    """What tells a process from later ones of its number; None if it is dead."""
    try:
        # The name, in parentheses, may hold anything; state and start time come after it.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
