"""Worker processes on this machine: each with its own cores, or its own GPUs."""

import time
from collections.abc import Sequence

from research.launch import process_group
from research.launch import slots as machine
from research.launch.job import Job, Restarts
from research.launch.process_group import Gang
from research.launch.slots import Slot

POLL = 0.1  # seconds between looks at the workers


def run(job: Job) -> list[int]:
    """Start the workers, start again those that die, and return their exit codes.

    Without `job.workers` there is one for each GPU, or for each core where there is no GPU, if the
    memory holds so many; for as many of them as a worker has processes. When stopped, the workers
    get SIGTERM. Raises BadInput if there are more processes than GPUs, or than the memory holds.
    """
    cores, gpus = machine.cores(), machine.gpus()
    workers = job.workers or max(1, min(len(gpus or cores), machine.most()) // job.processes)
    shares = machine.slots(workers, cores, gpus, processes=job.processes)
    slots = [process_group.parts(slot, job.processes) for slot in shares]
    restarts = Restarts(job)
    job.logs.mkdir(parents=True, exist_ok=True)
    running: dict[int, Gang] = {}
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


def _start(job: Job, index: int, slots: Sequence[Slot]) -> Gang:
    log = job.logs / f"worker-{index}.log"
    return Gang(job.command, slots, [log] * len(slots))
