"""Programs that are timed in turn: each in a process of its own, a block of steps at a time.

A program says {"ready": true, ...} on its standard output when it has compiled and warmed up, and
then, for every number of steps that it reads, {"ms": milliseconds per step}. While one works the
others wait for their input, so all have the machine for themselves, and a drift of its clock meets
all of them alike. This file needs nothing but Python's standard library: it also runs in the
interpreters of peers.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

WARM = 3  # steps before the first block


def serve(step: Callable[[], object], wait: Callable[[object], object], **facts: object) -> None:
    """The side of a program: `step()` makes a step, `wait` blocks until what it returned is done,
    and the block is timed from the first step to the end of the last."""

    def block(n: int) -> float:
        begun = time.perf_counter()
        last = None
        for _ in range(n):
            last = step()
        wait(last)
        return time.perf_counter() - begun

    serve_blocks(block, **facts)


def serve_blocks(block: Callable[[int], float], **facts: object) -> None:
    """The same, where `block(steps)` returns seconds."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    begun = time.perf_counter()
    block(1)
    first = time.perf_counter() - begun
    block(WARM)
    print(json.dumps({"ready": True, "first_step_s": first, **facts}), file=out, flush=True)
    for line in sys.stdin:
        steps = int(line)
        print(json.dumps({"ms": 1e3 * block(steps) / steps}), file=out, flush=True)


class Program:
    """The other side: a program that was started and waits for its turns."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.facts = self._answer()

    def block(self, steps: int) -> float:
        """Milliseconds per step of the next `steps`."""
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()["ms"]

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict:
        assert self.process.stdout
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")


def in_turn(programs: Mapping[str, Program], blocks: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds per step of each block: a block of about `seconds` of each program, `blocks`
    times over."""
    steps = {k: max(1, round(seconds * 1e3 / p.block(10) / 10)) * 10 for k, p in programs.items()}
    out: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(blocks):
        for name, program in programs.items():
            out[name].append(program.block(steps[name]))
    return out


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(theirs) / statistics.median(ours)
