"""Workers on this machine: each with its own cores, or its own GPUs."""

import time
from collections.abc import Sequence

from research.launch import process_group, slots
from research.launch.job import Job, RestartPolicy
from research.launch.process_group import ProcessGroup
from research.launch.slots import Slot

POLL = 0.1  # seconds between looks at the workers


def run(job: Job) -> list[int]:
    """Start the workers, start again those that die, and return their exit codes.

    Without `job.workers` there is one for each GPU, or for each core where there is no GPU, if the
    memory holds so many; for as many of them as a worker has processes. When stopped, the workers
    get SIGTERM. Raises BadInput if there are more processes than GPUs, or than the memory holds.
    """
    cores, gpus = slots.available_cores(), slots.available_gpus()
    room = min(len(gpus or cores), slots.max_processes())
    workers = job.workers or max(1, room // job.num_processes)
    worker_slots = slots.divide_machine(workers, cores, gpus, processes=job.num_processes)
    shares = [process_group.divide_slot(slot, job.num_processes) for slot in worker_slots]
    policy, codes = RestartPolicy(job), [0] * workers
    job.logs.mkdir(parents=True, exist_ok=True)
    running: dict[int, ProcessGroup] = {}
    try:
        for index in range(workers):
            running[index] = _start(job, index, shares[index])
        stopping = False
        while running:
            if not stopping and job.stop():
                stopping = True
                for worker in running.values():
                    worker.terminate()
            for index, worker in list(running.items()):
                if (code := worker.poll()) is None:
                    continue
                codes[index] = code
                del running[index]
                if policy.allows(index, code):
                    running[index] = _start(job, index, shares[index])
            job.show()
            time.sleep(POLL)
    finally:
        for worker in running.values():
            worker.kill()
            worker.wait()
    return codes


def _start(job: Job, index: int, shares: Sequence[Slot]) -> ProcessGroup:
    log = job.logs / f"worker-{index}.log"
    return ProcessGroup(job.command, shares, [log] * len(shares))
