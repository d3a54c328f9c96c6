"""Slots: shares of this machine, the cores or GPUs that one worker or process may use."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.errors import BadInput
from research.io import host

MIN_PROCESS_BYTES = 300e6  # of a process of jax that has trained the smallest model


@dataclass(frozen=True)
class Slot:
    """What one worker may use. No GPUs: JAX gets one device for each core."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return {"JAX_NUM_CPU_DEVICES": str(len(self.cores))}


@contextlib.contextmanager
def pin_children(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are started in this context run on these cores alone: a child inherits those
    of the thread that starts it."""
    if not hasattr(os, "sched_setaffinity"):  # macOS
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def divide_machine(
    count: int | None,
    cores: Sequence[int],
    gpus: Sequence[str],
    flag: str = "workers",
    processes: int = 1,
) -> list[Slot]:
    """`count` equal slots; cores and GPUs that do not divide are left idle, so that all compute
    alike.

    Without `count` there is one slot for each GPU, or for each core where there is no GPU. Raises
    BadInput, naming `flag`, if there are more slots than GPUs, or than the memory holds of
    `processes` in each.
    """
    count = count or len(gpus or cores)
    if gpus and count > len(gpus):
        raise BadInput(f"--{flag}: {count}, but there are {len(gpus)} GPUs")
    if (total := count * processes) > max(1, max_processes()):
        needed, memory = total * MIN_PROCESS_BYTES / 1e9, host.memory() / 1e9
        raise BadInput(
            f"--{flag}: {count} would take at least {needed:.1f} GB for {total} processes; this "
            f"machine has {memory:.1f} GB, for {max_processes()} of them"
        )
    share, each = max(1, len(cores) // count), len(gpus) // count
    return [
        Slot(
            tuple(cores[(i * share + k) % len(cores)] for k in range(share)),
            tuple(gpus[i * each : (i + 1) * each]),
        )
        for i in range(count)
    ]


def max_processes() -> int:
    """How many processes this machine's memory holds at most."""
    return int(host.memory() / MIN_PROCESS_BYTES)


def available_cores() -> list[int]:
    """Those that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def available_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the NVIDIA GPUs that this process may use."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    driver = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(driver.iterdir())))] if driver.is_dir() else []
