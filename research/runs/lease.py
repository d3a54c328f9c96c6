"""Who holds a run. Each acquisition is a numbered file with a heartbeat; the highest number holds.

lease/<n>.json  {"token", "host", "boot", "pid", "born", "folder", "beat", "deaths", "released"}

A file lock (see directory.py) excludes the processes of one host and is released the moment its
holder dies, but on many file systems other hosts do not see it. Between hosts these files decide. A
number is created by one exclusive link, so of several contenders exactly one wins; and no number is
used twice, so a holder that was believed dead and comes back finds a higher one and writes nothing
more. Renaming one file would not do: the loser of a race would move the winner's lease away.

A lease is stale at once if its process ran on this host and is gone; on another host, when its beat
has not changed for TIMEOUT seconds of the observer's own clock. No two clocks are compared.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research.errors import Damaged, Held, StorageError, UnsafeFile
from research.io import files

log = logging.getLogger(__name__)

HEARTBEAT = 5.0  # seconds between heartbeats
TIMEOUT = 60.0  # seconds without one after which a holder on another host counts as dead
RECHECK = 1.0  # seconds after which `check` reads the files again; far below TIMEOUT
POLL = 0.5  # seconds between reads while waiting for a holder
NAME = re.compile(r"([1-9][0-9]{0,17})\.json")
LARGEST_LEASE = 1 << 16  # bytes of a lease

# The last content of each lease that this process read, and when it first read it.
_observed: dict[Path, tuple[bytes, float]] = {}


def clock() -> float:
    """Seconds that never jump."""
    return time.monotonic()


@dataclass(frozen=True)
class Holder:
    """The last holder of a run. `silent` is for how many seconds this process has seen no new beat
    of it."""

    number: int
    content: Mapping[str, Any]
    silent: float
    copied: bool = False  # it holds another folder, of which this one is a copy

    @property
    def deaths(self) -> int:
        """How many holders in a row died, this one included; 0 once one has released the run."""
        if self.content.get("released"):
            return 0
        deaths = self.content.get("deaths", 0)
        return (deaths if isinstance(deaths, int) else 0) + (not self.alive and not self.copied)

    @property
    def on_this_host(self) -> bool:
        """Whether it runs on this host, so that this process can see whether it is alive."""
        return all(self.content.get(k) == v for k, v in _host_identity().items())

    @property
    def alive(self) -> bool:
        if self.content.get("released") or self.copied:
            return False
        if self.on_this_host:
            pid = self.content.get("pid")
            return isinstance(pid, int) and _start_time(pid) == self.content.get("born")
        return self.silent < TIMEOUT

    def __str__(self) -> str:
        host, pid = self.content.get("host", "an unknown host"), self.content.get("pid", "?")
        return f"process {pid} on {host}, last new heartbeat seen {self.silent:.0f} s ago"


def read_holder(folder: Path) -> Holder | None:
    """The last holder of the run whose leases are in `folder`; None if there never was one. Raises
    Damaged if the lease is not a regular file."""
    numbers = _numbers(folder)
    if not numbers:
        return None
    path = folder / f"{max(numbers)}.json"
    try:
        raw = files.read(path, LARGEST_LEASE, follow=False)
    except FileNotFoundError:  # a higher number was created, and this one deleted
        return read_holder(folder)
    except UnsafeFile as error:
        raise Damaged(str(error)) from error
    before = _observed.get(path)
    if before is None or before[0] != raw:
        before = _observed[path] = (raw, clock())
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        content = None
    fields = content if isinstance(content, dict) else {}
    holder = Holder(max(numbers), fields, clock() - before[1])
    return replace(holder, copied=holder.on_this_host and _is_copy(folder, fields.get("folder")))


def _is_copy(folder: Path, held: Any) -> bool:
    """Whether what is `held` is another folder than this: by both its path and its number, since a
    folder may be moved or mounted again, and some file systems number anew."""
    known = isinstance(held, list) and len(held) == 2
    return known and all(a != b for a, b in zip(_place(folder), held, strict=True))


def _place(folder: Path) -> list[object]:
    return [os.path.realpath(folder), folder.stat().st_ino]


class Lease:
    """A run that this process holds; made by `acquire`."""

    def __init__(self, folder: Path, number: int, deaths: int):
        self.folder, self.number = folder, number
        self.path = folder / f"{number}.json"
        me = {"pid": os.getpid(), "born": _start_time(os.getpid()), "folder": _place(folder)}
        self.content = {"token": secrets.token_hex(8), **_host_identity(), **me, "deaths": deaths}
        self.content |= {"beat": 0, "released": False}
        self._seen_at = _clock_with_sleep()
        self._lost = ""
        self._released = threading.Event()
        self._heart = threading.Thread(
            target=self._keep_beating, name=f"lease {folder}", daemon=True
        )

    def check(self) -> None:
        """Raise Held if another process has taken the run over, StorageError if the disk cannot
        tell."""
        if self._lost:
            raise Held(self._lost)
        if _clock_with_sleep() - self._seen_at > RECHECK:
            self.check_now()

    def check_now(self) -> None:
        """The same, always from the files: before what cannot be undone."""
        if self._lost:
            raise Held(self._lost)
        try:
            now = _clock_with_sleep()
            if max(_numbers(self.folder), default=0) == self.number and self._is_mine():
                self._seen_at = now
                return
            new = read_holder(self.folder) if self.folder.is_dir() else None
        except OSError as error:
            raise StorageError(f"{self.folder}: {error.strerror}") from error
        except Damaged as error:
            raise StorageError(str(error)) from error
        self._lost = f"{self.folder.parent}: taken over by {new}" if new else f"{self.path}: gone"
        raise Held(self._lost)

    def release(self) -> None:
        """Let other processes acquire the run."""
        self._released.set()
        self._heart.join()
        with contextlib.suppress(Held, StorageError, OSError):
            self.check_now()
            self._write(released=True)

    def _is_mine(self) -> bool:
        try:
            return json.loads(self.path.read_bytes()).get("token") == self.content["token"]
        except (FileNotFoundError, ValueError):
            return False

    def _keep_beating(self) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                self.check_now()
                self._write(beat=self.content["beat"] + 1)
            except Held:
                return
            except (StorageError, OSError):
                continue  # whatever writes next meets the same disk; the next beat may succeed

    def _write(self, **changes: object) -> None:
        self.content |= changes
        temporary = self._temporary()
        os.replace(temporary, self.path)

    def _temporary(self) -> Path:
        path = self.folder / f".{self.content['token']}"
        path.write_text(json.dumps(self.content))
        return path

    def claim(self) -> bool:
        """Create the numbered file and start the heartbeat, unless another process was faster."""
        temporary = self._temporary()
        try:
            os.link(temporary, self.path)
            won = True
        except OSError:
            # Another process created it; or this link exists and the reply of the server was lost;
            # or the file system has no links.
            won = temporary.stat().st_nlink > 1 or (not self.path.exists() and self._create())
        temporary.unlink()
        if won and max(_numbers(self.folder)) > self.number:
            self.path.unlink()  # meanwhile this number was created, superseded and deleted
            won = False
        if won:
            self._delete_older()
            self._heart.start()
        return won

    def _create(self) -> bool:
        try:
            with open(self.path, "x") as file:
                file.write(json.dumps(self.content))
        except FileExistsError:
            return False
        return True

    def _delete_older(self) -> None:
        for number in _numbers(self.folder):
            if number < self.number:
                old = self.folder / f"{number}.json"
                _observed.pop(old, None)
                old.unlink(missing_ok=True)


def held_error(run: Path, by: object) -> Held:
    """The error that names the holder of a run."""
    return Held(f"{run}: another process is training this run: {by}")


def acquire(folder: Path, patience: float = 0.0) -> Lease:
    """Acquire the run whose leases are in `folder`. Raises Held, naming the holder, if it is alive.

    A holder on another host is observed for at most `patience` seconds, to see whether it is dead.
    """
    deadline, announced = clock() + patience, False
    try:
        files.make_directory(folder)
        while True:
            before = read_holder(folder)
            if before is None or not before.alive:
                number, deaths = (before.number + 1, before.deaths) if before else (1, 0)
                lease = Lease(folder, number, deaths)
                if lease.claim():
                    return lease
            elif before.on_this_host or clock() >= deadline:
                raise held_error(folder.parent, before)
            else:
                if not announced:
                    log.info(
                        "%s: waiting to see whether its holder is alive: %s", folder.parent, before
                    )
                announced = True
                time.sleep(POLL)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(match[1]) for name in os.listdir(folder) if (match := NAME.fullmatch(name))]
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise Damaged(f"{folder}: is not a directory") from error


def _clock_with_sleep() -> float:
    """Seconds, including those of a suspended machine, in which others may have taken over."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@functools.cache
def _host_identity() -> dict[str, str]:
    """What makes a process id unique: the boot of the host, and the container on it. Several
    machines that share a disk may have one name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        boot += f"/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        boot = ""
    return {"host": platform.node(), "boot": boot}


def _start_time(pid: int) -> str | None:
    """When a process started, which tells it from later ones with its id; None if it is dead."""
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
