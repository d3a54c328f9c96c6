"""A process group: several processes that are one worker, or one run. All run the same command,
with flags that say which process each is and where process 0 is; they join by jax.distributed (see
parallel.distributed)."""

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
from research.launch import slots
from research.launch.job import start_process
from research.launch.slots import Slot

COLLECTIVE_CODES = (DONE, PREEMPTED, DIVERGED)  # with which a process ends only when all do
GRACE = 3.0  # seconds that the others have to say why they end, after one has ended otherwise
POLL = 0.1


def member_flags(address: str, count: int, index: int) -> list[str]:
    """The flags of process `index` of `count`; none, if it is the only one."""
    if count == 1:
        return []
    values = {"coordinator_address": address, "num_processes": count, "process_id": index}
    return [f"--{name}={value}" for name, value in values.items()]


# The processes.


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def divide_slot(slot: Slot, count: int) -> list[Slot]:
    """A worker's slot, divided among its processes. Raises BadInput."""
    if count == 1:
        return [slot]
    return slots.divide_machine(count, slot.cores, slot.gpus, "num_processes")


def exit_code_of_group(codes: Iterable[int]) -> int:
    """The exit code of a group whose processes ended with `codes`: an error that one of them
    reported before a death, since the others die when they lose it; of deaths, one by a signal
    before those that only noticed it; a death before having stopped."""
    codes = list(codes)
    errors = [code for code in codes if code > 0 and code not in (*COLLECTIVE_CODES, HUNG)]
    deaths = sorted(code for code in codes if code < 0 or code == HUNG)
    return next(iter([*errors, *deaths, *sorted(codes, reverse=True)]))


class ProcessGroup:
    """The processes of one worker on this machine, with the methods of one Popen. When one ends
    with a code that is not of all, the others are ended."""

    def __init__(
        self,
        command: Sequence[str],
        shares: Sequence[Slot],
        logs: Sequence[Path | None],
        inherited: Collection[str] = (),
    ):
        """Start a process for each of `shares`, whose output goes to its one of `logs` (None: where
        this process's goes); `inherited` variables of the environment stay as they are."""
        self.children: list[subprocess.Popen] = []
        self.codes: dict[int, int] = {}  # of those that ended by themselves
        self.deadline: float | None = None
        address = f"127.0.0.1:{free_port()}" if len(shares) > 1 else ""
        for index, (slot, log) in enumerate(zip(shares, logs, strict=True)):
            argv = [*command, *member_flags(address, len(shares), index)]
            changes = {k: v for k, v in slot.environment().items() if k not in inherited}
            with slots.pin_children(slot.cores):
                self.children.append(start_process(argv, log, changes))

    def poll(self) -> int | None:
        """The exit code of the group; None while a process runs."""
        for index, child in enumerate(self.children):
            if index not in self.codes and (code := child.poll()) is not None:
                self.codes[index] = code
        if len(self.codes) == len(self.children):
            return exit_code_of_group(self.codes.values())
        failed = any(code not in COLLECTIVE_CODES for code in self.codes.values())
        if self.deadline is None and failed:
            self.deadline = time.monotonic() + GRACE
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.kill()
            self.wait()
            return exit_code_of_group(self.codes.values())
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


def run_group(name: str, argv: Sequence[str], count: int, stop: Callable[[], bool]) -> int:
    """Run `isoflop <name>` with `argv` as `count` processes on this machine; the exit code of the
    group, HUNG for one that was killed.

    The output of process 0 is that of the group; the others' is shown when they failed and it did
    not. When `stop()` turns true they get SIGTERM; when this process ends, they are killed.
    """
    cores, gpus = slots.available_cores(), slots.available_gpus()
    shares = slots.divide_machine(count, cores, gpus, "num_processes")
    command = [*host.command(name), *argv]
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        logs = [Path(folder) / f"process-{i}.log" for i in range(1, count)]
        inherited = {"JAX_NUM_CPU_DEVICES"} & os.environ.keys()
        group = ProcessGroup(command, shares, [None, *logs], inherited)
        try:
            stopping = False
            while (code := group.poll()) is None:
                if not stopping and stop():
                    stopping = True
                    group.terminate()
                time.sleep(POLL)
        finally:
            group.kill()
            group.wait()
        if code not in COLLECTIVE_CODES and group.codes.get(0, -1) < 0:
            _print_errors(group, logs)
    if code < 0:
        with contextlib.suppress(ValueError):
            print(
                f"error: a process of {count} was ended by {signal.Signals(-code).name}; "
                "launch the same command again to resume",
                file=sys.stderr,
            )
        code = HUNG
    return code


def _print_errors(group: ProcessGroup, logs: Sequence[Path]) -> None:
    """Show the ends of the logs of the processes but 0 that reported an error."""
    for index, log in enumerate(logs, 1):
        if group.codes.get(index, -1) > 0:
            lines = log.read_text(errors="replace").splitlines()[-20:]
            print(f"process {index} of {len(group.children)}:", *lines, sep="\n", file=sys.stderr)
