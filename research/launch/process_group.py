"""Several processes that are one worker: the same command, each told its number and where process 0
is. They join by jax.distributed (see research/processes.py)."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from research.errors import DIVERGED, DONE, HUNG, PREEMPTED
from research.io import host
from research.launch import slots as machine
from research.launch.job import start
from research.launch.slots import Slot

TOGETHER = (DONE, PREEMPTED, DIVERGED)  # how a process ends only when all do


GRACE = 3.0  # seconds in which processes may say why they end, after one has


POLL = 0.1


def flags(address: str, count: int, index: int) -> list[str]:
    """What a command is told as process `index` of `count`; nothing, if it is the only one."""
    if count == 1:
        return []
    told = {"coordinator_address": address, "num_processes": count, "process_id": index}
    return [f"--{name}={value}" for name, value in told.items()]


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as made:
        made.bind((host, 0))
        return made.getsockname()[1]


def verdict(codes: Iterable[int]) -> int:
    """The exit code of them all: what one of them says went wrong, before the deaths of those that
    lost it; a death, before having stopped."""
    codes = list(codes)
    said = [code for code in codes if code > 0 and code not in (*TOGETHER, HUNG)]
    died = [code for code in codes if code < 0 or code == HUNG]
    return next(iter([*said, *died, *sorted(codes, reverse=True)]))


class Gang:
    """The processes of one worker on this machine, in the shape of one Popen. When one ends, and
    not as all of them do, the others are ended."""

    def __init__(
        self,
        command: Sequence[str],
        slots: Sequence[Slot],
        logs: Sequence[Path | None],
        kept: Collection[str] = (),
    ):
        """A process for each of `slots`, whose output goes to its one of `logs` (None: this
        process's own); variables of the environment that are `kept` stay as they are."""
        self.children: list[subprocess.Popen] = []
        self.codes: dict[int, int] = {}  # of those that ended by themselves
        self.until: float | None = None
        address = f"127.0.0.1:{free_port()}" if len(slots) > 1 else ""
        for index, (slot, log) in enumerate(zip(slots, logs, strict=True)):
            told = [*command, *flags(address, len(slots), index)]
            changes = {k: v for k, v in slot.environment().items() if k not in kept}
            with machine.pinned(slot.cores):
                self.children.append(start(told, log, changes))

    def poll(self) -> int | None:
        """The exit code of all; None while one runs."""
        for index, child in enumerate(self.children):
            if index not in self.codes and (code := child.poll()) is not None:
                self.codes[index] = code
        if len(self.codes) == len(self.children):
            return verdict(self.codes.values())
        if self.until is None and any(code not in TOGETHER for code in self.codes.values()):
            self.until = time.monotonic() + GRACE
        if self.until is not None and time.monotonic() > self.until:
            self.kill()
            self.wait()
            return verdict(self.codes.values())
        return None

    def terminate(self) -> None:
        for child in self.children:
            child.terminate()

    def kill(self) -> None:
        for child in self.children:
            child.kill()

    def wait(self) -> None:
        for child in self.children:
            child.wait()


def run(name: str, argv: Sequence[str], count: int, stop: Callable[[], bool]) -> int:
    """`isoflop <name>` with `argv` as `count` processes on this machine; the exit code of all.

    Process 0 speaks for them; what the others said is shown when they failed and it did not. When
    `stop()` turns true they get SIGTERM; when this process ends, they are killed.
    """
    shares = machine.slots(count, machine.cores(), machine.gpus(), "num_processes")
    command = [*host.command(name), *argv]
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        logs = [Path(folder) / f"process-{i}.log" for i in range(1, count)]
        gang = Gang(command, shares, [None, *logs], {"JAX_NUM_CPU_DEVICES"} & os.environ.keys())
        try:
            told = False
            while (code := gang.poll()) is None:
                if not told and stop():
                    told = True
                    gang.terminate()
                time.sleep(POLL)
        finally:
            gang.kill()
            gang.wait()
        if code not in TOGETHER and gang.codes.get(0, -1) < 0:
            for index, log in enumerate(logs, 1):
                if gang.codes.get(index, -1) > 0:
                    print(f"process {index} of {count} said:", file=sys.stderr)
                    print(
                        *log.read_text(errors="replace").splitlines()[-20:],
                        sep="\n",
                        file=sys.stderr,
                    )
    if code < 0:
        with contextlib.suppress(ValueError):
            print(
                f"error: a process of {count} was ended by {signal.Signals(-code).name}; "
                "launch the same command again to go on",
                file=sys.stderr,
            )
        code = HUNG
    return code


def parts(slot: Slot, count: int) -> list[Slot]:
    """A worker's share of the machine, divided among its processes. Raises BadInput."""
    if count == 1:
        return [slot]
    return machine.slots(count, slot.cores, slot.gpus, "num_processes")
