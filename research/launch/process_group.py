"""Several processes that are one worker: the same command, each told its number and where process 0
is. They join by jax.distributed (see research/processes.py)."""

import argparse
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
from typing import Any

from research.errors import DIVERGED, DONE, HUNG, PREEMPTED, BadInput
from research.io import host
from research.launch import slots as machine
from research.launch.job import start
from research.launch.slots import Slot

AUTO = "auto"
TOGETHER = (DONE, PREEMPTED, DIVERGED)  # how a process ends only when all do
GRACE = 3.0  # seconds in which processes may say why they end, after one has
POLL = 0.1
HELP = {
    "num_processes": "how many processes are one run; without the flags below they start here",
    "coordinator_address": "HOST:PORT of process 0, for a process of several that another program "
    f"starts; {AUTO}: ask the cluster (Slurm, Open MPI, Kubernetes, TPU) for all three",
    "process_id": "which of them this is, from 0",
}


def add_flags(parser: argparse.ArgumentParser, member: bool = True) -> None:
    """The flags, named as the arguments of jax.distributed.initialize; of a command that is itself
    no `member`, only how many there are."""
    parser.add_argument("--num_processes", type=int, metavar="K", help=HELP["num_processes"])
    if member:
        for name, kind, value in (
            ("coordinator_address", str, "HOST:PORT"),
            ("process_id", int, "I"),
        ):
            parser.add_argument(f"--{name}", type=kind, metavar=value, help=HELP[name])


def number(args: argparse.Namespace) -> int:
    """How many processes are asked for. Raises BadInput."""
    if args.num_processes is not None and args.num_processes < 1:
        raise BadInput(f"--num_processes: {args.num_processes}; expected at least 1")
    return args.num_processes or 1


def place(args: argparse.Namespace) -> dict[str, Any] | None:
    """What jax.distributed.initialize is to be told; None for one process alone. Raises BadInput
    listing what is wrong."""
    k, i, address = number(args), args.process_id, args.coordinator_address
    if address is None:
        if i is not None:
            raise BadInput("--process_id: needs --coordinator_address=HOST:PORT of process 0")
        return None
    if address == AUTO:
        if i is not None or args.num_processes is not None:
            raise BadInput(
                f"--coordinator_address={AUTO}: the cluster says how many processes there are and "
                "which this is; expected neither --num_processes nor --process_id"
            )
        return {}
    problems = []
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        problems.append(f"--coordinator_address: {address!r}; expected HOST:PORT, or {AUTO}")
    if args.num_processes is None:
        problems.append("--coordinator_address: needs --num_processes, how many there are")
    if i is None or not 0 <= i < k:
        problems.append(f"--process_id: {i}; expected 0 to {k - 1}, another for each process")
    if problems:
        raise BadInput(*problems)
    bind = {"coordinator_bind_address": address} if host in ("127.0.0.1", "localhost") else {}
    given = {"coordinator_address": address, "num_processes": k, "process_id": i, **bind}
    # All is said; of a cluster that this happens to run in jax would take the GPU's number.
    return given | {"cluster_detection_method": "deactivate"}


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
