"""Worker processes on this machine: each with its own cores, or its own GPUs."""

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from research.errors import BadInput
from research.launch.job import Job, Restarts, start

POLL = 0.1  # seconds between looks at the workers


@dataclass(frozen=True)
class Slot:
    """What one worker may use. No GPUs: JAX gets one device for each core."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return {"JAX_NUM_CPU_DEVICES": str(len(self.cores))}


def run(job: Job) -> list[int]:
    """Start the workers, start again those that die, and return their exit codes.

    Without `job.workers` there is one for each GPU, or for each core where there is no GPU. When
    stopped, the workers get SIGTERM. Raises BadInput if there are more workers than GPUs.
    """
    slots = _slots(job.workers, _cores(), _gpus())
    restarts = Restarts(job)
    job.logs.mkdir(parents=True, exist_ok=True)
    running: dict[int, subprocess.Popen] = {}
    codes = [0] * len(slots)
    try:
        for i, slot in enumerate(slots):
            running[i] = _start(job, i, slot)
        told = False
        while running:
            if not told and job.stop():
                told = True
                for worker in running.values():
                    worker.terminate()
            for i, worker in list(running.items()):
                if (code := worker.poll()) is None:
                    continue
                codes[i] = code
                del running[i]
                if restarts(i, code):
                    running[i] = _start(job, i, slots[i])
            job.show()
            time.sleep(POLL)
    finally:
        for worker in running.values():
            worker.kill()
            worker.wait()
    return codes


def _start(job: Job, index: int, slot: Slot) -> subprocess.Popen:
    """A child inherits the cores of the thread that starts it, before its first instruction."""
    with _pinned(slot.cores):
        return start(job.command, job.logs / f"worker-{index}.log", slot.environment())


@contextlib.contextmanager
def _pinned(cores: Sequence[int]):
    if not hasattr(os, "sched_setaffinity"):  # macOS
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _slots(workers: int | None, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Equal shares; what does not divide is left idle, so that all workers compute alike."""
    count = workers or len(gpus or cores)
    if gpus and count > len(gpus):
        raise BadInput(f"--workers: {count}, but there are {len(gpus)} GPUs")
    share, each = max(1, len(cores) // count), len(gpus) // count
    return [
        Slot(
            tuple(cores[(i * share + k) % len(cores)] for k in range(share)),
            tuple(gpus[i * each : (i + 1) * each]),
        )
        for i in range(count)
    ]


def _cores() -> list[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def _gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the NVIDIA GPUs that this process may use."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    found = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(found.iterdir())))] if found.is_dir() else []
